"""Files behind URLs are read as those on disk are: ranges, growth, broken connections; secrets stay out of what is recorded."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpipe.data import http, remote
from llmpipe.data.remote import location
from llmpipe.errors import InputError
from tests.ingest.mixed import dropped, ingest, mixed_folder, texts, zipped
from tests.material import chinese, english

SECRET = "hunter2secret"


class Files(BaseHTTPRequestHandler):
    """Serves a dict of files with ETags and ranges; may cut answers short, refuse ranges, or want a user."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        body = server.files.get(self.path.partition("?")[0])
        if body is None or (server.user and self.headers.get("Authorization") != server.user):
            self.send_error(404 if body is None else 401)
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "") if server.ranges else None
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body) - start))
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(body[start : start + server.cut] if server.cut else body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    made.files, made.requests, made.cut, made.ranges, made.user = {}, [], 0, True, ""
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def everything(output: Path) -> bytes:
    rows = b"".join(str(pq.read_table(p).to_pylist()).encode() for p in output.rglob("*.parquet"))
    return rows + b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file())


@pytest.mark.parametrize("ranges", [True, False])
def test_http_files_are_read_and_a_second_run_fetches_no_more(tmp_path, server, ranges):
    server.ranges = ranges
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in (chinese(1), english(1)))
    pq.write_table(pa.table({"text": [chinese(2), english(2)]}), tmp_path / "t.parquet", row_group_size=1)
    server.files = {"/a/news.jsonl.gz": gzip.compress(lines.encode()), "/t.parquet": (tmp_path / "t.parquet").read_bytes(), "/z.wacz": zipped({"archive/x.warc": b"nothing"})}
    urls = [location(f"{server.url}{path}?sig={SECRET}") for path in server.files]
    outcome = ingest(tmp_path / "docs", *urls, workers=2 if ranges else 1)
    assert texts(tmp_path / "docs") == sorted([chinese(1), english(1), chinese(2), english(2)]) and outcome.counts.dropped == {"broken_file": 1}
    server.requests.clear()
    assert ingest(tmp_path / "docs", *urls).state == "fresh" and len(server.requests) == 3
    server.files["/a/news.jsonl.gz"] = gzip.compress(json.dumps({"text": "改过 changed"}).encode())
    outcome = ingest(tmp_path / "docs", *urls)
    assert outcome.counts.extra == {"gone": 1} and "改过 changed" in texts(tmp_path / "docs")
    assert SECRET.encode() not in everything(tmp_path / "docs")


def test_a_broken_connection_is_taken_up_again_and_a_dead_one_stops_the_run(tmp_path, server, monkeypatch):
    monkeypatch.setattr(http.time, "sleep", lambda s: None)
    rows = [f"{n} {chinese(n)}{english(n)}" for n in range(60)]
    server.files = {"/r.jsonl": "".join(json.dumps({"text": r}, ensure_ascii=False) + "\n" for r in rows).encode()}
    server.cut = 20_000
    ingest(tmp_path / "docs", location(f"{server.url}/r.jsonl"))
    assert texts(tmp_path / "docs") == sorted(rows)
    assert ("/r.jsonl", "bytes=20000-") in server.requests
    server.cut, server.ranges = 20_000, False
    with pytest.raises(InputError, match=r"cannot be read"):
        ingest(tmp_path / "docs2", location(f"{server.url}/r.jsonl"))
    with pytest.raises(InputError, match="status 404"):
        ingest(tmp_path / "docs3", location(f"{server.url}/none.jsonl"))


def test_secrets_are_in_no_message_and_no_output(tmp_path, server, llmpipe_here):
    server.user = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    server.files = {"/a.txt": "好文章 good".encode()}
    host = server.url.removeprefix("http://")
    result = llmpipe_here("ingest", f"http://me:{SECRET}@{host}/a.txt?token={SECRET}", "--output", "docs", "-v")
    assert result.returncode == 0, result.stderr
    dry = llmpipe_here("ingest", f"http://me:{SECRET}@{host}/a.txt?token={SECRET}", "--output", "docs", "--dry-run", "--json")
    wrong = llmpipe_here("ingest", f"http://me:wrong{SECRET}@{host}/a.txt?token={SECRET}", "--output", "docs2", "--debug")
    dead = llmpipe_here("ingest", f"http://me:{SECRET}@127.0.0.1:1/a.txt?token={SECRET}", "--output", "docs3")
    assert (wrong.returncode, dead.returncode, dry.returncode) == (3, 3, 0) and "status 401" in wrong.stderr and "cannot be read" in dead.stderr
    said = "".join(r.stdout + r.stderr for r in (result, dry, wrong, dead))
    assert SECRET not in said and SECRET.encode() not in everything(tmp_path)


