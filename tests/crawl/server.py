"""A real HTTP server on 127.0.0.1 that serves what a test tells it, misbehaviour included.

    with serve({"/": page("Hello", links=["/a"]), "/slow": drip}) as site:
        site.url("/"), site.hits["/"]
"""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(slots=True)
class Site:
    port: int
    hits: Counter[str] = field(default_factory=Counter)
    """Requests by path and query."""
    agents: set[str] = field(default_factory=set)
    connections: int = 0

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def answer(status: int = 200, body: bytes | str = b"", content_type: str | None = "text/html; charset=utf-8", **headers: str) -> Answer:
    """A whole, well-behaved answer. Header names are given with `_` for `-`."""
    data = body.encode("utf-8") if isinstance(body, str) else body

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if content_type:
            handler.send_header("Content-Type", content_type)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return send


def page(title: str, *, links: list[str] | tuple[str, ...] = (), head: str = "", **headers: str) -> Answer:
    """A page of English and Chinese text with links."""
    anchors = " ".join(f'<a href="{link}">{link}</a>' for link in links)
    text = f"<p>{title} tells of a quiet town by the river, where people read old books.</p><p>{title}：小镇安静，人们在河边读书。</p>" * 3
    return answer(body=f"<html><head><title>{title}</title>{head}</head><body><main><h1>{title}</h1>{text}</main><nav>{anchors}</nav></body></html>", **headers)


def redirect(target: str, status: int = 302) -> Answer:
    return answer(status, Location=target)


@contextmanager
def serve(routes: Mapping[str, Answer], *, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Site]:
    """Serve `routes` by path (the query may stand in the key); anything else is 404, so no robots.txt allows everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def setup(self) -> None:
            super().setup()
            site.connections += 1

        def do_GET(self) -> None:
            site.hits[self.path] += 1
            site.agents.add(self.headers.get("User-Agent", ""))
            send = routes.get(self.path) or routes.get(self.path.partition("?")[0]) or answer(404, "no")
            with suppress(OSError):  # clients of these tests cut connections
                send(self)
                self.wfile.flush()

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site = Site(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
