"""What routing costs: a decision in process, and requests per second beside LiteLLM's own strategies in one run.

    python benchmarks/router.py [--bundle starter] [--rounds 5] [--requests 1000] [--concurrency 100]
    python benchmarks/router.py --only simple-shuffle "idle callback" --new 0   # everything cached, beside one strategy

One process, LiteLLM's router, deployments that answer at once with a fixed text: all time is the router's. Of the
requests nine in ten repeat an earlier prompt; the others (their share is `--new`) are new in every round, so that P2L
scores them. The strategies take turns, in another order each round. `P2L` ranks for LiteLLM's simple-shuffle;
`complexity router` is the heuristic one, its tiers four of the models; `idle callback` is simple-shuffle beside a
callback of LiteLLM's that does nothing, as any costs something.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import json
import logging
import os
import platform
import random
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
import numpy as np
from litellm.integrations.custom_logger import CustomLogger

from litellm_router import P2LRouter, P2LSettings, routers

MODELS = {
    "gpt-4o-2024-08-06": (2.5e-6, 1e-5),
    "claude-3-5-sonnet-20241022": (3e-6, 1.5e-5),
    "qwen2.5-72b-instruct": (9e-7, 9e-7),
    "llama-3.1-70b-instruct": (8.8e-7, 8.8e-7),
    "gpt-4o-mini-2024-07-18": (1.5e-7, 6e-7),
    "llama-3.1-8b-instruct": (1.8e-7, 1.8e-7),
}
TIERS = dict(zip(("REASONING", "COMPLEX", "MEDIUM", "SIMPLE"), list(MODELS)[:1] + list(MODELS)[2:5], strict=True))
STRATEGIES = {
    "simple-shuffle": "simple-shuffle",
    "least-busy": "least-busy",
    "latency-based": "latency-based-routing",
    "usage-based": "usage-based-routing-v2",
    "cost-based": "cost-based-routing",
}
SUBJECTS = (
    "the weather in Oslo",
    "prime numbers",
    "a lease in English law",
    "glycolysis",
    "merge sort",
    "the Punic Wars",
)

#: Where LiteLLM keeps what it calls for a request: each strategy gets its own.
LISTS = ("callbacks", *(f"{kind}_callback" for kind in ("input", "success", "failure")))
LISTS += tuple(f"_async_{kind}_callback" for kind in ("input", "success", "failure"))


def deployment(group: str, model: str) -> dict[str, Any]:
    """A deployment that answers at once.

    All bear one name towards LiteLLM: what it does to find a model's price takes milliseconds for some names, and the
    strategies would differ by whom they choose.
    """
    price = dict(zip(("input_cost_per_token", "output_cost_per_token"), MODELS[model], strict=True))
    params = {"model": "openai/gpt-4o-mini", "api_key": "k", "mock_response": f"answer of {model}"} | price
    return {"model_name": group, "litellm_params": params, "model_info": {"p2l_model": model}}


class Contender:
    """A router with the callbacks that belong to it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        for name in LISTS:
            setattr(litellm, name, [])
        self.router = make()
        self._lists = {name: getattr(litellm, name) for name in LISTS}

    def on(self) -> Any:
        """Its router, as the only one."""
        for name, own in self._lists.items():
            setattr(litellm, name, own)
        return self.router


def plain(strategy: str) -> Any:
    """LiteLLM's own strategy over all models."""
    return litellm.Router(model_list=[deployment("auto", model) for model in MODELS], routing_strategy=strategy)


def with_p2l(callback: P2LRouter) -> Any:
    """P2L over all models."""
    litellm.callbacks = [callback]
    return plain("simple-shuffle")


def with_nothing() -> Any:
    """The shuffle beside a callback that does nothing: what LiteLLM itself does for any callback."""
    litellm.callbacks = [CustomLogger()]
    return plain("simple-shuffle")


def complexity() -> Any:
    """LiteLLM's complexity router."""
    auto = {"model": "auto_router/complexity_router", "complexity_router_config": {"tiers": TIERS}}
    models = [deployment(model, model) for model in TIERS.values()]
    return litellm.Router(model_list=[{"model_name": "auto", "litellm_params": auto}, *models])


