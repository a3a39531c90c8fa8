"""What `p2l add-model` loses against training again: leave a model out, add it back from some of its votes.

    nice python benchmarks/add_model.py --data FOLDER --work FOLDER [--set llmrouter_scores] [--models A,B,C]

Trains once with all models and once without each of three (by default the strongest, the middle and the weakest on the
training prompts), exports, adds the left-out model from its votes on 5 %, 20 % and 100 % of the training prompts, and
judges everything on the held-out fifth. Checkpoints and bundles stay in the work folder, so that a second run is quick.
Standard errors are of the difference to training again, paired by prompt.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onnx_export.edit import add_model, paired_gain
from onnx_export.export import export
from onnx_export.head import find_head, load_graph, read_states
from onnx_export.new_model import Task, fit_new_model
from onnx_export.new_votes import votes_of
from p2l_plugins.outcomes import Array, negative_log_likelihood
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L, Scores
from p2l_plugins.training.config import Source, TrainConfig
from p2l_plugins.training.train import train
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes, held_out

SHARES = (0.05, 0.2, 1.0)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the score matrices")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles, kept")
    parser.add_argument("--set", default="llmrouter_scores", help="name of the Parquet file, a score matrix")
    parser.add_argument("--models", help="models to leave out, with commas between them; default: three by mean score")
    options = parser.parse_args()
    source = options.data / f"{options.set}.parquet"
    work = options.work / options.set
    votes = read_votes(source)
    assert votes.scores is not None
    out = held_out(votes.prompts, 0.2, 0)
    training, test = votes.select(~out), votes.select(out)
    order = np.argsort(-np.nanmean(votes.scores[~out], axis=0))
    chosen = [votes.models[i] for i in (order[0], order[len(order) // 2], order[-1])]
    if options.models:
        chosen = options.models.split(",")
    print(
        f"{options.set}: {len(votes.models)} models; {len(training.prompts)} prompts to train on, {len(test.prompts)} "
        f"held out; {platform.machine()}, {os.cpu_count()} cores\n",
        flush=True,
    )
    full = P2L(bundle_of(source, work, None)).score_turns(test.prompts)
    print(
        "| model | how | its votes | log loss of its held-out votes | over training again | routed score "
        "| over training again | seconds |\n|:---|:---|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    others = []
    for name in chosen:
        rows, other = judge(name, bundle_of(source, work, name), training, test, full)
        others.append(other)
        print("\n".join(rows), flush=True)
    print("\n" + "\n".join(others))


def bundle_of(source: Path, work: Path, left_out: str | None) -> Bundle:
    """The exported bundle of a training with all models or without one; made where the work folder lacks it."""
    label = "full" if left_out is None else f"without-{left_out}"
    checkpoint, bundle = work / label, work / f"bundle-{label}"
    if not checkpoint.exists():
        work.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(source)
        file = work / f"{label}.parquet"
        pq.write_table(table if left_out is None else table.drop_columns([left_out]), file)
        config = TrainConfig(
            name=label,
            data=[Source(path=file.name)],
            backbone="minilm",
            family="grk",
            max_length=256,
            epochs=1,
            bf16=True,
            batch_size=32,
            learning_rate=6e-5,
            head_learning_rate=2e-3,
        )
        report = train(config, work, checkpoint)
        print(f"trained {label} in {report['seconds']} s", flush=True)
    if not bundle.exists():
        export(checkpoint, bundle)
    return Bundle.open(bundle)


def judge(name: str, without: Bundle, training: Votes, test: Votes, full: Scores) -> tuple[list[str], str]:
    """Rows of the table for one left-out model, and a line on the votes among all others."""
    old = without.manifest.models
    mine, _ = votes_of(test, name, old, "grk")
    assert len(mine.prompts) == len(test.prompts)
    weight = np.bincount(mine.prompt, mine.weight, minlength=len(mine.prompts)).astype(np.float64)
    names = (*old, name)
    again = full.coefs[:, [full.index(model) for model in names]].astype(np.float64)
    again_eta = np.asarray(full.raw_eta, np.float64)
    states, coefs, raw_eta = read_states(without, test.prompts)
    own = np.concatenate([coefs, np.full((len(coefs), 1), -np.inf)], axis=1).astype(np.float64)
    eta = np.asarray(raw_eta, np.float64)
    results: list[tuple[str, int, Array | None, Array, float | None]] = []

    def add(how: str, n: int, column: Array, seconds: float | None) -> None:
        beta = np.concatenate([coefs, column[:, None]], axis=1)
        results.append((how, n, vote_losses(mine, beta, eta), routed_scores(test, names, beta), seconds))

    everything, _ = votes_of(training, name, old, "grk")
    head = find_head(load_graph(without.folder), without.folder)
    task = Task.of("grk", everything, *read_states(without, everything.prompts))
    results.append(("not in the bundle", 0, None, routed_scores(test, names, own), None))
    add("mean row", 0, fit_new_model(task, head.weight, head.bias, 0.0)[2].coefs(states), None)
    for share in (SHARES[0], SHARES[-1]):
        some = task.select(shared(everything, share))
        level = fit_new_model(some, head.weight, head.bias, 0.0)[1]
        add(f"mean row, own level from {share:.0%}", len(some.prompt), level.coefs(states), None)
    for share in SHARES:
        part = training.select(shared(training, share))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            bundle, figures = add_model(without, part, name, Path(folder) / "bundle", fraction=0)
            seconds = time.perf_counter() - started
            column = P2L(bundle).score_turns(test.prompts).coefs[:, -1].astype(np.float64)
        add(f"added from {share:.0%} (s = {figures['strength']:g})", figures["used"], column, seconds)
    reference = vote_losses(mine, again, again_eta)
    base = routed_scores(test, names, again)
    results.append(("trained again", len(everything), reference, base, None))
    lines = []
    for how, n, loss, routed, took in results:
        cells = ["", ""]
        if loss is not None:
            cells = [f"{loss.sum() / weight.sum():.4f}", "" if loss is reference else signed(loss, reference, weight)]
        routing = "" if routed is base else signed(routed, base, np.ones(len(base)))
        time_cell = "" if took is None else f"{took:.0f}"
        lines.append(
            f"| {name} | {how} | {n} | {cells[0]} | {cells[1]} | {routed.mean():.4f} | {routing} | {time_cell} |"
        )
    new = test.models.index(name)
    rest = (test.a != new) & (test.b != new)
    position = np.array([names.index(model) for model in test.models])
    n_rest = np.bincount(test.prompt[rest], minlength=len(test.prompts)).astype(np.float64)

    def loss_among_others(beta: Array, raw: Array) -> Array:
        p, a, b = test.prompt[rest], position[test.a[rest]], position[test.b[rest]]
        loss = negative_log_likelihood("grk", beta[p, a], beta[p, b], test.outcome[rest], raw[p])
        return np.bincount(p, loss, minlength=len(test.prompts)).astype(np.float64)

    without_loss, with_loss = loss_among_others(own, eta), loss_among_others(again, again_eta)
    line = (
        f"Held-out votes of {name}: {len(mine)} on {len(mine.prompts)} prompts. The {int(rest.sum())} votes among the "
        f"others: log loss {without_loss.sum() / n_rest.sum():.4f} trained without it, "
        f"{with_loss.sum() / n_rest.sum():.4f} with it ({signed(without_loss, with_loss, n_rest)}).\n"
    )
    return lines, line


def shared(votes: Votes, share: float) -> NDArray[np.bool_]:
    """(P,) the prompts of a share of the votes; a smaller share is part of a larger one."""
    return held_out(votes.prompts, share, 1) if share < 1 else np.ones(len(votes.prompts), np.bool_)


def vote_losses(votes: Votes, beta: Array, raw_eta: Array) -> Array:
    """(P,) summed −log P of each prompt's votes."""
    p = votes.prompt
    loss = negative_log_likelihood("grk", beta[p, votes.a], beta[p, votes.b], votes.outcome, raw_eta[p])
    return np.bincount(p, votes.weight * loss, minlength=len(votes.prompts)).astype(np.float64)


def routed_scores(votes: Votes, names: tuple[str, ...], beta: Array) -> Array:
    """(P,) score of the model with the highest coefficient."""
    assert votes.scores is not None
    score = votes.scores[:, [votes.models.index(name) for name in names]]
    return np.asarray(score[np.arange(len(score)), np.where(np.isnan(score), -np.inf, beta).argmax(axis=1)])


def signed(first: Array, second: Array, weight: Array) -> str:
    """Mean difference and its standard error, paired by prompt."""
    gain, error = paired_gain(first, second, weight)
    return f"{gain:+.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()
