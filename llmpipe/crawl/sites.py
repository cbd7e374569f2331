"""Sites to crawl that need no network: the documentation of the Python standard library, as every interpreter carries it.

    with serve_pydoc() as site:
        site.seeds, site.resolve            # ["http://pydoc.invalid/"], {"pydoc.invalid": "127.0.0.1:40123"}

A child process imports the public modules, renders a page for each with `pydoc.HTMLDoc` when it is asked for, and
serves them on a free port for as long as the `with` block runs. Only standard-library modules whose import does nothing
else; nothing of this machine (environment, arguments, paths, addresses of objects) gets into a page, and the same
Python gives the same bytes in every run. llmpipe reads the pages at a fixed origin, so that ids never hold the port.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import TYPE_CHECKING

from llmpipe.errors import LlmpipeError

if TYPE_CHECKING:
    import pydoc

ORIGIN = "http://pydoc.invalid"
START_TIMEOUT_S = 120.0

# Left out with all below them: jokes that open a browser or print, programs, tests, what writes files or needs a screen
# on import, and what goes away in later Pythons.
EXCLUDED = frozenset(
    "antigravity this idlelib test tests turtledemo turtle lib2to3 distutils ensurepip pydoc_data __main__ __hello__ __phello__ "
    "xxlimited xxlimited_35 xxsubtype nt posix site sitecustomize usercustomize tix".split()
)
# Data that holds this machine's environment, arguments and paths.
HIDDEN_DATA = frozenset(
    "environ environb argv orig_argv path modules executable prefix exec_prefix base_prefix base_exec_prefix path_importer_cache path_hooks meta_path flags "
    "warnoptions pycache_prefix stdlib_dir stdin stdout stderr version version_info implementation tzname timezone altzone tempdir TZPATH knownfiles "
    "PREFIXES USER_BASE USER_SITE ENABLE_USER_SITE thread_info float_info int_info hash_info abiflags api_version hexversion builtin_module_names".split()
)


@dataclass(frozen=True, slots=True)
class Site:
    seeds: list[str]
    resolve: dict[str, str]
    """host -> address:port that stands in for it."""


@contextmanager
def serve_pydoc() -> Iterator[Site]:
    """Serve the documentation of the standard library until the block ends; the server dies with this process."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from llmpipe.crawl.sites import serve; serve(int(sys.argv.pop(1)))"
    # -S -s -P: no third-party module, nothing from the working directory. The environment is ours, whole.
    command = [sys.executable, "-S", "-s", "-P", "-W", "ignore", "-c", code, str(Path(__file__).parents[2]), str(os.getpid())]
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, cwd="/")
    try:
        assert process.stdout is not None
        ready, _, _ = select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise LlmpipeError("the server of the Python documentation did not start", hint="llmpipe doctor checks the installation")
        yield Site([f"{ORIGIN}/"], {"pydoc.invalid": f"127.0.0.1:{json.loads(line)['port']}"})
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- in the child ---------------------------------------------------------------------------------------------------


def serve(parent: int) -> None:
    """Import the modules, listen, say the port on stdout and serve until killed."""
    from http.server import ThreadingHTTPServer

    from llmpipe.executor import die_with_parent

    die_with_parent(parent)
    say = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a module that prints on import must not speak for us
    library = Library()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(library))
    server.daemon_threads = True
    say.write(json.dumps({"port": server.server_address[1]}) + "\n")
    say.flush()
    server.serve_forever()


def module_names() -> list[str]:
    """List the public modules of the standard library, submodules too, sorted, without importing them."""
    import importlib.machinery
    import pkgutil

    stdlib = str(Path(os.__file__).parent)
    names = []
    for top in sorted(sys.stdlib_module_names):
        if _public(top):
            names.append(top)
            spec = importlib.machinery.PathFinder.find_spec(top, [stdlib])
            if spec is not None and spec.submodule_search_locations:
                names += _submodules(pkgutil, top, list(spec.submodule_search_locations))
    return sorted(names)


