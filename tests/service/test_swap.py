"""Another bundle in the place of the one that is served: no request fails or mixes the two, in either direction."""

import collections
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from helpers.serving import served, until
from helpers.word_bundle import point, write_choice

from p2l_plugins.scoring.bundle import Bundle

CONNECTIONS = 10
COSTS = {"alpha": 3.0, "beta": 2.0, "gamma": 1.0}
#: coefficients of "math" in either bundle; the best model is the first, or the last
MATH = {"one": [2.0, 1.0, 0.0], "other": [0.0, 1.0, 2.0]}


@pytest.fixture
def bundles(tmp_path):
    """Two bundles, a third that is damaged, and the link that is used."""
    return write_choice(tmp_path, MATH)


def swaps(url, result):
    """Over all processes."""
    found = re.search(rf'p2l_service_bundle_swaps_total{{result="{result}"}} (\S+)', httpx.get(f"{url}/metrics").text)
    return 0 if found is None else float(found[1])


def whole(client, i, fingerprints):
    """One of each kind of request; the name of the bundle that all parts of its answer are of, or what is wrong."""
    kind = i % 4
    if kind == 0:
        answer = client.post("/v1/scores", json={"prompts": ["math", f"math {i}"]})
    elif kind == 1:
        answer = client.post("/v1/route", json={"prompt": f"math {i}", "costs": COSTS, "rule": "best"})
    elif kind == 2:
        answer = client.post("/v1/leaderboard", json={"prompts": ["math", f"math {i}"]})
    else:
        answer = client.get("/v1/overall")
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text}"
    told = answer.json()
    name = fingerprints[told["fingerprint"]]
    if kind == 0 and told["coefs"] != [MATH[name]] * 2:
        return f"coefs {told['coefs']} of {name}"
    best = "alpha" if name == "one" else "gamma"
    if kind == 1 and told["models"][0]["model"] != best:
        return f"{told['models'][0]} of {name}"
    if kind == 2 and told["leaderboard"][0]["model"] != best:
        return f"{told['leaderboard'][0]} of {name}"
    return name


@contextmanager
def load(bundles, url):
    """Requests of ten connections all the while; what became of them, by name or by what is wrong."""
    fingerprints = {Bundle.open(bundles / name).manifest.fingerprint: name for name in MATH}
    outcomes, stop = collections.Counter(), threading.Event()

    def ask(n):
        i = n * 10**6
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                i += 1
                try:
                    outcomes[whole(client, i, fingerprints)] += 1
                except Exception as error:
                    outcomes[repr(error)] += 1

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        asked = [pool.submit(ask, n) for n in range(CONNECTIONS)]
        try:
            yield outcomes
        finally:
            stop.set()
    for one in asked:
        one.result()


def serves(url, bundles, name, workers):
    """Whether all of many new connections meet this bundle."""
    fingerprint = Bundle.open(bundles / name).manifest.fingerprint
    return all(httpx.get(f"{url}/v1/bundle").json()["fingerprint"] == fingerprint for _ in range(4 * workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_under_load_a_bundle_is_swapped_refused_and_rolled_back_without_a_failed_request(bundles, tmp_path, workers):
    with served(tmp_path, str(bundles / "link"), "--workers", str(workers)) as service:
        url = service.url
        until(lambda: f"p2l_service_ready_processes {workers}.0" in httpx.get(f"{url}/metrics").text)
        until(lambda: httpx.get(f"{url}/v1/overall").status_code == 200)
        with load(bundles, url) as outcomes:
            until(lambda: outcomes["one"] > 50)
            point(bundles, "other")
            until(lambda: swaps(url, "taken") == workers)
            assert serves(url, bundles, "other", workers)
            point(bundles, "bad")
            until(lambda: swaps(url, "refused") == workers)
            assert serves(url, bundles, "other", workers)
            point(bundles, "one")  # at once: without waiting for the next look
            service.process.send_signal(signal.SIGHUP)
            until(lambda: swaps(url, "taken") == 2 * workers)
            before = outcomes["one"]
            until(lambda: outcomes["one"] > before + 50)
        assert set(outcomes) == {"one", "other"}, outcomes
        log = service.text()
        assert log.count("is not taken, the one before it stays") == workers
        assert log.count("does not match its sha256") == workers
        assert log.count("swapped: bundle") == 2 * workers
        assert "Traceback" not in log
        assert service.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_swaps_at_once_and_ends_no_process(bundles, tmp_path, workers):
    # looks of an hour: only the signal can have it look
    start = "import p2l_plugins.scoring.changes as c; c.LOOK_S = 3600.0\n"
    (bundles / "site").mkdir()
    (bundles / "site" / "sitecustomize.py").write_text(start)
    path = f"{bundles / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with served(
        tmp_path, str(bundles / "link"), "--workers", str(workers), environment={"PYTHONPATH": path}
    ) as service:
        url = service.url
        until(lambda: f"p2l_service_ready_processes {workers}.0" in httpx.get(f"{url}/metrics").text)
        for name, taken in (("other", 1), ("one", 2)):
            point(bundles, name)
            service.process.send_signal(signal.SIGHUP)
            until(lambda taken=taken: swaps(url, "taken") == taken * workers, 10)
            assert serves(url, bundles, name, workers)
        point(bundles, "bad")
        for refused in (1, 2):  # asked for again, it is tried again
            service.process.send_signal(signal.SIGHUP)
            until(lambda refused=refused: swaps(url, "refused") == refused * workers, 10)
        assert serves(url, bundles, "one", workers)
        assert service.text().count("is not taken") == workers
        assert "another one takes its place" not in service.text()
        assert service.end() == 0
