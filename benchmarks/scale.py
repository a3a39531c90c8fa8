"""Sizes an installation: a discrete-event simulation fed with times that were measured on one core.

    python benchmarks/scale.py                              # the table of docs/scale.md, from scale_figures.json
    python benchmarks/scale.py --rates 5000 --exponents 1.0 --tokens 120 --core-price 0.05 --gib-price 0.004
    python benchmarks/scale.py --measure --figures own.json     # measures this machine's times; about 3 minutes
    python benchmarks/scale.py --check                      # the simulation beside a real proxy, scorer and Valkey

Prompts are Zipf-distributed over `--prompts`; a share `--new` is never repeated. The proxies' memory is an LRU cache
with a time to live; Redis keeps an entry for its time to live from when it was written; what neither has is scored.

Not every event of a large installation is simulated. One proxy of all is, with each of its requests; one shard of
Redis and one replica of the scorer at the rate that is their part of all. What the other proxies do to a prompt's entry
in Redis is drawn when this proxy asks for it: their requests for it are a Poisson process, so the time from its expiry
until somebody writes it again is exponential.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

FIGURES = Path(__file__).with_name("scale_figures.json")

#: Where a request's scores are found.
MEMORY, REDIS, SCORED = 0, 1, 2

#: Times that an entry was written and ran out since it was looked at, past which they are not drawn one by one.
CYCLES = 10

#: Cores of a replica of the scorer.
REPLICA = 4

#: Ranks whose weights are summed one by one; those after them by the integral.
HEAD = 2**16

#: Seconds that a model takes to answer, on average: when the rest of the proxy's work is due.
ANSWER_S = 1.0


@dataclass(frozen=True)
class Figures:
    """Milliseconds of one core's time where nothing else is said.

    Attributes:
        machine: on which they were measured.
        proxy_ms: of LiteLLM's proxy for a request without P2L.
        p2l_ms: that P2L adds to it where the scores are in memory.
        redis_ms: and where they are in Redis, beside that.
        call_ms: and where the HTTP scorer is asked, beside both, with the write to Redis.
        server_ms: of Redis for one look or write.
        trip_ms: from question to answer of a look in Redis over loopback, not of a core.
        service_ms: of `p2l serve` for a request whose scores it has to make, beside the model.
        prompt_ms: of the model for a prompt, whatever its length.
        token_ms: of the model for each token.
        entry_bytes: of Redis' memory for an entry.
    """

    machine: str
    proxy_ms: float
    p2l_ms: float
    redis_ms: float
    call_ms: float
    server_ms: float
    trip_ms: float
    service_ms: float
    prompt_ms: float
    token_ms: float
    entry_bytes: float

    @classmethod
    def read(cls, path: Path) -> Figures:
        """Those that `--measure` wrote."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            names = ", ".join(one.name for one in fields(cls))
            raise SystemExit(f"{path}: not the figures that --measure writes ({names}): {error}") from None


@dataclass(frozen=True)
class Traffic:
    """What is asked.

    Attributes:
        rate: requests per second.
        exponent: of Zipf's law.
        tokens: of a prompt, on average; lengths are exponential around it.
        prompts: that are repeated.
        new: share of requests whose prompt is never repeated.
    """

    rate: float
    exponent: float
    tokens: float
    prompts: float = 1e8
    new: float = 0.2


@dataclass(frozen=True)
class House:
    """How the installation is set up.

    Attributes:
        ttl_s: seconds that Redis keeps an entry.
        entries: in a proxy's memory.
        memory_ttl_s: seconds that it keeps one.
        load: share of a core's time that is to be used.
        shard_gib: memory of a shard.
        network_ms: added to each round trip.
        deadline_ms: past which a request goes on without P2L.
    """

    ttl_s: float
    entries: int = 10_000
    memory_ttl_s: float = 3600.0
    load: float = 0.6
    shard_gib: float = 24.0
    network_ms: float = 0.3
    deadline_ms: float = 200.0


@dataclass(frozen=True)
class Size:
    """What is needed. `extra` is of the proxies' cores the part that P2L takes; `own` is LiteLLM's."""

    own: float
    extra: float
    proxies: int
    scorers: int
    shards: int
    gib: float