def _submodules(pkgutil, package: str, places: list[str]) -> list[str]:
    found = []
    for _, name, is_package in pkgutil.iter_modules(places):
        if _public(name):
            found.append(f"{package}.{name}")
            if is_package:
                found += _submodules(pkgutil, f"{package}.{name}", [f"{place}/{name}" for place in places])
    return found


_MODULE_LINK = re.compile(r'<a href="(?![a-z]+:)([^"#/]+)\.html[^"]*">(.*?)</a>', re.S)


def _public(name: str) -> bool:
    return name not in EXCLUDED and not name.startswith("_")


class Library:
    """All pages, by path. Modules are imported first, in order: what a page links to depends on what is imported."""

    def __init__(self) -> None:
        import importlib
        import pydoc

        self.modules = {}
        for name in module_names():
            try:
                self.modules[name] = importlib.import_module(name)
            except Exception:  # not for this platform: winreg, msvcrt, a module built without its library
                continue
        # Where a module knows it under another name (os.path is posixpath), the page goes by its own
        self.modules = {name: module for name, module in self.modules.items() if module.__name__ == name}
        helper = pydoc.Helper(None, None)
        self.topics = sorted(name for name in helper.topics if self._topic_text(helper, name))
        self.keywords = sorted(name for name in helper.keywords if name.isalpha() and self._topic_text(helper, name))
        self._helper = helper
        self._doc = _renderer(frozenset(self.modules))
        self._scrub = _scrubber()
        os._Environ.__repr__ = lambda _: "os.environ"  # it is the default of an argument here and there
        self._lock = threading.Lock()
        self._pages: dict[str, bytes] = {}
        self.paths = ["/"] + [f"/{name}.html" for name in self.modules]
        self.paths += [f"/topics/{name}.html" for name in self.topics] + [f"/keywords/{name}.html" for name in self.keywords]
        self._known = frozenset(self.paths)

    def get(self, path: str) -> tuple[bytes, str] | None:
        """Return the body and content type of a path; None if there is no such page."""
        if path == "/robots.txt":
            return f"User-agent: *\nAllow: /\n\nSitemap: {ORIGIN}/sitemap.xml\n".encode(), "text/plain; charset=utf-8"
        if path == "/sitemap.xml":
            places = "".join(f"<url><loc>{ORIGIN}{p}</loc></url>\n" for p in self.paths)
            return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}</urlset>\n'.encode(), "application/xml"
        if path not in self._known:
            return None
        with self._lock:  # pydoc keeps state in its formatter
            if path not in self._pages:
                page = _MODULE_LINK.sub(lambda m: m[0] if m[1] in self.modules else m[2], self._render(path))
                self._pages[path] = self._scrub(page).encode("utf-8", "replace")
            return self._pages[path], "text/html; charset=utf-8"

    def _render(self, path: str) -> str:
        if path == "/":
            return self._index()
        folder, _, name = path[1:].removesuffix(".html").rpartition("/")
        if folder:
            return self._topic(name, folder)
        return self._doc.page(name, self._doc.docmodule(self.modules[name]))

    def _index(self) -> str:
        doc = self._doc
        parts = [doc.heading('<strong class="title">The Python standard library</strong>')]
        for title, names, folder in (("Modules", list(self.modules), ""), ("Topics", self.topics, "topics/"), ("Keywords", self.keywords, "keywords/")):
            parts.append(doc.bigsection(title, "index", doc.multicolumn(names, lambda n, folder=folder: f'<a href="{folder}{n}.html">{n}</a>')))
        return doc.page("The Python standard library", "".join(parts))

    def _topic(self, name: str, folder: str) -> str:
        text, related = self._topic_text(self._helper, name) or ("", "")
        doc = self._doc
        links = ", ".join(f'<a href="../topics/{n}.html">{n}</a>' for n in related.split() if n in self.topics)
        body = doc.bigsection(name, "index", doc.markup(text, doc.preformat))
        more = doc.bigsection("Related help topics", "index", links) if links else ""
        return doc.page(name, doc.heading(f'<strong class="title">{doc.escape(name)}</strong>', '<a href="../">index</a>') + body + more)

    def _topic_text(self, helper: pydoc.Helper, name: str) -> tuple[str, str] | None:
        """Give a topic's text and the names of related topics; None for what is not prose."""
        from pydoc_data.topics import topics

        label, related = name, ""
        for _ in range(5):  # keywords point to topics, topics to others
            target = helper.topics.get(label) or helper.keywords.get(label)
            if not target:
                return None
            target, more = (target, "") if isinstance(target, str) else target
            related = f"{related} {more}".strip()
            if target in topics:
                return topics[target].strip(), related
            label = target
        return None


