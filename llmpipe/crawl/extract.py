"""Turn the bytes of a page into text, links and metadata, in processes that may be killed when a page hangs them.

    page = extract(body, "http://example.org/", "text/html; charset=gb2312")          # here and now
    with ExtractPool(num_workers=2) as pool:
        pool.submit(key, body, url, content_type)
        for page in pool.poll(timeout=0.1): ...                                       # each key comes back once, always

Main text comes from trafilatura; a page with nothing but text on it is taken whole, and so is one that trafilatura
fails on. Reads and writes no files.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from llmpipe.crawl.decode import decode
from llmpipe.errors import LlmpipeError

MAX_DOCUMENTS = 2_000
"""A worker is replaced after as many: lxml and trafilatura's caches grow by up to 1 MB a page."""
MAX_TAGS = 50
FALLBACK_TIMEOUT_S = 10.0
AHEAD_BYTES = 60_000
"""A document no longer than this is sent to a worker that is at another: with its header it fits into a pipe's buffer."""


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    """Absolute, http or https, without its fragment."""
    nofollow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    key: str = ""
    text: str = ""
    title: str | None = None
    author: str | None = None
    date: str | None = None
    language: str | None = None
    """As the page declares it (BCP-47)."""
    license: str | None = None
    site_name: str | None = None
    tags: list[str] = field(default_factory=list)
    canonical: str | None = None
    links: list[Link] = field(default_factory=list)
    """In document order, each once."""
    feeds: list[str] = field(default_factory=list)
    """RSS and Atom that the page names."""
    meta_robots: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """`(agent, directives)` in lower case; agent is `robots`, a crawler's name or `tdm-reservation`."""
    encoding: str | None = None
    encoding_source: str | None = None
    replacement_ratio: float = 0.0
    extractor: str = "none"
    """trafilatura, plain (a page of nothing but text), fallback (extraction failed), text (no HTML), none."""
    error: str | None = None
    """Why extraction failed: timeout, crash, memory, or the name of an exception."""


def extract(body: bytes | str, url: str, content_type: str | None = None, *, metadata: bool = False, fallback: bool = False, truncated: bool = False, key: str = "") -> Extracted:
    """Decode, parse once, take links and meta robots from the tree, then the main text.

    `metadata` adds author, date, site name and tags, which doubles the time. `fallback` leaves trafilatura out. Never raises for what
    a page holds, but may take long or run out of memory: see `ExtractPool`.
    """
    page = Extracted(key=key)
    if isinstance(body, bytes):
        decoded = decode(body, content_type, truncated=truncated)
        body = decoded.text
        page = replace(page, encoding=decoded.encoding, encoding_source=decoded.source, replacement_ratio=round(decoded.replacement_ratio, 6))
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not _is_html(kind, body):
        text = body.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()
        heading = re.match(r"#\s+(.{1,300})", text) if "markdown" in kind else None
        return replace(page, text=text, title=heading[1].strip() if heading else None, extractor="text")
    from llmpipe.crawl import html_tree

    tree = html_tree.parse(body)
    if tree is None:
        text = html_tree.strip_tags(body)
        return replace(page, text=text, meta_robots=html_tree.scan_meta_robots(body), extractor="fallback" if text else "none")
    top = html_tree.head(tree, url)
    page = replace(
        page,
        title=top.title,
        language=top.language,
        license=top.license,
        canonical=top.canonical,
        links=[Link(*link) for link in html_tree.links(tree, url, encoding=page.encoding or "utf-8")],
        feeds=html_tree.feeds(tree, url),
        meta_robots=html_tree.meta_robots(tree),
    )
    if fallback:
        return replace(page, text=html_tree.plain_text(tree), extractor="fallback")
    from llmpipe.crawl import main_text

    error = None
    try:
        main_text.remove_dull_spans(tree)
        with main_text.known_attributes(tree):
            if metadata:
                page = _with_metadata(page, tree, url)
            if html_tree.is_bare(tree):
                return replace(page, text=html_tree.plain_text(tree), extractor="plain")
            text = main_text.main_text(tree)
    except MemoryError:
        text, error = "", "memory"
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, AssertionError, OSError) as problem:
        text, error = "", type(problem).__name__  # what trafilatura's heuristics raise on odd trees
    if text:
        return replace(page, text=text, extractor="trafilatura")
    tree = html_tree.parse(body)
    text = html_tree.plain_text(tree) if tree is not None else ""
    return replace(page, text=text, extractor="fallback" if text else "none", error=error)


