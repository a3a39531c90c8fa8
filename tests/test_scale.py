"""The simulation that sizes installations gives what formulas say where there is a formula."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks/scale.py"


@pytest.fixture(scope="module")
def scale():
    sys.modules.setdefault("scale", type(sys)("scale"))  # where its dataclasses look for their names
    names = runpy.run_path(str(FILE), run_name="scale")
    yield type("Scale", (), {name: staticmethod(one) if callable(one) else one for name, one in names.items()})
    del sys.modules["scale"]


def figures(scale, **changed):
    given = {
        "proxy_ms": 8.0,
        "p2l_ms": 0.5,
        "redis_ms": 0.3,
        "call_ms": 1.0,
        "server_ms": 0.01,
        "trip_ms": 0.1,
        "service_ms": 2.0,
        "prompt_ms": 1.0,
        "token_ms": 0.1,
        "entry_bytes": 1500.0,
    }
    return scale.Figures("none", **{**given, **changed})


def erlang_c(servers, load):
    """Probability that an arrival waits in M/M/c, of `load` Erlang."""
    terms = np.cumprod([1.0, *(load / k for k in range(1, servers + 1))])
    last = terms[-1] * servers / (servers - load)
    return last / (terms[:-1].sum() + last)


def test_waits_of_several_servers_are_those_of_erlang(scale):
    rng = np.random.default_rng(0)
    n, servers, load = 60_000, 3, 2.1
    took = scale.queue(scale.poisson(load, n, rng), own := rng.exponential(1.0, n), servers)
    waits = took - own
    assert (waits > 1e-9).mean() == pytest.approx(erlang_c(servers, load), rel=0.05)
    assert waits.mean() == pytest.approx(erlang_c(servers, load) / (servers - load), rel=0.1)


def test_waits_of_one_server_with_equal_work_are_those_of_pollaczek_and_khinchine(scale):
    rng = np.random.default_rng(1)
    n, load = 40_000, 0.7
    took = scale.queue(scale.poisson(load, n, rng), np.ones(n), 1)
    assert took.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_an_event_loop_whose_work_is_in_one_piece_is_such_a_server(scale):
    rng = np.random.default_rng(2)
    arrivals, own = scale.poisson(0.6, 5000, rng), rng.exponential(1.0, 5000)
    done = scale.event_loop(arrivals, [[one] for one in own], [[] for _ in own])
    assert np.allclose([ends[0] for ends in done] - arrivals, scale.queue(arrivals, own, 1))


def test_draws_follow_zipf_in_head_and_tail(scale):
    popularity = scale.Popularity(1.0, 1e7)
    ranks = popularity.draw(100_000, np.random.default_rng(3))
    harmonic = np.log(1e7) + 0.5772157
    assert (ranks == 1).mean() == pytest.approx(1 / harmonic, rel=0.05)
    assert (ranks > 1e6).mean() == pytest.approx(np.log(10) / harmonic, rel=0.05)
    assert ranks.min() >= 1
    assert ranks.max() <= 1e7


def test_a_memory_hits_as_often_as_che_says(scale):
    """Che, Tung and Wang 2002: an LRU cache of C entries forgets what was not asked for t, where C = Σ 1 − e^(−λt)."""
    rng, size, prompts, n = np.random.default_rng(4), 500, 5000, 60_000
    popularity = scale.Popularity(0.9, prompts)
    each = np.repeat(popularity.each, np.round(popularity.counts).astype(int))
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-each * middle)).sum() < size else (low, middle)
    che = (each * (1 - np.exp(-each * low))).sum()
    traffic, house = scale.Traffic(1.0, 0.9, 10.0, prompts, 0.0), scale.House(1e12, size, 1e12)
    found = scale.looks(traffic, house, np.arange(n) * 1.0, popularity.draw(n, rng), popularity, 1, rng, cold=True)[
        n // 4 :
    ]
    assert (found == scale.MEMORY).mean() == pytest.approx(che, abs=0.01)


@pytest.mark.parametrize("proxies", [1, 40])
def test_redis_hits_as_often_as_the_formula_says_whoever_writes(scale, proxies):
    rng, n, prompts, ttl = np.random.default_rng(5), 15_000, 2000, 200.0
    popularity = scale.Popularity(1.0, prompts)
    traffic, house = scale.Traffic(10.0, 1.0, 10.0, prompts, 0.0), scale.House(ttl, 1, 1e-9)  # nothing in memory
    arrivals = scale.poisson(traffic.rate / proxies, n, rng)
    found = scale.looks(traffic, house, arrivals, popularity.draw(n, rng), popularity, proxies, rng)
    expected, _ = popularity.kept(traffic.rate, ttl)
    assert (found == scale.REDIS).mean() == pytest.approx(expected, abs=0.02)


def test_more_traffic_takes_more_cores_and_finds_more_in_redis(scale):
    house = scale.House(3600.0)
    sizes = [scale.simulate(figures(scale), scale.Traffic(rate, 1.0, 50.0), house, 4000) for rate in (1e2, 1e6)]
    (few, few_found, _), (many, many_found, ms) = sizes
    assert many.scorers > 1000 * few.scorers
    assert many.gib > few.gib
    assert many_found[scale.SCORED] < few_found[scale.SCORED]
    assert ms.min() >= 0.5  # what P2L itself takes
    assert scale.price(many, 1e6, 0.04, 0.005) < scale.price(few, 1e2, 0.04, 0.005)


def test_figures_that_are_none_are_refused_with_the_names_that_are_needed(scale, tmp_path):
    (tmp_path / "own.json").write_text('{"proxy_ms": 1}')
    with pytest.raises(SystemExit, match=r"not the figures that --measure writes \(machine, proxy_ms"):
        scale.Figures.read(tmp_path / "own.json")
