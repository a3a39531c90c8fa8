"""What `collect` costs the requests that it looks at: latencies with and without it under load, in one run.

    python benchmarks/collect.py [--bundle starter] [--rate 50] [--seconds 20] [--rounds 3]

One process, models that answer after 30 ms with a fixed text. Requests come at random moments (Poisson)
at a fixed rate, whether or not earlier ones have ended. Without `collect`, and with it beside a judge that is well,
down, slow (it hangs) or talks nonsense, take turns in each round; the difference of two percentiles has a bootstrap
standard error over the requests. At the end `collect` spends a day's budget, and what its file says is held against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
import numpy as np
from router import LISTS, MODELS, SUBJECTS

from litellm_router import P2LRouter, P2LSettings, routers

ANSWER_S = 0.03
JUDGES: dict[str, dict[str, Any]] = {
    "well": {"mock_response": "The first is clearer.\nVerdict: A"},
    "down": {"mock_response": "litellm.InternalServerError"},
    "slow": {"mock_response": "Verdict: A", "mock_delay": 60},
    "nonsense": {"mock_response": "As a large language model I like both"},
}
PRICE = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def deployments(judge: str) -> list[dict[str, Any]]:
    """The models of a group, and a judge."""
    made = []
    for model in MODELS:
        params = {"model": "openai/gpt-4o-mini", "api_key": "k", "mock_delay": ANSWER_S, **PRICE}
        info = {"p2l_model": model}
        made.append(
            {
                "model_name": "auto",
                "litellm_params": params | {"mock_response": f"answer of {model}"},
                "model_info": info,
            }
        )
    params = {"model": "openai/gpt-4o-mini", "api_key": "k", **PRICE, **JUDGES[judge]}
    return [*made, {"model_name": "judge", "litellm_params": params}]


class Contender:
    """A router whose answers are compared, or not.

    Args:
        judge: how the judge is; None: without `collect`.
    """

    def __init__(self, bundle: str, judge: str | None, store: Path, share: float, budget: float) -> None:
        for name in LISTS:
            setattr(litellm, name, [])
        settings: dict[str, Any] = {"bundle": bundle, "timeout_ms": 1000}
        if judge is not None:
            settings["collect"] = {"share": share, "judge": "judge", "store": str(store), "store_prompts": True}
            settings["collect"]["budget_per_day"] = budget
        self.store = store
        self.callback = P2LRouter(P2LSettings.read(settings))
        litellm.callbacks = [self.callback]
        self.router = litellm.Router(model_list=deployments(judge or "well"), num_retries=0)
        self._lists = {name: getattr(litellm, name) for name in LISTS}
        self.taken: list[float] = []
        self.failed = 0

    async def ready(self) -> None:
        """Loads the bundle and scores the prompts."""
        scoring = self.callback.state().scoring
        loaded = await scoring.loaded(time.monotonic() + 300)
        for subject in SUBJECTS:
            await scoring.of_prompt(loaded, (f"Explain {subject} to a child.",), time.monotonic() + 60)

    async def ask(self, i: int, kept: bool) -> None:
        """One request."""
        messages = [{"role": "user", "content": f"Explain {SUBJECTS[i % len(SUBJECTS)]} to a child."}]
        started = time.perf_counter()
        try:
            answer = await self.router.acompletion(model="auto", messages=messages)
            self.failed += not answer.choices[0].message.content
        except Exception:  # which is what is counted
            self.failed += 1
        if kept:
            self.taken.append(1e3 * (time.perf_counter() - started))

    async def load(self, rate: float, seconds: float, kept: bool, rng: random.Random) -> None:
        """Requests at random moments."""
        for name, own in self._lists.items():
            setattr(litellm, name, own)
        under_way, i, due, end = set(), 0, time.perf_counter(), time.perf_counter() + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self.ask(i, kept))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            i, due = i + 1, due + rng.expovariate(rate)
        await asyncio.gather(*under_way)

    @property
    def counts(self) -> Counter[str]:
        """Comparisons by what became of them."""
        collector = self.callback.state().collector
        return Counter() if collector is None else collector.counts

    async def end(self) -> None:
        """Ends comparisons that go on."""
        collector = self.callback.state().collector
        if collector is not None:
            await collector.aclose()


def percentile_gap(on: list[float], off: list[float], q: float) -> tuple[float, float]:
    """Difference of a percentile, and its bootstrap standard error."""
    rng = np.random.default_rng(0)
    a, b = np.array(on), np.array(off)
    drawn = [np.percentile(rng.choice(a, len(a)), q) - np.percentile(rng.choice(b, len(b)), q) for _ in range(500)]
    return float(np.percentile(a, q) - np.percentile(b, q)), float(np.std(drawn))


async def spend(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A day's budget, spent: what the file says, in shares of the budget."""
    one = Contender(options.bundle, "well", folder / "budget.jsonl", 1.0, options.budget)
    await one.ready()
    end = time.monotonic() + options.longest
    while not one.counts["budget"] and time.monotonic() < end:
        await one.load(options.rate, 2.0, False, random.Random(0))  # noqa: S311
    await one.load(options.rate, 2.0, False, random.Random(1))  # noqa: S311
    await one.end()
    lines = [json.loads(line) for line in one.store.read_text().splitlines()]
    spent = sum(line["cost"] for line in lines)
    return {"budget": options.budget, "spent": spent, "comparisons": len(lines), "outcomes": dict(one.counts)}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {"off": Contender(options.bundle, None, folder / "off", options.share, 1000.0)}
        for judge in JUDGES:
            contenders[judge] = Contender(options.bundle, judge, folder / f"{judge}.jsonl", options.share, 1000.0)
        for one in contenders.values():
            await one.ready()
        for turn in range(-1, options.rounds):
            order = list(contenders)
            random.Random(turn).shuffle(order)  # noqa: S311
            for judge in order:  # the first turn warms up, and each has the same moments
                seconds = options.seconds if turn >= 0 else min(5.0, options.seconds)
                await contenders[judge].load(options.rate, seconds, turn >= 0, random.Random(turn))  # noqa: S311
        result: dict[str, Any] = {}
        off = contenders["off"].taken
        for judge, one in contenders.items():
            await one.end()
            gap, error = percentile_gap(one.taken, off, 99)
            result[judge] = {
                "requests": len(one.taken),
                "failed": one.failed,
                "p50": float(np.percentile(one.taken, 50)),
                "p99": float(np.percentile(one.taken, 99)),
                "p99_gap": gap,
                "p99_gap_stderr": error,
                "comparisons": dict(one.counts),
            }
        result["budget"] = await spend(options, folder)
    return result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--share", type=float, default=0.02, help="of the requests that are compared")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.05, help="USD that are spent at the end")
    parser.add_argument("--longest", type=float, default=120.0, help="seconds that spending them may take")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "litellm_router"):
        logging.getLogger(name).setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    result = asyncio.run(run(options))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before"
    print(f"{machine}, Python {platform.python_version()}, LiteLLM {routers.litellm_version()}")
    print(
        f"\n| judge | requests | failed | p50 ms | p99 ms | p99 less that without | comparisons |\n|:---{'|---:' * 6}|"
    )
    budget = result.pop("budget")
    for judge, one in result.items():
        gap = f"{one['p99_gap']:+.1f} ± {one['p99_gap_stderr']:.1f}"
        made = ", ".join(f"{what} {n}" for what, n in sorted(one["comparisons"].items()))
        print(
            f"| {judge} | {one['requests']} | {one['failed']} | {one['p50']:.1f} | {one['p99']:.1f} | {gap} | {made} |"
        )
    print(
        f"\n{budget['spent']:.5f} USD of {budget['budget']} spent ({budget['spent'] / budget['budget']:.1%}) "
        f"in {budget['comparisons']} comparisons: {budget['outcomes']}"
    )


if __name__ == "__main__":
    main()
