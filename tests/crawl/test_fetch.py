"""Rules of fetching: whatever a server does ends as one named outcome, within its limits, at an address that was allowed."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path

import pytest

from llmpipe.crawl import sitemap
from llmpipe.crawl.connections import tls_context
from llmpipe.crawl.fetch import Fetched, Fetcher, Target, parse_retry_after
from llmpipe.crawl.guard import Guard, is_public
from tests.crawl.server import answer, page, redirect, serve


def fetch(url: str, *, kind: str = "page", allow_private: bool | list[str] = True, resolve: dict[str, str] | None = None, max_bytes: int = 100_000, timeout_s: float = 5, **validators: str) -> Fetched:
    fetcher = Fetcher(Guard(allow_private=allow_private, resolve=resolve), user_agent="llmpipe", max_bytes=max_bytes, timeout_s=timeout_s)
    return fetcher.fetch(Target(url=url, kind=kind, **validators))


@contextmanager
def raw_server(*chunks: bytes, pause_s: float = 0.0, repeat: int = 1) -> Iterator[str]:
    """Say `chunks` to each client, `repeat` times, whatever it asks; close then."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=say, args=(client,), daemon=True).start()

    def say(client: socket.socket) -> None:
        try:
            client.recv(65536)
            for _ in range(repeat):
                for chunk in chunks:
                    client.sendall(chunk)
                    if pause_s:
                        time.sleep(pause_s)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            client.close()

    threading.Thread(target=talk, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


def test_a_page_comes_back_whole_with_its_headers() -> None:
    with serve({"/": page("河 river", ETag='"v1"')}) as site:
        found = fetch(site.url())
        assert (found.rule, found.status, found.header("etag"), found.truncated) == (None, 200, '"v1"', None)
        assert "河 river" in found.body.decode()
        assert site.agents == {"llmpipe"}


def test_inflates_gzip_and_refuses_other_codings() -> None:
    text = "<html>" + "read old books 读书 " * 50
    routes = {
        "/gzip": answer(body=gzip.compress(text.encode()), Content_Encoding="gzip"),
        "/deflate": answer(body=zlib.compress(text.encode()), Content_Encoding="deflate"),
        "/br": answer(body=b"\x8b\x02\x80", Content_Encoding="br"),
        "/broken": answer(body=b"not gzip at all", Content_Encoding="gzip"),
    }
    with serve(routes) as site:
        assert fetch(site.url("/gzip")).body.decode() == fetch(site.url("/deflate")).body.decode() == text
        assert fetch(site.url("/br")).rule == "content_encoding"
        assert fetch(site.url("/broken")).rule == "content_encoding"


def test_a_gzip_bomb_stops_at_the_limit() -> None:
    with serve({"/": answer(body=gzip.compress(b"\0" * (64 << 20)), Content_Encoding="gzip")}) as site:
        found = fetch(site.url())
        assert (found.rule, found.body) == ("too_large", b"")
        assert int(found.value) < 2_000_000


def test_endless_and_announced_lengths_stop_at_the_limit() -> None:
    with raw_server(HEAD + b"\r\n", b"x" * 50_000, repeat=100) as url:
        assert fetch(url).rule == "too_large"
    with raw_server(HEAD + b"Content-Length: 999999999\r\n\r\n", pause_s=3) as url:
        assert (fetch(url).rule, fetch(url).value) == ("too_large", "999999999")


@pytest.mark.parametrize("head", [HEAD + b"Content-Length: 9000\r\n\r\n", HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9000\r\n\r\n", b"H"])
def test_a_slow_drip_ends_at_the_deadline(head: bytes) -> None:
    body = gzip.compress(b"x" * 9_000, 0) if b"gzip" in head else b"x" * 200
    with raw_server(head, *(bytes([b]) for b in body[:200]), pause_s=0.1) as url:
        fetcher = Fetcher(Guard(allow_private=True), user_agent="llmpipe", max_bytes=100_000, timeout_s=1)
        watch = threading.Event()

        def expire() -> None:
            while not watch.wait(0.1):
                fetcher.expire()  # as the crawl's loop does

        threading.Thread(target=expire, daemon=True).start()
        began = time.monotonic()
        found = fetcher.fetch(Target(url=url))
        watch.set()
        assert (found.rule, found.retry) == ("timeout", True)
        assert time.monotonic() - began < 6


def test_a_body_that_falls_short_is_kept_and_said() -> None:
    with raw_server(HEAD + b"Content-Length: 5000\r\n\r\n<html>short") as url:
        found = fetch(url)
        assert (found.rule, found.body) == (None, b"<html>short")
        assert found.truncated
    with raw_server(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n9\r\nwor") as url:
        found = fetch(url)
        assert found.rule is None and found.body.startswith(b"hello") and found.truncated
    with raw_server(HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n") as url:
        assert fetch(url).rule == "protocol"


def test_more_bytes_than_announced_are_not_read() -> None:
    with raw_server(HEAD + b"Content-Length: 5\r\n\r\nhello and more") as url:
        assert fetch(url).body == b"hello"


@pytest.mark.parametrize("words", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n"])
def test_nonsense_is_a_protocol_error(words: bytes) -> None:
    with raw_server(words) as url:
        assert fetch(url).rule == "protocol"


@pytest.mark.parametrize(
    ("content_type", "body", "rule"),
    [
        ("text/html; charset=gbk", b"<p>x", None),
        ("TEXT/HTML", b"<p>x", None),
        ("application/xhtml+xml", b"<html>", None),
        ("text/plain", "纯文本".encode(), None),
        ("text/markdown", b"# x", None),
        (None, b"<html>", None),
        ("application/xml", b"<?xml version='1.0'?><html>", None),
        ("text/html", "河".encode("utf-16"), None),
        ("application/xml", b"<?xml version='1.0'?><feed>", "wrong_type"),
        ("application/pdf", b"%PDF-1.7", "wrong_type"),
        ("text/html", b"%PDF-1.7 called html", "wrong_type"),
        ("text/plain", b"abc\0\1\2def" + b"x" * 100, "wrong_type"),
        ("text/css", b"a{}", "wrong_type"),
        ("image/png", b"\x89PNG", "wrong_type"),
        (None, b"\x89PNG\r\n", "wrong_type"),
    ],
)
def test_only_text_is_a_page(content_type: str | None, body: bytes, rule: str | None) -> None:
    with serve({"/": answer(body=body, content_type=content_type)}) as site:
        assert fetch(site.url()).rule == rule


def test_a_status_is_its_rule_and_tells_whether_to_try_again() -> None:
    routes = {f"/{s}": answer(s, "x") for s in (204, 401, 404, 410, 429, 500, 503)}
    with serve(routes) as site:
        found = {s: fetch(site.url(f"/{s}")) for s in (204, 401, 404, 410, 429, 500, 503)}
    assert {s: f.rule for s, f in found.items()} == {s: f"http_{s}" for s in found}
    assert {s for s, f in found.items() if f.retry} == {429, 500, 503}


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert parse_retry_after("120") == 120
    assert parse_retry_after("0") == 1
    assert parse_retry_after("99999999999") == 86_400
    assert 50 < parse_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) < 61
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 1
    assert parse_retry_after("soon") is parse_retry_after("") is parse_retry_after(None) is None


def test_validators_make_the_request_conditional() -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        same = handler.headers.get("If-None-Match") == '"v1"' and handler.headers.get("If-Modified-Since") == "yesterday"
        answer(304 if same else 200, "" if same else "<html>")(handler)

    with serve({"/": send}) as site:
        assert fetch(site.url(), etag='"v1"', last_modified="yesterday").status == 304
        assert fetch(site.url()).status == 200


def test_redirects_are_returned_not_followed_but_for_another_spelling() -> None:
    routes = {"/a": redirect("/b?x=河".encode().decode("latin-1")), "/track?utm_source=x": redirect("/track"), "/track": page("here"), "/self": redirect("/self"), "/empty": answer(302), "/bad": redirect("http://[/")}
    with serve(routes) as site:
        found = fetch(site.url("/a"))
        assert (found.rule, found.location) == ("redirect", site.url("/b?x=%E6%B2%B3"))
        found = fetch(site.url("/track?utm_source=x"))
        assert (found.rule, found.url) == (None, site.url("/track"))
        assert fetch(site.url("/self")).rule == "redirect_loop"
        assert fetch(site.url("/empty")).rule == fetch(site.url("/bad")).rule == "redirect_broken"


def test_robots_follow_five_redirects_and_are_cut_at_their_limit() -> None:
    hops = {f"/{n}": redirect(f"/{n + 1}") for n in range(9)}
    with serve({**hops, "/robots.txt": redirect("/5"), "/9": answer(body="User-agent: *\nDisallow: /x\n"), "/big": answer(body=b"#" * 600_000)}) as site:
        found = fetch(site.url("/robots.txt"), kind="robots")
        assert (found.status, found.body) == (200, b"User-agent: *\nDisallow: /x\n")
        assert fetch(site.url("/0"), kind="robots").location is not None
        assert 512_000 < len(fetch(site.url("/big"), kind="robots").body) < 700_000


# --- where connections go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.8.8.8 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 "
    "::1 :: fe80::1 fc00::1 fec0::1 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: 2002:c0a8:101:: "
    "::127.0.0.1 2001:0:4136:e378:8000:63bf:807f:fffe".split(),
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "0"])
def test_private_addresses_are_refused_before_anything_is_sent(host: str) -> None:
    with serve({"/": page("secret")}) as site:
        found = fetch(f"http://{host}:{site.port}/", allow_private=False)
        assert (found.rule, found.retry) == ("private_address", False)
        assert not site.hits


def test_private_hosts_and_networks_can_be_allowed_one_by_one() -> None:
    with serve({"/": page("wiki")}) as site:
        local = f"http://localhost:{site.port}/"
        assert fetch(site.url(), allow_private=["127.0.0.0/8"]).rule is None
        assert fetch(local, allow_private=["localhost"]).rule is None
        assert fetch(site.url(), allow_private=["localhost", "10.0.0.0/8"]).rule == "private_address"


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))])
    connected = []
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: connected.append(address) or (_ for _ in ()).throw(ConnectionRefusedError()))
    assert fetch("http://rebind.example/", allow_private=False).rule == "connect"
    assert connected == [("8.8.8.8", 80)]


