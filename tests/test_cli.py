"""The command line: help, stdout against stderr, exit codes, hints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llmpipe.stage import STAGES
from tests.material import bilingual_rows, write_docs_dir

COMMANDS = [*STAGES, "run", "status", "inspect", "why", "verify", "compare", "list", "doctor", "config"]


def test_help_lists_every_command(llmpipe_here):
    out = llmpipe_here("--help")
    assert out.returncode == 0 and out.stderr == ""
    for command in COMMANDS:
        assert f"\n  {command} " in out.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "config init", "config show", "config validate"])
def test_help_of_each_command(llmpipe_here, command):
    out = llmpipe_here(*command.split(), "--help")
    assert out.returncode == 0 and out.stdout.startswith("Usage:") and out.stderr == ""
    assert command == "config" or ("--json" in out.stdout and "--debug" in out.stdout)


def test_help_imports_nothing_heavy():
    code = "import sys, llmpipe.cli; llmpipe.cli.main(['--help']); print([m for m in ('torch', 'trafilatura', 'datasketch', 'pyarrow', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["crwl"], 2, "No such command"),
        (["clean", "--output", "x"], 2, "--input"),
        (["clean", "--input", "nowhere", "--output", "x"], 3, "nowhere: no such file"),
        (["clean", "--input", ".", "--output", "x"], 3, "no manifest.json"),
        (["pretrain", "--input", "nowhere", "--output", "x", "--set", "lr=fast"], 2, "lr: expected a number"),
        (["config", "init", "cleen"], 2, "did you mean clean?"),
        (["run", "nowhere.yaml"], 2, "no such config file"),
        (["status", "nowhere"], 3, "no such directory"),
        (["inspect", "nowhere"], 3, "no such directory"),
        (["verify", "nowhere"], 3, "no such directory"),
        (["why", "x", "nowhere"], 3, "no such directory"),
    ],
)
def test_bad_usage_is_an_error_a_hint_and_a_code(llmpipe_here, arguments, code, words):
    out = llmpipe_here(*arguments)
    assert out.returncode == code and out.stdout == ""
    assert out.stderr.startswith("error: ") and words in out.stderr and "Traceback" not in out.stderr


def test_debug_shows_the_traceback(llmpipe):
    out = llmpipe("clean", "--input", "nowhere", "--output", "x", "--debug")
    assert out.returncode == 3 and "Traceback" in out.stderr and "error: " in out.stderr


def test_closed_pipe_ends_with_141():
    out = subprocess.run(
        f"{sys.executable} -m llmpipe config init crawl | true; echo ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", capture_output=True, text=True
    )
    assert out.stdout.strip() in ("141", "0") and "Traceback" not in out.stderr  # 0 where the pipe took it all before it closed
    reader, writer = os.pipe()
    os.close(reader)
    out = subprocess.run([sys.executable, "-m", "llmpipe", "config", "init", "crawl"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert out.returncode == 141 and out.stderr == ""


def test_verify_inspect_status_and_why_on_documents(llmpipe_here, tmp_path):
    directory = write_docs_dir(tmp_path / "run" / "ingest", bilingual_rows(6))
    assert llmpipe_here("verify", "run").stdout == "1 files match their digests\n"
    described = json.loads(llmpipe_here("inspect", directory, "--json").stdout)
    assert described["documents"] == 6 and described["languages"] == {"en": 3, "zh": 3} and described["sample"][1]["title"] == "zh 1"
    assert json.loads(llmpipe_here("status", "run", "--json").stdout)["steps"][0]["state"] == "done"
    assert "kept as" in llmpipe_here("why", "http://docs.example/zh/3.html", "run").stdout
    assert llmpipe_here("why", "http://docs.example/zh/99.html", "run").returncode == 3
    shard = directory / "part-00000-000000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    out = llmpipe_here("verify", "run")
    assert out.returncode == 3 and "part-00000-000000.parquet: content differs" in out.stderr


@pytest.mark.parametrize("what", ["stages", "filters", "presets", "models", "objectives", "tasks"])
def test_list_prints_names_with_a_line_each(llmpipe_here, what):
    listed = json.loads(llmpipe_here("list", what, "--json").stdout)[what]
    assert listed and all(name and line for name, line in listed.items())


@pytest.mark.parametrize("stage", list(STAGES))
def test_config_init_writes_a_config_that_validates(llmpipe_here, tmp_path, stage):
    written = llmpipe_here("config", "init", stage)
    assert written.returncode == 0
    (tmp_path / "c.yaml").write_text(written.stdout, encoding="utf-8")
    out = llmpipe_here("config", "validate", "c.yaml", "--stage", stage)
    assert out.returncode == 0, out.stderr
