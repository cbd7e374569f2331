"""Write the raw pages of a crawl as WARC 1.1, and read WARC files of any origin.

    with WarcWriter(output / "warc" / "pages-00000.warc.gz") as writer:
        offset, length = writer.write(url, status=200, http_headers=headers, body=body, fetched_at=now)
    for record in read_warc(path): record.url, record.payload

A gzip member per record, so that a record can be read by its offset and a file cut back to the last committed one
(`truncate`). Nothing secret is written: no request headers, no cookies, no user name in a URL.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import llmpipe
from llmpipe.errors import InputError

MAX_RECORD_BYTES = 64 << 20
"""Longer records are passed over, and said so."""
MAX_HEADER_BYTES = 64 << 10
_SECRET = frozenset("set-cookie set-cookie2 cookie cookie2 authorization www-authenticate authentication-info".split())
_FRAMING = {"content-encoding", "transfer-encoding", "content-length"}
_GZIP = b"\x1f\x8b\x08"


# --- writing --------------------------------------------------------------------------------------------------------


class WarcWriter:
    """Append records to a WARC file; a new file begins with `warcinfo`. Not for use by several threads at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "ab")
        if self._file.tell() == 0:
            fields = f"software: llmpipe/{llmpipe.__version__}\r\nformat: WARC File Format 1.1\r\nconformsTo: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/\r\n"
            self._append("warcinfo", fields.encode(), {"Content-Type": "application/warc-fields", "WARC-Filename": path.name}, datetime.now(UTC))

    def __enter__(self) -> WarcWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(
        self,
        url: str,
        status: int,
        http_headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes,
        fetched_at: datetime,
        *,
        truncated: str | None = None,
        ip: str | None = None,
    ) -> tuple[int, int]:
        """Append a response and return its (offset, length) in the file.

        `body` is what the content codings gave; the headers that described them are kept with the prefix
        `X-Archive-Orig-`. `truncated`: length, time or disconnect.
        """
        headers = http_headers.items() if isinstance(http_headers, Mapping) else http_headers
        lines = [f"HTTP/1.1 {status} {_reason(status)}"]
        for name, value in headers:
            if not is_secret(name):
                lines.append(_one_line(f"{'X-Archive-Orig-' if name.lower() in _FRAMING else ''}{name}: {value}"))
        lines.append(f"Content-Length: {len(body)}")
        block = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body
        fields = {"WARC-Target-URI": without_user(url), "Content-Type": "application/http;msgtype=response", "WARC-Payload-Digest": _digest(body)}
        if ip:
            fields["WARC-IP-Address"] = ip
        if truncated:
            fields["WARC-Truncated"] = truncated
        return self._append("response", block, fields, fetched_at)

    def sync(self) -> None:
        """Put on disk what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _append(self, kind: str, block: bytes, fields: dict[str, str], date: datetime) -> tuple[int, int]:
        stamp = date.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        name = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {fields.get('WARC-Target-URI', self.path.name)} {stamp}")
        fields = {"WARC-Type": kind, "WARC-Record-ID": f"<urn:uuid:{name}>", "WARC-Date": stamp, **fields, "WARC-Block-Digest": _digest(block), "Content-Length": str(len(block))}
        head = "WARC/1.1\r\n" + "".join(_one_line(f"{k}: {v}") + "\r\n" for k, v in fields.items()) + "\r\n"
        squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
        member = squeeze.compress(head.encode("utf-8", "replace") + block + b"\r\n\r\n") + squeeze.flush()
        offset = self._file.tell()
        self._file.write(member)
        self._file.flush()
        return offset, len(member)


def is_secret(header: str) -> bool:
    """Whether a header may carry a login or a session, and so is kept nowhere."""
    name = header.lower()
    return name in _SECRET or name.startswith("proxy-")


def truncate(path: Path, size: int) -> None:
    """Cut a file back to what was committed, after a kill in the middle of a record."""
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise InputError(f"{path}: {there} bytes, but {size} were committed", hint="the file was changed or replaced; start the crawl anew in another --output")
    if there > size:
        with open(path, "r+b") as f:
            f.truncate(size)
            os.fsync(f.fileno())


def without_user(url: str) -> str:
    """Remove `user:password@` from a URL."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\0]+", " ", text)


