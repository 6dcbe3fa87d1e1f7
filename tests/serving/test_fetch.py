"""Media at addresses: what is fetched, and what a server must not be led to."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import openai
import pytest
import trustme
from servers import png, running, text_part, user

from mmgpt.errors import MediaError
from mmgpt.serving import service
from mmgpt.serving.fetch import Fetcher, is_public
from mmgpt.serving.settings import Limits


class Site(BaseHTTPRequestHandler):
    """A site of a picture, redirects, and ways to do harm."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Site.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/").replace("%2F", "/"))
            self.end_headers()
        elif self.path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(60):
                self.wfile.write(b"X: y\r\n")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 14))
            except OSError:
                pass
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(1))

    def log_message(self, *_args) -> None:
        pass


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """The port at which it serves meanwhile."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Site)) as port:
        yield f"http://site.test:{port}"


@contextmanager
def secured(authority: trustme.CA, name: str) -> Iterator[str]:
    """The site's address by https, with a certificate for this name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as port:
        yield f"https://site.test:{port}"


@pytest.fixture
def names(monkeypatch) -> dict[str, list[str]]:
    """What names lead to: to the site on this machine, unless a test says otherwise; each look-up takes the next."""
    known = {"site.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def lookup(host, port, *rest, **more):
        if host not in known:
            return real(host, port, *rest, **more)
        addresses = known[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


def fetcher(site: str, hosts=("*",), most: int = 1 << 20, seconds: float = 5.0, **more) -> Fetcher:
    """One for which this machine alone is the internet."""
    port = int(site.rpartition(":")[2])
    public = {"public": lambda address: str(address) == "127.0.0.1"} | more
    return Fetcher(hosts, most, seconds, ports={"http": port, "https": port}, **public)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::1", "2001::1", "2001:db8::1", "fec0::1",
    ],
)  # fmt: skip
def test_addresses_within_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_picture_is_fetched_directly_and_over_redirects(site, names):
    assert fetcher(site)(f"{site}/a.png") == png(1)
    assert fetcher(site)(f"{site}/to//a.png") == png(1)
    assert fetcher(site, ["*.test"])(f"{site}/to/{site}/b.png") == png(1)


def test_https_is_of_the_name_in_the_address_though_the_connection_goes_to_a_checked_one(names, monkeypatch, tmp_path):
    authority = trustme.CA()
    with secured(authority, "site.test") as site:
        with pytest.raises(MediaError, match=r"cannot be fetched \(ConnectError\)"):
            fetcher(site)(f"{site}/a.png")  # whoever made that certificate
        authority.cert_pem.write_to_path(tmp_path / "authorities.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
        assert fetcher(site)(f"{site}/a.png") == png(1)
        assert fetcher(site)(f"{site}/to//a.png") == png(1)
    with (
        secured(authority, "other.test") as site,
        pytest.raises(MediaError, match=r"cannot be fetched \(ConnectError\)"),
    ):
        fetcher(site)(f"{site}/a.png")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file:///etc/passwd", "no address of http"),
        ("ftp://site.test/a", "no address of http"),
        ("http://user:word@site.test/a", "without credentials"),
        ("http://site.test:22/a", "the port of http is"),
        ("http://[::1/a", "no address"),
        ("http:///a", "no address of http"),
        ("http://ünïcode.test/a", "in ASCII"),
        ("http://other.example/a", "fetches nothing from other.example"),
        ("http://site.test.other.example/a", "fetches nothing from"),
    ],
)
def test_other_addresses_are_refused_before_anything_is_asked(site, names, url, told):
    before = len(Site.asked)
    with pytest.raises(MediaError, match=told):
        fetcher(site, ["site.test"])(url)
    assert len(Site.asked) == before


def test_names_of_this_machine_are_refused_as_they_are(site):
    before = len(Site.asked)
    port = int(site.rpartition(":")[2])
    for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1"):
        with pytest.raises(MediaError, match=r"not on the open internet|cannot be fetched"):
            Fetcher(["*"], 1000, ports={"http": port})(f"http://{host}:{port}/a.png")
    assert len(Site.asked) == before


def test_a_redirect_leads_no_further_than_a_request(site, names):
    names["inside.test"] = ["127.0.0.2"]
    inside = site.replace("site.test", "inside.test")
    for hosts, told in (
        (["*"], "inside.test: is not on the open internet"),
        (["site.test"], "fetches nothing from inside"),
    ):
        with pytest.raises(MediaError, match=told):
            fetcher(site, hosts)(f"{site}/to/{inside}/a.png")
    with pytest.raises(MediaError, match="no address of http"):
        fetcher(site)(f"{site}/to/file:///etc/passwd")
    with pytest.raises(MediaError, match="led on more than 3 times"):
        fetcher(site)(f"{site}/to//to//to//to//a.png")