def test_resolve_puts_an_address_in_the_place_of_a_host() -> None:
    with serve({"/": page("docs")}) as site:
        found = fetch("http://docs.invalid/", allow_private=False, resolve={"docs.invalid": f"127.0.0.1:{site.port}"})
        assert (found.rule, found.url) == (None, "http://docs.invalid/")
        assert fetch("http://other.invalid/", allow_private=False, resolve={"docs.invalid": "127.0.0.1:1"}).rule == "dns"
    for wrong in ("not-an-address", "127.0.0.1:99999"):
        with pytest.raises(ValueError, match=wrong.partition(":")[0]):
            Guard(resolve={"a.invalid": wrong})


def test_tls_is_verified_always(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve({"/": page("tls")}, tls=context) as site:
        url = f"https://localhost:{site.port}/"
        found = fetch(url)
        assert (found.rule, found.retry) == ("tls", False)
        assert not site.hits
        tls_context.cache_clear()
        try:
            tls_context().load_verify_locations(certificate)
            assert fetch(url).rule is None
            assert fetch(f"https://127.0.0.1:{site.port}/").rule == "tls"  # the certificate is for another name
        finally:
            tls_context.cache_clear()
        assert fetch(site.url().replace("http:", "https:")).rule == "tls"


def test_connections_are_kept_and_survive_a_server_that_closed_them() -> None:
    with serve({"/": page("x"), "/missing": answer(404, "y" * 500)}) as site:
        fetcher = Fetcher(Guard(allow_private=True), user_agent="llmpipe", max_bytes=100_000, timeout_s=5)
        for path in ("/", "/missing", "/", "/missing", "/"):
            fetcher.fetch(Target(url=site.url(path)))
        assert site.connections == 1
    with serve({"/": page("again")}, port=site.port) as again:
        assert fetcher.fetch(Target(url=again.url())).rule is None


# --- sitemaps -----------------------------------------------------------------------------------------------------------


def test_sitemaps_of_every_kind() -> None:
    base = "http://a.example/sitemap.xml"
    pages = b"<?xml version='1.0'?><urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'><url><loc> http://a.example/1 </loc></url><url><loc>/2?a&amp;b</loc></url></urlset>"
    assert sitemap.parse(pages, base).urls == ["http://a.example/1", "http://a.example/2?a&b"]
    assert sitemap.parse(gzip.compress(pages), base).urls == sitemap.parse(pages, base).urls
    index = b"<sitemapindex><sitemap><loc>http://a.example/s1.xml</loc></sitemap></sitemapindex>"
    assert sitemap.parse(index, base).children == ["http://a.example/s1.xml"]
    assert sitemap.parse(b"\xef\xbb\xbfhttp://a.example/t1\nnot a url\nhttp://a.example/t2", base).urls == ["http://a.example/t1", "http://a.example/t2"]
    assert sitemap.parse(b"<rss><channel><link>http://a.example/</link><item><link>http://a.example/news</link></item></channel></rss>", base).urls == ["http://a.example/news"]
    assert sitemap.parse(b"<feed xmlns='http://www.w3.org/2005/Atom'><entry><link rel='self' href='/s'/><link href='/e'/></entry></feed>", base).urls == ["http://a.example/e"]


def test_broken_and_hostile_sitemaps_cost_little() -> None:
    base = "http://a.example/"
    cut = b"<urlset><url><loc>http://a.example/1</loc></url><url><loc>http://a.exa"
    assert sitemap.parse(cut, base).urls[:1] == ["http://a.example/1"]
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><urlset><url><loc>http://a.example/&b;</loc></url></urlset>'
    assert len(repr(sitemap.parse(laughs, base))) < 500
    assert sitemap.parse(gzip.compress(b"\0" * (80 << 20)), base) == sitemap.Sitemap()
    for nothing in (b"", b"<", b"\x1f\x8b\x08broken", b"<html><body>404</body></html>"):
        assert sitemap.parse(nothing, base) == sitemap.Sitemap()
