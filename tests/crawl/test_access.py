"""What a host is given reaches that host, no other one, and no file, log or message."""

from __future__ import annotations

import base64
import sqlite3
import subprocess
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from urllib3 import HTTPHeaderDict

from llmpipe.crawl.access import Access, HostAccess, check_key
from llmpipe.crawl.connections import tls_context
from llmpipe.crawl.fetch import Fetched, Fetcher, Target
from llmpipe.crawl.guard import Guard
from llmpipe.crawl.warc import read_warc
from llmpipe.errors import UsageError
from llmpipe.pipeline import load_pipeline, run_pipeline
from llmpipe.stage import Options
from tests.crawl.server import Answer, answer, certificate, forward_proxy, page, redirect, serve

SECRET = "geheim-9f3a77c1"
LOGIN = f"reader:{SECRET}"
BASIC = "Basic " + base64.b64encode(LOGIN.encode()).decode()


def fetcher(access: Access | None = None, *, allow_private: bool | list[str] = True, resolve: dict[str, str] | None = None) -> Fetcher:
    return Fetcher(Guard(allow_private=allow_private, resolve=resolve), user_agent="llmpipe", max_bytes=100_000, timeout_s=5, access=access)


def fetch(url: str, access: Access | None = None, **where: object) -> Fetched:
    return fetcher(access, **where).fetch(Target(url=url))


def behind_login(then: Answer) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") == BASIC:
            then(handler)
        else:
            answer(401, "no", WWW_Authenticate="Basic realm=x")(handler)

    return send