def test_folders_of_fsspec_are_listed_and_grow(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a.txt": "第一 one".encode(), "/corpus/sub/b.jsonl": b'{"text": "two"}\n', "/corpus/.hidden.txt": b"no", "/corpus/x.bin": b"?"})
    try:
        place = location("memory://corpus")
        ingest(tmp_path / "docs", place, workers=2)
        assert texts(tmp_path / "docs") == ["two", "第一 one"] and dropped(tmp_path / "docs") == [("unknown_format", "x.bin")]
        assert ingest(tmp_path / "docs", place).state == "fresh"
        memory.rm("/corpus/a.txt")
        memory.pipe("/corpus/sub/b.jsonl", b'{"text": "\xe6\x94\xb9"}\n')
        ingest(tmp_path / "docs", place)
        assert texts(tmp_path / "docs") == ["改"]
        ingest(tmp_path / "one", location("memory://corpus/sub/b.jsonl"))
        assert texts(tmp_path / "one") == ["改"]
    finally:
        memory.rm("/corpus", recursive=True)
    (tmp_path / "中 文.txt").write_text("本地 local", encoding="utf-8")
    ingest(tmp_path / "local", location((tmp_path / "中 文.txt").as_uri()))
    assert texts(tmp_path / "local") == ["本地 local"]


def test_what_cannot_be_opened_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(remote.EXTRAS, "s3", ("no_such_module_s3fs", "s3"))
    monkeypatch.setitem(remote.EXTRAS, "hf", ("no_such_module_hub", "hf"))
    for url, extra in (("s3://bucket/x", "s3"), ("hf://owner/name", "hf")):
        with pytest.raises(InputError, match="not installed") as error:
            ingest(tmp_path / "docs", location(url))
        assert error.value.hint == f"pip install 'llmpipe[{extra}]'"
    with pytest.raises(InputError, match="Protocol not known"):
        ingest(tmp_path / "docs", location("nosuch://bucket/x"))


def test_a_data_set_of_the_hub_without_a_network_is_an_error(tmp_path, llmpipe):
    result = llmpipe("ingest", "hf://owner/name", "--output", "docs", env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)})
    assert result.returncode == 3 and "hf://datasets/owner/name" in result.stderr and "network" in result.stderr and "Traceback" not in result.stderr


def test_s3_buckets_are_listed_read_and_followed(tmp_path, monkeypatch):
    code = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    log = open(tmp_path / "moto.log", "w+", encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while not (match := re.search(r"http://127.0.0.1:\d+", (tmp_path / "moto.log").read_text(encoding="utf-8"))) and time.monotonic() < until:
            time.sleep(0.05)
        for name, value in {"AWS_ENDPOINT_URL": match[0], "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        source = mixed_folder(tmp_path / "in")

        bucket = fsspec.filesystem("s3")
        bucket.mkdir("bucket")
        bucket.put(str(source), "bucket/corpus", recursive=True)
        ingest(tmp_path / "disk", source)
        ingest(tmp_path / "docs", location("s3://bucket/corpus"), workers=2)
        assert texts(tmp_path / "docs") == texts(tmp_path / "disk")
        assert ingest(tmp_path / "docs", location("s3://bucket/corpus")).state == "fresh"
        bucket.pipe("bucket/corpus/k.txt", "改过 changed".encode())
        bucket.rm("bucket/corpus/a.jsonl")
        ingest(tmp_path / "docs", location("s3://bucket/corpus"))
        assert len(texts(tmp_path / "docs")) == len(texts(tmp_path / "disk")) - 40 and "改过 changed" in texts(tmp_path / "docs")
        assert SECRET.encode() not in everything(tmp_path / "docs")
        with pytest.raises(InputError):
            ingest(tmp_path / "none", location("s3://nobucket/x"))
    finally:
        process.kill()
        process.wait()
        log.close()