def texts(n: int, seed: int, new_share: float) -> list[str]:
    """Prompts of a round: a share of them new ones, each followed by its repeats at random."""
    rng = random.Random(seed)  # noqa: S311
    if not new_share:
        return [f"Explain {rng.choice(SUBJECTS)} to a child." for _ in range(n)]
    every = round(1 / new_share)
    new = [f"Explain {rng.choice(SUBJECTS)} to a child, in {2 + i} sentences ({seed})." for i in range(n // every + 1)]
    return [new[i // every] if i % every == 0 else rng.choice(new[: i // every + 1]) for i in range(n)]


async def throughput(router: Any, prompts: list[str], concurrency: int) -> tuple[float, float]:
    """Requests per second, and milliseconds of processor time of the event loop's thread per request."""
    asked = iter(prompts)

    async def client() -> None:
        for text in asked:
            await router.acompletion(model="auto", messages=[{"role": "user", "content": text}])

    started, own = time.perf_counter(), time.thread_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    rate = len(prompts) / (time.perf_counter() - started)
    return rate, 1e3 * (time.thread_time() - own) / len(prompts)


async def decisions(callback: P2LRouter, n: int, **checks: bool) -> list[float]:
    """Microseconds of decisions whose scores are cached, one after the other.

    Args:
        checks: of LiteLLM's router, which it makes after the callback, so that the callback asks what they will keep.
    """
    for name in ("success", "_async_success", "failure", "_async_failure"):
        getattr(litellm, f"{name}_callback").clear()  # which keep the routers before alive
    gc.collect()
    router = litellm.Router(model_list=[deployment("auto", model) for model in MODELS], **checks)
    routers.install(router, callback)
    litellm.callbacks = [callback]
    own = router.get_model_list(model_name="auto")
    taken = []
    for i in range(n + 200):
        text = f"Explain {SUBJECTS[i % len(SUBJECTS)]} to a child."
        request = {"litellm_call_id": str(i), "metadata": {"user_api_key_hash": "k"}}
        deployments = copy.deepcopy(own)  # as LiteLLM hands them over since 1.110
        started = time.perf_counter()
        ranked = await callback.async_filter_deployments(
            "auto", deployments, [{"role": "user", "content": text}], request
        )
        taken.append(1e6 * (time.perf_counter() - started))
        assert len(ranked) == 1, request
    litellm.callbacks = []
    return taken[200:]


async def ready(callback: P2LRouter) -> None:
    """Loads the bundle, and scores the prompts of `decisions`."""
    scoring = callback.state().scoring
    loaded = await scoring.loaded(time.monotonic() + 120)
    for subject in SUBJECTS:
        await scoring.of_prompt(loaded, (f"Explain {subject} to a child.",), time.monotonic() + 60)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    settings = P2LSettings(bundle=options.bundle, timeout_ms=options.timeout_ms)
    callback = P2LRouter(settings)
    await ready(callback)
    scorer = (await callback.state().scoring.loaded(time.monotonic() + 1)).scorer
    result: dict[str, Any] = {"decision_us": {}, "requests_per_s": {}}
    for rule in ("best", "cap", "lp", "paced"):
        own = P2LRouter(settings.model_copy(update={"rule": rule, "budget": 1e-3}), lambda _: scorer)
        await ready(own)
        us = await decisions(own, options.decisions)
        result["decision_us"][rule] = {"p50": float(np.median(us)), "p99": float(np.percentile(us, 99))}
    for name, checks in {
        "best, pre-call checks that can remove nobody": {"enable_pre_call_checks": True},
        "best, LiteLLM asked about tags": {"enable_tag_filtering": True},
    }.items():
        us = await decisions(callback, options.decisions, **checks)
        result["decision_us"][name] = {"p50": float(np.median(us)), "p99": float(np.percentile(us, 99))}
    if options.rounds == 0:
        return result
    contenders = {name: Contender(lambda s=strategy: plain(s)) for name, strategy in STRATEGIES.items()}
    contenders |= {"complexity router": Contender(complexity), "idle callback": Contender(with_nothing)}
    if options.only:
        contenders = {name: contenders[name] for name in options.only}
    contenders["P2L"] = Contender(lambda: with_p2l(callback))
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    before = callback.health.counts.copy()
    for turn in range(-1, options.rounds):
        order = list(contenders)
        random.Random(turn).shuffle(order)  # noqa: S311
        prompts = texts(options.requests, turn, options.new)
        for name in order:
            one = await throughput(contenders[name].on(), prompts, options.concurrency)
            if turn >= 0:  # the first turn warms up
                measured[name].append(one)
    result["outcomes"] = dict(callback.health.counts - before)
    base = np.array(next(iter(measured.values())))[:, 0]
    for name, pairs in measured.items():
        rates, cpu = np.array(pairs).T
        result["requests_per_s"][name] = {
            "median": float(np.median(rates)),
            "of_simple_shuffle": float(np.median(rates / base)),
            "loop_cpu_ms": float(np.median(cpu)),
        }
    return result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput; 0 times decisions only")
    parser.add_argument("--only", nargs="*", default=[], help="strategies beside P2L; default: all")
    parser.add_argument("--new", type=float, default=0.1, help="share of prompts that nobody has asked before")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--decisions", type=int, default=5000)
    parser.add_argument("--timeout-ms", type=float, default=200.0, help="the router's deadline; 200 is its default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    result = asyncio.run(run(options))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before"
    print(f"{machine}, Python {platform.python_version()}, LiteLLM {routers.litellm_version()}")
    print(f"\n| decision with cached scores, {len(MODELS)} models | p50 µs | p99 µs |\n|:---|---:|---:|")
    for rule, us in result["decision_us"].items():
        print(f"| {rule} | {us['p50']:.0f} | {us['p99']:.0f} |")
    if options.rounds == 0:
        return
    print(
        f"\n| {options.requests} requests, {options.concurrency} at once | requests/s | of simple-shuffle "
        "| event loop's CPU, ms per request |"
    )
    print("|:---|---:|---:|---:|")
    for name, one in sorted(result["requests_per_s"].items(), key=lambda item: -item[1]["median"]):
        print(f"| {name} | {one['median']:.0f} | {one['of_simple_shuffle']:.3f} | {one['loop_cpu_ms']:.2f} |")
    print(f"\nP2L's requests by outcome: {result['outcomes']}")


if __name__ == "__main__":
    main()
