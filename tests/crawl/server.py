"""A real HTTP server on 127.0.0.1 that serves what a test tells it, misbehaviour included.

    with serve({"/": page("Hello", links=["/a"]), "/slow": drip}) as site:
        site.url("/"), site.hits["/"]
"""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

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


def certificate(folder: Path, *, host: str = "localhost", expired: bool = False) -> tuple[ssl.SSLContext, Path]:
    """Make a self-signed certificate with openssl; return a server's context and the certificate, which is its own authority."""
    folder.mkdir(parents=True, exist_ok=True)
    key, request, config, made = (folder / name for name in ("key.pem", "request.pem", "ca.cnf", "certificate.pem"))
    config.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\ndefault_md=sha256\npolicy=any\n"
        f"x509_extensions=names\n[any]\ncommonName=supplied\n[names]\nsubjectAltName=DNS:{host}\n",
        encoding="utf-8",
    )
    (folder / "index").write_text("", encoding="utf-8")
    (folder / "serial").write_text("01\n", encoding="utf-8")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *new_key, "-subj", f"/CN={host}", "-keyout", key, "-out", request], check=True, capture_output=True)
    dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z" if expired else "20491231000000Z"]
    subprocess.run(["openssl", "ca", "-batch", "-config", config, "-selfsign", "-keyfile", key, "-in", request, "-out", made, "-notext", *dates], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made


@dataclass(slots=True)
class Proxy:
    port: int
    asked: list[str] = field(default_factory=list)
    """Request lines, as they came."""
    heard: bytes = b""
    """All that clients sent before a tunnel was open."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def forward_proxy(*, login: str | None = None, hosts: Mapping[str, int] | None = None) -> Iterator[Proxy]:
    """A small forward proxy: absolute URLs, and CONNECT. `hosts` gives the port on 127.0.0.1 that a name stands for."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(listener.getsockname()[1])
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_client, args=(client,), daemon=True).start()

    def serve_client(client: socket.socket) -> None:
        with suppress(OSError), client:
            while head := read_head(client):
                proxy.heard += head
                lines = head.decode("latin-1").split("\r\n")
                proxy.asked.append(lines[0])
                fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                if wanted is not None and fields.get("proxy-authorization") != wanted:
                    client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
                    continue
                method, target, _ = lines[0].split(" ")
                parts = urlsplit(target if "://" in target else f"//{target}")
                port = (hosts or {}).get(parts.hostname or "", parts.port or 80)
                with socket.create_connection(("127.0.0.1", port), 5) as server:
                    if method == "CONNECT":
                        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                        back = threading.Thread(target=pump, args=(server, client), daemon=True)
                        back.start()
                        pump(client, server)
                        back.join()
                        return
                    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                    kept = [line for line in lines[1:] if line and not line.lower().startswith(("proxy-", "connection:"))]
                    server.sendall("\r\n".join([f"GET {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode("latin-1"))
                    pump(server, client)
                    return  # the answer says close

    def read_head(client: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65536)
            if not piece:
                return b""
            head += piece
        return head

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        listener.close()
