"""CPU time a page of llmpipe's Fetcher beside a plain requests.Session, on a local server with keep-alive, in one run.

    python scripts/bench/fetch.py [PAGES]

The server is a process of its own, so that only the client's CPU counts. Prints milliseconds a page, the median of
five rounds that take turns. Fetcher does what the crawl needs (address check, limits, deadline, headers, codings).
"""

from __future__ import annotations

import gzip
import multiprocessing
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

import requests

from llmpipe.crawl.access import Access, HostAccess
from llmpipe.crawl.fetch import Fetcher, Target
from llmpipe.crawl.guard import Guard

PAGE_BYTES = 15_000
ROUNDS = 5


def server(port: multiprocessing.Queue) -> None:
    body = ("<html><body>" + "<p>The quick brown fox reads old books 读书 by the river.</p>" * 400).encode()[:PAGE_BYTES]
    bodies = {"/plain": (body, None), "/gzip": (gzip.compress(body), "gzip")}

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

        def do_GET(self) -> None:
            data, coding = bodies["/" + self.path.split("/")[1]]
            self.send_response(200)
            fields = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(data)), "ETag": '"x"', "Cache-Control": "max-age=60", "Vary": "Accept-Encoding", "X-Frame-Options": "DENY"}
            for name, value in {**fields, **({"Content-Encoding": coding} if coding else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    port.put(listening.server_address[1])
    listening.serve_forever()


def main() -> None:
    pages = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=server, args=(queue,), daemon=True)
    process.start()
    origin = f"http://127.0.0.1:{queue.get(timeout=30)}"
    limits = {"user_agent": "llmpipe", "max_bytes": 5 << 20, "timeout_s": 60.0}
    fetcher = Fetcher(Guard(allow_private=True), **limits)
    given = Fetcher(Guard(allow_private=True), **limits, access=Access({origin: HostAccess(auth="reader:secret-1", cookies={"id": "1"}, session=True)}))
    session, plain = requests.Session(), requests.Session()
    plain.trust_env = False
    ways: dict[str, Callable[[str], bool]] = {
        "Fetcher": lambda url: fetcher.fetch(Target(url=url)).rule is None,
        "Fetcher, with a login and cookies": lambda url: given.fetch(Target(url=url)).rule is None,
        "requests.Session": lambda url: len(session.get(url, timeout=20).content) == PAGE_BYTES,
        "requests.Session, trust_env=False": lambda url: len(plain.get(url, timeout=20).content) == PAGE_BYTES,
    }
    for path in ("/plain", "/gzip"):
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, get in ways.items():
                began = time.process_time()
                assert all(get(f"{origin}{path}/{n}") for n in range(pages))
                spent[name].append((time.process_time() - began) / pages * 1e3)
        for name, times in spent.items():
            print(f"{path[1:]:6} {name:34} {median(times):.3f} ms of CPU a page")
    process.kill()
    process.join()


if __name__ == "__main__":
    main()
