"""Clients that open connections and say nothing, or too slowly: the others go on. Real sockets, low limits."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.serving import in_thread, served, until
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from p2l_plugins.service import connections, metrics
from p2l_plugins.service.connections import Connections, _address

HEAD = b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = HEAD + b"Content-Length: 9000\r\n\r\n{"

go = threading.Event()


async def app(scope, receive, send):
    """Reads what comes; `/slow` waits until it is told to go on, `/large` is megabytes, `/refused` reads nothing."""
    request = Request(scope, receive)
    if scope["path"] == "/refused":
        await PlainTextResponse("no", 415)(scope, receive, send)
        return
    await request.body()
    while scope["path"] == "/slow" and not go.is_set():
        await connections.asyncio.sleep(0.01)
    text = "a" * 20_000_000 if scope["path"] == "/large" else scope["path"]
    await PlainTextResponse(text)(scope, receive, send)


@contextlib.contextmanager
def bounded(most: int = 60, per_address: int = 30, head_s: float = 1.0):
    bounds = Connections(most, per_address, head_s)
    with in_thread(app, False, http=bounds.protocol(), lifespan="off", timeout_keep_alive=1) as url:
        yield url
    assert not bounds.inside
    assert not bounds.of_address


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20, source_address=(source, 0))


@contextlib.contextmanager
def connected(url: str, count: int, said: bytes, hosts: int = 1):
    """Connections of several addresses on which this much of a request was said."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            one = stack.enter_context(connect(url, f"127.0.0.{2 + i % hosts}"))
            with contextlib.suppress(OSError):  # it is of those that others have taken the place of
                one.sendall(said)
        yield


def client(url: str, source: str = "127.0.0.1") -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(local_address=source), base_url=url, timeout=30)


def end_of(one: socket.socket, says: bytes = b"") -> float:
    """Seconds after which the server ends a connection on which something more is said again and again."""
    started = time.monotonic()
    one.settimeout(0.1)
    while time.monotonic() < started + 20:
        try:
            if says:
                one.sendall(says)
            if not one.recv(2**20):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.mark.parametrize("hosts", [1, 40])
@pytest.mark.parametrize("said", [b"", b"GET / HT", HEAD, BODY])
def test_half_open_connections_keep_nobody_out(said, hosts):
    with bounded(head_s=60) as url, connected(url, 300, said, hosts):
        for path in ("/healthz", "/readyz", "/metrics", "/v1/bundle", "/v1/scores"):
            assert httpx.post(url + path, content=b"x", timeout=20).status_code == 200


@pytest.mark.parametrize("said", [b"", HEAD, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"])
def test_what_says_nothing_more_is_ended(said):
    with bounded() as url, connect(url) as one:
        one.sendall(said)
        assert end_of(one) < 15


@pytest.mark.parametrize("said", [HEAD, b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n"])
def test_neither_a_slow_head_nor_the_rest_of_a_refused_body_holds_a_connection(said):
    with bounded() as url, connect(url) as one:
        one.sendall(said)
        assert end_of(one, b"X:b\r\n") < 15


def test_a_client_that_does_not_read_is_dropped_and_one_that_reads_slowly_is_not(monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_S", 0.5)
    with bounded() as url, connect(url) as deaf, connect(url) as slow:
        for one in (deaf, slow):
            one.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        before = metrics.REFUSED.labels("unread")._value.get()
        read = 0
        while part := slow.recv(2**20):
            read += len(part)
            time.sleep(0.05)
        assert read > 20_000_000
        until(lambda: metrics.REFUSED.labels("unread")._value.get() == before + 1, 20)


def test_where_all_have_asked_something_others_are_told_503_but_for_the_probes():
    go.clear()
    with bounded(most=4, per_address=2) as url, ThreadPoolExecutor(4) as pool:
        clients = [client(url, f"127.0.0.{2 + i // 2}") for i in range(4)]
        asked = [pool.submit(one.get, "/slow") for one in clients]
        try:
            until(lambda: client(url, "127.0.0.2").get("/v1/bundle").status_code == 503)
            until(lambda: client(url).get("/v1/bundle").status_code == 503)
            for source, whose in (("127.0.0.2", "of this address"), ("127.0.0.1", "of all clients")):
                with client(url, source) as one:
                    refused = one.get("/v1/bundle")
                    assert refused.status_code == 503
                    assert whose in refused.json()["detail"]
                    assert refused.headers["retry-after"] == "1"
                for path in ("/healthz", "/readyz", "/metrics"):
                    with client(url, source) as one:
                        assert one.get(path).text == path
        finally:
            go.set()
        assert [one.result().status_code for one in asked] == [200] * 4
        for one in clients:
            one.close()
        assert httpx.get(f"{url}/v1/bundle", timeout=20).status_code == 200


def test_those_that_are_told_so_do_not_pile_up():
    go.clear()
    bounds = Connections(2, 2, 60.0)
    options = {"http": bounds.protocol(), "lifespan": "off"}
    with in_thread(app, False, **options) as url, ThreadPoolExecutor(2) as pool:
        try:
            asked = [pool.submit(httpx.get, f"{url}/slow", timeout=60) for _ in range(2)]
            until(lambda: len(bounds.inside) == 2)  # else what asks next may take the place of one of them
            until(lambda: client(url).get("/v1/bundle").status_code == 503)
            with connected(url, 30, HEAD, 30):
                until(lambda: len(bounds.inside) <= 4, 20)
        finally:
            go.set()
        assert [one.result().status_code for one in asked] == [200] * 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_whom_an_address_counts_for(one, other, same):
    assert (_address((one, 1)) == _address((other, 2))) == same


def test_the_service_keeps_its_limits_and_has_a_listener_for_probes(tmp_path):
    options = ("--max-connections", "40", "--max-per-address", "20", "--head-timeout", "2", "--probe-port", "0")
    with served(tmp_path, "starter", *options) as service:
        probes = "http://127.0.0.1:" + service.text().split("probes at http://127.0.0.1:")[1].split()[0]
        with connected(service.url, 200, HEAD, 20), connected(probes, 200, HEAD, 20):
            for path in ("/healthz", "/readyz", "/metrics"):
                assert httpx.get(service.url + path, timeout=20).status_code == 200
                assert httpx.get(probes + path, timeout=20).status_code == 200
            scored = httpx.post(f"{service.url}/v1/scores", json={"prompts": ["hi"]}, timeout=20)
            assert scored.status_code == 200
        assert httpx.get(f"{probes}/v1/bundle", timeout=20).status_code == 404
        assert 'refused_connections_total{why="displaced"}' in httpx.get(f"{probes}/metrics", timeout=20).text
