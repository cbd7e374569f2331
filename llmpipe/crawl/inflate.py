"""Undo the content codings of a response piece by piece, so that a bomb costs no more than the limit on its page.

    for piece in undo(pieces, codings("gzip, br"), limit=5 << 20): ...      # TooLarge, BadCoding, CutShort

gzip and deflate stream. Brotli and zstd, which we never ask for and some servers send all the same, are read whole (at
most `limit` bytes) and inflated in steps by pyarrow. Pure functions over iterators of bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

STEP_BYTES = 1 << 16
MAX_CODINGS = 3
MAX_ZSTD_WINDOW = 8 << 20
"""RFC 9659: what a server may ask a client to hold."""

_AS_IT_IS = frozenset({"", "identity", "none", "utf-8", "utf8", "7bit", "8bit", "binary", "aws-chunked"})
"""Said by servers of bodies that are not coded at all."""


class TooLarge(Exception):
    """More than `limit` bytes came out of a coding, or went into it."""


class BadCoding(Exception):
    """The body is not in the coding that its header names."""


class CutShort(Exception):
    """The coded body ends before its end."""


def codings(header: str) -> list[str] | None:
    """Read Content-Encoding; None for a coding that cannot be undone, or for more of them than make sense."""
    names = [name for name in header.lower().replace(" ", "").replace("\t", "").split(",") if name not in _AS_IT_IS]
    return names if len(names) <= MAX_CODINGS and all(name in _UNDO for name in names) else None


def undo(pieces: Iterator[bytes], names: list[str], *, limit: int) -> Iterator[bytes]:
    """Yield the body that `pieces` encode, the last of `names` undone first. What was yielded before an error is right."""
    pieces = _bounded(pieces, limit)
    for name in reversed(names):
        pieces = _bounded(_UNDO[name](pieces), limit)
    return pieces


def _bounded(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        yield piece
        if size > limit:
            raise TooLarge(str(size))


def _gzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return _zlib(pieces, zlib.MAX_WBITS | 16)


def _deflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate zlib's format, or, as some servers have it, bare deflate: told apart by the two bytes of zlib's header."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= 2:
            break
    is_zlib = len(head) >= 2 and head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0
    return _zlib(_chain(head, pieces), zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _chain(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from pieces


def _zlib(pieces: Iterator[bytes], window: int) -> Iterator[bytes]:
    stream, fed = zlib.decompressobj(window), False
    for piece in pieces:
        while piece:
            if stream.eof:
                if window < 16 or not piece.startswith(b"\x1f\x8b"):
                    return  # what follows the end is not ours; gzip may have another member
                stream = zlib.decompressobj(window)
            try:
                out = stream.decompress(piece, STEP_BYTES)
            except zlib.error as error:
                raise BadCoding(str(error)) from None
            fed = True
            piece = stream.unused_data if stream.eof else stream.unconsumed_tail
            if out:
                yield out
            elif not stream.eof and not piece:
                break
    if fed and not stream.eof:
        yield from _rest(stream)
    if fed and not stream.eof:
        raise CutShort("the compressed body ends too early")


def _rest(stream: zlib._Decompress) -> Iterator[bytes]:
    try:
        if out := stream.flush(STEP_BYTES):
            yield out
    except zlib.error:
        return


def _arrow(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    import pyarrow as pa

    body, failure = bytearray(), None
    try:
        for piece in pieces:
            body += piece
    except TooLarge:
        raise
    except Exception as error:  # the connection broke: what had come is inflated, then the error goes on its way
        failure = error
    if not body:
        if failure is not None:
            raise failure
        return
    if name == "zstd":
        _check_zstd(bytes(body))
    try:
        with pa.CompressedInputStream(pa.BufferReader(bytes(body)), name) as stream:
            while out := stream.read(STEP_BYTES):
                yield out
    except (pa.ArrowInvalid, OSError) as error:
        if failure is not None:
            raise failure from None
        raise (CutShort("the compressed body ends too early") if "runcated" in str(error) else BadCoding(str(error)[:100])) from None
    if failure is not None:
        raise failure


def _check_zstd(body: bytes) -> None:
    """Walk the frames and refuse a window that would take more memory than a client has to give (RFC 8878, 3.1.1)."""
    at = 0
    while at + 6 <= len(body):
        magic = int.from_bytes(body[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to be skipped
            at += 8 + int.from_bytes(body[at + 4 : at + 8], "little")
            continue
        if magic != 0xFD2FB528:
            if at:
                return
            raise BadCoding("not zstd")
        flags = body[at + 4]
        single, id_bytes = bool(flags & 0x20), (0, 1, 2, 4)[flags & 3]
        size_bytes = (int(single), 2, 4, 8)[flags >> 6]
        place = at + 5
        if single:
            window = int.from_bytes(body[place + id_bytes : place + id_bytes + size_bytes], "little") + (256 if size_bytes == 2 else 0)
        else:
            base = 1 << (10 + (body[place] >> 3))
            window = base + (base >> 3) * (body[place] & 7)
            place += 1
        if window > MAX_ZSTD_WINDOW:
            raise BadCoding(f"zstd window of {window} bytes")
        at = place + id_bytes + size_bytes
        last = False
        while not last and at + 3 <= len(body):
            block = int.from_bytes(body[at : at + 3], "little")
            last, kind, size = bool(block & 1), (block >> 1) & 3, block >> 3
            at += 3 + (1 if kind == 1 else size)
        at += 4 if flags & 4 else 0


def _brotli(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return _arrow("brotli", pieces)


def _zstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return _arrow("zstd", pieces)


_UNDO: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd}
