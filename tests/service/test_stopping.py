"""Told to stop under load, the service answers whatever reached it; a client only finds nobody who listens."""

import collections
import http.client
import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from helpers.serving import served, until

CLIENTS = 20


class Client:
    """Asks over one connection while that is kept open, and looks whether it still is only by using it."""

    def __init__(self, keep_alive):
        self.keep_alive, self.connection = keep_alive, None

    def ask(self, url, prompts):
        """What came of a request: `answered`, `refused` where nobody listens, or what went wrong."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        headers = {"Content-Type": "application/json"} | ({} if self.keep_alive else {"Connection": "close"})
        try:
            if self.connection.sock is None:
                self.connection.connect()
        except ConnectionRefusedError:
            return "refused"
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


def ask_until(stop, url, outcomes, keep_alive, number):
    """Asks and thinks in turn; half of the prompts are scored, the scores of the others are there."""
    client, think = Client(keep_alive), random.Random(number)
    n = 0
    while not stop.is_set():
        n += 1
        outcomes[client.ask(url, [f"client {number} asks for {n}" if n % 2 else "Prove that √2 is irrational"])] += 1
        time.sleep(think.uniform(0, 0.02))


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept", "new"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_told_to_stop_under_load_it_answers_all_that_was_accepted(tmp_path, workers, keep_alive):
    outcomes, stop = collections.Counter(), threading.Event()
    with served(tmp_path, "starter", "--workers", workers) as service, ThreadPoolExecutor(CLIENTS) as pool:
        try:
            for i in range(CLIENTS):
                pool.submit(ask_until, stop, service.url, outcomes, keep_alive, i)
            until(lambda: outcomes["answered"] > 10 * CLIENTS)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0
            time.sleep(0.1)
        finally:
            stop.set()
    assert set(outcomes) == {"answered", "refused"}, outcomes
    assert "Traceback" not in service.text()
