"""Requests that reach their deadline though there is little to do: new prompts at a tenth of what a process can score.

    python benchmarks/deadline.py [--bundle starter] [--rounds 3] [--requests 80] [--together 8] [--share 0.1]
    python benchmarks/deadline.py --beside 4 --rate 8          # on a busy machine

First the capacity: prompts per second of the router's own path when 64 at a time always wait for their scores. Then
`--requests` new prompts come in groups of `--together`, as many per second as `--share` of it, under the default
`timeout_ms`. `--beside` starts so many processes that only compute.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import multiprocessing
import os
import random
import time
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import numpy as np

from litellm_router import P2LRouter, P2LSettings

WORDS = "prove write explain compare translate solve plan summarise fix list why how what code poem law proof".split()
MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct")
GROUP = [
    {
        "model_name": "auto",
        "litellm_params": {"model": f"openai/{model}", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
        "model_info": {"id": model, "p2l_model": model},
    }
    for model in MODELS
]
numbers = random.Random(0)  # noqa: S311


async def ask(router: P2LRouter) -> dict[str, Any]:
    """The record of a request with a new prompt of 17 words."""
    text = " ".join(numbers.choices(WORDS, k=16)) + f" {numbers.getrandbits(60)}"
    request: dict[str, Any] = {}
    await router.async_filter_deployments("auto", GROUP, [{"role": "user", "content": text}], request)
    return request["metadata"]["spend_logs_metadata"]["p2l"]


async def capacity(bundle: str, seconds: float) -> float:
    """Prompts per second when there are always some that wait."""
    router = P2LRouter(P2LSettings(bundle=bundle, timeout_ms=60_000))
    await ask(router)
    until = time.monotonic() + seconds

    async def asking() -> int:
        n = 0
        while time.monotonic() < until:
            n += 1
            await ask(router)
        return n

    started = time.monotonic()
    n = sum(await asyncio.gather(*[asking() for _ in range(64)]))
    return n / (time.monotonic() - started)


async def round_of(options: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    """Records of requests that come in groups at a rate per second, once the bundle is loaded."""
    router = P2LRouter(P2LSettings(bundle=options.bundle))
    while (await ask(router)).get("error") == "loading":
        await asyncio.sleep(0.05)
    waiting = []
    for _ in range(0, options.requests, options.together):
        waiting += [asyncio.create_task(ask(router)) for _ in range(options.together)]
        await asyncio.sleep(options.together / rate)
    return list(await asyncio.gather(*waiting))


def compute() -> None:
    """Keeps a processor busy."""
    while True:
        pass


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--rate", type=float, help="requests per second, in place of the measurement and the share")
    parser.add_argument("--seconds", type=float, default=4, help="of the measurement of the capacity")
    parser.add_argument("--beside", type=int, default=0)
    options = parser.parse_args()
    others = [multiprocessing.Process(target=compute, daemon=True) for _ in range(options.beside)]
    for one in others:
        one.start()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.beside} processes beside")
    rate = options.rate
    if rate is None:
        most = asyncio.run(capacity(options.bundle, options.seconds))
        rate = options.share * most
        print(f"capacity: {most:.0f} prompts/s")
    print(f"{options.together} at a time, {rate:.1f}/s on average")
    records = [record for _ in range(options.rounds) for record in asyncio.run(round_of(options, rate))]
    ms = np.percentile([record["ms"] for record in records], [50, 95, 99])
    errors = collections.Counter(record["error"] for record in records if "error" in record)
    print(f"{len(records)} requests, ms {ms.round(1)} (50%, 95%, 99%), not routed: {dict(errors)}")
    for one in others:
        one.terminate()


if __name__ == "__main__":
    main()
