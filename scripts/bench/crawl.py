"""Measure a crawl against Scrapy with trafilatura, on the same site with the same options, in one run.

    pip install scrapy                       # or in an environment of its own: --peer-python ENV/bin/python
    python scripts/bench/crawl.py MANUAL_DIR [--rounds 3] [--metadata both] [--workers 2]

Serves a folder of HTML (or, without one, the embedded pydoc site) on 127.0.0.1 from a process of its own, then crawls it
with `llmpipe crawl` and with Scrapy in turn, each as a fresh process with a fresh output, and with no delay. Prints pages
per second of wall time (start of the interpreter to its end), CPU per page, the peak of the memory of all processes of a
crawl, pages and characters kept, and the ratio; then what a refresh takes in which no page changed.

Scrapy as its users set it up for speed: robots.txt obeyed, 16 requests at a time, no AutoThrottle, no log, no cookies,
trafilatura (`fast`, no comments; with or without metadata) in the spider's callback, items to JSON lines. `--peer threads` calls
trafilatura in the reactor's threads instead. llmpipe is run with `keep_raw=false`, since Scrapy keeps no raw pages either.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import mimetypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One crawl by one of the two."""

    seconds: float
    cpu_s: float
    """Of the crawl's processes, all that ended and were waited for."""
    peak_bytes: int
    """Sum of resident memory over the process tree; what processes share counts once for each."""
    pages: int
    chars: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="HTML to serve; default: the embedded pydoc site")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metadata", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--workers", type=int, default=0, help="llmpipe's --workers")
    parser.add_argument("--peer", choices=("callback", "threads", "none"), default="callback", help="where Scrapy calls trafilatura")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has scrapy and trafilatura")
    parser.add_argument("--keep-raw", action="store_true", help="let llmpipe write WARC files too")
    parser.add_argument("--tmp", type=Path, help="where outputs lie while it runs")
    arguments = parser.parse_args()
    if arguments.peer != "none" and subprocess.run([arguments.peer_python, "-c", "import scrapy, trafilatura"], capture_output=True).returncode:
        sys.exit(f"error: {arguments.peer_python} has no scrapy and trafilatura\nhint: pip install scrapy, or --peer none to time llmpipe alone")
    with tempfile.TemporaryDirectory(prefix="bench-crawl-", dir=arguments.tmp) as tmp, serve_site(arguments.folder) as seed:
        for metadata in {"no": [False], "yes": [True], "both": [False, True]}[arguments.metadata]:
            compare(arguments, Path(tmp), seed, metadata=metadata)


def compare(arguments: argparse.Namespace, tmp: Path, seed: str, *, metadata: bool) -> None:
    print(f"\n{'with' if metadata else 'without'} metadata          pages/s    CPU ms/page    peak MiB     pages   characters")
    ours: list[Run] = []
    peers: list[Run] = []
    shares = []
    for number in range(arguments.rounds):
        output = tmp / f"llmpipe-{metadata:d}-{number}"
        ours.append(show("llmpipe", crawl_llmpipe(arguments, output, seed, metadata=metadata)))
        again = crawl_llmpipe(arguments, output, seed, metadata=metadata, refresh=True)
        shares.append(again.seconds / ours[-1].seconds)
        shutil.rmtree(output)
        if arguments.peer != "none":
            peers.append(show("scrapy", crawl_scrapy(tmp / "items.jsonl", arguments, seed, metadata=metadata)))
    if peers:
        speed = statistics.median(r.pages / r.seconds for r in ours) / statistics.median(r.pages / r.seconds for r in peers)
        cpu = statistics.median(r.cpu_s / r.pages for r in peers) / statistics.median(r.cpu_s / r.pages for r in ours)
        print(f"ratio (medians) {speed:15.2f} {cpu:14.2f}")
    print(f"refresh with nothing changed: {100 * statistics.median(shares):.1f} % of the first run's time")


