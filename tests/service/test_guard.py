"""Pages of other sites, names made to lead here, bodies of another kind, and keys that may speak for users."""

import threading

import httpx
import pytest
from helpers.serving import in_thread

from p2l_plugins.service.app import create_app
from p2l_plugins.service.hosts import Hosts
from p2l_plugins.service.settings import ServiceSettings

THUMB = {"user": "ada", "model": "m", "liked": True}


@pytest.fixture(scope="module")
def never():
    """Loads no bundle: what passes the guard is told 503."""
    end = threading.Event()

    def load(settings):
        end.wait(300)
        raise OSError("the test is over")

    yield load
    end.set()


@pytest.fixture(scope="module")
def url(never):
    settings = ServiceSettings(
        keys=("k",), feedback_keys=("f",), allowed_hosts=("scores.example.org",), overall=(("one",),)
    )
    with in_thread(create_app(settings, never), wait_ready=False) as url:
        yield url


def post(url, path="/v1/scores", key="k", json=None, **headers):
    given = {"api-key": key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(url + path, headers=given, json=json or {"prompts": ["hi"]})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 503),
        ("127.0.0.1:8080", 503),
        ("localhost:8080", 503),
        ("LOCALHOST.", 503),
        ("[::1]:8080", 503),
        ("10.2.3.4:8080", 503),  # an address can't be made to lead elsewhere
        ("scores.example.org", 503),
        ("Scores.Example.org:443", 503),
        ("attacker.example", 421),
        ("attacker.example:8080", 421),
        ("localhost.attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("scores.example.org.attacker.example", 421),
        ("localhost@attacker.example", 421),
        ("localhost/", 421),
        ("localhost:99999999", 421),
    ],
)
def test_it_answers_under_its_own_names_only(url, host, status):
    for method, path in (("GET", "/v1/bundle"), ("GET", "/v1/overall"), ("POST", "/v1/scores")):
        asked = httpx.request(
            method,
            url + path,
            headers={"host": host, "api-key": "k"},
            json={"prompts": ["hi"]} if method == "POST" else None,
        )
        assert asked.status_code == status
    assert httpx.get(f"{url}/", headers={"host": host}).status_code == (200 if status == 503 else 421)
    assert (
        httpx.get(f"{url}/healthz", headers={"host": host}).status_code == 200
    )  # load balancers have names of their own
    if status == 421:
        assert "--allowed-host" in asked.json()["detail"]


def test_any_name_will_do_where_the_operator_says_so(never):
    with in_thread(create_app(ServiceSettings(allowed_hosts=("*",)), never), wait_ready=False) as url:
        assert httpx.get(f"{url}/v1/bundle", headers={"host": "anything.example"}).status_code == 503
        cross = {"host": "anything.example", "origin": "http://attacker.example"}
        assert httpx.post(f"{url}/v1/scores", headers=cross, json={"prompts": ["hi"]}).status_code == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 503),
        ("https://localhost:8080", 503),  # TLS before the service
        ("https://scores.example.org", 503),
        ("http://localhost", 403),
        ("http://localhost:9090", 403),
        ("http://127.0.0.1:8080", 403),
        ("http://attacker.example", 403),
        ("http://localhost:8080.attacker.example", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
    ],
)
def test_pages_of_other_sites_may_not_send(url, origin, status):
    for path, key in (("/v1/scores", "k"), ("/v1/feedback", "f"), ("/predict", "k"), ("/v1/route", "k")):
        body = {"prompt": "hi"} if path in ("/predict", "/v1/route") else THUMB if key == "f" else None
        assert post(url, path, key, body, host="localhost:8080", origin=origin).status_code == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 503),
        ("Application/JSON; charset=utf-8", 503),
        ("text/plain", 415),
        ("text/plain;application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
def test_a_body_says_that_it_is_json(url, kind, status):
    assert post(url, content_type=kind).status_code == status
    none = httpx.post(f"{url}/v1/scores", headers={"api-key": "k"}, content=b'{"prompts": ["hi"]}')
    assert none.status_code == 415


@pytest.mark.parametrize(("key", "status"), [("f", 503), ("k", 403), ("g", 401), ("", 401)])
def test_feedback_needs_a_key_that_may_speak_for_users(url, key, status):
    assert post(url, "/v1/feedback", key, THUMB).status_code == status


@pytest.mark.parametrize("path", ["/v1/scores", "/v1/route", "/models"])
def test_which_opens_nothing_else(url, path):
    assert post(url, path, "f").status_code == 401


def test_the_names_of_a_service_that_listens_everywhere():
    hosts = Hosts("0.0.0.0", ["p2l"])  # noqa: S104
    assert all(hosts.serve(host) for host in ("localhost:1", "10.0.0.1", "p2l:8080", ""))
    assert not hosts.serve("other")
    assert not hosts.trust("http://other", "p2l")
    assert hosts.trust("http://p2l:3000", "10.0.0.1")


@pytest.mark.parametrize(
    "host", ["[::1]evil", "[::1]:80:80", "localhost#", "localhost?", "localhost/", "a@localhost", "localhost x"]
)
def test_what_is_no_host_is_none_of_ours(host):
    assert not Hosts("127.0.0.1").serve(host)
    assert not Hosts("127.0.0.1").trust(f"http://{host}", "localhost")


@pytest.mark.parametrize(
    "host", ["[::1]", "[::1]:8080", "[fe80::1%25eth0]:80", "LOCALHOST.:8080", "localhost:", "127.0.0.1:1"]
)
def test_every_form_of_a_host_of_ours_is_one(host):
    assert Hosts("127.0.0.1").serve(host)
