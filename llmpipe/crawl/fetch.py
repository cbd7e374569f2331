"""Fetch one URL, whatever the server does: limits on bytes, time and type, no silent redirect, TLS always verified.

    fetcher = Fetcher(guard, user_agent="llmpipe/0.1", max_bytes=5 << 20, timeout_s=60)
    fetched = fetcher.fetch(Target(url="http://a.example/", kind="page"))     # never raises: .rule says what went wrong

Used from many threads at once. Connections are kept one per host and lent to one fetch at a time; a host that is
fetched in parallel gets as many. What a host is given beside (cookies, a login, a proxy) is told by `access`, from the
URL of each request alone. Reads the network, writes nothing.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from llmpipe.crawl import inflate
from llmpipe.crawl.access import Access
from llmpipe.crawl.connections import CONNECT_TIMEOUT_S, Adapter, Current, guarded_pools, tls_context
from llmpipe.crawl.guard import Guard, Refused
from llmpipe.crawl.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from llmpipe.crawl.sitemap import Sitemap
from llmpipe.crawl.urls import canonical, host_name, resolve
from llmpipe.crawl.warc import is_secret

Kind = Literal["page", "robots", "sitemap", "policy"]
MAX_SITEMAP_BYTES = 50 << 20
MAX_POLICY_BYTES = 256 << 10
POLICY_TIMEOUT_S = 10.0
"""Of ai.txt and tdmrep.json, which the pages of a host wait for."""
MAX_HOPS = 5
MAX_IDLE_HOSTS = 256
CHUNK_BYTES = 1 << 16
READ_TIMEOUT_S = 20.0
MAX_RETRY_AFTER_S = 86_400.0
MAX_HEADER_BYTES = 256 << 10
"""Of all headers of a response; http.client stops at 100 of them, and at lines of 64 KiB."""
MAX_VALUE_CHARS = 500

TRANSIENT = frozenset({408, 421, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
_ACCEPT = {
    "page": "text/html,application/xhtml+xml,text/plain;q=0.8,*/*;q=0.1",
    "robots": "text/plain,*/*;q=0.1",
    "sitemap": "application/xml,text/xml,text/plain;q=0.8,*/*;q=0.1",
    "policy": "text/plain,application/json,*/*;q=0.1",
}
_NOT_PROSE = frozenset("text/css text/javascript text/ecmascript text/csv text/tab-separated-values text/calendar text/vcard text/x-vcard text/cache-manifest text/event-stream".split())
_XML = frozenset({"text/xml", "application/xml"})
_MAGIC = (b"%PDF-", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\x7fELF", b"OggS", b"ID3", b"RIFF", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_STALE = re.compile(r"RemoteDisconnected|ConnectionReset|BrokenPipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    url: str
    kind: Kind = "page"
    etag: str | None = None
    last_modified: str | None = None
    """Validators of an earlier visit: make the request conditional."""


@dataclass(slots=True, kw_only=True)
class Fetched:
    url: str
    """Of the response: differs from the target's only in spelling (a tracker removed), or for robots.txt."""
    kind: Kind
    status: int = 0
    """0 when there was no response."""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    rule: str | None = None
    """Why this is not a page; None for a page (200) and for 304."""
    value: str = ""
    retry: bool = False
    """Whether trying again may help."""
    retry_after_s: float | None = None
    location: str | None = None
    """Absolute target of a redirect."""
    truncated: str | None = None
    """How a body that ended early fell short."""
    seconds: float = 0.0
    at: float = 0.0
    """Unix time at which the fetch began."""
    address: str | None = None
    new_cookies: bool = False
    """Whether the server set cookies that are kept: the same URL may then answer otherwise."""
    sitemap: Sitemap = field(default_factory=Sitemap)
    """Set by the pool's thread, so that parsing doesn't hold up the crawl."""

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name), None)


# --- fetching -------------------------------------------------------------------------------------------------------