def show(name: str, run: Run) -> Run:
    print(f"{name:16}{run.pages / run.seconds:15.1f} {1000 * run.cpu_s / max(run.pages, 1):14.2f} {run.peak_bytes / 2**20:11.0f} {run.pages:9,} {run.chars:12,}", flush=True)
    return run


# --- the contestants ------------------------------------------------------------------------------------------------


def crawl_llmpipe(arguments: argparse.Namespace, output: Path, seed: str, *, metadata: bool, refresh: bool = False) -> Run:
    settings = {
        "delay_s": 0,
        "allow_private": "true",
        "metadata": str(metadata).lower(),
        "keep_raw": str(arguments.keep_raw).lower(),
        "refresh": "all" if refresh else "due",
    }
    command = [sys.executable, "-m", "llmpipe", "crawl", seed, "--output", str(output), "--workers", str(arguments.workers), "-q"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    seconds, cpu, peak = measure(command)
    if refresh:
        return Run(seconds=seconds, cpu_s=cpu, peak_bytes=peak, pages=0, chars=0)
    from llmpipe.data.docs import read_docs

    texts = [text for batch in read_docs(output, columns=["text"]) for text in batch.column("text").to_pylist()]
    return Run(seconds=seconds, cpu_s=cpu, peak_bytes=peak, pages=len(texts), chars=sum(map(len, texts)))


def crawl_scrapy(items: Path, arguments: argparse.Namespace, seed: str, *, metadata: bool) -> Run:
    items.unlink(missing_ok=True)
    command = [arguments.peer_python, __file__, "--as-scrapy", seed, str(items), "metadata" if metadata else "text", arguments.peer]
    seconds, cpu, peak = measure(command)
    with items.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] or "" for line in lines]
    return Run(seconds=seconds, cpu_s=cpu, peak_bytes=peak, pages=len(texts), chars=sum(map(len, texts)))


def as_scrapy(url: str, items: str, what: str, where: str) -> None:
    """Crawl with Scrapy in this process."""
    import scrapy
    from scrapy.crawler import CrawlerProcess
    from scrapy.http import HtmlResponse, TextResponse
    from scrapy.linkextractors import LinkExtractor
    from trafilatura import bare_extraction
    from twisted.internet.threads import deferToThread

    metadata = what == "metadata"

    def item_of(response: TextResponse) -> dict[str, str | None]:
        item = {"url": response.url, "text": response.text, "title": None, "author": None, "date": None}
        if isinstance(response, HtmlResponse):
            found = bare_extraction(response.text, url=response.url, fast=True, include_comments=False, with_metadata=metadata)
            item["text"] = found.text if found is not None else None
            if metadata and found is not None:
                item |= {"title": found.title, "author": found.author, "date": found.date}
            elif not metadata:
                item["title"] = response.css("title::text").get()
        return item

    class Manual(scrapy.Spider):
        name = "manual"
        start_urls = [url]  # noqa: RUF012
        links = LinkExtractor(allow_domains=[urlsplit(url).netloc], deny_extensions=[])

        async def parse(self, response):
            if not isinstance(response, TextResponse):
                return
            if isinstance(response, HtmlResponse):
                for link in self.links.extract_links(response):
                    if not link.nofollow:
                        yield scrapy.Request(link.url)
            if where == "threads":
                from scrapy.utils.defer import maybe_deferred_to_future

                yield await maybe_deferred_to_future(deferToThread(item_of, response))
            else:
                yield item_of(response)

    process = CrawlerProcess(
        {
            "ROBOTSTXT_OBEY": True,
            "CONCURRENT_REQUESTS": 16,
            "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
            "DOWNLOAD_DELAY": 0,
            "AUTOTHROTTLE_ENABLED": False,
            "COOKIES_ENABLED": False,
            "LOG_ENABLED": False,
            "TELNETCONSOLE_ENABLED": False,
            "FEEDS": {items: {"format": "jsonlines", "encoding": "utf-8"}},
        }
    )
    process.crawl(Manual)
    process.start()


