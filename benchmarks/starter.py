"""The starter's held-out figures: the part of each data set that its recipe held out, by prompt.

    python benchmarks/starter.py --data FOLDER [--bundle starter] [--write]

Prints one table per question (does the leaderboard predict votes, does routing by it pay), with baselines fitted on the
training part. `--write` puts the figures into the bundle's manifest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.evaluation.quality import vote_log_probabilities, vote_quality
from p2l_plugins.evaluation.report import Evaluation
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import read_config
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.split import read_source
from p2l_plugins.votes.votes import held_out, merge

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files that the recipe names")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--write", action="store_true", help="put the figures into the bundle's manifest")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = read_config(options.recipe)
    p2l = P2L.load(options.bundle)
    reports: dict[str, Evaluation] = {}
    joint: dict[str, float] = {}
    parts = []
    for source in config.data:
        votes = read_source(source, config, options.data)
        out = held_out(votes.prompts, config.held_out, config.seed)
        parts.append((source, votes, out))
    everything = merge([v.select(~out) for _, v, out in parts], [source.prompt_weight for source, _, _ in parts])
    joint_coefs, joint_eta = fit_marginal(everything.renamed(p2l.models), p2l.family)
    for source, votes, out in parts:
        test = votes.select(out)
        started = time.perf_counter()
        scores = p2l.score_turns(test.prompts)
        seconds = time.perf_counter() - started
        name = source.label
        reports[name] = evaluate_votes(scores, test, votes.select(~out))
        mine = test.renamed(p2l.models)
        eta = None if joint_eta is None else np.full(len(test.prompts), joint_eta)
        one = vote_log_probabilities(mine, np.tile(joint_coefs, (len(test.prompts), 1)), eta, p2l.family)
        joint[name] = vote_quality(one, mine, p2l.family).log_loss
        if not options.json:
            print(f"scored {len(test.prompts)} prompts of {source.path} in {seconds:.1f} s", flush=True)
    quality = {
        name: report.to_dict(tables=False) | {"one_marginal_log_loss": round(joint[name], 6)}
        for name, report in reports.items()
    }
    if options.write:
        folder = find_bundle(options.bundle)
        manifest = Bundle.open(folder).manifest
        manifest.model_copy(update={"quality": {"held_out": quality}}).write(folder)
    if options.json:
        print(json.dumps(quality, indent=2))
        return
    print("\n" + tables(reports, joint))


def tables(reports: dict[str, Evaluation], joint: dict[str, float]) -> str:
    """The two tables of docs/results.md, and one of calibration and of what the category alone gives."""
    lines = [
        "| held-out votes | prompts | votes | log loss: P2L | marginal | one marginal | constant "
        "| decisive: P2L | marginal |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in reports.items():
        cells = (r.p2l.log_loss, r.marginal.log_loss, joint[name], r.constant.log_loss)
        cells += (r.p2l.decisive_log_loss, r.marginal.decisive_log_loss)
        lines.append(f"| {name} | {r.n_prompts} | {r.n_votes} | " + " | ".join(f"{x:.4f}" for x in cells) + " |")
    lines += [
        "",
        "| routed score | models | random | best single | P2L | oracle | gain over best single |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, report in reports.items():
        r = report.routed
        if r is not None:
            lines.append(
                f"| {name} | {r.candidates} | {r.random:.4f} | {r.best_single:.4f} ({r.best_single_model}) "
                f"| {r.p2l:.4f} | {r.oracle:.4f} | {r.gain:+.4f} ± {r.gain_stderr:.4f} |"
            )
    classes = ("win", "tie", "tie (bothbad)", "decisive")
    lines += [
        "",
        "| P2L's calibration error (if it were calibrated) | all outcomes | "
        + " | ".join(classes)
        + " | log loss: P2L − category marginal | routed: P2L − best per category |",
        "|:---|" + "---:|" * 7,
    ]
    for name, report in reports.items():
        c = report.calibration["p2l"]
        cells = [f"{x.error:.4f} ({x.expected:.4f})" for x in (c, *(c.classes[key] for key in classes))]
        gap, r = report.differences.get("category_marginal"), report.routed
        cells.append("–" if gap is None else f"{gap.log_loss:+.4f} ± {gap.log_loss_stderr:.4f}")
        none = r is None or r.category_gain is None
        cells.append("–" if none else f"{r.category_gain:+.4f} ± {r.category_gain_stderr:.4f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    assert all(np.isfinite(report.p2l.log_loss) for report in reports.values())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
