"""The tokenize stage: same bytes for any workers and kills, growth by new shards and tombstones, nothing injected."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from llmpipe.data.manifest import read_manifest
from llmpipe.data.tokens import TokensDir
from llmpipe.tokenizer.directory import load_tokenizer
from llmpipe.tokenizer.encode import can_cut, cut_text
from llmpipe.tokenizer.special import END
from llmpipe.tokenizer.train import KINDS, write_tokenizer
from tests.material import bilingual_rows, chinese, english

ARGUMENTS = ("tokenize", "--workers", "1", "--input", "docs", "--tokenizer", "tok", "--set", "valid_fraction=0.2", "--set", "shard_tokens=5000")


@pytest.fixture
def prepared(tmp_path: Path, make_docs: Callable, run: Callable) -> Path:
    make_docs(tmp_path / "docs", bilingual_rows(60), shards=12)
    done = run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=400")
    assert done.returncode == 0, done.stderr
    return tmp_path


def contents(path: Path) -> dict[str, bytes]:
    """All listed files and the manifest without what only time and host decide."""
    manifest = read_manifest(path, kind="tokens")
    found = {s.name: (path / s.name).read_bytes() for s in manifest.shards}
    found["info"] = repr((manifest.info, manifest.counts(), manifest.shards, manifest.consumed)).encode()
    return found


def texts_of(path: Path, split: str) -> dict[str, str]:
    tokens = TokensDir(path)
    tokenizer = load_tokenizer(tokens.tokenizer)
    return {d.id: tokenizer.decode(d.ids[:-1].tolist(), skip_special_tokens=False) for d in tokens.split(split).documents()}


def test_bytes_do_not_depend_on_workers(prepared: Path, run: Callable) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        done = run(*ARGUMENTS, "--output", name, "--workers", workers)
        assert done.returncode == 0, done.stderr
    assert contents(prepared / "one") == contents(prepared / "two")
    assert not (prepared / "one" / "state" / "pieces").exists()
    assert "is fresh" in run(*ARGUMENTS, "--output", "one").stderr


def test_kills_at_random_moments_change_nothing(prepared: Path, run: Callable) -> None:
    assert run(*ARGUMENTS, "--output", "whole", "--workers", 1).returncode == 0
    rng = random.Random(7)
    kills = 0
    output = prepared / "killed"
    while kills < 6:
        process = subprocess.Popen([sys.executable, "-m", "llmpipe", *ARGUMENTS, "--output", "killed"], cwd=prepared, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (output / "state").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.15)
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            if kills < 6:  # it was through before the kill: begin another
                for file in sorted(output.rglob("*"), reverse=True):
                    file.unlink() if file.is_file() else file.rmdir()
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    done = run(*ARGUMENTS, "--output", "killed", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(prepared / "whole")


def test_growth_appends_shards_and_buries_what_changed(prepared: Path, make_docs: Callable, run: Callable) -> None:
    assert run(*ARGUMENTS, "--output", "tokens").returncode == 0
    before = contents(prepared / "tokens")
    old = bilingual_rows(60)
    changed = {**old[3], "text": "Nothing is as it was. 一切都变了。", "op": "changed"}
    gone = {**old[4], "op": "gone", "text": ""}
    make_docs(prepared / "docs", [*bilingual_rows(6, start=60), changed, gone])
    done = run(*ARGUMENTS, "--output", "tokens")
    assert done.returncode == 0, done.stderr
    for name, data in before.items():
        assert name == "info" or (prepared / "tokens" / name).read_bytes() == data
    expected = {r["id"]: r["text"] for r in bilingual_rows(66)} | {changed["id"]: changed["text"]}
    del expected[gone["id"]]
    train, valid = (texts_of(prepared / "tokens", s) for s in ("train", "valid"))
    assert train | valid == expected and not train.keys() & valid.keys()
    info = read_manifest(prepared / "tokens", kind="tokens").info
    assert info["train_documents"] + info["valid_documents"] == 65
    assert info["train_tokens"] == len(TokensDir(prepared / "tokens").split("train"))
    assert info["train_bytes"] + info["valid_bytes"] == sum(len(t.encode()) for t in expected.values())
    # all at once gives the same documents in the same splits
    assert run(*ARGUMENTS, "--output", "at-once").returncode == 0
    assert (texts_of(prepared / "at-once", "train"), texts_of(prepared / "at-once", "valid")) == (train, valid)


def test_special_tokens_in_a_text_stay_text(tmp_path: Path, prepared: Path, make_docs: Callable, run: Callable) -> None:
    hostile = f"A page that writes {END} and <|im_start|>system in its text. 网页写 {END} 在正文里。"
    make_docs(tmp_path / "evil", [{"id": "0" * 32, "text": hostile}])
    done = run("tokenize", "--input", "evil", "--tokenizer", "tok", "--output", "t", "--set", "valid_fraction=0")
    assert done.returncode == 0, done.stderr
    (document,) = TokensDir(tmp_path / "t").split("train").documents()
    assert (document.ids == 0).sum() == 1 and document.ids[-1] == 0 and not (document.ids == 2).any()
    assert texts_of(tmp_path / "t", "train") == {"0" * 32: hostile}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_long_text_encoded_in_parts_has_the_same_ids(tmp_path: Path, kind: str) -> None:
    texts = [english(1, 200) + "\n\n" + chinese(2, 300) + "。\n  x's it's 3a, don't\t好， 好 e\u0301. ok " * 30, " \n, . ，" * 200, "abc, 好。abc\n\n " * 300]
    tokenizer = KINDS[kind](texts, vocab_size=800, max_run_chars=64, num_sentinels=4)
    write_tokenizer(tmp_path, tokenizer)
    tokenizer.encode_special_tokens = True
    assert can_cut(tmp_path)
    for text in texts:
        for size in (1, 2, 3, 5, 50):
            parts = list(cut_text(text, size))
            assert "".join(parts) == text and (len(parts) > 10 or "abc" not in text)
            assert [i for part in parts for i in tokenizer.encode(part).ids] == tokenizer.encode(text).ids


def test_a_tokenizer_that_looks_back_is_given_whole_texts(tmp_path: Path) -> None:
    tokenizer = KINDS["bpe"](["a b c"], vocab_size=400, max_run_chars=64, num_sentinels=0)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    write_tokenizer(tmp_path, tokenizer)
    assert not can_cut(tmp_path)


def test_a_missing_or_foreign_tokenizer_is_said(prepared: Path, run: Callable) -> None:
    done = run("tokenize", "--input", "docs", "--tokenizer", "nowhere", "--output", "t")
    assert done.returncode == 3 and "nowhere" in done.stderr
    done = run("tokenize", "--input", "docs", "--tokenizer", "docs", "--output", "t")
    assert done.returncode == 3 and "tokenizer is needed here" in done.stderr
    done = run("tokenize", "--input", "docs", "--tokenizer", "tok", "--output", "t", "--set", "valid_fraction=2")
    assert done.returncode == 2 and "valid_fraction" in done.stderr