class Popularity:
    """Zipf's law over many prompts: the i-th has the weight i^-exponent."""

    def __init__(self, exponent: float, prompts: float) -> None:
        self.exponent = exponent
        head = int(min(HEAD, prompts))
        weights = np.arange(1, head + 1, dtype=np.float64) ** -exponent
        edges = np.geomspace(head + 0.5, max(prompts, head) + 0.5, 400) if prompts > head else np.array([])
        mass = np.diff(self._integral(edges))
        self.total = weights.sum() + mass.sum()
        #: (K,) probability of one prompt of each class, and (K,) prompts of it; classes of one prompt come first
        self.counts = np.concatenate([np.ones(head), np.diff(edges)])
        self.each = np.concatenate([weights, mass / np.diff(edges)]) / self.total
        self._edges = np.concatenate([np.arange(head) + 0.5, edges if len(edges) else np.array([head + 0.5])])
        self._cumulated = np.cumsum(self.each * self.counts)

    def _integral(self, x: Numbers) -> Numbers:
        a = 1 - self.exponent
        return np.log(x) if abs(a) < 1e-9 else x**a / a

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) ranks."""
        chosen = np.searchsorted(self._cumulated, rng.random(n) * self._cumulated[-1])
        within = self._edges[chosen] + rng.random(n) * self.counts[chosen]
        return np.where(chosen < HEAD, chosen + 1, np.floor(within + 0.5)).astype(np.int64)

    def probability(self, ranks: NDArray[np.int64]) -> Numbers:
        """Of prompts, by rank."""
        return np.asarray(ranks.astype(np.float64) ** -self.exponent / self.total)

    def kept(self, rate: float, ttl_s: float) -> tuple[float, float]:
        """Share of requests that hit a store which forgets an entry `ttl_s` after its writing, and entries in it."""
        asked = rate * self.each * ttl_s
        there = asked / (1 + asked)
        return float((self.each * self.counts * there).sum()), float((self.counts * there).sum())


def poisson(rate: float, n: int, rng: np.random.Generator) -> Numbers:
    """Times of arrivals."""
    return np.cumsum(rng.exponential(1 / rate, n))


def looks(
    traffic: Traffic,
    house: House,
    arrivals: Numbers,
    ranks: NDArray[np.int64],
    popularity: Popularity,
    proxies: int,
    rng: np.random.Generator,
    cold: bool = False,
) -> NDArray[np.int64]:
    """Where each request of one proxy finds its scores.

    Args:
        arrivals: (n,) seconds.
        ranks: (n,) of the prompts; 0 of one that is never repeated.
        proxies: that ask Redis.
        cold: nothing is in Redis at the start; else what would be after a long time.
    """
    memory: OrderedDict[int, float] = OrderedDict()  # rank -> expiry
    redis: dict[int, float] = {}
    others = traffic.rate * (1 - traffic.new) * (1 - 1 / proxies) * popularity.probability(np.maximum(ranks, 1))
    everyone = traffic.rate * (1 - traffic.new) * popularity.probability(np.maximum(ranks, 1))
    uniform, found = rng.random((len(ranks), 2)), np.full(len(ranks), SCORED)
    for i, (now, rank) in enumerate(zip(arrivals.tolist(), ranks.tolist(), strict=True)):
        if rank and memory.get(rank, 0.0) > now:
            memory.move_to_end(rank)
            found[i] = MEMORY
            continue
        if rank:
            if rank not in redis and not cold:
                asked = everyone[i] * house.ttl_s
                there = uniform[i, 0] < asked / (1 + asked)
                redis[rank] = house.ttl_s * uniform[i, 1] if there else 0.0  # as it was at the start
            expires = redis.get(rank, 0.0)
            if others[i] > 0 and now - expires > CYCLES * (house.ttl_s + 1 / others[i]):  # as after a long time
                asked = others[i] * house.ttl_s
                expires = now + house.ttl_s * uniform[i, 1] if uniform[i, 0] < asked / (1 + asked) else now
            while expires <= now and others[i] > 0:  # written again by another proxy, as often as it ran out
                written = expires + rng.exponential(1 / others[i])
                if written >= now:
                    break
                expires = written + house.ttl_s
            found[i] = REDIS if expires > now else SCORED
            redis[rank] = expires if expires > now else now + house.ttl_s
            memory.pop(rank, None)
            memory[rank] = now + house.memory_ttl_s
        else:
            memory[-i - 1] = now + house.memory_ttl_s
        if len(memory) > house.entries:
            memory.popitem(last=False)
    return found


def queue(arrivals: Numbers, seconds: Numbers, servers: int) -> Numbers:
    """(n,) seconds from arrival to end, where servers take one after the other in the order of arrival."""
    free = [0.0] * servers
    ends = np.empty(len(arrivals))
    for i, (arrival, own) in enumerate(zip(arrivals.tolist(), seconds.tolist(), strict=True)):
        ends[i] = max(free[0], arrival) + own
        heapq.heapreplace(free, ends[i])
    return np.asarray(ends - arrivals)


def event_loop(
    arrivals: Numbers, work: Sequence[Sequence[float]], away: Sequence[Sequence[float]]
) -> list[list[float]]:
    """When each piece of each request's work is done by one event loop, in the order in which they become due.

    Args:
        arrivals: (n,) seconds.
        work: seconds of each piece.
        away: seconds from the end of each piece until the next one is due.
    """
    due = [(arrival, i, 0) for i, arrival in enumerate(arrivals.tolist())]
    heapq.heapify(due)
    done: list[list[float]] = [[] for _ in work]
    free = 0.0
    while due:
        now, i, piece = heapq.heappop(due)
        free = max(now, free) + work[i][piece]
        done[i].append(free)
        if piece + 1 < len(work[i]):
            heapq.heappush(due, (free + away[i][piece], i, piece + 1))
    return done


def added(
    figures: Figures,
    house: House,
    arrivals: Numbers,
    found: NDArray[np.int64],
    shard: Numbers,
    scorer: Numbers,
    rng: np.random.Generator,
) -> Numbers:
    """(n,) milliseconds that P2L adds to each request of one proxy.

    Args:
        arrivals: (n,) seconds.
        found: (n,) where the scores are.
        shard: seconds of round trips to Redis, of which one is drawn for each look.
        scorer: seconds of answers of the scorer, likewise.
    """
    half, own = figures.proxy_ms / 2e3, figures.p2l_ms / 1e3
    redis, call = figures.redis_ms / 1e3, figures.call_ms / 1e3
    trips, answers = rng.choice(shard, len(found)), rng.choice(scorer, len(found))
    rest = rng.exponential(ANSWER_S, len(found))
    # half of LiteLLM's work and the decision; after Redis' answer; after the scorer's; the other half after the model's
    work = [[half + own, *[redis] * (one >= REDIS), *[call] * (one == SCORED), half] for one in found.tolist()]
    away = [
        [*[trips[i]] * (one >= REDIS), *[answers[i]] * (one == SCORED), rest[i]] for i, one in enumerate(found.tolist())
    ]
    done = event_loop(arrivals, work, away)
    return np.array([1e3 * (ends[-2] - ends[0] + own) for ends in done])


def sized(figures: Figures, traffic: Traffic, house: House, shares: Sequence[float], entries: float) -> Size:
    """What traffic needs.

    Args:
        shares: of requests that are found in memory, in Redis, and that are scored.
        entries: in Redis.
    """
    _, redis, scored = shares
    ms = figures.p2l_ms + figures.redis_ms * (redis + scored) + figures.call_ms * scored
    own, extra = (traffic.rate * one / 1e3 / house.load for one in (figures.proxy_ms, ms))
    scoring_ms = figures.service_ms + figures.prompt_ms + figures.token_ms * traffic.tokens
    commands = traffic.rate * (redis + 4 * scored)  # proxy and scorer look, and both write
    gib = entries * figures.entry_bytes / 2**30
    shards = max(commands * figures.server_ms / 1e3 / house.load, gib / house.shard_gib)
    scorers = math.ceil(max(1e-9, traffic.rate * scored * scoring_ms / 1e3 / house.load))
    return Size(own, extra, math.ceil(own + extra), scorers, math.ceil(shards), gib)


def price(size: Size, rate: float, core: float, gib: float) -> float:
    """USD that a million requests take beside LiteLLM's own cores; a core and a GiB cost so much an hour."""
    an_hour = (size.extra + size.scorers + size.shards) * core + size.gib * gib
    return 1e6 * an_hour / (3600 * rate)


