"""Does the starter's result hold for other splits? Makes it with several seeds, each with a held-out fifth of its own:
trained, exported, head refitted.

    python benchmarks/seeds.py --data FOLDER --work FOLDER [--recipe examples/starter.yaml] [--seeds 0,1,2]

Per data set and seed, on the held-out prompts and with everything chosen or fitted on the training part: routed score
against the best single model and the best model of the prompt's known category; log loss of decisive votes against
one Bradley-Terry leaderboard; calibration error. Checkpoints and bundles stay in --work and are not made twice.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnx_export.export import export
from onnx_export.refit import refit_head
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.evaluation.quality import vote_log_probabilities, vote_quality
from p2l_plugins.evaluation.report import Evaluation
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import TrainConfig, read_config
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.split import read_source
from p2l_plugins.training.train import train
from p2l_plugins.votes.votes import Votes, held_out

ROOT = Path(__file__).resolve().parent.parent


def bradley_terry(training: Votes, test: Votes) -> float:
    """Decisive log loss of one Bradley-Terry leaderboard."""
    keep = training.decisive()
    columns = {name: getattr(training, name)[keep] for name in ("prompt", "a", "b", "outcome", "weight")}
    coefs, _ = fit_marginal(replace(training, **columns), "bt")
    table = np.tile(coefs, (len(test.prompts), 1))
    return vote_quality(vote_log_probabilities(test, table, None, "bt-tie"), test, "bt-tie").decisive_log_loss


def judge(config: TrainConfig, bundle: Path, data: Path) -> dict[str, tuple[Evaluation, float]]:
    """Per data set, the evaluation on the held-out part and the loss of Bradley-Terry."""
    p2l = P2L.load(bundle)
    result = {}
    for source in config.data:
        votes = read_source(source, config, data)
        out = held_out(votes.prompts, config.held_out, config.seed)
        test, rest = votes.select(out), votes.select(~out)
        report = evaluate_votes(p2l.score_turns(test.prompts), test, rest)
        result[source.label] = (report, bradley_terry(rest, test))
    return result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--category-prior", type=float, default=3.0, help="of the head's refit")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    gains: dict[str, list[tuple[float, float]]] = defaultdict(list)
    print(
        "| set | seed | n | best single | P2L | over best single | over best per category | decisive: P2L | one BT "
        "| calibration error | by chance |\n|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for seed in map(int, options.seeds.split(",")):
        config = read_config(options.recipe).model_copy(update={"seed": seed})
        checkpoint, bundle = options.work / f"seed{seed}", options.work / f"seed{seed}-{options.precision}"
        if not checkpoint.is_dir():
            train(config, options.data, checkpoint, resume=True)
        exported = bundle.with_name(f"{bundle.name}-exported")
        if not exported.is_dir():
            export(checkpoint, exported, options.precision)
        if not bundle.is_dir():
            kept = {"category_prior": options.category_prior, "ties": True, "calibrate": True}
            refit_head(Bundle.open(exported), config, options.data, bundle, **kept)
        for name, (report, one) in judge(config, bundle, options.data).items():
            r, c = report.routed, report.calibration["p2l"]
            cells = ["–"] * 4
            if r is not None:
                cells = [f"{r.best_single:.4f}", f"{r.p2l:.4f}", f"{r.gain:+.4f} ± {r.gain_stderr:.4f}", "–"]
                over = float("nan")
                if r.category_gain is not None:
                    cells[3] = f"{r.category_gain:+.4f} ± {r.category_gain_stderr:.4f}"
                    over = r.category_gain
                gains[name].append((r.gain, over))
            cells += [f"{report.p2l.decisive_log_loss:.4f}", f"{one:.4f}", f"{c.error:.4f}", f"{c.expected:.4f}"]
            print(f"| {name} | {seed} | {report.n_prompts} | " + " | ".join(cells) + " |", flush=True)
    print("\n| mean over the seeds | over best single | over best per category |\n|:---|---:|---:|")
    for name, values in gains.items():
        print(f"| {name} | " + " | ".join(f"{x:+.4f}" for x in np.mean(values, axis=0)) + " |")


if __name__ == "__main__":
    main()