def measure(command: list[str]) -> tuple[float, float, int]:
    """Run a command to its end; return wall seconds, CPU seconds and the peak of its tree's resident memory."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], sum(map(resident, descendants(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"error: exit code {process.returncode} from {' '.join(command)}")
    return seconds, usage.ru_utime + usage.ru_stime, peak[0]


def descendants(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        found.append(pid := todo.pop())
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += map(int, (task / "children").read_text(encoding="ascii").split())
        except OSError:
            continue
    return found


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# --- the server -----------------------------------------------------------------------------------------------------


@contextmanager
def serve_site(folder: Path | None) -> Iterator[str]:
    """Serve a folder, or the pydoc site (copied to memory first, since rendering it would be what is measured)."""
    with tempfile.TemporaryDirectory(prefix="bench-pydoc-") as tmp:
        if folder is None:
            folder = Path(tmp)
            copy_pydoc(folder)
        command = [sys.executable, __file__, "--as-server", str(folder.resolve())]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def copy_pydoc(folder: Path) -> None:
    import http.client

    from llmpipe.crawl import html_tree
    from llmpipe.crawl.sites import ORIGIN, serve_pydoc

    with serve_pydoc() as site:
        host, _, port = site.resolve["pydoc.invalid"].partition(":")
        connection = http.client.HTTPConnection(host, int(port))
        todo, seen = ["/"], {"/"}
        while todo:
            path = todo.pop()
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                continue
            (folder / (path.strip("/") or "index.html")).parent.mkdir(parents=True, exist_ok=True)
            (folder / (path.strip("/") or "index.html")).write_bytes(body)
            tree = html_tree.parse(body.decode("utf-8")) if "html" in (response.getheader("Content-Type") or "") else None
            for link, _ in html_tree.links(tree, ORIGIN + path) if tree is not None else ():
                target = link.removeprefix(ORIGIN)
                if target.startswith("/") and target not in seen:
                    seen.add(target)
                    todo.append(target)


@dataclass(slots=True)
class File:
    body: bytes
    head: bytes
    etag: bytes
    unchanged: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.unchanged = b"HTTP/1.1 304 Not Modified\r\nETag: " + self.etag + b"\r\n\r\n"


def as_server(folder: Path) -> None:
    """Serve from memory on a free port, and say which."""
    files: dict[bytes, File] = {}
    modified = formatdate(time.time() - 86_400, usegmt=True)

    def add(path: str, body: bytes, kind: str) -> None:
        etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nETag: {etag}\r\nLast-Modified: {modified}\r\n\r\n"
        files[path.encode()] = File(body, head.encode(), etag.encode())

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "" if kind == "text/html" else "; charset=utf-8"  # pages name their charset themselves
        body, name = path.read_bytes(), "/" + path.relative_to(folder).as_posix()
        add(name, body, kind)
        if path.name == "index.html":
            add(name.removesuffix("index.html"), body, kind)
    if b"/" not in files:
        starts = sorted(p for p in files if p.count(b"/") == 2 and p.endswith((b"/", b"/index.html"))) or sorted(p for p in files if p.endswith(b".html"))
        links = "".join(f'<li><a href="{quote(p)}">{p.decode()}</a></li>' for p in starts)
        add("/", f"<html><head><title>Start</title></head><body><ul>{links}</ul></body></html>".encode(), "text/html")

    class Static(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer = transport, b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
                request, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
                found = files.get(unquote_to_bytes(request.split(b" ", 2)[1].partition(b"?")[0]))
                if found is None:
                    self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                elif found.etag in request:  # If-None-Match
                    self.transport.write(found.unchanged)
                else:
                    self.transport.write(found.head + found.body)

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(Static, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(listen())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-server"]:
        as_server(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--as-scrapy"]:
        as_scrapy(*sys.argv[2:])
    else:
        main()