def _renderer(modules: frozenset[str]) -> pydoc.HTMLDoc:
    """Make pydoc's formatter write links to pages of this site only, and nothing of this machine."""
    import pydoc

    class Doc(pydoc.HTMLDoc):
        def filelink(self, url, path):
            return ""

        def getdocloc(self, object, basedir=None):
            return None

        def modulelink(self, object):
            return super().modulelink(object) if object.__name__ in modules else object.__name__

        def modpkglink(self, modpkginfo):
            name, package, is_package, _ = modpkginfo
            full = f"{package}.{name}" if package else name
            return super().modpkglink((name, package, is_package, 0)) if full in modules else name

        def docother(self, object, name=None, mod=None, *ignored):
            if name in HIDDEN_DATA or not _is_literal(object):
                return f"<strong>{name}</strong> = <em>{self.escape(type(object).__name__)}</em>" if name else ""
            return super().docother(object, name, mod)

    return Doc()


def _is_literal(value: object, depth: int = 0) -> bool:
    """Whether a value's repr is the same in every run: numbers, text, and what is built of them."""
    import enum

    if isinstance(value, dict) and value == dict(os.environ):
        return False
    if value is None or isinstance(value, int | float | complex | str | bytes | enum.Enum):
        return True
    if depth < 4 and type(value) in (tuple, list, set, frozenset):
        return all(_is_literal(item, depth + 1) for item in value)
    if depth < 4 and type(value) is dict:
        return all(_is_literal(item, depth + 1) for pair in value.items() for item in pair)
    return False


def _scrubber():
    """Return a function that removes object addresses and this machine's paths from a page."""
    import sysconfig

    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable, os.path.expanduser("~"), str(Path(__file__).parents[2]), *sysconfig.get_paths().values()}
    paths |= {os.path.realpath(p) for p in paths}
    paths -= {"", "/", "/usr", "/usr/local", "/nonexistent"}
    home = _home()
    names = sorted(paths | ({home} if home else set()), key=len, reverse=True)
    here = re.compile("|".join(rf"{re.escape(name)}(?![\w.-])" for name in names))
    address = re.compile(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9A-Fa-f]{4,}")
    return lambda page: here.sub("/usr", address.sub("", page))


def _home() -> str | None:
    import pwd

    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return home if len(home) > 1 else None


def handler_of(library: Library):
    """Make the request handler: GET and HEAD, keep-alive, 304 for a matching ETag."""
    import hashlib
    from http.server import BaseHTTPRequestHandler
    from urllib.parse import unquote, urlsplit

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "pydoc", ""
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            found = library.get(unquote(urlsplit(self.path).path))
            if found is None:
                self._reply(404, b"not found\n", "text/plain; charset=utf-8", {})
                return
            body, kind = found
            etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            status = 304 if self.headers.get("If-None-Match") == etag else 200
            self._reply(status, b"" if status == 304 else body, kind, {"ETag": etag})

        do_HEAD = do_GET

        def _reply(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                if status != 304 or name == "ETag":
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    return Handler
