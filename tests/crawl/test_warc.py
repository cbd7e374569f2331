"""What the WARC writer writes, others read; what others write, broken or not, the reader reads."""

from __future__ import annotations

import gzip
import io
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter as OtherWriter

from llmpipe.crawl.warc import WarcWriter, read_warc, truncate
from llmpipe.errors import InputError

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
PAGES = {
    "http://example.org/en": "<html><body>An English page.</body></html>",
    "http://example.org/%E4%B8%AD": "<html><body>一个中文网页。</body></html>",
}


def write_pages(path: Path) -> list[tuple[int, int]]:
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Encoding", "gzip"), ("Set-Cookie", "session=SECRET"), ("X-Note", "a\r\nb")]
    with WarcWriter(path) as writer:
        return [writer.write(url, 200, headers, text.encode(), NOW) for url, text in PAGES.items()]


def test_warcio_reads_what_is_written(tmp_path):
    path = tmp_path / "pages.warc.gz"
    write_pages(path)
    with open(path, "rb") as f:
        records = list(zip(*[iter(ArchiveIterator(f, check_digests="raise"))], strict=True))
    with open(path, "rb") as f:
        found = {}
        for record in ArchiveIterator(f, check_digests="raise"):
            assert record.rec_headers.protocol == "WARC/1.1"
            if record.rec_type == "response":
                found[record.rec_headers["WARC-Target-URI"]] = record.content_stream().read().decode()
                assert record.http_headers.get_statuscode() == "200"
                assert record.http_headers.get_header("X-Archive-Orig-Content-Encoding") == "gzip"
    assert found == PAGES
    assert len(records) == 3


def test_reads_back_its_own_records_by_offset(tmp_path):
    path = tmp_path / "pages.warc.gz"
    places = write_pages(path)
    assert {r.url: r.payload.decode() for r in read_warc(path)} == PAGES
    for (offset, length), (url, text) in zip(places, PAGES.items(), strict=True):
        (record,) = read_warc(path, start=offset, end=offset + length)
        assert (record.offset, record.url, record.payload.decode()) == (offset, url, text)


def test_nothing_secret_is_written(tmp_path):
    path = tmp_path / "pages.warc.gz"
    with WarcWriter(path) as writer:
        writer.write("http://user:PASSWORD@example.org/", 200, {"Set-Cookie": "SECRET", "Authorization": "SECRET"}, b"x", NOW)
    content = gzip.decompress(path.read_bytes())
    assert b"SECRET" not in content and b"PASSWORD" not in content
    assert b"http://example.org/" in content


def test_a_cut_file_goes_on_from_the_last_committed_record(tmp_path):
    path = tmp_path / "pages.warc.gz"
    _, (offset, length) = write_pages(path)
    with open(path, "ab") as f:
        f.write(path.read_bytes()[offset : offset + 20])
    truncate(path, offset + length)
    with WarcWriter(path) as writer:
        writer.write("http://example.org/3", 404, {}, "没有".encode(), NOW)
    assert [r.status for r in read_warc(path)] == [200, 200, 404]
    with pytest.raises(InputError, match="were committed"):
        truncate(path, 10**9)


def test_any_cut_gives_whole_records_and_one_error(tmp_path):
    path, cut = tmp_path / "pages.warc.gz", tmp_path / "cut.warc.gz"
    (first, _), (second, length) = write_pages(path)
    data = path.read_bytes()
    for size in range(first + 1, second + length, 3):
        cut.write_bytes(data[:size])
        records = list(read_warc(cut))
        whole = [r.payload.decode() for r in records if not r.error]
        assert whole == list(PAGES.values())[: len(whole)]
        assert len(whole) >= (size >= second)
        if size != second:
            assert records[-1].error == "cut off"


def test_ranges_cover_each_record_once(tmp_path):
    for name, zipped in (("a.warc.gz", True), ("b.warc", False)):
        path = tmp_path / name
        with open(path, "wb") as f:
            writer = OtherWriter(f, gzip=zipped)
            for n in range(40):
                http = StatusAndHeaders("200 OK", [("Content-Type", "text/plain")], protocol="HTTP/1.0")
                writer.write_record(writer.create_warc_record(f"http://example.org/{n}", "response", payload=io.BytesIO(f"WARC/1.0 \x1f\x8b\x08 第{n}页".encode() * n), http_headers=http))
        size = path.stat().st_size
        for step in (100, 777, size):
            urls = [r.url for a in range(0, size, step) for r in read_warc(path, start=a, end=min(size, a + step))]
            assert urls == [f"http://example.org/{n}" for n in range(40)]


def record(http: bytes, version: str = "1.0") -> bytes:
    return f"WARC/{version}\r\nWARC-Type: response\r\nWARC-Target-URI: <http://example.org/>\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n"


def test_payloads_lose_chunks_and_codings(tmp_path):
    text = "chunked and coded, 分块并压缩".encode()
    deflate = zlib.compressobj(wbits=-15)
    codings = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "Deflate": deflate.compress(text) + deflate.flush(),
        "br": pa.Codec("brotli").compress(text).to_pybytes(),
        "zstd": pa.Codec("zstd").compress(text).to_pybytes(),
        "gzip, br": pa.Codec("brotli").compress(gzip.compress(text)).to_pybytes(),
        "identity": text,
    }
    path = tmp_path / "x.warc"
    for coding, body in codings.items():
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9)) + b"0\r\n\r\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n".encode()
        path.write_bytes(record(head + b"\r\n" + body) + record(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, "1.1"))
        assert [(r.payload, r.error) for r in read_warc(path)] == [(text, None)] * 2, coding


def test_bombs_and_long_records_are_counted_not_kept(tmp_path):
    bomb = gzip.compress(b"0" * 5_000_000)
    path = tmp_path / "x.warc"
    path.write_bytes(
        record(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + bomb)
        + record(b"HTTP/1.1 200 OK\r\n\r\n" + b"1" * 2_000_000)
        + record(b"HTTP/1.1 200 OK\r\nContent-Encoding: rot13\r\n\r\nx")
        + record("HTTP/1.1 200 OK\r\n\r\n好".encode())
    )
    assert [(r.payload.decode(), r.error) for r in read_warc(path, max_bytes=1_000_000)] == [("", "too long"), ("", "too long"), ("", "unknown coding"), ("好", None)]


def test_what_is_no_warc_is_refused(tmp_path):
    path = tmp_path / "x.warc"
    path.write_text("no archive, 不是档案", encoding="utf-8")
    with pytest.raises(InputError, match="neither WARC nor gzip"):
        list(read_warc(path))
