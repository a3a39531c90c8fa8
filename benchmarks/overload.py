"""More new prompts than the scorer can take: what is routed, what it adds to a request, what is left of the throughput.

    python benchmarks/overload.py [--bundle starter] [--times 2] [--seconds 10] [--words 400]

One process, LiteLLM's router, deployments that answer at once. Prompts that nobody has asked before arrive at a rate
of so many times what the scorer alone can take, first without P2L, then with it, in turns; then 50 at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import time
from collections import Counter
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
import numpy as np
from router import Contender, plain, with_p2l

from litellm_router import P2LRouter, P2LSettings
from p2l_plugins.scoring.engine import Engine

WORDS = (
    "the",
    "lease",
    "proves",
    "a",
    "prime",
    "of",
    "sort",
    "battle",
    "cell",
    "weather",
    "function",
    "why",
    "explain",
)


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Prompts that are all new."""
    rng = random.Random(seed)  # noqa: S311
    return [f"{seed}.{i} " + " ".join(rng.choice(WORDS) for _ in range(words)) for i in range(count)]


def capacity(scorer: Any, words: int) -> float:
    """Prompts per second that the scorer takes by itself."""
    engine = Engine(scorer, max_pending=1000)
    asked = [(text,) for text in prompts(60, words, 1)]
    started = time.perf_counter()
    for future in [engine.submit(turns) for turns in asked]:
        future.result(120)
    engine.close()
    return len(asked) / (time.perf_counter() - started)


async def load(router: Any, texts: list[str], rate: float) -> tuple[float, list[dict[str, Any]]]:
    """Seconds until all are answered, and their records; `rate` arrivals per second, infinite: all at once."""
    records: list[dict[str, Any]] = []

    async def one(text: str) -> None:
        metadata: dict[str, Any] = {}
        await router.acompletion(model="auto", messages=[{"role": "user", "content": text}], metadata=metadata)
        records.append((metadata.get("spend_logs_metadata") or {}).get("p2l") or {})

    started = time.perf_counter()
    tasks = []
    for i, text in enumerate(texts):
        wait = started + i / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(text)))
        if i % 16 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return time.perf_counter() - started, records


def summary(records: list[dict[str, Any]], seconds: float, alone: float) -> dict[str, Any]:
    """What became of the requests."""
    routed = sum("error" not in record for record in records)
    added = [record["ms"] for record in records if "ms" in record]
    return {
        "routed": routed,
        "routed of what the scorer alone could": routed / min(len(records), alone * seconds),
        "outcomes": dict(Counter(record.get("error", "routed") for record in records)),
        "added ms p50, p99, most": np.percentile(added, [50, 99, 100]).round(1).tolist(),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    callback = P2LRouter(P2LSettings(bundle=options.bundle))
    loaded = await callback.state().scoring.loaded(time.monotonic() + 120)
    alone = capacity(loaded.scorer, options.words)
    rate = options.times * alone
    ours, base = Contender(lambda: with_p2l(callback)), Contender(lambda: plain("simple-shuffle"))
    count = round(rate * options.seconds)
    await load(ours.on(), prompts(50, options.words, 2), rate / options.times / 2)  # warms up
    base_s, ours_s, seen = [], [], []
    for turn in range(3):
        base_s.append((await load(base.on(), prompts(count, options.words, 10 + turn), rate))[0])
        seconds, records = await load(ours.on(), prompts(count, options.words, 20 + turn), rate)
        ours_s.append(seconds)
        seen += records
    result: dict[str, Any] = {
        "scorer alone, prompts/s": alone,
        "arrivals/s": rate,
        "throughput over no P2L": float(np.median(base_s) / np.median(ours_s)),
        "overload": summary(seen, sum(ours_s), alone),
    }
    base_s, ours_s, seen = [], [], []
    for turn in range(5):
        base_s.append((await load(base.on(), prompts(50, options.words, 30 + turn), np.inf))[0])
        seconds, records = await load(ours.on(), prompts(50, options.words, 40 + turn), np.inf)
        ours_s.append(seconds)
        seen += records
        await asyncio.sleep(0.5)
    result["50 at once, s without and with P2L"] = [float(np.median(base_s)), float(np.median(ours_s))]
    result["50 at once"] = summary(seen, 5 * callback.state().settings.timeout_ms / 1e3, alone)
    return result


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--times", type=float, default=2.0, help="of what the scorer alone can take")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--words", type=int, default=400)
    options = parser.parse_args()
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    litellm.suppress_debug_info = True
    result = asyncio.run(run(options))
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()} | result, indent=2)
    )


if __name__ == "__main__":
    main()