def _is_html(kind: str, text: str) -> bool:
    if kind in ("text/html", "application/xhtml+xml"):
        return True
    if kind.startswith("text/") and "xml" not in kind:
        return False
    return re.search(r"<(!doctype html|html|head|body|title|div|p|table|a)[\s>]", text[:4096], re.I) is not None


def _with_metadata(page: Extracted, tree: Any, url: str) -> Extracted:
    from llmpipe.crawl import main_text

    found = main_text.metadata(tree, url)
    tags = list(dict.fromkeys([*(found.categories or ()), *(found.tags or ())]))[:MAX_TAGS]
    license_ = page.license or found.license
    return replace(page, title=found.title or page.title, author=found.author, date=found.date, license=license_, site_name=found.sitename, tags=tags)


# --- worker processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    key: str
    body: bytes
    header: dict[str, Any]
    error: str | None = None
    """Why the first attempt failed: then this is the second, without trafilatura."""


class _Worker:
    """One process, one pipe. It takes work once it has said that it is ready; the first of its documents is being extracted."""

    def __init__(self, arguments: list[str]) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            # -P: no module of the working directory; a fresh interpreter inherits no lock and no descriptor but the pipe
            code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from llmpipe.crawl.extract import work; work(*map(int, sys.argv[1:]))"
            command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(fd), str(os.getpid()), *arguments]
            self.process = subprocess.Popen(command, pass_fds=(fd,), stdin=subprocess.DEVNULL, start_new_session=False)
        self.jobs: deque[_Job] = deque()
        self.ready = False
        self.deadline = time.monotonic() + 120.0

    def may_take(self, job: _Job) -> bool:
        """Whether it is idle, or the document fits into its pipe, so that it need not wait for us when it is done."""
        return self.ready and (not self.jobs or (len(self.jobs) == 1 and len(job.body) <= AHEAD_BYTES and not (job.error or self.jobs[0].error)))

    def send(self, job: _Job, timeout_s: float) -> None:
        self.jobs.append(job)
        if len(self.jobs) == 1:
            self.deadline = time.monotonic() + timeout_s
        try:
            self.connection.send_bytes(json.dumps(job.header).encode() + b"\n" + job.body)
        except OSError:
            pass  # it died; poll() sees its pipe closed and deals with the job

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class ExtractPool:
    """Extract documents in worker processes. Make, use and close it in one thread, which must outlive the workers.

    A document that hangs or kills its worker is tried once more without trafilatura, then comes back empty, with
    `error`. `submit` never blocks: hold back while `is_full`.
    """

    def __init__(
        self,
        num_workers: int = 1,
        *,
        timeout_s: float = 20.0,
        max_rss_bytes: int = 1 << 30,
        metadata: bool = False,
        max_pending_bytes: int = 64 << 20,
    ) -> None:
        self.timeout_s, self.metadata, self.max_pending_bytes = timeout_s, metadata, max_pending_bytes
        self.pending = 0
        """Documents submitted and not yet returned."""
        self.pending_bytes = 0
        self._arguments = [str(max_rss_bytes), str(MAX_DOCUMENTS)]
        self._queue: deque[_Job] = deque()
        self._done: list[Extracted] = []
        self._false_starts = 0
        self._num_workers = max(1, num_workers)
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start the processes now. Else each starts when there is a document for it: a visit that finds nothing new needs none."""
        while len(self._workers) < self._num_workers:
            self._workers.append(_Worker(self._arguments))

    def __enter__(self) -> ExtractPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_full(self) -> bool:
        return self.pending_bytes >= self.max_pending_bytes

    @property
    def connections(self) -> list[Connection]:
        """Readable when `poll` has something to do (while `pending`): for a loop that waits on other things too."""
        return [worker.connection for worker in self._workers]

    def submit(self, key: str, body: bytes | str, url: str, content_type: str | None, *, truncated: bool = False) -> None:
        """Queue a document; its result comes from `poll` under the same key."""
        if isinstance(body, str):
            body, content_type = body.encode("utf-8", "replace"), f"{(content_type or 'text/html').partition(';')[0]}; charset=utf-8"
        header = {"key": key, "url": url, "content_type": content_type, "metadata": self.metadata, "truncated": truncated, "fallback": False}
        self._queue.append(_Job(key, body, header))
        self.pending += 1
        self.pending_bytes += len(body)
        self._dispatch()

    def poll(self, timeout: float = 0.0) -> list[Extracted]:
        """Return what is finished, waiting up to `timeout` seconds for the first; kill what is past its deadline."""
        until = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            nearest = min((w.deadline for w in self._workers if w.jobs or not w.ready), default=until)
            if self.pending and self._workers:
                for connection in wait([w.connection for w in self._workers], max(0.0, min(until, nearest) - now)):
                    self._receive(next(w for w in self._workers if w.connection is connection))
            for worker in self._workers:
                if (worker.jobs or not worker.ready) and time.monotonic() > worker.deadline:
                    self._replace(worker, "timeout")
            self._dispatch()
            if self._done or not self.pending or time.monotonic() >= until:
                done, self._done = self._done, []
                self.pending -= len(done)
                return done

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _dispatch(self) -> None:
        for depth in (0, 1):  # an idle worker first
            for worker in self._workers:
                if self._queue and len(worker.jobs) == depth and worker.may_take(self._queue[0]):
                    job = self._queue.popleft()
                    worker.send(job, self._timeout(job))
        waiting = len(self._queue) - sum(not worker.ready for worker in self._workers)
        if waiting > 0 and len(self._workers) < self._num_workers:
            self._workers.append(_Worker(self._arguments))

    def _timeout(self, job: _Job) -> float:
        return FALLBACK_TIMEOUT_S if job.error else self.timeout_s

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            self._replace(worker, "crash")
            return
        if not worker.ready:
            worker.ready, self._false_starts = True, 0
            return
        job, last = worker.jobs.popleft(), message[:1] == b"L"
        self._finish(job, extracted_from_bytes(message[1:]))
        if worker.jobs:
            worker.deadline = time.monotonic() + self._timeout(worker.jobs[0])
        if last:
            self._queue.extendleft(reversed(worker.jobs))  # not its fault
            worker.jobs.clear()
            self._replace(worker, "retired")

    def _replace(self, worker: _Worker, why: str) -> None:
        """Kill a worker and start another; the document it was at is tried again, once."""
        worker.stop()
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts > 2 * len(self._workers):
                raise LlmpipeError("the processes that extract text do not start", hint="llmpipe doctor checks the installation")
        job = worker.jobs.popleft() if worker.jobs else None
        self._queue.extendleft(reversed(worker.jobs))
        self._workers[self._workers.index(worker)] = _Worker(self._arguments)
        if job is not None and job.error is None:
            self._queue.appendleft(_Job(job.key, job.body, {**job.header, "fallback": True}, why))
        elif job is not None:
            self._finish(job, Extracted(key=job.key))

    def _finish(self, job: _Job, page: Extracted) -> None:
        self.pending_bytes -= len(job.body)
        self._done.append(replace(page, error=job.error) if job.error else page)


def extracted_to_bytes(page: Extracted) -> bytes:
    """Write a result for the pipe: a line of JSON, then the text as it is, which would be most of the JSON and twice as long."""
    value = {f: getattr(page, f) for f in _FIELDS}
    value["links"] = [(link.url, link.nofollow) for link in page.links]
    return json.dumps(value).encode() + b"\n" + page.text.encode("utf-8", "surrogatepass")


def extracted_from_bytes(data: bytes) -> Extracted:
    head, _, text = data.partition(b"\n")
    value = json.loads(head)
    value["links"] = [Link(url, nofollow) for url, nofollow in value["links"]]
    value["meta_robots"] = [(agent, tuple(directives)) for agent, directives in value["meta_robots"]]
    return Extracted(**value, text=text.decode("utf-8", "surrogatepass"))


_FIELDS = [f.name for f in fields(Extracted) if f.name != "text"]


def work(fd: int, parent: int, max_rss_bytes: int, max_documents: int) -> None:
    """Serve one pipe in a worker process: a line of JSON and a body in, a mark (L: my last), a line of JSON and a text out."""
    from llmpipe.executor import die_with_parent

    die_with_parent(parent)
    from llmpipe.crawl import html_tree, main_text  # noqa: F401

    main_text.prepare()  # before the limit on memory and before the first deadline
    gc.freeze()  # what is loaded stays; and trees are freed by counting, so that looking for cycles can be rarer
    gc.set_threshold(50_000, 20, 50)
    limit = _limit_memory(max_rss_bytes)
    connection = Connection(fd)
    connection.send_bytes(b"{}")
    for number in range(1, max_documents + 1):
        try:
            header, _, body = connection.recv_bytes().partition(b"\n")
        except (EOFError, ConnectionResetError):
            return
        page = extract(body, **json.loads(header))
        del body
        last = number == max_documents or _rss_bytes() > 0.8 * limit
        connection.send_bytes((b"L" if last else b"M") + extracted_to_bytes(page))
        if last:
            return


def _limit_memory(max_rss_bytes: int) -> int:
    """Bound what a document may allocate; beyond it, allocation fails in this process alone."""
    import resource

    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + max_rss_bytes, used + max_rss_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return max_rss_bytes


def _rss_bytes() -> int:
    import resource

    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
