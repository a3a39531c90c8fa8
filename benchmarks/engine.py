"""The batching engine on prompts of mixed lengths, against scoring one prompt at a time.

    python benchmarks/engine.py                       # the starter, and SmolLM2-135M with a random head
    python benchmarks/engine.py --bundle FOLDER       # a bundle of your own
    python benchmarks/engine.py --bundle starter --prompts 2000

One at a time is `P2L.score([prompt])` in a loop with ONNX Runtime's own number of threads. The engine gets all prompts
at once (throughput), then one by one at random times, at a share of what one at a time can do (time from request to
scores, of short prompts and of all). Beside it stands a queue that scores one at a time with the same arrivals.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np

from p2l_plugins import P2L
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.engine import Engine

SHORT = 64
WORDS = "the of and to in is that it was for on are as with his they at be this from have or by one had not but".split()


def smollm2_bundle(folder: Path) -> Path:
    """SmolLM2-135M with a random head for 128 models, exported for at most 2,048 tokens."""
    import torch

    from onnx_export.export import export
    from p2l_plugins.training.backbone import load_backbone
    from p2l_plugins.training.checkpoint import Checkpoint
    from p2l_plugins.training.model import P2LNetwork

    torch.manual_seed(0)
    start = load_backbone("smollm2-135m", 2048)
    model = P2LNetwork(start.model, 128, "grk", start.pooling).eval()
    training = {"head_type": "grk", "pooling": start.pooling, "max_length": 2048}
    (folder / "checkpoint").mkdir()
    names = [f"m{i}" for i in range(128)]
    Checkpoint(model, start.tokenizer, names, start.form, training).save(folder / "checkpoint")
    export(folder / "checkpoint", folder / "bundle", step=print)
    return folder / "bundle"


def mixed(p2l: P2L, count: int, kind: str, seed: int = 0) -> tuple[list[Turns], list[int]]:
    """Prompts of 8 to 2,048 tokens, or up to the bundle's maximum, and their lengths in tokens."""
    rng = np.random.default_rng(seed)
    longest = min(2048, p2l.bundle.manifest.text.max_length)
    around = tokens_of(p2l, ("word",)) - 1  # of the template
    span = np.log([8, longest]) if kind == "log-uniform" else (8, longest)
    drawn = rng.uniform(*span, count)
    targets = np.exp(drawn) if kind == "log-uniform" else drawn
    prompts = [(" ".join(rng.choice(WORDS, max(1, round(target) - around))),) for target in targets]
    return prompts, [tokens_of(p2l, turns) for turns in prompts]


def tokens_of(p2l: P2L, turns: Turns) -> int:
    """Tokens of a prompt."""
    return len(p2l._encoder.encode([turns])[0])


def one_at_a_time(p2l: P2L, prompts: list[Turns]) -> np.ndarray:
    """Seconds of each prompt."""
    p2l.warm_up()
    seconds = []
    for turns in prompts:
        started = time.perf_counter()
        p2l.score_turns([turns])
        seconds.append(time.perf_counter() - started)
    return np.array(seconds)


def all_at_once(engine: Engine, prompts: list[Turns]) -> float:
    """Seconds until all are scored."""
    started = time.perf_counter()
    wait([engine.submit(turns) for turns in prompts])
    return time.perf_counter() - started


def under_load(engine: Engine, prompts: list[Turns], arrivals: np.ndarray) -> np.ndarray:
    """Seconds from request to scores of each prompt."""
    finished = np.zeros(len(prompts))
    futures, begun = [], np.zeros(len(prompts))
    zero = time.perf_counter()
    for i, turns in enumerate(prompts):
        time.sleep(max(0.0, zero + arrivals[i] - time.perf_counter()))
        begun[i] = time.perf_counter()
        future = engine.submit(turns)
        future.add_done_callback(lambda _, i=i: finished.__setitem__(i, time.perf_counter()))
        futures.append(future)
    wait(futures)
    return finished - begun


def queue(seconds: np.ndarray, arrivals: np.ndarray) -> np.ndarray:
    """Seconds from request to scores where one prompt at a time is scored, in the order of arrival."""
    free, waited = 0.0, []
    for arrival, own in zip(arrivals, seconds, strict=True):
        free = max(free, arrival) + own
        waited.append(free - arrival)
    return np.array(waited)


def measure(
    source: str | Path, count: int, kind: str, shares: list[float], arrangements: list[tuple[int, int]]
) -> None:
    """Prints the figures of one bundle and one distribution of lengths."""
    base = P2L.load(source)
    prompts, tokens = mixed(base, count, kind)
    short = np.array(tokens) <= SHORT
    manifest = base.bundle.manifest
    print(
        f"\n{manifest.name}, {manifest.route} {manifest.precision}; {count} prompts, {kind}, {min(tokens)} to "
        f"{max(tokens)} tokens, mean {np.mean(tokens):.0f}, {short.sum()} of at most {SHORT}"
    )
    engines = []
    for workers, threads in arrangements:
        p2l = P2L.load(source, threads=threads, workers=workers)
        p2l.warm_up()
        engine = Engine(p2l, max_pending=10 * count)
        engines.append((f"engine, {workers} × {threads or 'default'} threads", engine))
    half = count // 2  # before and after the engines, so that a change of the machine's speed hits both alike
    seconds = one_at_a_time(base, prompts[:half])
    engine_s = [all_at_once(engine, prompts) for _, engine in engines]
    seconds = np.concatenate([seconds, one_at_a_time(base, prompts[half:])])
    rate = count / seconds.sum()
    alone = float(np.median(seconds[short]))
    print(f"one at a time: {rate:.2f} prompts/s; alone, a short prompt takes {1e3 * alone:.1f} ms (median)")
    for (name, _), taken in zip(engines, engine_s, strict=True):
        print(f"{name}: {count / taken:.2f} prompts/s, {count / taken / rate:.2f} × one at a time")
    for share in shares:
        arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / (share * rate), count))
        print(f"requests at {share:.0%} of that rate, ms: p50 short (× alone), p95 short, p50 all, p95 all")
        rows = [("queue, one at a time", queue(seconds, arrivals))]
        rows += [(name, under_load(engine, prompts, arrivals)) for name, engine in engines]
        for name, waited in rows:
            p50, p95 = np.percentile(1e3 * waited[short], [50, 95])
            all50, all95 = np.percentile(1e3 * waited, [50, 95])
            print(f"  {name}: {p50:.0f} ({p50 / 1e3 / alone:.2f} ×), {p95:.0f}, {all50:.0f}, {all95:.0f}", flush=True)
    for _, engine in engines:
        engine.close()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="a bundle; else the starter, and SmolLM2-135M with a random head")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--kind", choices=["log-uniform", "uniform", "both"], default="both")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--workers", nargs="*", default=["1x0", "2x1"], help="arrangements: workers x threads, 0: all")
    args = parser.parse_args()
    arrangements = [(int(w), int(t)) for w, t in (pair.split("x") for pair in args.workers)]
    import onnxruntime

    print(f"{platform.machine()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        sources = [args.bundle] if args.bundle else ["starter", smollm2_bundle(Path(folder))]
        for source in sources:
            for kind in ["log-uniform", "uniform"] if args.kind == "both" else [args.kind]:
                measure(source, args.prompts, kind, args.shares, arrangements)


if __name__ == "__main__":
    main()
