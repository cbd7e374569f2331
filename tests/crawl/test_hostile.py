"""What a misbehaving server says ends as one named outcome for one URL, in bounded time and memory; the crawl goes on."""

from __future__ import annotations

import gzip
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpipe.crawl.connections import tls_context
from llmpipe.crawl.fetch import Fetched, Fetcher, Target
from llmpipe.crawl.guard import Guard
from llmpipe.crawl.inflate import codings
from llmpipe.crawl.stage import Config
from llmpipe.data.docs import read_docs
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.crawl.server import certificate, page, serve

Talk = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
PAGE = "<html><head><title>Page 页</title></head><body><p>Read old books by the river. 人们在河边读书。</p></body></html>".encode()


def whole(body: bytes = PAGE, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Type: text/html; charset=utf-8", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def coded(coding: bytes, body: bytes) -> bytes:
    return whole(body, b"Content-Encoding: " + coding)


def compress(codec: str, data: bytes) -> bytes:
    return pa.Codec(codec).compress(data, asbytes=True)


def for_ever(head: bytes, again: bytes, pause_s: float = 0.0) -> Talk:
    def talk(client: socket.socket) -> None:
        client.sendall(head)
        for _ in range(2_000_000):
            client.sendall(again)
            time.sleep(pause_s)

    return talk


@contextmanager
def raw_site(routes: dict[str, bytes | Talk]) -> Iterator[str]:
    """Answer each path with bytes as they are, and go on reading from the same connection; what is not there is a 404."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    def talk(client: socket.socket) -> None:
        with suppress(OSError, IndexError), client:
            while asked := client.recv(65536):
                answer = routes.get(asked.split(b" ")[1].decode("latin-1"), whole(b"no", status=b"404 Not Found"))
                if callable(answer):
                    answer(client)
                    return
                client.sendall(answer)
                if b"Connection: close" in answer or (b"Content-Length" not in answer and b"chunked" not in answer):
                    return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


@contextmanager
def fetcher(*, timeout_s: float = 5.0, max_bytes: int = 100_000, allow_private: bool = True) -> Iterator[Fetcher]:
    """A fetcher with the watch that the crawl's loop keeps on it."""
    made = Fetcher(Guard(allow_private=allow_private), user_agent="llmpipe", max_bytes=max_bytes, timeout_s=timeout_s)
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.1):
            made.expire()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield made
    finally:
        end.set()


def fetch(answer: bytes | Talk, **settings: float) -> Fetched:
    with raw_site({"/": answer}) as site, fetcher(**settings) as made:
        return made.fetch(Target(url=site + "/"))


# --- codings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate", "br", "zstd", "gzip, gzip", "deflate, br", "zstd, gzip", "identity", "UTF-8", "none, gzip"])
def test_codings_that_we_did_not_ask_for_are_undone(coding: str) -> None:
    encoders = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "br": lambda b: compress("brotli", b), "zstd": lambda b: compress("zstd", b), "raw deflate": lambda b: zlib.compress(b)[2:-4]}
    body = PAGE
    for name in coding.split(", "):
        body = encoders.get(name, bytes)(body)
    found = fetch(coded(coding.removeprefix("raw ").encode(), body))
    assert (found.rule, found.body, found.truncated) == (None, PAGE, None)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "br, zstd", "zstd, zstd"])
def test_a_bomb_costs_no_more_than_the_limit(coding: str) -> None:
    encoders = {"gzip": gzip.compress, "deflate": zlib.compress, "br": lambda b: compress("brotli", b), "zstd": lambda b: compress("zstd", b)}
    body = b"<html>" + bytes(32 << 20)
    for name in coding.split(", "):
        body = encoders[name](body)
    assert len(body) < 100_000
    found = fetch(coded(coding.encode(), body))
    assert (found.rule, found.body, found.retry) == ("too_large", b"", False)
    assert int(found.value) < 400_000


