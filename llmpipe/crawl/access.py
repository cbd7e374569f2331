"""Give a host what the config says it is to get (headers, cookies, a login, a proxy), and give it to no other.

    access = Access({"wiki.example.org": HostAccess(auth="$WIKI_LOGIN")}, environ=os.environ)
    access.headers("https://wiki.example.org/page")      # {"Authorization": "Basic …"}; {} for any other origin
    access.proxy("https://wiki.example.org/page")        # the proxy's URL, or None

What is sent is decided for each request from its own URL, so nothing follows a redirect to another origin. A key
without a scheme means https: a secret goes over plain http only where the key says `http://`. Thread-safe.
Reads the environment and cookies.txt files once; writes nothing.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, http2time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, getproxies_environment

import idna

from llmpipe.errors import UsageError

MAX_COOKIES = 50
MAX_COOKIE_CHARS = 4_096
"""Of one cookie that a server sets; with `MAX_COOKIES` a domain: RFC 6265, 6.1."""
MAX_PLACES = 10_000
"""Origins whose entry is remembered."""
MIN_REDACTED = 8
"""Shorter secrets, and those of letters alone, are not looked for in what a server says: they stand in ordinary text too."""

_PORTS = {"http": 80, "https": 443}
_KEY = re.compile(r"(?:(https?)://)?(\*\.[a-z0-9._-]+|\*|[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?")
_REFERENCE = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)\}|\$([A-Z_][A-Z0-9_]*)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = {
    "user-agent": "user_agent has its own key",
    "cookie": "cookies has its own key",
    **dict.fromkeys(("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "upgrade", "proxy-authorization"), "it is llmpipe's to set"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAccess:
    """What one host, or all below a domain, is given. Values may name variables of the environment: `$NAME`, `Bearer ${NAME}`, `env:NAME`."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request: {Authorization: "Bearer $TOKEN"}."""
    cookies: dict[str, str] | Path | None = field(default=None, repr=False)
    """Cookies by name, or a cookies.txt (Netscape format, as browsers export it), of which each goes where it belongs."""
    auth: str | None = field(default=None, repr=False)
    """`user:password` for basic authentication."""
    session: bool = False
    """Keep the cookies that the server sets, in memory, until the run ends."""
    proxy: str | None = field(default=None, repr=False)
    """http://proxy:3128 for this host in place of the common one; `none`: no proxy."""

    def __post_init__(self) -> None:
        for name in self.headers:
            if not _TOKEN.fullmatch(name):
                raise ValueError("headers: a name must be letters, digits and hyphens")
            if reason := _OURS.get(name.lower()):
                raise ValueError(f"headers: {name} cannot be set here, {reason}")
        if self.auth is not None and "authorization" in {name.lower() for name in self.headers}:
            raise ValueError("auth and headers.Authorization say the same thing; give one")
        if self.auth is not None and ":" not in self.auth and not self.auth.startswith("$"):
            raise ValueError("auth: expected user:password, or the name of a variable that holds it, such as $WIKI_LOGIN")
        if isinstance(self.cookies, dict) and not all(_TOKEN.fullmatch(name) for name in self.cookies):
            raise ValueError("cookies: a name holds characters that no cookie's name may hold")


def check_key(key: str) -> None:
    """Raise ValueError for what names no host: `HOST`, `HOST:PORT`, `*.DOMAIN`, `*`, with or without `http://` before it."""
    if _parse_key(key) is None:
        raise ValueError(f"access: {key.rpartition('@')[2]!r} names no host; expected wiki.example.org, *.example.org, *, wiki.example.org:8443 or http://wiki.example.org")


@dataclass(frozen=True, slots=True)
class _Key:
    scheme: str | None
    host: str
    """`a.example`, `*.example` (example itself too) or `*`."""
    port: int | None

    def names(self, host: str) -> bool:
        return self.host in ("*", host) or (self.host.startswith("*.") and (host == self.host[2:] or host.endswith(self.host[1:])))

    def trusts(self, scheme: str, host: str, port: int) -> bool:
        """Whether an origin may be given secrets: https, and the usual port, unless the key says otherwise."""
        mine = self.scheme or "https"
        return scheme == mine and port == (self.port or _PORTS[mine]) and self.names(host)

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Whether an origin is reached through this entry's proxy, which tells the origin nothing."""
        return self.scheme in (None, scheme) and self.port in (None, port) and self.names(host)

    @property
    def closeness(self) -> tuple[int, int, bool, bool]:
        return (0 if self.host == "*" else 1 if self.host.startswith("*.") else 2, len(self.host), self.port is not None, self.scheme is not None)