class Fetcher:
    def __init__(self, guard: Guard, *, user_agent: str, max_bytes: int, timeout_s: float, access: Access | None = None) -> None:
        self.guard, self.user_agent, self.max_bytes, self.timeout_s = guard, user_agent, max_bytes, timeout_s
        self.access = access or Access()
        self._current = Current()
        self._pools = guarded_pools(guard, self._current)
        self._idle: OrderedDict[str, list[Adapter]] = OrderedDict()
        self._lock = threading.Lock()
        self._running: dict[int, tuple[float, socket.socket | None]] = {}
        self._accept = "gzip, deflate"

    def fetch(self, target: Target) -> Fetched:
        """Fetch `target`, at most MAX_HOPS redirects of the same identity (or of robots.txt and its like) included. Never raises."""
        began, wall = time.monotonic(), time.time()
        deadline = began + (min(self.timeout_s, POLICY_TIMEOUT_S) if target.kind == "policy" else self.timeout_s)
        url = target.url
        for hop in range(MAX_HOPS + 1):
            fetched = self._lend(url, target, deadline)
            if fetched.rule in ("protocol", "proxy") and not fetched.status and _STALE.match(fetched.value):
                fetched = self._lend(url, target, deadline)  # the server closed an idle connection as we used it
            fetched.seconds, fetched.at = time.monotonic() - began, wall
            if fetched.location is None:
                return fetched
            if target.kind not in ("robots", "policy") and (canonical(fetched.location) != canonical(url) or (fetched.location == url and not fetched.new_cookies)):
                break
            if hop < MAX_HOPS:
                url = fetched.location
        if fetched.location is not None and canonical(fetched.location) == canonical(target.url):
            fetched.rule, fetched.value, fetched.location = "redirect_loop", fetched.location, None
        return fetched

    def _lend(self, url: str, target: Target, deadline: float) -> Fetched:
        """Take the host's idle connection, or a new one, for one request."""
        host = f"{url.partition(':')[0]}://{host_name(url)}"
        with self._lock:
            idle = self._idle.get(host)
            # under the lock: all threads begin at once, and each would load the CA list
            adapter = idle.pop() if idle else Adapter(self._pools, tls_context() if url.startswith("https:") else None)
        me = threading.get_ident()
        handles: list[socket.socket] = []

        def started(sock: socket.socket) -> None:
            if type(sock) is socket.socket and url.startswith("https:"):
                handles.append(sock := sock.dup())  # the one that can be cut during the handshake, for which ssl takes the other away
            self._running[me] = (deadline, sock)

        self._running[me] = (deadline, None)
        self._current.started = started
        try:
            fetched = self._request(adapter, url, target, deadline)
        finally:
            self._running.pop(me, None)
            self._current.started = None
            for handle in handles:
                handle.close()
        with self._lock:
            self._idle.setdefault(host, []).append(adapter)
            self._idle.move_to_end(host)
            old = self._idle.popitem(last=False)[1] if len(self._idle) > MAX_IDLE_HOSTS else []
        for adapter in old:
            adapter.close()
        return fetched

    def _request(self, adapter: Adapter, url: str, target: Target, deadline: float) -> Fetched:
        fetched = Fetched(url=url, kind=target.kind)
        left = max(deadline - time.monotonic(), 0.05)
        response, proxies = None, None
        try:
            if (proxy := self.access.proxy(url)) is not None:
                self._check(url)
                proxies = {"http": proxy, "https": proxy}
            request = self._prepare(url, target)
            response = adapter.send(request, stream=True, timeout=(min(CONNECT_TIMEOUT_S, left), min(READ_TIMEOUT_S, left)), verify=True, proxies=proxies)
            fetched.status = response.status_code
            if proxies is not None and fetched.status == 407:  # said by the proxy, not by the host: its robots.txt is not missing
                raise Refused("proxy", "407: it wants a login")
            fetched.new_cookies = self.access.learn(url, response.raw.headers)
            fetched.headers = [(k, v) for k, v in response.raw.headers.items() if not is_secret(k)]
            self._judge(fetched, response, deadline)
        except Exception as error:  # a server can make every layer fail; each failure becomes a counted rule
            fetched.rule, fetched.value, fetched.retry = classify(error, late=time.monotonic() >= deadline)
            if fetched.rule == "proxy":
                fetched.status = 0
        finally:
            if response is not None:
                _finish(response, unread=fetched.rule is not None or fetched.truncated is not None)
        if fetched.value:
            fetched.value = self.access.redact(fetched.value)[:MAX_VALUE_CHARS]
        if self.access.is_trusted(url):
            fetched.headers = [(k, self.access.redact(v)) for k, v in fetched.headers]
            fetched.body = self.access.redact_bytes(fetched.body)
        return fetched

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        self.guard.check(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    def _prepare(self, url: str, target: Target) -> requests.PreparedRequest:
        """Make the request without requests' own preparation, which respells URLs and costs as much as all the rest."""
        headers = {"User-Agent": self.user_agent, "Accept": _ACCEPT[target.kind], "Accept-Encoding": self._accept, "Connection": "keep-alive"}
        for name, value in (("If-None-Match", target.etag), ("If-Modified-Since", target.last_modified)):
            if value and len(value) < 1_000 and value.isprintable():  # a server's own words: nothing that breaks a header goes back
                headers[name] = value
        if not self.access.is_empty:
            for name, value in self.access.headers(url).items():
                headers = {k: v for k, v in headers.items() if k.lower() != name.lower()}
                headers[name] = value
        request = requests.PreparedRequest()
        request.method, request.url, request.headers, request.hooks = "GET", url, CaseInsensitiveDict(headers), {}
        return request

    def _judge(self, fetched: Fetched, response: requests.Response, deadline: float) -> None:
        """Decide by status and headers; read the body where it is wanted."""
        status, headers = fetched.status, response.raw.headers
        fetched.retry_after_s = parse_retry_after(headers.get("Retry-After"))
        if (size := sum(len(k) + len(v) for k, v in fetched.headers)) > MAX_HEADER_BYTES:
            fetched.headers = []
            fetched.rule, fetched.value = "protocol", f"headers of {size} bytes"
            return
        if status in (301, 302, 303, 307, 308):
            location = headers.get("Location")
            fetched.location = resolve(fetched.url, _latin1_to_utf8(location)) if location else None
            fetched.rule, fetched.value = "redirect" if fetched.location else "redirect_broken", location or ""
            return
        if status == 304:
            return
        if status != 200:
            fetched.rule, fetched.value, fetched.retry = f"http_{status}", response.reason or "", status in TRANSIENT
            return
        limit = {"page": self.max_bytes, "robots": MAX_ROBOTS_BYTES + 1, "sitemap": MAX_SITEMAP_BYTES, "policy": MAX_POLICY_BYTES}[fetched.kind]
        transfer = headers.get("Transfer-Encoding", "").strip().lower()
        if transfer not in ("", "identity", "chunked"):
            fetched.rule, fetched.value = "protocol", f"Transfer-Encoding: {transfer}"
            return
        if (codings := inflate.codings(encoding := headers.get("Content-Encoding", ""))) is None:
            fetched.rule, fetched.value = "content_encoding", encoding
            return
        if fetched.kind == "page":
            kind = media_type(headers.get("Content-Type"))
            if kind and not _wanted(kind):
                fetched.rule, fetched.value = "wrong_type", kind
                return
            length = headers.get("Content-Length", "").strip()
            if length.isascii() and length.isdigit() and len(length.lstrip("0")) < 20 and int(length) > limit:
                fetched.rule, fetched.value = "too_large", length
                return
        self._read(fetched, response, codings, limit, deadline)
        if fetched.rule is None and fetched.kind == "page" and (found := _not_text(fetched)):
            fetched.rule, fetched.value = "wrong_type", found

    def _read(self, fetched: Fetched, response: requests.Response, codings: list[str], limit: int, deadline: float) -> None:
        """Read the body piece by piece as it arrives, inflated, up to `limit` bytes and the deadline."""
        pieces: list[bytes] = []
        try:
            for piece in inflate.undo(_arriving(response.raw, deadline), codings, limit=limit):
                pieces.append(piece)
        except inflate.TooLarge as error:
            if fetched.kind == "robots":
                fetched.truncated = f"longer than {MAX_ROBOTS_BYTES}"
            else:
                fetched.rule, fetched.value = "too_large", str(error)
                return
        except _Late:
            fetched.rule, fetched.value, fetched.retry = "timeout", f"{sum(map(len, pieces))} bytes in {self.timeout_s:g} s", True
            return
        except (urllib3.exceptions.ProtocolError, OSError, inflate.CutShort) as error:
            if time.monotonic() > deadline or isinstance(error, TimeoutError) or not pieces:
                raise
            fetched.truncated = f"{type(error).__name__} after {sum(map(len, pieces))} bytes"
        fetched.body = b"".join(pieces)

    def expire(self) -> None:
        """Cut connections that are past their deadline: headers can drip for ever below any timeout per read."""
        now = time.monotonic()
        for deadline, sock in list(self._running.values()):
            if sock is not None and now > deadline + 0.5:
                _cut(sock)

    def abort(self) -> None:
        """Cut every connection in use, so that threads end at once."""
        for _, sock in list(self._running.values()):
            if sock is not None:
                _cut(sock)


class _Late(Exception):
    """The deadline of a fetch has passed."""


def _arriving(raw: urllib3.BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
    """Yield what each read from the network gives, so that the deadline is looked at however little it is."""
    while piece := raw.read1(CHUNK_BYTES, decode_content=False):
        yield piece
        if time.monotonic() > deadline:
            raise _Late


def _finish(response: requests.Response, *, unread: bool) -> None:
    """Keep the connection for the next request: after a whole body, or a short one that can be skipped. Else close it."""
    with suppress(OSError, urllib3.exceptions.HTTPError):
        if unread:
            length = response.raw.headers.get("Content-Length", "").strip()
            if response.raw.tell() or not (length.isascii() and length.isdigit()) or len(length) > 6 or int(length) > CHUNK_BYTES:
                response.raw.close()
                return
            response.raw.drain_conn()
        response.raw.release_conn()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain one: SSLSocket's would touch what its thread uses


def classify(error: BaseException, *, late: bool = False) -> tuple[str, str, bool]:
    """Name a failure: (rule, detail, whether trying again may help)."""
    chain: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo and len(chain) < 20:
        link = todo.pop()
        if link is None or link in chain:
            continue
        chain.append(link)
        todo += [link.__cause__, link.__context__, getattr(link, "reason", None) if isinstance(getattr(link, "reason", None), BaseException) else None]
        todo += [a for a in link.args if isinstance(a, BaseException)]
    for link in chain:
        if isinstance(link, Refused):
            return link.rule, link.value, link.retry
    detail = f"{type(chain[-1]).__name__}: {chain[-1]}"[:200]
    if late:
        return "timeout", detail, True
    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError):
            return "tls", getattr(link, "verify_message", "") or str(link), False
    if any(isinstance(link, ssl.SSLError | urllib3.exceptions.SSLError) for link in chain):
        return "tls", detail, False
    if any(isinstance(link, requests.exceptions.ProxyError | urllib3.exceptions.ProxyError) for link in chain):
        return "proxy", detail, not re.search(r"failed: 4\d\d", detail)
    if any(isinstance(link, requests.ConnectTimeout | urllib3.exceptions.NewConnectionError | ConnectionRefusedError) for link in chain):
        return "connect", detail, True
    if any(isinstance(link, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError) for link in chain):
        return "timeout", detail, True
    if any(isinstance(link, inflate.BadCoding | inflate.CutShort) for link in chain):
        return "content_encoding", detail, False
    if any(isinstance(link, OSError) and link.errno in (101, 113) for link in chain):  # no route to network, to host
        return "connect", detail, True
    if any(isinstance(link, ValueError) and not isinstance(link, requests.RequestException) for link in chain[:1]):
        return "protocol", detail, False
    return "protocol", detail, True


def parse_retry_after(value: str | None) -> float | None:
    """Read seconds or an HTTP date; at least 1 s, at most a day."""
    if not value:
        return None
    value = value.strip()
    if re.fullmatch(r"\d{1,12}(\.\d+)?", value):
        seconds = float(value)
    else:
        try:
            at = parsedate_to_datetime(value)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return min(max(seconds, 1.0), MAX_RETRY_AFTER_S)


def media_type(value: str | None) -> str:
    return (value or "").partition(";")[0].partition(",")[0].strip().lower()


def _wanted(kind: str) -> bool:
    return kind in _XML or kind == "application/xhtml+xml" or (kind.startswith("text/") and kind not in _NOT_PROSE)


def _not_text(fetched: Fetched) -> str | None:
    """Name what a body is that its type calls text, or that has no type; None for text."""
    body = fetched.body
    kind = media_type(fetched.header("content-type"))
    start = body[:1024]
    for magic in _MAGIC:
        if body.startswith(magic):
            return f"{kind or 'no type'}, begins with {magic!r}"
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")) and start.count(0) < len(start) // 4:
        return f"{kind or 'no type'}, holds NUL"
    if kind in _XML and not re.search(rb"<(html|!doctype\s+html)", start, re.I):
        return kind
    return None


def _latin1_to_utf8(text: str) -> str:
    """Undo http.client's reading of header bytes as latin-1: servers send Location in UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text
