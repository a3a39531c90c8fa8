"""What published accuracies tell of a model: leave one out of the starter, add it from its accuracy per category alone.

    nice python benchmarks/accuracies.py --data FOLDER [--bundle starter] [--models A,B,C]

Of MMLU-Pro's models, by default the strongest, one a quarter down, the middle and the weakest: the accuracies per
category are those on the training prompts, and so are the prompts. Judged on the model's votes on the held-out fifth:
log loss of the row from accuracies, of the mean row with a level fitted to the overall accuracy, and of `add-model`
from 5 % of its votes. Caution: the starter's backbone saw the left-out model's votes in training; only its row is left
out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from onnx_export.accuracies import Accuracy, fit_accuracies
from onnx_export.edit import paired_gain
from onnx_export.head import find_head, load_graph, read_states
from onnx_export.new_model import Row, Task, choose_strength, fit_new_model
from onnx_export.new_votes import votes_of
from p2l_plugins.outcomes import Array
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.training.config import read_config
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of mmlupro_correctness.parquet")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--models", help="with commas between them")
    parser.add_argument("--prompts", type=int, default=2500, help="prompts in all, to save time")
    options = parser.parse_args()
    bundle = Bundle.open(find_bundle(options.bundle))
    aliases = read_config(ROOT / "examples" / "starter.yaml").aliases
    votes = read_votes(options.data / "mmlupro_correctness.parquet", aliases)
    some = np.zeros(len(votes.prompts), np.bool_)
    some[np.random.default_rng(0).permutation(len(some))[: options.prompts]] = True
    votes = votes.select(some)
    assert votes.scores is not None
    test = held_out(votes.prompts, 0.2, 0)
    order = np.argsort(-np.nanmean(votes.scores[~test], axis=0))
    chosen = [votes.models[order[i]] for i in (0, len(order) // 4, len(order) // 2, len(order) - 1)]
    states, coefs, raw_eta = read_states(bundle, votes.prompts)
    head = find_head(load_graph(bundle.folder), bundle.folder)
    assert raw_eta is not None
    eta = np.asarray(raw_eta, np.float64)
    position = {prompt: i for i, prompt in enumerate(votes.prompts)}
    names, group = np.unique(votes.groups, return_inverse=True)
    print(
        f"{len(names)} categories, {int((~test).sum())} prompts with accuracies, {int(test.sum())} held out\n\n"
        "| model | accuracies per category | level from the overall accuracy | less it | 5 % of its votes | less it |"
        "\n|:---|---:|---:|---:|---:|---:|"
    )
    for name in options.models.split(",") if options.models else chosen:
        column = votes.models.index(name)
        rest = [i for i, model in enumerate(bundle.manifest.models) if model != name]
        others = [bundle.manifest.models[i] for i in rest]
        mine, _ = votes_of(votes, name, others, "grk")
        at = np.array([position[prompt] for prompt in mine.prompts])  # where the model and another one ran
        task = Task.of("grk", mine, states[at], coefs[at][:, rest], eta[at])
        weight, bias = head.weight[rest], head.bias[rest]
        score, ran = votes.scores[:, column], ~np.isnan(votes.scores[:, column]) & ~test
        published = []
        for k, category in enumerate(names):
            own = score[ran & (group == k)]
            published.append(Accuracy(str(category), float(own.mean()), float(len(own))))
        whole = Accuracy("all", float(score[ran].mean()), float(ran.sum()))
        rows = {
            "accuracies": fit_accuracies(states[ran], group[ran], published, weight, bias),
            "level": fit_accuracies(states[ran], np.zeros(int(ran.sum()), np.int64), [whole], weight, bias, 0.0),
        }
        few = task.select(~test[at] & held_out(mine.prompts, 0.05, 1))
        strength, _ = choose_strength(few, weight, bias)
        rows["votes"] = fit_new_model(few, weight, bias, strength)[0]
        print(line(name, task.select(test[at]), states[at][test[at]], rows), flush=True)


def line(name: str, task: Task, states: Array, rows: dict[str, Row]) -> str:
    """A row of the table: mean log loss of each, and differences with standard errors by prompt."""
    loss = {how: task.prompt_losses(row.coefs(states)) for how, row in rows.items()}
    weight = np.bincount(task.prompt, task.weight, minlength=len(states)).astype(np.float64)
    mean = {how: float(x.sum() / weight.sum()) for how, x in loss.items()}

    def less(other: str) -> str:
        gap, error = paired_gain(loss["accuracies"], loss[other], weight)
        return f"{gap:+.4f} ± {error:.4f}"

    return (
        f"| {name} | {mean['accuracies']:.4f} | {mean['level']:.4f} | {less('level')} | {mean['votes']:.4f} "
        f"| {less('votes')} |"
    )


if __name__ == "__main__":
    main()
