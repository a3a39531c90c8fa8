"""Starting, stopping and dying: nothing accepted is lost without its client hearing of it."""

import collections
import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from helpers.serving import Served, in_thread, served, until

from p2l_plugins.service.app import create_app
from p2l_plugins.service.service import load_bundle
from p2l_plugins.service.settings import ServiceSettings

LONG = "word " * 400


def test_it_is_ready_when_the_bundle_is_loaded_and_not_before():
    go = threading.Event()

    def load(settings):
        go.wait(30)
        return load_bundle(settings)

    with in_thread(create_app(ServiceSettings(), load), wait_ready=False) as url, httpx.Client(base_url=url) as client:
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        early = client.post("/v1/scores", json={"prompts": ["hi"]})
        assert (early.status_code, early.json()) == (503, {"detail": "the bundle is being loaded"})
        assert early.headers["retry-after"] == "1"
        go.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/scores", json={"prompts": ["hi"]}).status_code == 200


def test_probes_answer_head_as_get_without_a_body():
    go = threading.Event()

    def load(settings):
        go.wait(30)
        return load_bundle(settings)

    with in_thread(create_app(ServiceSettings(keys=["k"]), load), wait_ready=False) as url:
        for path, status in (("/healthz", 200), ("/readyz", 503)):
            probed, read = httpx.head(url + path), httpx.get(url + path)
            assert (probed.status_code, probed.content) == (read.status_code, b"") == (status, b"")
            assert {**probed.headers, "date": ""} == {**read.headers, "date": ""}
            assert int(probed.headers["content-length"]) == len(read.content)
        go.set()
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        assert httpx.head(f"{url}/readyz").status_code == 200
        assert httpx.post(f"{url}/readyz").status_code == 405
        assert "head" not in httpx.get(f"{url}/openapi.json").json()["paths"]["/readyz"]


def test_told_to_stop_it_says_no_and_finishes_what_it_accepted(tmp_path):
    with served(tmp_path, "starter", "--drain", "1") as service, httpx.Client(base_url=service.url) as probe:
        with ThreadPoolExecutor(6) as pool:
            asked = [
                pool.submit(
                    httpx.post,
                    f"{service.url}/v1/scores",
                    json={"prompts": [f"{i} {j} {LONG}" for j in range(8)]},
                    timeout=60,
                )
                for i in range(6)
            ]
            until(lambda: "p2l_service_requests_in_flight 7.0" in probe.get("/metrics").text)
            service.process.send_signal(signal.SIGTERM)
            until(lambda: probe.get("/readyz").status_code == 503, 20)
            answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert all(len(answer.json()["coefs"]) == 8 for answer in answers)
        assert service.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            probe.get("/readyz")
        assert "Traceback" not in service.text()


def workers_of(service):
    """The processes that serve: children of the supervisor, beside multiprocessing's own."""
    found = []
    for child in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_killed_under_load_every_request_is_answered_whole_or_fails_for_its_client(tmp_path):
    outcomes = collections.Counter()
    stop = threading.Event()

    def ask(i):
        n = 0
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                n += 1
                try:
                    answer = client.post(f"{url}/v1/scores", json={"prompts": [f"{i} {n} {j}" for j in range(3)]})
                except httpx.TimeoutException:
                    outcomes["lost"] += 1
                except httpx.HTTPError:
                    outcomes["error"] += 1
                    time.sleep(0.02)
                else:
                    whole = answer.status_code == 200 and len(answer.json()["coefs"]) == 3
                    outcomes["ok" if whole else f"status {answer.status_code}"] += 1

    with served(tmp_path, "starter", "--workers", "2") as service:
        url = service.url
        until(lambda: "p2l_service_ready_processes 2.0" in httpx.get(f"{url}/metrics").text)
        with ThreadPoolExecutor(8) as pool:
            try:
                for i in range(8):
                    pool.submit(ask, i)
                until(lambda: outcomes["ok"] > 50)
                victim = workers_of(service)[0]
                victim.kill()
                until(lambda: len(set(workers_of(service)) - {victim}) == 2)
                until(lambda: "p2l_service_ready_processes 2.0" in httpx.get(f"{url}/metrics", timeout=30).text)
                done = outcomes["ok"]
                until(lambda: outcomes["ok"] > done + 50)
            finally:
                stop.set()
        assert outcomes["lost"] == 0
        assert set(outcomes) <= {"ok", "error", "lost", "status 429"}
        survivors = workers_of(service)
        service.process.kill()  # the supervisor alone: what is left of it must not hold the port
        until(lambda: not any(worker.is_running() for worker in survivors), 20)
        with socket.create_server(("127.0.0.1", int(url.rsplit(":", 1)[1]))):
            pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bundle_that_cannot_be_served_ends_it_with_a_sentence(tmp_path, workers):
    (tmp_path / "empty").mkdir()
    service = Served(tmp_path, str(tmp_path / "empty"), "--workers", workers, "--port", "0")
    assert service.process.wait(60) == 1
    assert "p2l.json is missing, so this is not a bundle" in service.text()
    assert "Traceback" not in service.text()


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--api-key-env", "NO_SUCH_KEY"], {}, "--api-key-env NO_SUCH_KEY: the environment variable holds no key"),
        (["--api-key-file", "/no/such"], {}, "there is no such file"),
        (["--max-pending", "8"], {}, "max_pending is 8: must be at least max_batch (256)"),
        (["--device", "tpu"], {}, "device is 'tpu': input should be 'cpu' or 'cuda'"),
        (["--host", "192.0.2.1"], {}, "can't listen there"),
    ],
)
def test_wrong_options_are_named(options, environment, message):
    from typer.testing import CliRunner

    from p2l_plugins.cli import app

    result = CliRunner().invoke(app, ["serve", "starter", "--port", "0", *options], env=environment)
    assert message in str(result.exception)


def test_costs_of_a_model_that_the_bundle_does_not_have_end_it(tmp_path):
    (tmp_path / "costs.json").write_text('{"gpt-9": 0.1}')
    service = Served(tmp_path, "starter", "--costs", str(tmp_path / "costs.json"))
    assert service.process.wait(60) == 1
    assert "model 'gpt-9' is not in the bundle" in service.text()


def test_a_hang_up_of_one_client_is_not_the_others_trouble(client):
    with socket.create_connection(("127.0.0.1", int(str(client.base_url).rstrip("/").rsplit(":", 1)[1]))) as half:
        half.sendall(b"POST /v1/scores HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert client.post("/v1/scores", json={"prompts": ["hi"]}).status_code == 200
