"""Open connections only to addresses that a crawl may reach: no page, redirect or DNS answer leads into a private network.

    guard = Guard(allow_private=["10.0.0.0/8"], resolve={"docs.invalid": "127.0.0.1:8000"})
    sock = guard.connect("docs.invalid", 80, timeout=10)         # Refused: rule "private_address" or "dns"

The address that was checked is the one that is connected to, so a name that changes its mind (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")

CHECKED_S = 300.0
MAX_CHECKED = 10_000


class Refused(Exception):
    """A connection that is not to be made. Not an OSError, so that urllib3 passes it on as it is."""

    def __init__(self, rule: str, value: str, *, retry: bool = False) -> None:
        super().__init__(f"{rule}: {value}")
        self.rule, self.value, self.retry = rule, value, retry


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the public Internet, also when an IPv4 address is wrapped in IPv6 (mapped, NAT64, 6to4, Teredo)."""
    if isinstance(address, IPv6Address):
        if address in _NAT64_LOCAL or address.is_site_local:
            return False
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class Guard:
    """What may be connected to. Thread-safe: nothing but a cache is changed after it is made."""

    def __init__(self, *, allow_private: bool | Sequence[str] = False, resolve: Mapping[str, str] | None = None) -> None:
        self.allow_all = allow_private is True
        self.hosts: set[str] = set()
        self.networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for item in allow_private if not isinstance(allow_private, bool) else ():
            try:
                self.networks.append(ipaddress.ip_network(item.strip("[]"), strict=False))
            except ValueError:
                self.hosts.add(item.lower())
        self.resolve = {host.lower(): parse_address(address) for host, address in (resolve or {}).items()}
        self._checked: dict[tuple[str, int], tuple[float, Refused | None]] = {}

    def connect(self, host: str, port: int, *, timeout: float | None) -> socket.socket:
        """Connect to `host`; raise `Refused` for a name that doesn't resolve or leads to an address that is not allowed."""
        addresses = self.lookup(host, port)
        last: OSError | None = None
        for address in addresses:
            try:
                sock = socket.create_connection(address, timeout)
            except OSError as error:
                last = error
                continue
            if self._mapped(host, port) is None:
                peer = sock.getpeername()[0]
                if not self.allows(host, peer):
                    sock.close()
                    raise Refused("private_address", peer)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        assert last is not None  # lookup never returns an empty list
        raise last

    def check(self, host: str, port: int) -> None:
        """Refuse a host that a proxy is to be asked for, as far as can be told from here.

        A name that doesn't resolve here is the proxy's to resolve, and where it leads there cannot be seen.
        """
        if self.allow_all:
            return
        now = time.monotonic()
        until, refusal = self._checked.get((host, port), (0.0, None))
        if now >= until:
            refusal = None
            try:
                self.lookup(host, port)
            except Refused as error:
                refusal = error if error.rule != "dns" else None
            if len(self._checked) > MAX_CHECKED:
                self._checked.clear()
            self._checked[host, port] = (now + CHECKED_S, refusal)
        if refusal is not None:
            raise Refused(refusal.rule, refusal.value)

    def lookup(self, host: str, port: int) -> list[tuple[str, int]]:
        """Resolve a host to the addresses that may be connected to."""
        host = host.strip("[]").lower()
        if (mapped := self._mapped(host, port)) is not None:
            return [(mapped[0], mapped[1] or port)]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise Refused("dns", f"{host}: {getattr(error, 'strerror', None) or error}", retry=temporary) from None
        addresses = list(dict.fromkeys((str(a[4][0]), port) for a in found))
        allowed = [a for a in addresses if self.allows(host, a[0])]
        if not allowed:
            raise Refused("private_address", addresses[0][0] if addresses else host)
        return allowed

    def allows(self, host: str, address: str) -> bool:
        if self.allow_all or host.strip("[]").lower() in self.hosts:
            return True
        ip = ipaddress.ip_address(address.partition("%")[0])
        return is_public(ip) or any(ip in n for n in self.networks if n.version == ip.version)

    def _mapped(self, host: str, port: int) -> tuple[str, int | None] | None:
        if not self.resolve:
            return None
        host = host.strip("[]").lower()
        return self.resolve.get(f"{host}:{port}") or self.resolve.get(host)


def parse_address(text: str) -> tuple[str, int | None]:
    """Read `127.0.0.1`, `127.0.0.1:8000` or `[::1]:8000`."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (host.startswith("[") or ":" not in host):
        address, number = host.strip("[]"), int(port)
    else:
        address, number = text.strip("[]"), None
    ipaddress.ip_address(address)  # raises ValueError, which a config turns into its message
    if number is not None and not 0 < number < 65536:
        raise ValueError(f"{text}: no such port")
    return address, number
