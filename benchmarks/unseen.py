"""A set of prompts that a bundle was not trained on: is it worse there than one leaderboard of its training sets?

    nice python benchmarks/unseen.py --data FOLDER --left-out llmrouter_scores.parquet=BUNDLE [--prompts 1000]

Each `--left-out SET=BUNDLE` names a set of the data folder and a bundle that was trained with the recipe's other sets.
The overall board is one leaderboard fitted to these other sets' training parts, all prompts counted alike; the overall
best model is its first among those that ran on nearly all prompts of the set. Only models that the bundle knows count,
and only prompts that none of the other sets has. Beside them what is best on the set itself: its own board and its best
model, each from other prompts of the set (five folds). Standard errors are of differences on the same prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from p2l_plugins.evaluation.choices import candidates
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.evaluation.quality import LossDifference, loss_difference, vote_log_probabilities, vote_quality
from p2l_plugins.evaluation.report import Evaluation
from p2l_plugins.evaluation.routed import Routed, routed
from p2l_plugins.outcomes import Array
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import Source, TrainConfig, read_config
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.votes.columns import ModelColumns
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes, held_out, merge

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Unseen:
    """How a bundle does on a set that it was not trained on.

    Attributes:
        prompts, models: how many are judged.
        own: the usual report, whose baselines come from the set itself.
        board_loss: decisive log loss of the overall board; `gap` is P2L − it.
        routing: its best single model is the overall board's; None for votes without scores.
    """

    prompts: int
    models: int
    own: Evaluation
    board_loss: float
    gap: LossDifference
    routing: Routed | None


def among(votes: Votes, models: Sequence[str]) -> Votes:
    """The votes between two of the models, and the prompts that have such votes."""
    known = np.array([name in models for name in votes.models])
    kept = votes.take(known[votes.a] & known[votes.b])
    place = np.cumsum(known) - 1
    return replace(
        kept,
        models=tuple(name for name, is_known in zip(votes.models, known, strict=True) if is_known),
        a=place[kept.a],
        b=place[kept.b],
        scores=None if kept.scores is None else kept.scores[:, known],
    ).with_votes()


def judge(p2l: P2L, votes: Votes, board: Array, raw_eta: float | None) -> Unseen:
    """Scores the prompts of votes between the bundle's models, and judges them beside the board (M,)."""
    scores, count = p2l.score_turns(votes.prompts), len(votes.prompts)
    mine, coefs = votes.renamed(p2l.models), scores.coefs.astype(np.float64)
    own_eta = None if scores.raw_eta is None else scores.raw_eta.astype(np.float64)
    eta = None if raw_eta is None else np.full(count, raw_eta)
    forecast = vote_log_probabilities(mine, coefs, own_eta, p2l.family)
    one = vote_log_probabilities(mine, np.tile(board, (count, 1)), eta, p2l.family)
    routing = None
    if mine.scores is not None:
        columns = candidates(mine.scores)
        some = mine.scores[:, columns]
        rows = ~np.isnan(some).all(axis=1)
        names = [p2l.models[i] for i in columns]
        single = np.tile(board[columns], (int(rows.sum()), 1))
        routing = routed(names, some[rows], coefs[:, columns][rows], single, None, [""] * len(single))
    return Unseen(
        prompts=count,
        models=len(votes.models),
        own=evaluate_votes(scores, votes),
        board_loss=vote_quality(one, mine, p2l.family).decisive_log_loss,
        gap=loss_difference(forecast, one, mine, p2l.family),
        routing=routing,
    )


def read(source: Source, config: TrainConfig, data: Path) -> Votes:
    """The votes of a set as the recipe reads them."""
    columns = ModelColumns(source.models, source.not_models)
    return read_votes(data / source.path, config.aliases, source.usable, source.margin, columns)


def some(votes: Votes, most: int | None) -> Votes:
    """At most so many of the prompts, drawn at random."""
    count = len(votes.prompts)
    if most is None or count <= most:
        return votes
    keep = np.zeros(count, np.bool_)
    keep[np.random.default_rng(0).permutation(count)[:most]] = True
    return votes.select(keep)


def left_out(pair: str, config: TrainConfig, parts: dict[str, Votes], most: int | None) -> tuple[str, Unseen]:
    """The name of a set and its figures, for a pair `SET=BUNDLE`.

    Args:
        parts: the votes of all sets by path.
    """
    path, _, bundle = pair.partition("=")
    p2l = P2L.load(bundle)
    rest = [source for source in config.data if source.path != path]
    training = []
    for source in rest:
        votes = parts[source.path]
        training.append(votes.select(~held_out(votes.prompts, config.held_out, config.seed)))
    whole = among(merge(training, [source.prompt_weight for source in rest]), p2l.models)
    board, raw_eta = fit_marginal(whole.renamed(p2l.models), p2l.family)
    seen = {prompt for source in rest for prompt in parts[source.path].prompts}
    votes = parts[path].select(np.array([prompt not in seen for prompt in parts[path].prompts]))
    return Path(path).stem, judge(p2l, some(among(votes, whole.voted_models), most), board, raw_eta)


def tables(found: dict[str, Unseen]) -> str:
    """The two tables: what routing gives, and how well votes are forecast."""
    lines = [
        "| set left out, routed score | prompts | models | P2L | overall best model | P2L − it | the set's own best |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, u in found.items():
        r, own = u.routing, u.own.routed
        if r is not None and own is not None:
            lines.append(
                f"| {name} | {r.n} | {r.candidates} | {r.p2l:.4f} | {r.best_single:.4f} ({r.best_single_model}) "
                f"| {r.gain:+.4f} ± {r.gain_stderr:.4f} | {own.best_single:.4f} ({own.best_single_model}) |"
            )
    lines += [
        "",
        "| set left out, decisive log loss | prompts | models | P2L | overall board | P2L − it | the set's own board |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, u in found.items():
        cells = (u.own.p2l.decisive_log_loss, u.board_loss)
        gap = f"{u.gap.decisive_log_loss:+.4f} ± {u.gap.decisive_log_loss_stderr:.4f}"
        lines.append(
            f"| {name} | {u.prompts} | {u.models} | {cells[0]:.4f} | {cells[1]:.4f} | {gap} "
            f"| {u.own.marginal.decisive_log_loss:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files that the recipe names")
    parser.add_argument("--left-out", action="append", required=True, help="SET=BUNDLE, as often as there are sets")
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--prompts", type=int, help="at most so many of a set, drawn at random; default: all")
    options = parser.parse_args()
    config = read_config(options.recipe)
    sources = {source.path: source for source in config.data}
    for pair in options.left_out:
        path = pair.partition("=")[0]
        sources.setdefault(path, Source(path=path))
    parts = {path: read(source, config, options.data) for path, source in sources.items()}
    found = dict(left_out(pair, config, parts, options.prompts) for pair in options.left_out)
    print(tables(found))


if __name__ == "__main__":
    main()
