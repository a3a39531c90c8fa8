"""Told to stop under load, the service answers whatever reached it; a client only finds nobody who listens."""

import collections
import contextlib
import http.client
import json
import random
import select
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from helpers.serving import served, status, until

CLIENTS = 20


class Client:
    """Asks over one connection while that is kept open.

    Args:
        addresses: of replicas; a new connection goes to any that listens, as a Kubernetes service has it.
        keep_alive: whether a connection is for several requests.
        looks: whether to look, before a request, if the server has closed the connection, as HTTP clients do.
    """

    def __init__(self, addresses, keep_alive=True, looks=False):
        self.addresses, self.keep_alive, self.looks, self.connection = addresses, keep_alive, looks, None

    def ask(self, prompts):
        """What came of a request: `answered`, `refused` where nobody listens, or what went wrong."""
        if self.connection is None or self.connection.sock is None or self._is_closed():
            self.connection = self._connected()
        if self.connection is None:
            return "refused"
        headers = {"Content-Type": "application/json"} | ({} if self.keep_alive else {"Connection": "close"})
        try:
            self.connection.request("POST", "/v1/scores", json.dumps({"prompts": prompts}), headers)
            answer = self.connection.getresponse()
            whole = answer.status == 200 and len(json.loads(answer.read())["coefs"]) == len(prompts)
            outcome = "answered" if whole else f"status {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        if outcome != "answered":
            self.connection.close()
        return outcome

    def _connected(self):
        for url in random.sample(self.addresses, len(self.addresses)):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            with contextlib.suppress(ConnectionRefusedError):
                connection.connect()
                return connection
        return None

    def _is_closed(self):
        readable, _, _ = select.select([self.connection.sock], [], [], 0) if self.looks else ((), (), ())
        return bool(readable)


def ask_until(stop, client, outcomes, number):
    """Asks and thinks in turn; half of the prompts are scored, the scores of the others are there."""
    think = random.Random(number)
    n = 0
    while not stop.is_set():
        n += 1
        outcomes[client.ask([f"client {number} asks for {n}" if n % 2 else "Prove that √2 is irrational"])] += 1
        time.sleep(think.uniform(0, 0.02))


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept", "new"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_told_to_stop_under_load_it_answers_all_that_was_accepted(tmp_path, workers, keep_alive):
    outcomes, stop = collections.Counter(), threading.Event()
    with served(tmp_path, "starter", "--workers", workers) as service, ThreadPoolExecutor(CLIENTS) as pool:
        try:
            # every process has the bundle: one that loads it says 503
            until(lambda: all(status(f"{service.url}/readyz") == 200 for _ in range(20)))
            for i in range(CLIENTS):
                pool.submit(ask_until, stop, Client([service.url], keep_alive), outcomes, i)
            until(lambda: outcomes["answered"] > 10 * CLIENTS)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0
            time.sleep(0.1)
        finally:
            stop.set()
    assert set(outcomes) == {"answered", "refused"}, outcomes
    assert "Traceback" not in service.text()


def test_replicas_are_replaced_one_after_the_other_without_a_failed_request(tmp_path):
    outcomes, stop, addresses = collections.Counter(), threading.Event(), []

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        replicas = [stack.enter_context(replica(tmp_path, i)) for i in range(2)]
        addresses += [one.url for one in replicas]
        try:
            for i in range(CLIENTS):
                pool.submit(ask_until, stop, Client(addresses, looks=True), outcomes, i)
            for i, old in enumerate(replicas):
                new = stack.enter_context(replica(tmp_path, 2 + i))
                addresses.append(new.url)
                done = outcomes["answered"]
                until(lambda done=done: outcomes["answered"] > done + 2 * CLIENTS)
                old.process.send_signal(signal.SIGTERM)
                assert old.process.wait(30) == 0
                addresses.remove(old.url)  # after it has ended: no balancer knows at once
            done = outcomes["answered"]
            until(lambda: outcomes["answered"] > done + 2 * CLIENTS)
        finally:
            stop.set()
    assert set(outcomes) == {"answered"}, outcomes


def replica(folder, number):
    """A service with a log of its own."""
    (folder / str(number)).mkdir()
    return served(folder / str(number), "starter")