@pytest.mark.parametrize("host", ["a..test", f"{'a' * 64}.test"])
def test_a_name_that_can_be_none_is_told(host):
    with pytest.raises(MediaError, match=r"cannot be fetched \(\w+\)"):
        Fetcher(["*"], 1000)(f"http://{host}/a.png")


def test_a_redirect_to_no_address_is_told(site, names):
    with pytest.raises(MediaError, match=r"cannot be fetched \(ValueError\)"):
        fetcher(site)(f"{site}/to/http://[::1/a.png")


def test_a_name_that_changes_its_mind_is_asked_once(site, names, monkeypatch):
    """The first look-up is public, the second would not be: the connection goes to what was looked at."""
    names["rebinding.test"] = ["127.0.0.1", "127.0.0.2"]
    reached = []
    connect = socket.create_connection

    def noting(address, *rest, **more):
        reached.append(address[0])
        return connect(address, *rest, **more)

    monkeypatch.setattr(socket, "create_connection", noting)
    url = f"{site.replace('site.test', 'rebinding.test')}/a.png"
    assert fetcher(site)(url) == png(1)
    assert reached == ["127.0.0.1"]
    with pytest.raises(MediaError, match="not on the open internet"):
        fetcher(site)(url)
    assert reached == ["127.0.0.1"]


def test_what_never_ends_costs_its_limit(site, names):
    with pytest.raises(MediaError, match=r"is over 100,000 bytes"):
        fetcher(site, most=100_000)(f"{site}/endless")
    began = time.monotonic()
    with pytest.raises(MediaError, match=r"cannot be fetched \(ReadTimeout\)"):
        fetcher(site, seconds=0.4)(f"{site}/slow")
    assert time.monotonic() - began < 2
    with pytest.raises(MediaError, match=r"cannot be fetched \(status 404\)"):
        fetcher(site)(f"{site}/missing")


def test_a_name_that_is_looked_up_for_ever_costs_the_limit_of_time(site, monkeypatch):
    found = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_rest, **_more: found.wait(30))
    with pytest.raises(MediaError, match=r"cannot be fetched \(ReadTimeout\)"):
        fetcher(site, seconds=0.2)(f"{site}/a.png")
    assert not found.is_set()
    found.set()


def test_a_name_that_nobody_knows_is_told(site, monkeypatch):
    def unknown(*_rest, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(MediaError, match=r"cannot be fetched \(gaierror\)"):
        fetcher(site)(f"{site}/a.png")


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(openai.BadRequestError) as error:
        yield
    assert error.value.code == "invalid_content"


def test_a_chat_about_an_address_is_that_about_the_picture(assistant, server, site, names):
    def chat(one, url: str) -> str | None:
        messages = user({"type": "image_url", "image_url": {"url": url}}, text_part("What?"))
        return (
            one.client.chat.completions.create(model="tiny", messages=messages, temperature=0)
            .choices[0]
            .message.content
        )

    import base64

    sent = chat(server, f"data:image/png;base64,{base64.b64encode(png(1)).decode()}")
    with running(assistant, fetcher=fetcher(site)) as fetching:
        assert chat(fetching, f"{site}/a.png") == sent
        with refused():
            chat(fetching, f"{site}/missing")
    with refused():
        chat(server, f"{site}/a.png")  # as servers are, unless told otherwise
    with (
        running(assistant, Limits(body=2000, tokens=64), fetcher=fetcher(site)) as small,
        pytest.raises(openai.BadRequestError),
    ):
        chat(small, f"{site}/a.png")


def test_what_is_fetched_counts_as_if_it_had_been_sent(assistant, site, names, monkeypatch):
    monkeypatch.setattr(service, "BODIES", 1)
    asked = {"messages": user({"type": "image_url", "image_url": {"url": f"{site}/a.png"}}), "max_tokens": 2}
    with running(assistant, Limits(body=7500, tokens=8), fetcher=fetcher(site)) as own:
        with socket.create_connection(own.url.removeprefix("http://").split(":")) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n"
            slow.sendall(head.encode() + b" " * 1500)
            own.wait_until(lambda: own.service.held == 1500)
            told = own.http.post("/v1/chat/completions", json=asked)
            assert (told.status_code, told.json()["error"]["code"]) == (429, "memory_full")
        own.wait_until(lambda: own.service.held == 0)
        assert own.http.post("/v1/chat/completions", json=asked).status_code == 200
        own.wait_until(lambda: own.service.held == 0)