def remember(heard: list[dict[str, str]], then: Answer) -> Answer:
    """Note the headers of each request, then answer."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        heard.append({k.lower(): v for k, v in handler.headers.items()})
        then(handler)

    return send


# --- who gets it --------------------------------------------------------------------------------------------------


def test_a_login_and_headers_open_the_page_they_are_for() -> None:
    heard: list[dict[str, str]] = []
    with serve({"/": behind_login(remember(heard, page("Wiki 维基")))}) as site:
        assert fetch(site.url()).rule == "http_401"
        given = HostAccess(auth="$WIKI", headers={"X-Key": "k-${N}", "Accept": "text/html"})
        found = fetch(site.url(), Access({site.url(): given}, environ={"WIKI": LOGIN, "N": "1"}))
        assert found.rule is None and "维基" in found.body.decode()
        assert (heard[0]["x-key"], heard[0]["accept"], heard[0]["user-agent"]) == ("k-1", "text/html", "llmpipe")


@pytest.mark.parametrize(
    ("key", "given", "withheld"),
    [
        ("a.example", ["https://a.example/x", "https://a.example:443/"], ["http://a.example/", "https://a.example:8443/", "https://b.a.example/", "https://a.example.org/", "https://xa.example/"]),
        ("http://a.example", ["http://a.example/"], ["https://a.example/", "http://a.example:8080/"]),
        ("a.example:8443", ["https://a.example:8443/"], ["https://a.example/", "http://a.example:8443/"]),
        ("*.example.org", ["https://example.org/", "https://a.example.org/", "https://a.b.example.org/"], ["https://badexample.org/", "http://a.example.org/", "https://example.org.evil.net/"]),
        ("*", ["https://any.net/"], ["http://any.net/", "https://any.net:444/"]),
        ("http://[::1]:80", ["http://[::1]/"], ["http://[::2]/"]),
        ("*.例子.测试", ["https://xn--fsqu00a.xn--0zwm56d/", "https://a.xn--fsqu00a.xn--0zwm56d/"], ["https://xn--0zwm56d/"]),
        ("A.Example", ["https://a.example/"], ["https://user@b.example/?a.example"]),
    ],
)
def test_an_origin_is_scheme_host_and_port(key: str, given: list[str], withheld: list[str]) -> None:
    access = Access({key: HostAccess(auth="u:pw", headers={"X-Key": "k"}, cookies={"id": "c"})})
    assert all(set(access.headers(url)) == {"Authorization", "X-Key", "Cookie"} for url in given)
    assert not any(access.headers(url) for url in withheld)


def test_the_closest_key_counts() -> None:
    access = Access({"*": HostAccess(headers={"X": "all"}), "a.b.example": HostAccess(headers={"X": "one"}), "*.b.example": HostAccess(headers={"X": "domain"}), "*.example": HostAccess(headers={"X": "wide"})})
    found = {host: access.headers(f"https://{host}/")["X"] for host in ("a.b.example", "c.b.example", "d.example", "e.net")}
    assert found == {"a.b.example": "one", "c.b.example": "domain", "d.example": "wide", "e.net": "all"}


def test_a_redirect_takes_nothing_to_another_origin() -> None:
    heard: list[dict[str, str]] = []
    with serve({"/": remember(heard, page("other")), "/robots.txt": remember(heard, page("other"))}) as other:
        with serve({"/robots.txt": redirect(other.url("/robots.txt")), "/": behind_login(redirect(other.url()))}) as site:
            given = HostAccess(auth=LOGIN, headers={"X-Key": SECRET}, cookies={"id": SECRET}, session=True)
            access = Access({site.url(): given})
            found = fetcher(access).fetch(Target(url=site.url("/robots.txt"), kind="robots"))
            assert (found.status, found.url) == (200, other.url("/robots.txt"))
            assert fetch(site.url(), access).location == other.url()
            assert fetch(other.url(), access).rule is None
    assert len(heard) == 2
    assert not any({"authorization", "x-key", "cookie"} & set(headers) or SECRET in str(headers) for headers in heard)


def test_https_secrets_do_not_follow_down_to_http(tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []
    context, authority = certificate(tmp_path)
    tls_context.cache_clear()
    tls_context().load_verify_locations(authority)
    try:
        with serve({"/": remember(heard, page("plain"))}) as plain, serve({"/": remember(heard, redirect(f"http://localhost:{plain.port}/"))}, tls=context) as site:
            access = Access({f"localhost:{site.port}": HostAccess(auth=LOGIN), f"localhost:{plain.port}": HostAccess(auth=LOGIN)})
            found = fetch(f"https://localhost:{site.port}/", access)
            assert found.location == f"http://localhost:{plain.port}/"
            assert fetch(found.location, access).rule is None
            assert access.withheld(found.location) == f"localhost:{plain.port}"
    finally:
        tls_context.cache_clear()
    assert [h.get("authorization") for h in heard] == [BASIC, None]


# --- cookies ------------------------------------------------------------------------------------------------------


def cookie_wall(handler: BaseHTTPRequestHandler) -> None:
    """A page that first sets a cookie and sends the visitor round to where he was."""
    if "seen=yes" in handler.headers.get("Cookie", ""):
        page("Welcome 欢迎")(handler)
    else:
        answer(302, Location=handler.path, Set_Cookie="seen=yes; Path=/")(handler)


def test_cookies_of_a_server_are_kept_only_where_the_config_says_so() -> None:
    with serve({"/": cookie_wall}) as site:
        assert fetch(site.url()).rule == fetch(site.url(), Access({site.url(): HostAccess(headers={"X": "y"})})).rule == "redirect_loop"
        access = Access({site.url(): HostAccess(session=True)})
        found = fetch(site.url(), access)
        assert found.rule is None and "欢迎" in found.body.decode() and found.header("set-cookie") is None
        assert access.headers(site.url("/x")) == {"Cookie": "seen=yes"}
        assert access.headers(f"http://127.0.0.1:{site.port + 1}/") == {}


def test_a_cookies_file_gives_each_cookie_where_it_belongs(tmp_path: Path) -> None:
    file = tmp_path / "cookies.txt"
    lines = [f"a.example\tFALSE\t/\tTRUE\t4102444800\tid\t{SECRET}", "#HttpOnly_a.example\tFALSE\t/docs\tFALSE\t0\tpart\t2", "other.example\tFALSE\t/\tFALSE\t4102444800\tx\t3", "a.example\tFALSE\t/\tFALSE\t1\told\t4"]
    file.write_text("# Netscape HTTP Cookie File\n" + "\n".join(lines) + "\n", encoding="utf-8")
    access = Access({"*": HostAccess(cookies=file), "http://*": HostAccess(cookies=file)})
    assert access.headers("https://a.example/") == {"Cookie": f"id={SECRET}"}
    assert set(access.headers("https://a.example/docs/x")["Cookie"].split("; ")) == {f"id={SECRET}", "part=2"}
    assert access.headers("http://a.example/docs/") == {"Cookie": "part=2"}
    assert access.headers("https://b.example/") == access.headers("https://sub.a.example/") == {}
    file.write_text(f".a.example\tTRUE\t/\tFALSE\t0\twide\t{SECRET}\nlocalhost\tFALSE\t/\tFALSE\t\tnear\t5\n", encoding="utf-8")
    access = Access({"*": HostAccess(cookies=file)})
    assert access.headers("https://sub.a.example/") == {"Cookie": f"wide={SECRET}"}
    assert access.headers("https://localhost/") == {"Cookie": "near=5"}
    assert Access({"a.example": HostAccess(cookies=tmp_path / "$JAR")}, environ={"JAR": str(file)}).headers("https://a.example/") == {"Cookie": f"wide={SECRET}"}
    for wrong, words in ((f"# Netscape\n{SECRET}", "line 2: not a line"), (lines[3] + "\n", "still valid"), ("", "still valid"), (lines[0].replace("4102444800", "soon"), "line 1")):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match=words) as caught:
            Access({"a.example": HostAccess(cookies=file)})
        assert SECRET not in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(UsageError, match="cannot be read"):
        Access({"a.example": HostAccess(cookies=tmp_path / "none.txt")})


def test_a_flood_of_cookies_stays_small() -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for n in range(80):
            handler.send_header("Set-Cookie", f"c{handler.path[1:]}x{n}={'v' * (9_000 if n % 2 else 10)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with serve({f"/{n}": flood for n in range(5)}) as site:
        access = Access({site.url(): HostAccess(session=True)})
        for n in range(5):
            fetch(site.url(f"/{n}"), access)
        assert 0 < len(access.headers(site.url())["Cookie"]) < 2_000


@pytest.mark.filterwarnings("error")  # http.cookiejar prints what it stumbles on
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a=b; Path=/; HttpOnly; SameSite=Lax; Version=x; Port=\"80,x\"", "a=b"),
        ("a=b; Max-Age=99999999999999999999; expires; Expires=Wed, 21 Oct 9999 99:99:99 GMT", "a=b"),
        ("a=b=c; Expires=Wed, 21 Oct 2099 07:28:00 GMT", "a=b=c"),
        ('a="b c"', 'a="b c"'),
        ("a=b; Max-Age=0", None), ("a=b; Domain=.evil.example", None), ("a=b; Domain=..", None),
        ("a=b\0c", None), ("a=\xe9", None), ("no cookie", None), ("=b", None), ("$a=b", None), ("a b=c", None), ("", None), (";;;", None), ("a" * 5_000 + "=b", None),
    ],
)  # fmt: skip
def test_cookies_are_taken_as_a_browser_takes_them(said: str, kept: str | None) -> None:
    access = Access({"a.example": HostAccess(session=True)})
    assert access.learn("https://a.example/x", HTTPHeaderDict({"Set-Cookie": said})) == (kept is not None)
    assert access.headers("https://a.example/x").get("Cookie") == kept
    assert not access.learn("https://a.example/x", HTTPHeaderDict({"Set-Cookie": said}))


# --- proxies ------------------------------------------------------------------------------------------------------


@pytest.fixture
def localhost_tls(tmp_path: Path) -> Iterator:
    context, authority = certificate(tmp_path / "tls")
    tls_context.cache_clear()
    tls_context().load_verify_locations(authority)
    yield context
    tls_context.cache_clear()


def test_a_proxy_is_used_for_http_and_by_connect_for_https(localhost_tls) -> None:
    heard: list[dict[str, str]] = []
    with forward_proxy(login=f"p:{SECRET}") as proxy, serve({"/": remember(heard, page("Far 远"))}) as site, serve({"/": remember(heard, page("Safe 安"))}, tls=localhost_tls) as safe:
        through = Access(proxy=f"http://p:$PW@127.0.0.1:{proxy.port}", environ={"PW": SECRET})
        line = fetcher(through)
        assert [line.fetch(Target(url=site.url())).rule for _ in range(2)] == [None, None]
        secure = [line.fetch(Target(url=f"https://localhost:{safe.port}/")) for _ in range(2)]
        assert all(f.rule is None and "安" in f.body.decode() for f in secure)
        assert proxy.asked == [f"GET {site.url()} HTTP/1.1"] * 2 + [f"CONNECT localhost:{safe.port} HTTP/1.0"]
        assert not any("proxy-authorization" in headers for headers in heard)
        assert fetch(site.url(), Access({site.url(): HostAccess(proxy="none")}, proxy=proxy.url)).rule is None
        assert len(proxy.asked) == 3
        for url in (site.url(), f"https://localhost:{safe.port}/"):
            refused = fetch(url, Access(proxy=f"http://p:{SECRET}x@127.0.0.1:{proxy.port}"))
            assert (refused.rule, refused.status, refused.retry) == ("proxy", 0, False) and "407" in refused.value and SECRET not in refused.value
    gone = fetch(site.url(), Access(proxy=f"http://p:{SECRET}@127.0.0.1:{proxy.port}"))
    assert (gone.rule, gone.retry) == ("proxy", True) and SECRET not in gone.value


def test_a_login_for_a_host_is_not_said_to_the_proxy_in_front_of_https(localhost_tls) -> None:
    with forward_proxy() as proxy, serve({"/": behind_login(page("in"))}, tls=localhost_tls) as safe:
        access = Access({f"localhost:{safe.port}": HostAccess(auth=LOGIN)}, proxy=proxy.url)
        assert fetch(f"https://localhost:{safe.port}/", access).rule is None
        assert BASIC.encode() not in proxy.heard
        wrong = fetch(f"https://127.0.0.1:{safe.port}/", access)  # the certificate is for another name, also behind a proxy
        assert wrong.rule == "tls"


def test_a_proxy_leads_into_no_private_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/": page("secret")}) as site, forward_proxy(hosts={"far.invalid": site.port}) as proxy:
        access = Access(proxy=proxy.url)
        for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"):
            assert fetch(f"http://{host}:{site.port}/", access, allow_private=False).rule == "private_address"
        assert not proxy.asked
        assert fetch("http://far.invalid/", access, allow_private=False).rule is None  # a name only the proxy knows
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetch("http://far.invalid/", allow_private=False).rule == "dns"  # the environment's proxy counts only if asked for
        assert fetch("http://far.invalid/", Access(proxy="env"), allow_private=False).rule is None
        assert Access(proxy="env").proxy(site.url()) is None
        monkeypatch.setenv("https_proxy", f"socks5://p:{SECRET}@h:1")
        with pytest.raises(UsageError, match="HTTPS_PROXY in the environment: expected http") as caught:
            Access({"*": HostAccess(proxy="env")})
        assert SECRET not in f"{caught.value.message} {caught.value.hint}"


# --- nothing secret is kept -----------------------------------------------------------------------------------------


def holds(folder: Path, *secrets: bytes) -> list[str]:
    """Name the files below `folder` that hold a secret, compressed or not."""
    found = []
    for path in (p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += str(pq.read_table(path).to_pylist()).encode()
        if path.suffix == ".gz":
            stream, rest = b"", data
            while rest:
                member = zlib.decompressobj(31)
                stream += member.decompress(rest)
                rest = member.unused_data
            data += stream
        if path.suffix == ".db":
            with sqlite3.connect(path) as db:
                data += "\n".join(db.iterdump()).encode()
        if any(secret in data for secret in secrets):
            found.append(str(path.relative_to(folder)))
    return found


def echo(handler: BaseHTTPRequestHandler) -> None:
    """A page that shows what it was sent, as pages for debugging do, and that says it in headers too."""
    sent = " ".join(f"{k}={v}" for k, v in handler.headers.items())
    page(f"Echo 回声 {sent}", Set_Cookie=f"sid={SECRET}2", X_Echo=sent, Authentication_Info=sent, ETag=f'"{SECRET}"', Proxy_Connection=sent)(handler)


def test_no_output_log_or_message_holds_a_secret(tmp_path: Path, llmpipe: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/": behind_login(page("Wiki 维基", links=["/echo", "/gone", "/bad", "/out"])), "/echo": behind_login(echo), "/bad": answer(302, Location=f"http://x:{SECRET}@[/"), "/out": behind_login(redirect("http://other.invalid/"))}) as site, forward_proxy(login=f"p:{SECRET}") as proxy:
        config = tmp_path / "crawl.yaml"
        config.write_text(f'access:\n  "{site.url()}":\n    auth: $WIKI\n    headers: {{X-Key: "Bearer ${{TOKEN}}"}}\n    cookies: {{id: "{SECRET}3"}}\n    session: true\nproxy: http://p:$PW@127.0.0.1:{proxy.port}\nallow_private: true\ndelay_s: 0\nretry_s: 0\n', encoding="utf-8")
        for name, value in {"WIKI": LOGIN, "TOKEN": SECRET, "PW": SECRET}.items():
            monkeypatch.setenv(name, value)
        done = [
            llmpipe("crawl", site.url(), "--output", "out", "--config", config, "-v", "--debug", "--json"),
            llmpipe("crawl", site.url(), "--output", "out", "--config", config, "--dry-run"),
            llmpipe("inspect", "out"),
            llmpipe("config", "show", "crawl", "--config", config),
        ]
        assert [d.returncode for d in done] == [0, 0, 0, 0], done[0].stderr
        assert site.hits["/echo"] == 1
        monkeypatch.setenv("PW", "wrong")
        done.append(llmpipe("crawl", site.url(), "--output", "refused", "--config", config, "--debug"))
        done.append(llmpipe("crawl", f"http://reader:{SECRET}@127.0.0.1:{site.port}/", "--output", "no", "--debug"))
        assert [d.returncode for d in done[4:]] == [3, 2]
    said = "".join(d.stdout + d.stderr for d in done).encode()
    secrets = (SECRET.encode(), BASIC.encode(), base64.b64encode(f"p:{SECRET}".encode()))
    assert not any(secret in said for secret in secrets)
    config.unlink()
    assert holds(tmp_path, *secrets) == []
    records = [r for path in (tmp_path / "out" / "warc").iterdir() for r in read_warc(path)]
    assert len(records) == 2 and not any({"set-cookie", "authentication-info", "proxy-connection"} & set(r.http_headers) for r in records)
    assert holds(tmp_path, "维基".encode())  # the search does find what is there


def test_the_copy_of_a_pipeline_in_its_run_directory_holds_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "own" / "crawl.yaml"
    file.parent.mkdir()
    with serve({"/": behind_login(page("Wiki 维基"))}) as site:
        step = f'seeds: ["{site.url()}"]\n      allow_private: true\n      delay_s: 0\n      max_pages: 1\n      access: {{"{site.url()}": {{auth: "{LOGIN}", headers: {{X-Key: $KEY}}, cookies: {{id: "%s"}}}}}}\n'
        file.write_text(f"steps:\n  - crawl: # 维基\n      {step}" % "abcd1234", encoding="utf-8")
        pipeline = load_pipeline(file, run_dir=tmp_path / "run")
        with pytest.raises(UsageError, match="step crawl: access.*no variable KEY"):
            run_pipeline(pipeline, pipeline.steps, Options(workers=1))
    kept = (tmp_path / "run" / "pipeline.yaml").read_text(encoding="utf-8")
    assert 'auth: "***", headers: {X-Key: $KEY}, cookies: {id: "***"}' in kept and "维基" in kept
    assert holds(tmp_path / "run", SECRET.encode(), b"abcd1234") == []
    file.write_text(f"steps:\n  - crawl: # 维基\n      {step}" % "abcd\\x31234", encoding="utf-8")
    pipeline = load_pipeline(file, run_dir=tmp_path / "again")
    with pytest.raises(UsageError, match="spelled with escapes"):
        run_pipeline(pipeline, pipeline.steps, Options(workers=1))
    assert not (tmp_path / "again" / "pipeline.yaml").exists()


def test_what_is_wrong_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, words in [
        (HostAccess(auth="$NOT_SET"), "access.a.example.auth: the environment has no variable NOT_SET"),
        (HostAccess(headers={"X-Key": "env:NOT_SET"}), "access.a.example.headers.X-Key"),
        (HostAccess(cookies={"id": "${NOT_SET}"}), "access.a.example.cookies.id"),
        (HostAccess(proxy="socks5://$PW@p:1"), "access.a.example.proxy: expected http"),
        (HostAccess(headers={"X-Key": "$LINES"}), "line break"),
        (HostAccess(auth="$PW"), "no colon"),
        (HostAccess(cookies={"id": "$SEMI"}), "no cookie may hold"),
    ]:
        with pytest.raises(UsageError) as caught:
            Access({"a.example": given}, environ={"PW": SECRET, "LINES": f"a\r\nX: {SECRET}", "SEMI": f"{SECRET};b"})
        assert words in caught.value.message and SECRET not in f"{caught.value.message} {caught.value.hint}"
    assert Access({"a.example": HostAccess(headers={"X": "$$5"})}).headers("https://a.example/") == {"X": "$5"}
    for key in ("", "a b", "ftp://a", "https://a/path", "u:p@a", "a:0", "a:99999", "*x"):
        with pytest.raises(ValueError, match="names no host"):
            check_key(key)
    for wrong in ({"headers": {"User-Agent": "x"}}, {"headers": {"Cookie": "x"}}, {"headers": {"Host": "x"}}, {"headers": {"a b": "x"}}, {"auth": SECRET}, {"auth": "a:b", "headers": {"authorization": "x"}}):
        with pytest.raises(ValueError) as wrong_value:
            HostAccess(**wrong)
        assert SECRET not in str(wrong_value.value)
    assert SECRET not in repr(HostAccess(auth=LOGIN, headers={"X": SECRET}, proxy=f"http://p:{SECRET}@h:1"))
