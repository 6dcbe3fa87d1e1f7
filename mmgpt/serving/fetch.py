"""Media at addresses that clients send, fetched without being led to where only this machine may go.

Off unless hosts are allowed. A name is resolved once, all of its addresses must be public, and the connection goes to
the very address that was looked at, so that a name which changes its mind (DNS rebinding) gains nothing; certificates
are still those of the name. Redirects are followed a few times, each looked at anew. Proxies, cookies and credentials
of this machine are not used. A body has a limit of bytes, and all of it a limit of time.
"""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from fnmatch import fnmatchcase
from typing import Any, TypeAlias
from urllib.parse import urljoin, urlsplit

import httpcore

from mmgpt.errors import MediaError, shown

REDIRECTS = 3
SECONDS = 10.0  # for one medium, redirects and all
PORTS = {"http": 80, "https": 443}
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
# Networks of IPv6 in whose addresses one of IPv4 stands, and the bits below it: NAT64, 6to4, Teredo is refused whole.
_CARRIERS = ((ipaddress.ip_network("64:ff9b::/96"), 0), (ipaddress.ip_network("2002::/16"), 80))


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not of this machine, its network, or a cloud's own services."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        for network, below in _CARRIERS:
            if address in network:
                return is_public(ipaddress.IPv4Address(int(address) >> below & 0xFFFFFFFF))
        if address.is_site_local:  # fec0::/10, of which Python says that it is global
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Fetcher:
    """Fetches media from allowed hosts. Raises MediaError for whatever goes wrong, without telling what was found.

    Args:
        hosts: Whom to ask: "images.example.org", "*.example.org", or "*" for all of the internet.
        most: Bytes of one medium.
        seconds: For one medium.
        public: Which addresses may be asked.
        ports: Which port of each scheme may be asked.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        most: int,
        seconds: float = SECONDS,
        public: Callable[[Address], bool] = is_public,
        ports: dict[str, int] | None = None,
    ):
        self.hosts = [host.lower() for host in hosts]
        self.most, self.seconds, self.public, self.ports = most, seconds, public, ports or PORTS
        self._context = ssl.create_default_context()

    def __call__(self, url: str) -> bytes:
        """What lies at an address."""
        end = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            self._check(url)
            try:
                found = self._get(url, end)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
            # ValueError: a host whose labels no name may have, a redirect to what is no address.
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError) as e:
                raise MediaError(f"{shown(url)}: cannot be fetched ({type(e).__name__})") from None
        raise MediaError(f"{shown(url)}: is led on more than {REDIRECTS} times")

    def _check(self, url: str) -> None:
        """Raises MediaError for an address that may not be asked."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise MediaError(f"{shown(url)}: is no address") from None
        if parts.scheme not in self.ports or not host or parts.username is not None or not url.isascii():
            raise MediaError(f"{shown(url)}: is no address of http or https without credentials, in ASCII")
        if port not in (None, self.ports[parts.scheme]):
            raise MediaError(f"{shown(url)}: the port of {parts.scheme} is {self.ports[parts.scheme]}")
        if not any(fnmatchcase(host.lower(), allowed) for allowed in self.hosts):
            raise MediaError(f"{shown(url)}: this server fetches nothing from {host}; send the medium itself")

    def _get(self, url: str, end: float) -> bytes | str:
        """The body, or where a redirect leads."""
        backend = _Checked(self.public, end)
        asked = {"User-Agent": "mmgpt", "Accept": "image/*, audio/*, video/*", "Accept-Encoding": "identity"}
        with (
            httpcore.ConnectionPool(ssl_context=self._context, network_backend=backend) as pool,
            pool.stream("GET", url, headers={"Host": urlsplit(url).netloc, **asked}) as reply,
        ):
            if reply.status in (301, 302, 303, 307, 308):
                led = {name.lower(): value for name, value in reply.headers}.get(b"location")
                if led is None:
                    raise MediaError(f"{shown(url)}: leads nowhere")
                return led.decode("latin-1")
            if reply.status != 200:
                raise MediaError(f"{shown(url)}: cannot be fetched (status {reply.status})")
            body = bytearray()
            for piece in reply.iter_stream():
                body += piece
                if len(body) > self.most:
                    raise MediaError(f"{shown(url)}: is over {self.most:,} bytes")
            return bytes(body)


class _Checked(httpcore.NetworkBackend):
    """Connects to names by the addresses that were checked, and to no others."""

    def __init__(self, public: Callable[[Address], bool], end: float):
        self.public, self.end = public, end
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolved(host, port, self.end)
        if not addresses or not all(map(self.public, addresses)):
            raise MediaError(f"{host}: is not on the open internet")
        stream = self._plain.connect_tcp(str(addresses[0]), port, _left(self.end), local_address, socket_options)
        return _Timed(stream, self.end)


class _Timed(httpcore.NetworkStream):
    """A stream that waits for nothing beyond the end: who sends a byte now and then gains no time by it."""

    def __init__(self, stream: httpcore.NetworkStream, end: float):
        self._stream, self._end = stream, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._end))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._end)), self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolved(host: str, port: int, end: float) -> list[Address]:
    """The addresses of a name. Raises OSError: it has none, httpcore.ReadTimeout: not in time.

    A look-up cannot be called off: it is left to a thread that nobody waits for, not even the end of the process.
    """
    found: Future[list[Address]] = Future()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries])
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        return found.result(_left(end))
    except TimeoutError:
        raise httpcore.ReadTimeout from None


def _left(end: float) -> float:
    """Seconds until the end. Raises httpcore.ReadTimeout: there are none."""
    if (left := end - time.monotonic()) <= 0:
        raise httpcore.ReadTimeout
    return left