def expected(figures: Figures, traffic: Traffic, house: House, popularity: Popularity) -> Size:
    """As `sized`, by formula and without the proxies' memory: to choose a time to live."""
    rate = traffic.rate * (1 - traffic.new)
    hit, entries = popularity.kept(rate, house.ttl_s)
    hit *= 1 - traffic.new
    return sized(figures, traffic, house, (0.0, hit, 1 - hit), entries + traffic.rate * traffic.new * house.ttl_s)


def simulate(
    figures: Figures, traffic: Traffic, house: House, n: int = 40_000, seed: int = 0
) -> tuple[Size, Numbers, Numbers]:
    """Size, shares of requests by where their scores are, and (n / 2,) milliseconds that P2L adds."""
    rng = np.random.default_rng(seed)
    popularity = Popularity(traffic.exponent, traffic.prompts)
    proxies = expected(figures, traffic, house, popularity).proxies
    arrivals = poisson(traffic.rate / proxies, n, rng)
    ranks = np.where(rng.random(n) < traffic.new, 0, popularity.draw(n, rng))
    found = looks(traffic, house, arrivals, ranks, popularity, proxies, rng)[n // 2 :]  # the first half fills memory
    shares = np.bincount(found, minlength=3) / len(found)
    entries = popularity.kept(traffic.rate * (1 - traffic.new), house.ttl_s)[1]
    entries += traffic.rate * traffic.new * house.ttl_s
    size = sized(figures, traffic, house, shares.tolist(), entries)
    ms = added(
        figures,
        house,
        arrivals[n // 2 :],
        found,
        shard_seconds(figures, house, traffic.rate * (shares[REDIS] + 4 * shares[SCORED]) / size.shards, rng),
        scorer_seconds(figures, traffic, house, traffic.rate * shares[SCORED], size.scorers, rng),
        rng,
    )
    return size, shares, ms


def shard_seconds(figures: Figures, house: House, rate: float, rng: np.random.Generator, n: int = 20_000) -> Numbers:
    """Seconds of round trips to one shard, which takes so many commands a second."""
    own = np.full(n, figures.server_ms / 1e3)
    return queue(poisson(rate, n, rng), own, 1) + (figures.trip_ms + house.network_ms) / 1e3


def scorer_seconds(
    figures: Figures,
    traffic: Traffic,
    house: House,
    rate: float,
    cores: int,
    rng: np.random.Generator,
    tokens: Numbers | None = None,
) -> Numbers:
    """Seconds of answers of one replica of the scorer, of all that score `rate` prompts a second on so many cores.

    Args:
        tokens: of prompts, in place of exponential ones.
    """
    own = min(REPLICA, cores)
    n = 20_000
    lengths = rng.exponential(traffic.tokens, n) if tokens is None else rng.choice(tokens, n)
    ms = figures.service_ms + figures.prompt_ms + figures.token_ms * lengths
    return queue(poisson(max(rate, 1e-6) * own / cores, n, rng), ms / 1e3, own) + house.network_ms / 1e3


def _digits(x: float) -> str:
    """A number of three digits, without an exponent."""
    return f"{float(f'{x:.3g}'):.12g}"


def main() -> None:
    """Prints the table, measures, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="of one core, as --measure writes them")
    parser.add_argument("--measure", action="store_true", help="measure and write --figures")
    parser.add_argument("--check", action="store_true", help="beside real runs on this machine")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e2, 1e3, 1e4, 1e5, 1e6], help="requests a second")
    parser.add_argument("--exponents", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    parser.add_argument("--tokens", type=float, nargs="+", default=[100.0], help="mean tokens of a prompt")
    parser.add_argument("--prompts", type=float, default=1e8, help="different prompts that come again")
    parser.add_argument("--new", type=float, default=0.2, help="share of requests whose prompt never comes again")
    parser.add_argument("--ttl-hours", type=float, nargs="+", default=[1, 4, 24, 168], help="the cheapest is taken")
    parser.add_argument("--load", type=float, default=0.6, help="share of a core's time that is to be used")
    parser.add_argument("--shard-gib", type=float, default=24.0)
    parser.add_argument("--network-ms", type=float, default=0.3, help="added to each round trip")
    parser.add_argument("--core-price", type=float, default=0.04, help="USD of a core for an hour")
    parser.add_argument("--gib-price", type=float, default=0.005, help="USD of a GiB for an hour")
    options = parser.parse_args()
    if options.measure or options.check:
        import scale_runs  # which needs LiteLLM and a server

        with scale_runs.running() as run:
            if options.measure:
                scale_runs.measure(options.figures, run)
            if options.check:
                scale_runs.check(Figures.read(options.figures), run)
        return
    figures = Figures.read(options.figures)
    print(f"{figures.machine}\n")
    print(
        "| requests/s | exponent | tokens | hours in Redis | found in memory | in Redis | scored | LiteLLM's cores "
        "| P2L in the proxies, cores | scorer cores | Redis shards | Redis GiB | added ms p50 | p99 | late "
        "| USD per million |"
    )
    print("|---:" * 16 + "|")
    for rate, exponent, tokens in itertools.product(options.rates, options.exponents, options.tokens):
        traffic = Traffic(rate, exponent, tokens, options.prompts, options.new)
        popularity = Popularity(exponent, options.prompts)
        prices = options.core_price, options.gib_price
        houses = [
            House(3600 * hours, load=options.load, shard_gib=options.shard_gib, network_ms=options.network_ms)
            for hours in options.ttl_hours
        ]
        house = min(houses, key=lambda one: price(expected(figures, traffic, one, popularity), rate, *prices))
        size, shares, ms = simulate(figures, traffic, house)
        late = (ms > house.deadline_ms).mean()
        p50, p99 = np.minimum(np.percentile(ms, [50, 99]), house.deadline_ms)
        row = [f"{rate:.0f}", f"{exponent:g}", f"{tokens:g}", f"{house.ttl_s / 3600:g}"]
        row += [f"{share:.1%}" for share in shares]
        row += [_digits(size.own), _digits(size.extra), str(size.scorers), str(size.shards), _digits(size.gib)]
        row += [f"{p50:.1f}", f"{p99:.0f}", f"{late:.1%}", f"{price(size, rate, *prices):.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