def _digest(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode("ascii")


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WarcRecord:
    offset: int
    """Of the record, or of the gzip member that holds it."""
    kind: str
    """response, resource, conversion (the text records of WET files), warcinfo, …"""
    url: str = ""
    date: str = ""
    record_id: str = ""
    content_type: str | None = None
    """Of the payload: from the HTTP header in a response."""
    status: int | None = None
    http_headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    payload: bytes = b""
    """Without chunks and content codings."""
    truncated: bool = False
    error: str | None = None
    """Why there is no payload: too long, broken chunks, broken coding, unknown coding, cut off."""


def read_warc(path: Path, *, start: int = 0, end: int | None = None, kinds: tuple[str, ...] = ("response", "resource", "conversion"), max_bytes: int = MAX_RECORD_BYTES) -> Iterator[WarcRecord]:
    """Yield the records that begin in bytes [start, end), WARC 1.0 or 1.1, gzipped by record, gzipped whole, or plain.

    `start` may be any offset: reading begins with the first record from there. A file that ends in the middle of a
    record gives a last record with `error`; one that is no WARC at all is an `InputError`.
    """
    with open(path, "rb") as f:
        yield from read_warc_stream(f, str(path), start=start, end=end, kinds=kinds, max_bytes=max_bytes)


def read_warc_stream(f: BinaryIO, name: str, *, start: int = 0, end: int | None = None, kinds: tuple[str, ...] = ("response", "resource", "conversion"), max_bytes: int = MAX_RECORD_BYTES) -> Iterator[WarcRecord]:
    """Do the same with an open file, which must be seekable unless `start` is 0 and `end` is given; `name` is for errors."""
    if end is None:
        end = f.seek(0, os.SEEK_END)
        f.seek(0)
    magic = f.read(5)
    if magic[:3] != _GZIP and magic != b"WARC/":
        raise InputError(f"{name}: neither WARC nor gzip at its beginning")
    begin = next(_record_starts(f, magic[:3] == _GZIP, start), None) if start else 0
    if begin is None or begin >= end:
        return
    f.seek(begin)
    stream: _Members | _Plain = _Members(f) if magic[:3] == _GZIP else _Plain(f)
    while (record := _read_record(stream, kinds, max_bytes, end)) is not None:
        if record.kind in kinds or record.error:
            yield record
        if record.error == "cut off":
            return


def _record_starts(f: BinaryIO, gzipped: bool, start: int) -> Iterator[int]:
    """Find offsets from `start` on where a record (or a gzip member that begins with one) begins."""
    mark, f_size = (_GZIP if gzipped else b"WARC/1."), f.seek(0, os.SEEK_END)
    position = start
    while position < f_size:
        f.seek(position)
        chunk = f.read(1 << 20)
        at = chunk.find(mark)
        while at >= 0:
            f.seek(max(0, position + at - 4))
            around = f.read(4100)
            here = around[min(4, position + at) :]
            if gzipped:
                try:
                    good = zlib.decompressobj(31).decompress(here, 7).startswith(b"WARC/1.")
                except zlib.error:
                    good = False
            else:
                before = around[: min(4, position + at)]
                good = (position + at == 0 or before == b"\r\n\r\n") and re.match(rb"WARC/1\.[01]\r\nWARC-", here) is not None
            if good:
                yield position + at
            at = chunk.find(mark, at + 1)
        position += max(1, len(chunk) - len(mark) + 1)


class _Plain:
    """A file of records as they are."""

    def __init__(self, f: BinaryIO) -> None:
        self._file = f
        self.offset = f.tell()

    def begin(self) -> None:
        self.offset = self._file.tell()

    def readline(self, limit: int) -> bytes:
        return self._file.readline(limit)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


class _Members:
    """The inflated content of a file of gzip members, in pieces; never more than a piece beyond what was asked for."""

    PIECE = 1 << 18

    def __init__(self, f: BinaryIO) -> None:
        self._file = f
        self._inflate = zlib.decompressobj(31)
        self._open = False
        """Whether the member has begun and not ended."""
        self._raw = b""
        self._raw_end = f.tell()
        self._buffer = bytearray()
        self._member = f.tell()
        self.offset = self._member

    def begin(self) -> None:
        if not self._buffer:
            self._fill()
        self.offset = self._member

    def _fill(self) -> bool:
        """Inflate another piece; False at the end. A member begins where the one before ended."""
        while True:
            if self._inflate.eof:
                self._raw = self._inflate.unused_data.lstrip(b"\0")
                self._member = self._raw_end - len(self._raw)
                self._inflate, self._open = zlib.decompressobj(31), False
            if not self._raw:
                self._raw = self._file.read(self.PIECE)
                self._raw_end += len(self._raw)
                if not self._raw:
                    if self._open:
                        raise EOFError("the last gzip member is cut off")
                    return False
            self._open = True
            out = self._inflate.decompress(self._raw, self.PIECE)
            if not self._inflate.eof:
                self._raw = self._inflate.unconsumed_tail
            if out:
                self._buffer += out
                return True

    def readline(self, limit: int) -> bytes:
        at = self._buffer.find(b"\n")
        while at < 0 and len(self._buffer) < limit and self._fill():
            at = self._buffer.find(b"\n")
        return self._take(min(limit, at + 1 if at >= 0 else limit))

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size and self._fill():
            pass
        return self._take(size)

    def _take(self, size: int) -> bytes:
        out = bytes(self._buffer[:size])
        del self._buffer[:size]
        return out


def _read_record(stream: _Members | _Plain, kinds: tuple[str, ...], max_bytes: int, end: int) -> WarcRecord | None:
    """Read one record; None at the end of the file or of the range."""
    try:
        stream.begin()
        line = stream.readline(MAX_HEADER_BYTES)
        while line in (b"\r\n", b"\n"):
            stream.begin()
            line = stream.readline(MAX_HEADER_BYTES)
        offset = stream.offset
        if not line or offset >= end:
            return None
        if not re.match(rb"WARC/\d\.\d\s*$", line):
            return WarcRecord(offset=offset, kind="broken", error="cut off")
        fields = _header_fields(stream)
        length = int(fields.get("content-length", "")) if fields is not None else -1
        if fields is None or length < 0:
            return WarcRecord(offset=offset, kind="broken", error="cut off")
        kind = fields.get("warc-type", "").lower()
        uri = fields.get("warc-target-uri", "").strip("<>")
        record = WarcRecord(offset=offset, kind=kind, url=uri, date=fields.get("warc-date", ""), record_id=fields.get("warc-record-id", ""), truncated="warc-truncated" in fields)
        if kind not in kinds or length > max_bytes:
            whole = _skip(stream, length)
            wanted = kind in kinds
            return replace(record, error="cut off" if not whole else "too long" if wanted else None)
        block = stream.read(length)
    except (zlib.error, ValueError, EOFError):
        return WarcRecord(offset=stream.offset, kind="broken", error="cut off")
    if len(block) < length:
        return replace(record, error="cut off")
    if fields.get("content-type", "").startswith("application/http"):
        return _http_payload(record, block, max_bytes)
    return replace(record, content_type=fields.get("content-type"), payload=block)


def _header_fields(stream: _Members | _Plain) -> dict[str, str] | None:
    """Read `name: value` lines up to an empty one; None when the file ends or they never end."""
    fields: dict[str, str] = {}
    size, last = 0, ""
    while size < MAX_HEADER_BYTES:
        line = stream.readline(MAX_HEADER_BYTES)
        size += len(line)
        if not line.endswith(b"\n"):
            return None
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return fields
        if text[0] in " \t" and last:
            fields[last] += " " + text.strip()
            continue
        name, _, value = text.partition(":")
        last = name.strip().lower()
        fields.setdefault(last, value.strip())
    return None


def _skip(stream: _Members | _Plain, length: int) -> bool:
    while length > 0:
        piece = stream.read(min(length, 1 << 18))
        if not piece:
            return False
        length -= len(piece)
    return True


def _http_payload(record: WarcRecord, block: bytes, max_bytes: int) -> WarcRecord:
    """Split an HTTP response and undo its chunks and codings."""
    stream = _Plain(io.BytesIO(block))
    status = re.match(rb"HTTP/\d(?:\.\d)?\s+(\d{3})", stream.readline(MAX_HEADER_BYTES))
    headers = _header_fields(stream)
    if status is None or headers is None:
        return replace(record, error="broken HTTP header")
    record = replace(record, status=int(status[1]), http_headers=headers, content_type=headers.get("content-type"))
    body = stream.read(len(block))
    if "chunked" in headers.get("transfer-encoding", "").lower():
        whole = _unchunk(body)
        body = body if whole is None else whole  # many archives keep the header and store the body without chunks
    for coding in reversed([c.strip().lower() for c in headers.get("content-encoding", "").split(",") if c.strip()]):
        plain, error = inflate(body, coding, max_bytes)
        if error:
            return replace(record, error=error)
        body = plain
    return replace(record, payload=body)


def _unchunk(body: bytes) -> bytes | None:
    """Join the chunks of a body; None if it isn't chunked."""
    parts, position = [], 0
    while True:
        at = body.find(b"\r\n", position, position + 1024)
        match = re.match(rb"\s*([0-9A-Fa-f]{1,12})\s*(;.*)?$", body[position:at]) if at >= 0 else None
        if match is None:
            return b"".join(parts) if parts else None
        size = int(match[1], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[at + 2 : at + 2 + size])
        position = at + 2 + size + 2


def inflate(body: bytes, coding: str, max_bytes: int) -> tuple[bytes, str | None]:
    """Undo one content coding, at most `max_bytes` of it; return the bytes and why there are none."""
    if coding in ("identity", "none", "utf-8"):
        return body, None
    if coding in ("gzip", "x-gzip", "deflate"):
        if coding != "deflate" and not body.startswith(_GZIP[:2]):
            return body, None  # stored without the coding that the header names
        return _inflate_zlib(body, (31,) if coding != "deflate" else (zlib.MAX_WBITS, -zlib.MAX_WBITS), max_bytes)
    if coding in ("br", "zstd"):
        import pyarrow as pa

        if coding == "zstd" and not body.startswith(b"\x28\xb5\x2f\xfd"):
            return body, None
        try:
            with pa.CompressedInputStream(pa.BufferReader(body), {"br": "brotli"}.get(coding, coding)) as stream:
                out = stream.read(max_bytes + 1)
        except (pa.ArrowInvalid, OSError):
            return b"", "broken coding"
        return (out, None) if len(out) <= max_bytes else (b"", "too long")
    return b"", "unknown coding"


def _inflate_zlib(body: bytes, windows: tuple[int, ...], max_bytes: int) -> tuple[bytes, str | None]:
    for window in windows:
        stream = zlib.decompressobj(window)
        try:
            out = stream.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        return (out, None) if len(out) <= max_bytes else (b"", "too long")
    return b"", "broken coding"
