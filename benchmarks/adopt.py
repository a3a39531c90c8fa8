"""How many prompts are enough for `p2l adopt`? A starter adopts models on prompts; it has seen neither.

    nice python benchmarks/adopt.py --votes FILE.parquet --bundle STARTER --work FOLDER [--full BUNDLE]
        [--benchmark NAME] [--models A,B,...] [--sizes 125,250,500,1000,2000,4000] [--seeds 0,1]

FILE is a score matrix. A fifth of its prompts is held out; of the rest, nested samples of each size are adopted. Judged
on the held-out prompts: routed score over the model that is best on the sample, with the standard error by prompt, and
log loss beside one leaderboard (marginal) and one per category of the same sample. --full is a bundle that was trained
on the whole rest, with its backbone. States of the prompts stay in the work folder.

A starter without LLMRouter: `p2l train` with examples/starter.yaml less llmrouter_scores.parquet, then `p2l export
--precision int8`; beside it `--full starter`, which was trained with it, on the same split.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from onnx_export.adopt import fit
from onnx_export.adopt_votes import Evidence, gather
from onnx_export.head import find_head, load_graph, read_states
from onnx_export.joint import JointTask, Known
from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.gains import Gain, gain_over
from p2l_plugins.outcomes import Array, Mask
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes, held_out


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=Path, required=True, help="a score matrix in Parquet")
    parser.add_argument("--bundle", required=True, help="the starter")
    parser.add_argument("--work", type=Path, required=True, help="folder for states, kept")
    parser.add_argument("--full", help="a bundle trained on the training part")
    parser.add_argument("--benchmark", help="only rows of this benchmark")
    parser.add_argument("--models", help="columns, with commas between them; default: all")
    parser.add_argument("--sizes", default="125,250,500,1000,2000,4000")
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    votes = read_matrix(options)
    bundle = Bundle.open(find_bundle(options.bundle))
    evidence = gather(votes, votes.models, bundle.manifest)
    votes = evidence.votes
    states, raw_eta = stored_states(bundle, votes, options.work)
    head = find_head(load_graph(bundle.folder), bundle.folder)
    known = Known.of(head.weight, head.bias, evidence.index)
    task = JointTask.of("grk", votes, states, raw_eta)
    test = held_out(votes.prompts, 0.2, 0)
    rest = np.flatnonzero(~test)
    print(
        f"{options.votes.name}: {len(votes.models)} models, of which {bundle.manifest.name} knows "
        f"{int((evidence.index >= 0).sum())}; {len(rest)} prompts to adopt from, {int(test.sum())} held out; "
        f"{platform.machine()}, {os.cpu_count()} cores\n\n"
        "| prompts | seed | does | gain, cross-validated | routed over best single, held out | log loss | marginal "
        "| per category | seconds |\n|---:|---:|:---|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for size in map(int, options.sizes.split(",")):
        for seed in map(int, options.seeds.split(",")):
            keep = np.zeros(len(votes.prompts), np.bool_)
            keep[np.random.default_rng(seed).permutation(rest)[:size]] = True
            print(row(evidence, bundle, task, known, keep, test, seed), flush=True)
            if size >= len(rest):
                break
    if options.full:
        print(full_row(votes, test, ~test, options.full))


def read_matrix(options: argparse.Namespace) -> Votes:
    """The votes of the chosen rows and columns."""
    if not options.benchmark and not options.models:
        return read_votes(options.votes)
    table = pq.read_table(options.votes)
    if options.benchmark:
        table = table.filter(pc.equal(table["benchmark"], options.benchmark))
    if options.models:
        table = table.select(["prompt", "category", *options.models.split(",")])
    path = options.work / "chosen.parquet"
    pq.write_table(table, path)
    return read_votes(path)


def stored_states(bundle: Bundle, votes: Votes, work: Path) -> tuple[Array, Array]:
    """States (P, H) and raw_eta (P,) of the prompts."""
    digest = hashlib.sha256(repr((bundle.manifest.fingerprint, votes.prompts)).encode()).hexdigest()[:16]
    path = work / f"states-{digest}.npz"
    if not path.exists():
        started = time.perf_counter()
        states, _, raw_eta = read_states(bundle, votes.prompts)
        assert raw_eta is not None
        np.savez(path, states=states, raw_eta=raw_eta)
        print(f"scored {len(votes.prompts)} prompts in {time.perf_counter() - started:.0f} s", flush=True)
    kept = np.load(path)
    return kept["states"], kept["raw_eta"]


def row(evidence: Evidence, bundle: Bundle, task: JointTask, known: Known, keep: Mask, test: Mask, seed: int) -> str:
    """One adoption of the prompts `keep` (P,), judged on `test` (P,)."""
    part = gather(evidence.votes.select(keep), evidence.models, bundle.manifest)
    started = time.perf_counter()
    found, rows = fit(part, task.select(keep), known)
    seconds = time.perf_counter() - started
    left = task.select(test)
    loss = mean_loss(left, rows.coefs(left.features), rows.raw_eta(left.raw_eta))
    votes, baseline = evidence.votes.select(test), evidence.votes.select(keep)
    plain = fit_forecasts(Parts.of(votes.groups, baseline.groups), baseline, "grk")
    category = "–" if plain.category is None else f"{mean_loss(left, *plain.category):.4f}"
    gain = over_best(votes, baseline, rows.coefs(left.features))
    crossed = found.choice.promising.gain
    return (
        f"| {int(keep.sum())} | {seed} | {found.kind} | {signed(crossed)} | {signed(gain)} | {loss:.4f} "
        f"| {mean_loss(left, *plain.marginal):.4f} | {category} | {seconds:.0f} |"
    )


def full_row(votes: Votes, test: Mask, rest: Mask, source: str) -> str:
    """A bundle that was trained on the whole rest."""
    p2l = P2L.load(source)
    part = votes.select(test)
    scores = p2l.score_turns(part.prompts)
    columns = [p2l.index(name) for name in votes.models]
    coefs, raw_eta = scores.coefs[:, columns].astype(np.float64), np.asarray(scores.raw_eta, np.float64)
    task = JointTask.of("grk", part, coefs, raw_eta)
    gain = over_best(part, votes.select(rest), coefs)
    return f"| {int(rest.sum())} | | full training | | {signed(gain)} | {mean_loss(task, coefs, raw_eta):.4f} | | | |"


def over_best(test: Votes, baseline: Votes, coefs: Array) -> Gain:
    """Routed score over the model that is best on the baseline's prompts."""
    assert test.scores is not None
    assert baseline.scores is not None
    best = int(np.nanmean(baseline.scores, axis=0).argmax())
    return gain_over(test.scores, coefs.argmax(axis=1), np.full(len(coefs), best))


def mean_loss(task: JointTask, coefs: Array, raw_eta: Array | None) -> float:
    """Mean −log P of the votes."""
    return float(task.weight @ task.losses(coefs, raw_eta)[0] / task.weight.sum())


def signed(gain: Gain) -> str:
    """A gain with its standard error."""
    return f"{gain.mean:+.4f} ± {gain.stderr:.4f}"


if __name__ == "__main__":
    main()