@dataclass(slots=True)
class _Entry:
    key: _Key
    headers: dict[str, str]
    cookies: dict[str, str]
    jar: CookieJar | None
    session: bool
    proxy: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Access:
    """What each origin is given. Made once a run: a variable that is not set, or a file that cannot be read, is a `UsageError`."""

    def __init__(self, hosts: Mapping[str, HostAccess] | None = None, *, proxy: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        environ = {} if environ is None else environ
        self._secrets: set[str] = set()
        self._entries = [self._entry(key, given, environ) for key, given in (hosts or {}).items()]
        self._entries.sort(key=lambda e: e.key.closeness, reverse=True)
        self._proxy = self._proxy_url(proxy, "proxy", environ)
        if "env" in (self._proxy, *(e.proxy for e in self._entries)):
            for scheme, url in getproxies_environment().items():
                if scheme in ("http", "https", "all"):
                    self._proxy_url(url.replace("$", "$$") if "://" in url else f"http://{url}", f"{scheme.upper()}_PROXY in the environment", environ)
        self._found: dict[tuple[str, str, int], _Entry | None] = {}
        self._proxies: dict[tuple[str, str, int], str | None] = {}
        self.is_empty = not self._entries and self._proxy is None

    def headers(self, url: str) -> dict[str, str]:
        """Return the headers to send with a request for `url`, cookies among them."""
        entry = self._trusted(url)
        if entry is None:
            return {}
        sent = dict(entry.headers)
        if cookies := _cookie_header(entry, url):
            sent["Cookie"] = cookies
        return sent

    def learn(self, url: str, headers: Any) -> bool:
        """Keep the cookies of a response where the config says so; return whether one is new or changed."""
        entry = self._trusted(url)
        if entry is None or not entry.session or entry.jar is None or "Set-Cookie" not in headers:
            return False
        said = HTTPMessage()
        for line in headers.getlist("Set-Cookie"):
            if (clean := _clean_cookie(line)) is not None:
                said["Set-Cookie"] = clean
        with entry.lock:
            before = _state(entry.jar)
            entry.jar.extract_cookies(SimpleNamespace(info=lambda: said), Request(url))  # type: ignore[arg-type]  # it asks for info() alone
            return _state(entry.jar) != before

    def proxy(self, url: str) -> str | None:
        """Return the URL of the proxy for `url`, with its login; None for a direct connection. Not to be shown to anybody."""
        if self.is_empty:
            return None
        place = _place(url)
        if place in self._proxies:
            return self._proxies[place]
        if len(self._proxies) >= MAX_PLACES:
            self._proxies.clear()
        entry = next((e for e in self._entries if e.proxy is not None and e.key.covers(*place)), None)
        chosen = entry.proxy if entry is not None else self._proxy
        self._proxies[place] = found = None if chosen == "none" else _environment_proxy(url) if chosen == "env" else chosen
        return found

    def is_trusted(self, url: str) -> bool:
        return self._trusted(url) is not None

    def withheld(self, url: str) -> str | None:
        """Name the key whose host a plain http URL has, and which gives it nothing for that; None where all is as meant."""
        scheme, host, port = _place(url)
        if scheme != "http" or self._trusted(url) is not None:
            return None
        entry = next((e for e in self._entries if e.key.host == host and e.key.scheme is None and (e.headers or e.cookies or e.jar)), None)
        return None if entry is None else host if port == 80 else f"{host}:{port}"

    def redact(self, text: str) -> str:
        """Replace every secret in a text that goes to a log or a row."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def redact_bytes(self, body: bytes) -> bytes:
        """Replace secrets in what a server sent back to us: some pages show the headers of the request."""
        for secret in self._secrets:
            data = secret.encode("utf-8")
            if data in body:
                body = body.replace(data, b"*" * len(data))
        return body

    def _trusted(self, url: str) -> _Entry | None:
        if not self._entries:
            return None
        place = _place(url)
        if place in self._found:
            return self._found[place]
        if len(self._found) >= MAX_PLACES:
            self._found.clear()
        self._found[place] = entry = next((e for e in self._entries if e.key.trusts(*place)), None)
        return entry

    # --- reading the config -----------------------------------------------------------------------------------------

    def _entry(self, name: str, given: HostAccess, environ: Mapping[str, str]) -> _Entry:
        key = _parse_key(name)
        if key is None:
            check_key(name)
        assert key is not None  # check_key raises
        where = f"access.{name}"
        headers = {header: self._value(text, f"{where}.headers.{header}", environ) for header, text in given.headers.items()}
        if given.auth is not None:
            login = self._value(given.auth, f"{where}.auth", environ)
            if ":" not in login:
                raise UsageError(f"{where}.auth: expected user:password, and its value has no colon")
            self._keep_secret(login.partition(":")[2], login)
            encoded = base64.b64encode(login.encode("utf-8")).decode("ascii")
            self._keep_secret(encoded)
            headers["Authorization"] = f"Basic {encoded}"
        named = {c: self._value(text, f"{where}.cookies.{c}", environ) for c, text in given.cookies.items()} if isinstance(given.cookies, dict) else {}
        if any(re.search(r'[;,"\\\s]', text) for text in named.values()):
            raise UsageError(f"{where}.cookies: a value holds a blank or one of ; , \" \\, which no cookie may hold")
        jar = CookieJar(_Policy()) if given.session or isinstance(given.cookies, Path) else None
        if isinstance(given.cookies, Path) and jar is not None:
            path = given.cookies
            if path.name.startswith("$"):
                path = path.parent / expand(path.name, f"{where}.cookies", environ)
            for cookie in _read_cookies(path, where):
                self._keep_secret(cookie.value or "")
                jar.set_cookie(cookie)
        return _Entry(key, headers, named, jar, given.session, self._proxy_url(given.proxy, f"{where}.proxy", environ))

    def _value(self, text: str, where: str, environ: Mapping[str, str]) -> str:
        value = expand(text, where, environ)
        if not value.isprintable() or not _is_latin1(value):
            raise UsageError(f"{where}: its value holds a line break or a character that no header may hold")
        self._keep_secret(value, *value.split())
        return value

    def _proxy_url(self, text: str | None, where: str, environ: Mapping[str, str]) -> str | None:
        if text is None or text in ("none", "env"):
            return text
        value = expand(text, where, environ)
        try:
            parts = urlsplit(value)
            good = parts.scheme == "http" and bool(parts.hostname) and (parts.port or 1) > 0 and value.isprintable() and " " not in value
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{where}: expected http://HOST:PORT, with USER:PASSWORD@ before the host where it wants a login; or env, or none", hint="https pages go through it by CONNECT; proxies that speak TLS or SOCKS themselves are not supported")
        if parts.password:
            login = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
            self._keep_secret(parts.password, unquote(parts.password), base64.b64encode(login.encode("utf-8")).decode("ascii"))
        return value

    def _keep_secret(self, *values: str) -> None:
        self._secrets.update(v for v in values if len(v) >= MIN_REDACTED and not v.isalpha() and not v.isspace())


def expand(text: str, where: str, environ: Mapping[str, str]) -> str:
    """Put variables of the environment in their place: `$NAME`, `${NAME}` anywhere, or `env:NAME`; `$$` is a dollar sign."""

    def look_up(name: str) -> str:
        if name not in environ:
            raise UsageError(f"{where}: the environment has no variable {name}", hint=f"export {name}=…; a dollar sign that is meant as one is written $$")
        return environ[name].strip("\r\n")

    if named := re.fullmatch(r"env:([A-Za-z_]\w*)", text):
        return look_up(named[1])
    return _REFERENCE.sub(lambda m: "$" if m[0] == "$$" else look_up(m[1] or m[2]), text)


def _is_latin1(text: str) -> bool:
    return all(ord(c) < 256 for c in text)


def _parse_key(text: str) -> _Key | None:
    if not text.isascii() and (parts := re.fullmatch(r"((?:https?://)?(?:\*\.)?)([^/:*@]+)((?::\d+)?/?)", text)):
        try:
            text = f"{parts[1]}{idna.encode(parts[2], uts46=True).decode('ascii')}{parts[3]}"  # as it is spelled in URLs
        except idna.IDNAError:
            return None
    match = _KEY.fullmatch(text.lower())
    if match is None or (match[3] and not 0 < int(match[3]) < 65536):
        return None
    return _Key(match[1], match[2].strip("[]"), int(match[3]) if match[3] else None)


def _place(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme, 0)


def _environment_proxy(url: str) -> str | None:
    """Read HTTP_PROXY, HTTPS_PROXY and NO_PROXY as curl does."""
    from requests.utils import get_environ_proxies, select_proxy

    found = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    return found if found is None or "://" in found else f"http://{found}"


# --- cookies --------------------------------------------------------------------------------------------------------


class _Policy(DefaultCookiePolicy):
    """Netscape cookies as browsers take them, and no more of them than a browser would keep."""

    def __init__(self) -> None:
        super().__init__(strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain)

    def set_ok(self, cookie: Cookie, request: Request) -> bool:
        return len(cookie.name) + len(cookie.value or "") <= MAX_COOKIE_CHARS and super().set_ok(cookie, request)


def _read_cookies(path: Path, where: str) -> list[Cookie]:
    """Read a cookies.txt. http.cookiejar's reader refuses what some browsers' extensions write, and prints what it stumbles on."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}.cookies: {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix("#HttpOnly_")
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t")
        if len(parts) != 7 or not re.fullmatch(r"-?\d{1,15}(\.\d+)?|", parts[4]) or not line.replace("\t", "").isprintable():
            raise UsageError(f"{where}.cookies: {path}, line {number}: not a line of a cookies.txt, which has 7 fields with tabs between them", hint="browsers' extensions export it in Netscape format")
        domain, wide, place, secure, expires, name, value = parts
        domain = f".{domain.lstrip('.')}" if wide == "TRUE" else domain.lstrip(".")
        if "." not in domain:
            domain += ".local"  # http.cookiejar's name for localhost
        until = int(float(expires or 0)) or None  # 0: a cookie of the session
        found.append(Cookie(0, name, value, None, False, domain, wide == "TRUE", wide == "TRUE", place or "/", True, secure == "TRUE", until, until is None, None, None, {}))
    found = [cookie for cookie in found if not cookie.is_expired()]
    if not found:
        raise UsageError(f"{where}.cookies: {path} holds no cookie that is still valid", hint="log in again and export it anew")
    return found


def _clean_cookie(line: str) -> str | None:
    """Reduce a Set-Cookie to what http.cookiejar reads without stumbling (and printing what it stumbled on); None for no cookie."""
    pair, *attributes = line.split(";")
    name, equals, value = (part.strip(" \t") for part in pair.partition("="))
    if not equals or not _TOKEN.fullmatch(name) or name.startswith("$") or not value.isascii() or not value.isprintable() or '"' in value.strip('"'):
        return None
    kept = [f"{name}={value}"]
    for attribute in attributes:
        key, _, text = (part.strip(" \t") for part in attribute.partition("="))
        key = key.lower()
        good = {
            "domain": re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", text),
            "path": re.fullmatch(r"/[!-:<-~]*", text),
            "max-age": re.fullmatch(r"-?\d{1,9}", text),
            "expires": len(text) < 60 and text.isascii() and text.isprintable() and http2time(text) is not None,
            "secure": True,
        }
        if good.get(key):
            kept.append(key if key == "secure" else f"{key}={text}")
        elif key == "domain" and text:
            return None
    return "; ".join(kept)


def _cookie_header(entry: _Entry, url: str) -> str:
    """Join the jar's cookies for `url`, by the rules of domain, path and secure, and the named ones that it doesn't replace."""
    request = Request(url)
    if entry.jar is not None:
        with entry.lock:
            entry.jar.add_cookie_header(request)
    found = request.get_header("Cookie", "")
    there = {part.partition("=")[0].strip() for part in found.split(";")}
    return "; ".join([*([found] if found else []), *(f"{name}={value}" for name, value in entry.cookies.items() if name not in there)])


def _state(jar: CookieJar) -> set[tuple[str, str, str, str | None]]:
    """Read what a jar holds, and throw out what goes beyond `MAX_COOKIES` a domain, the oldest first."""
    by_domain: dict[str, list[Cookie]] = {}
    for cookie in list(jar):
        by_domain.setdefault(cookie.domain, []).append(cookie)
    for cookies in by_domain.values():
        for cookie in cookies[:-MAX_COOKIES]:
            jar.clear(cookie.domain, cookie.path, cookie.name)
    return {(c.domain, c.path, c.name, c.value) for c in jar}
