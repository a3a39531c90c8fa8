"""Score against cost of the starter on the held-out fifth of zeroeval, at public list prices of 2024-09.

    python benchmarks/zeroeval_costs.py --data FOLDER [--bundle starter] [--objective win_rate] [--leave-out MODEL ...]
        [--figure FILE.png]

FOLDER holds zeroeval_correctness.parquet and zeroeval_mean_output_tokens_est.json (mean length of a model's answers).
A request costs characters / 4 input tokens and that many output tokens, at examples/zeroeval_prices.json. The best
single model is chosen and the marginal fitted on the other four fifths. Prints the curve of the paced budget, of the LP
per prompt, of a hard cap and of the marginal, and where each reaches the best single model's score.

The estimate counts visible answers. o1 bills hidden reasoning tokens too, so that here it looks cheaper than it was;
`--leave-out o1-mini-2024-09-12 o1-preview-2024-09-12` shows the curve without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from p2l_plugins.evaluation.choices import candidates
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.evaluation.figures import cost_score_figure
from p2l_plugins.evaluation.report import curve_tables
from p2l_plugins.files.figures import check_figure
from p2l_plugins.files.tables import read_json_object
from p2l_plugins.routing.explain import request_costs
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import read_config
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out

ROOT = Path(__file__).resolve().parent.parent
MATRIX = "zeroeval_correctness.parquet"
TOKENS = "zeroeval_mean_output_tokens_est.json"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--prices", type=Path, default=ROOT / "examples" / "zeroeval_prices.json")
    parser.add_argument("--objective", default="win_rate", help="win_rate or usable")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="MODEL", help="models to leave out")
    parser.add_argument("--figure", type=Path, help=".png, .svg or .pdf")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.figure is not None:
        check_figure(options.figure, "train")
    config = read_config(options.recipe)
    p2l = P2L.load(options.bundle)
    votes = read_votes(options.data / MATRIX, config.aliases)
    out = held_out(votes.prompts, config.held_out, config.seed)
    test = votes.select(out)
    lengths = {config.aliases.get(name, name): n for name, n in read_json_object(options.data / TOKENS).items()}
    prices = read_json_object(options.prices)["prices"]
    assert set(options.leave_out) <= set(prices), f"{options.leave_out}: not all of them have a price"
    table = {
        name: {**entry, "output_tokens": lengths[name]}
        for name, entry in prices.items()
        if name in lengths and name not in options.leave_out
    }
    characters = np.array([sum(map(len, turns)) for turns in test.prompts])
    costs = np.full((len(test.prompts), len(p2l.models)), np.nan)
    costs[:, [p2l.index(name) for name in table]] = request_costs(
        table, options.prices, np.maximum(characters // 4, 1), output_tokens=0
    )
    report = evaluate_votes(
        p2l.score_turns(test.prompts), test, votes.select(~out), costs=costs, objective=options.objective
    )
    curve = report.curve
    assert curve is not None
    assert test.scores is not None
    ran = [test.models[i] for i in candidates(test.scores)]
    unpriced = [name for name in ran if name not in {*curve.models, *options.leave_out}]
    if options.figure is not None:
        cost_score_figure(curve, options.figure, "zeroeval, held-out fifth, list prices of 2024-09")
    if options.json:
        print(json.dumps({**dataclasses.asdict(curve), "left_out": unpriced}, indent=2))
        return
    print(curve_tables(curve))
    print(f"\nObjective {options.objective}. Candidates: {', '.join(curve.models)}.")
    print(f"\nLeft out of the {len(ran)} models that ran on the prompts, without a sure price: {', '.join(unpriced)}.")


if __name__ == "__main__":
    main()