def test_a_bomb_stays_small_in_memory() -> None:
    code = """if True:
        import resource, sys
        from llmpipe.crawl.inflate import undo, TooLarge
        import pyarrow as pa, pyarrow.lib
        body, names = sys.stdin.buffer.read(), sys.argv[1].split(",")
        list(undo(iter([pa.Codec("brotli").compress(b"x" * 1000, asbytes=True)]), ["br"], limit=10_000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            list(undo(iter([body]), names, limit=1_000_000))
        except TooLarge:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    zeros = bytes(256 << 20)
    for names, body in (("zstd,gzip", gzip.compress(compress("zstd", zeros))), ("br", compress("brotli", zeros))):
        done = subprocess.run([sys.executable, "-c", code, names], input=body, capture_output=True, check=True)
        assert int(done.stdout) < 40_000, names  # KiB


def test_zstd_may_not_ask_for_a_large_window() -> None:
    frame = struct.pack("<IBB", 0xFD2FB528, 0, (27 - 10) << 3) + (1 | 1 << 1 | 100 << 3).to_bytes(3, "little") + b"x"
    good = struct.pack("<IBB", 0xFD2FB528, 0, (20 - 10) << 3) + (1 | 1 << 1 | 100 << 3).to_bytes(3, "little") + b"x"
    assert fetch(coded(b"zstd", good)).body == b"x" * 100
    for body in (frame, good + frame):
        found = fetch(coded(b"zstd", body))
        assert (found.rule, found.value) == ("content_encoding", "BadCoding: zstd window of 134217728 bytes")


@pytest.mark.parametrize("coding", ["compress", "exi", "gzip, gzip, gzip, gzip", "gzip;q=1", "x" * 5_000])
def test_codings_that_cannot_be_undone_are_named(coding: str) -> None:
    assert codings(coding) is None
    found = fetch(coded(coding.encode(), PAGE))
    assert (found.rule, found.value, found.retry) == ("content_encoding", coding[:500], False)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
def test_a_coded_body_that_is_cut_or_broken(coding: str) -> None:
    text = b"".join(b"<p>%d read old books</p>" % (n * 7919) for n in range(3_000))
    body = {"gzip": gzip.compress(text), "deflate": zlib.compress(text), "br": compress("brotli", text), "zstd": compress("zstd", text)}[coding]
    cut = fetch(coded(coding.encode(), body[:-40]))
    if cut.rule is None:  # zstd works in blocks, of which the last may be the first
        assert cut.truncated and text.startswith(cut.body) and cut.body
    else:
        assert (cut.rule, cut.body) == ("content_encoding", b"")
    assert fetch(coded(coding.encode(), b"this is not coded")).rule == "content_encoding"
    closed = fetch(HEAD + b"Content-Encoding: " + coding.encode() + b"\r\n\r\n" + body)
    assert (closed.rule, closed.body) == (None, text)
    assert fetch(coded(coding.encode(), b"")).rule is None


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        HEAD + b"A: b\r\n" * 100_000 + b"\r\n",
        HEAD + b"A: " + b"x" * 1_000_000 + b"\r\n\r\n",
        HEAD + b"".join(b"H%d: %s\r\n" % (n, b"x" * 60_000) for n in range(20)) + b"Content-Length: 2\r\n\r\nhi",
        b"<html>HTTP/0.9 knows no headers</html>",
        b"\x16\x03\x01\x02\x00" + bytes(200),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 000 Zero\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 1000 High\r\n\r\n",
        b"HTTP/1.1 -200 Minus\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1_000,
        HEAD + b"X-Cut-Off-In-The-Mid",
        HEAD[:-2],
        HEAD + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=lambda words: repr(words[:12] + words[-12:]),
)
def test_nonsense_in_the_head_is_a_protocol_error(words: bytes) -> None:
    found = fetch(words)
    assert (found.rule, found.body) == ("protocol", b"")
    assert len(found.value) <= 500


def test_odd_heads_that_still_hold_a_page() -> None:
    for words in [
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" + whole(),
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(),
        whole(PAGE, b"X-Nul: a\0b", b"ETag: \"\0\"", b"Refresh: 0; url=http://127.0.0.1:1/", b"X-\xe6\xb2\xb3: \xe6\xb2\xb3"),
        whole().replace(b"Content-Length: ", b"Content-Length: 0000"),
        HEAD + b"Content-Length: -7\r\nConnection: close\r\n\r\n" + PAGE,
        HEAD + b"Content-Length: nine\r\n\r\n" + PAGE,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n%x;ext=1\r\n" % len(PAGE) + PAGE + b"\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.0 200\r\nContent-Type:text/html\r\n\r\n" + PAGE,
    ]:
        found = fetch(lambda client, words=words: client.sendall(words))
        assert (found.rule, found.body) == (None, PAGE), words[:60]


def test_validators_of_a_server_never_break_a_later_request() -> None:
    heard = []

    def note(client: socket.socket) -> None:
        client.sendall(whole())

    with raw_site({"/": note}) as site, fetcher() as made:
        for etag in ('"\0"', "a\r\nX-Injected: 1", "x" * 5_000, "河", '"fine"'):
            heard.append(made.fetch(Target(url=f"{site}/", etag=etag, last_modified=etag)).rule)
    assert heard[:3] == [None] * 3 and heard[4] is None


def test_other_statuses_are_their_own_rule() -> None:
    for status, rule in [(b"999 Request denied", "http_999"), (b"600 ", "http_600"), (b"101 Switching Protocols", "http_101"), (b"206 Partial", "http_206"), (b"300 Choose", "http_300")]:
        found = fetch(whole(b"no", status=status))
        assert (found.rule, found.retry) == (rule, False)
    assert len(fetch(whole(b"no", status=b"404 " + b"x" * 60_000)).value) <= 500


def test_one_answer_is_never_taken_for_the_next() -> None:
    """Early hints, bytes beyond the announced length, an upgrade: what is left on a connection must not become another page."""
    other = whole(b"<html>another page</html>")
    routes: dict[str, bytes | Talk] = {
        "/hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" + whole(b"<html>hints</html>"),
        "/more": whole(b"<html>more</html>") + other,
        "/upgrade": b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n" + other,
        "/missing": whole(b"x" * 20, status=b"404 Not Found") + other,
        **{f"/{n}": whole(b"<html>%d</html>" % n) for n in range(4)},
    }
    with raw_site(routes) as site, fetcher() as made:
        for n, path in enumerate(("hints", "more", "upgrade", "missing")):
            made.fetch(Target(url=f"{site}/{path}"))
            time.sleep(0.02)
            assert made.fetch(Target(url=f"{site}/{n}")).body == b"<html>%d</html>" % n, path


@pytest.mark.parametrize(
    ("location", "rule", "target"),
    [
        ("http://user:pw@b.example/x", "redirect", "http://b.example/x"),
        ("//b.example/\u6cb3?q=\u6cb3".encode(), "redirect", "http://b.example/%E6%B2%B3?q=%E6%B2%B3"),
        (b"/\xff\xfe", "redirect", "/%C3%BF%C3%BE"),
        ("javascript:alert(1)", "redirect_broken", None),
        ("file:///etc/passwd", "redirect_broken", None),
        ("http://[::1", "redirect_broken", None),
        ("http://\u2100.example/", "redirect_broken", None),
        ("http://b.example:99999/", "redirect_broken", None),
        ("http://" + "a" * 60_000, "redirect_broken", None),
    ],
)
def test_redirects_lead_to_urls_or_are_broken(location: str | bytes, rule: str, target: str | None) -> None:
    data = location if isinstance(location, bytes) else location.encode("utf-8")
    found = fetch(whole(b"", b"Location: " + data, status=b"302 Found"))
    assert found.rule == rule and len(found.value) <= 500
    assert (found.location or "").endswith(target or "") and (found.location is None) == (target is None)


# --- slowness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "talk",
    [
        for_ever(HEAD, b"X-More: 1\r\n", 0.05),
        for_ever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", 0.05),
        for_ever(b"HTTP/1.1 100 Continue\r\n", b"X: y\r\n", 0.05),
        for_ever(HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b""), 0.02),
    ],
    ids=["headers", "chunks", "interim", "empty gzip members"],
)
def test_what_never_ends_ends_at_the_deadline(talk: Talk) -> None:
    began = time.monotonic()
    found = fetch(talk, timeout_s=0.6)
    assert found.rule in ("timeout", "protocol") and found.body == b""
    assert time.monotonic() - began < 3


def test_a_page_is_whole_though_its_trailers_never_end() -> None:
    found = fetch(for_ever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PAGE) + PAGE + b"\r\n0\r\n", b"T: x\r\n", 0.05), timeout_s=0.6)
    assert (found.rule, found.body) == (None, PAGE) and found.seconds < 3


def test_endless_bodies_stop_at_the_limit() -> None:
    for head, again in ((b"\r\n", b"x" * 60_000), (b"Transfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 65_535 + b"\r\n"), (b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 3_000)):
        found = fetch(for_ever(HEAD + head, again))
        assert (found.rule, found.body) == ("too_large", b"")


@pytest.mark.parametrize("drip", [b"", b"\x16", b"\x16\x03\x03\x40\x00"], ids=["silent", "one byte", "a long record"])
def test_tls_that_hangs_ends_at_the_deadline(drip: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with suppress(OSError):
                client, _ = listener.accept()
                client.sendall(drip)
                while drip:
                    time.sleep(0.05)
                    client.sendall(b"\0")
                time.sleep(5)

        threading.Thread(target=talk, daemon=True).start()
        began = time.monotonic()
        with fetcher(timeout_s=0.6) as made:
            found = made.fetch(Target(url=f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        assert found.rule in ("timeout", "tls") and time.monotonic() - began < 3


@pytest.mark.parametrize(("host", "expired", "rule"), [("localhost", False, None), ("localhost", True, "tls"), ("other.example", False, "tls"), ("*.localhost", False, "tls")])
def test_a_certificate_must_be_valid_and_for_the_host(tmp_path: Path, host: str, expired: bool, rule: str | None) -> None:
    context, authority = certificate(tmp_path, host=host, expired=expired)
    with serve({"/": page("tls")}, tls=context) as site, fetcher() as made:
        url = f"https://localhost:{site.port}/"
        assert made.fetch(Target(url=url)).rule == "tls"  # signed by nobody we know
        tls_context.cache_clear()
        try:
            tls_context().load_verify_locations(authority)
            with fetcher() as knows:
                found = knows.fetch(Target(url=url))
        finally:
            tls_context.cache_clear()
        assert (found.rule, found.retry) == (rule, False)
        assert site.hits["/"] == (rule is None)


# --- the whole crawl --------------------------------------------------------------------------------------------------


def test_a_hostile_site_costs_one_row_a_page_and_stops_nothing(tmp_path: Path) -> None:
    expected: dict[str, tuple[bytes | Talk, str | None]] = {
        "/good": (whole(), None),
        "/bomb": (coded(b"br", compress("brotli", bytes(64 << 20))), "too_large"),
        "/nested": (coded(b"gzip, gzip", gzip.compress(gzip.compress(bytes(32 << 20)))), "too_large"),
        "/unknown": (coded(b"compress", PAGE), "content_encoding"),
        "/drip": (for_ever(HEAD + b"\r\n", b"x", 0.05), "timeout"),
        "/headers": (for_ever(HEAD, b"A: b\r\n", 0.05), "timeout"),
        "/flood": (HEAD + b"A: b\r\n" * 10_000 + b"\r\n", "protocol"),
        "/old": (PAGE, "protocol"),
        "/status": (whole(b"", status=b"999 no"), "http_999"),
        "/chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        "/short": (HEAD + b"Content-Length: 9000\r\nConnection: close\r\n\r\n" + PAGE, None),
        "/self": (whole(b"", b"Location: /self", status=b"302 Found"), "redirect_loop"),
        "/metadata": (whole(b"", b"Location: http://169.254.169.254/latest/", status=b"302 Found"), "redirect_out_of_scope"),
        "/broken": (whole(b"", b"Location: http://[", status=b"302 Found"), "redirect_broken"),
        "/bytes": (whole(b"text\0\1\2" + b"x" * 100), "wrong_type"),
        "/hints": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + whole(PAGE.replace(b"Page", b"Hints")), None),
        "/gbk": (whole("<html><body><p>河水流过安静的小镇，人们在这里读书。</p></body></html>".encode("gbk")), None),
    }
    links = "".join(f'<a href="{path}">{path}</a> ' for path in expected)
    routes: dict[str, bytes | Talk] = {path: answer for path, (answer, _) in expected.items()}
    routes["/"] = whole(f"<html><body><p>Start 开始</p>{links}</body></html>".encode())
    with raw_site(routes) as site:
        settings = {"allow_private": ["127.0.0.1"], "delay_s": 0.0, "retry_s": 0.05, "max_tries": 2, "timeout_s": 1.0, "max_bytes": 200_000, "num_threads": 8, "refresh": "none"}
        outcome = run_stage(STAGES["crawl"], Config(**settings), Request(output=tmp_path, seeds=(f"{site}/",)), Options(workers=1))
    rows = {urlsplit(row["url"]).path: row for batch in read_docs(tmp_path) for row in batch.to_pylist()}
    lost = [(urlsplit(row["url"]).path, row["rule"]) for file in (tmp_path / "dropped").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert dict(lost) == {path: rule for path, (_, rule) in expected.items() if rule}
    assert len(lost) == len(dict(lost)) and outcome.counts.dropped == Counter(rule for _, rule in lost)
    assert set(rows) == {"/", *(path for path, (_, rule) in expected.items() if rule is None)}
    assert "安静的小镇" in rows["/gbk"]["text"] and "读书" in rows["/short"]["text"]


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "127.1", "0", "[::ffff:7f00:1]", "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "localhost", "LOCALHOST.", "user:pw@127.0.0.1", "example.org@127.0.0.1", "127.0.0.1%2f@127.0.0.1"])
def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    from llmpipe.crawl.urls import resolve

    with serve({"/": page("secret")}) as site, fetcher(allow_private=False) as made:
        url = resolve("http://a.example/", f"http://{host}:{site.port}/")
        assert url is None or made.fetch(Target(url=url)).rule == "private_address"
        assert not site.hits
