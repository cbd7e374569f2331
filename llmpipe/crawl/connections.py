"""Connections that go only where the guard lets them, verify TLS always, and read what http.client misreads.

    pools = guarded_pools(guard, Current()); adapter = Adapter(pools, tls_context())      # one per host, for fetch.py

The address that the guard checked is the one that is connected to. Opens sockets; reads and writes no files.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from llmpipe.crawl.guard import Guard, Refused

CONNECT_TIMEOUT_S = 10.0
MAX_INTERIM = 20
"""Responses of status 1xx (103 Early Hints) passed over before the one that counts."""


class Current(threading.local):
    started: Callable[[socket.socket], None] | None = None
    """Told of the socket that this thread's fetch waits on, from the moment it is connected."""


class _Lines:
    """Hands out the lines of a head and keeps the last."""

    def __init__(self, file: Any) -> None:
        self._file, self.last = file, b""

    def readline(self, limit: int) -> bytes:
        self.last = self._file.readline(limit)
        return self.last

    def close(self) -> None:
        self._file.close()


class _Response(http.client.HTTPResponse):
    """http.client's, which takes 103 for the answer, a head that is cut off for a whole one, and -5 for the size of a chunk."""

    def begin(self) -> None:
        file = self.fp
        self.fp = lines = _Lines(file)
        super().begin()
        self.fp = file
        if lines.last not in (b"\r\n", b"\n"):
            raise http.client.IncompleteRead(b"")

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INTERIM):
            version, status, reason = super()._read_status()
            if not 100 <= status < 200 or status == 101:
                return version, status, reason
            for _ in range(MAX_INTERIM * 5):
                if self.fp.readline(1 << 16) in (b"\r\n", b"\n", b""):
                    break
        raise http.client.BadStatusLine("one interim response after the other")

    def _get_chunk_left(self) -> int | None:
        left = super()._get_chunk_left()
        if left is not None and left < 0:
            raise http.client.IncompleteRead(b"")
        return left


def guarded_pools(guard: Guard, current: Current) -> dict[str, type[HTTPConnectionPool]]:
    def open_socket(self: HTTPConnection) -> socket.socket:
        timeout = self.timeout if isinstance(self.timeout, int | float) else CONNECT_TIMEOUT_S
        if self.proxy is None:
            sock = guard.connect(self.host, self.port, timeout=timeout)
        else:  # named by the user, so it may be anywhere; the host behind it was checked before
            try:
                sock = socket.create_connection((self.host, self.port), timeout)
            except OSError as error:
                raise Refused("proxy", f"cannot be reached ({error.strerror or error})", retry=True) from None
        if current.started is not None:
            current.started(sock)
        return sock

    def send_request(self: HTTPConnection, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()
        if current.started is not None:
            current.started(self.sock)
        HTTPConnection.request(self, *args, **kwargs)

    class Http(HTTPConnection):
        _new_conn, request, response_class = open_socket, send_request, _Response

    class Https(HTTPSConnection):
        _new_conn, request, response_class = open_socket, send_request, _Response

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


class Adapter(HTTPAdapter):
    """requests' transport with our connections and one TLS context for all (loading the CA list anew costs 20 ms)."""

    def __init__(self, pools: dict[str, type[HTTPConnectionPool]], context: ssl.SSLContext | None) -> None:
        self._pools, self._context = pools, context
        super().__init__(pool_connections=4, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # by the context, which holds the CA list; never off


@cache
def tls_context() -> ssl.SSLContext:
    """The system's and certifi's authorities; SSL_CERT_FILE and SSL_CERT_DIR name others."""
    context = ssl.create_default_context()
    context.load_verify_locations(requests.certs.where())
    return context
