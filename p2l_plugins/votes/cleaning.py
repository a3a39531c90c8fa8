"""Named rules that drop votes, in a fixed order, each with its count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import OUTCOMES
from p2l_plugins.votes.columns import need_models
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.votes import Index, Votes, flipped

Conflicts = Literal["keep", "drop", "majority"]


@dataclass(frozen=True)
class Cleaning:
    """Which rules hold; they run in this order.

    Attributes:
        languages: keep votes in these languages only ("language"); empty keeps all.
        keep_models: keep votes between these models only ("keep-model"); empty keeps all.
        drop_models: drop the votes of these models ("drop-model").
        conflicts: what becomes of votes on one prompt and pair that differ ("conflicts"): "majority" keeps those with
            the outcome of the greatest total weight, and none where two outcomes share it.
        drop_duplicates: keep the first of equal votes: same prompt, pair (either way round) and outcome ("duplicates").
        min_votes: drop models with fewer votes, again and again until all have as many ("min-votes").
    """

    languages: tuple[str, ...] = ()
    keep_models: tuple[str, ...] = ()
    drop_models: tuple[str, ...] = ()
    conflicts: Conflicts = "keep"
    drop_duplicates: bool = False
    min_votes: int = 0


def clean_votes(votes: Votes, rules: Cleaning, tally: Tally) -> Votes:
    """The votes that all rules leave.

    Raises:
        DataError: a rule names a model that is not there, or no vote is left.
    """
    need_models([*rules.keep_models, *rules.drop_models], votes.models)
    steps: list[tuple[str, bool, Callable[[Votes], NDArray[np.bool_]]]] = [
        ("language", bool(rules.languages), lambda v: _in_languages(v, rules.languages)),
        ("keep-model", bool(rules.keep_models), lambda v: _between(v, rules.keep_models)),
        ("drop-model", bool(rules.drop_models), lambda v: _without(v, rules.drop_models)),
        ("conflicts", rules.conflicts != "keep", lambda v: ~_lost(v, rules.conflicts)),
        ("duplicates", rules.drop_duplicates, _first_of_equals),
        ("min-votes", rules.min_votes > 0, lambda v: _with_enough(v, rules.min_votes)),
    ]
    for rule, holds, keep in steps:
        if holds:
            kept = keep(votes)
            tally.drop(rule, int((~kept).sum()))
            votes = votes.take(kept)
    if not len(votes):
        raise DataError(f"no votes are left of {tally.rows} rows; dropped: {tally.dropped_text()}")
    return votes


def pair_groups(prompt: Index, a: Index, b: Index, outcome: Index, n_models: int) -> tuple[Index, Index]:
    """Votes on the same prompt and pair of models, whichever way round.

    Returns:
        (V,) group of each vote, 0 to G − 1, and (V,) its outcome seen from the model of lower index.
    """
    low, high = np.minimum(a, b), np.maximum(a, b)
    key = (prompt * n_models + low) * n_models + high
    _, group = np.unique(key, return_inverse=True)
    return group.astype(np.int64), np.where(a > b, flipped(outcome), outcome)


def outcome_weights(group: Index, outcome: Index, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, 4) total weight of each outcome in each group."""
    n = int(group.max()) + 1 if group.size else 0
    total = np.zeros((n, len(OUTCOMES)))
    np.add.at(total, (group, outcome), weight)
    return total


def _groups(votes: Votes) -> tuple[Index, Index]:
    return pair_groups(votes.prompt, votes.a, votes.b, votes.outcome, len(votes.models))


def _in_languages(votes: Votes, languages: tuple[str, ...]) -> NDArray[np.bool_]:
    column = votes.labels.get("language")
    if column is None:
        raise DataError("--language: no row has a language")
    wanted = {name.casefold() for name in languages}
    return np.array([isinstance(x, str) and x.casefold() in wanted for x in column], np.bool_)


def _sides(votes: Votes, names: tuple[str, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(V,) each: whether side a, and side b, is one of the models."""
    named = np.array([name in names for name in votes.models], np.bool_)
    return named[votes.a], named[votes.b]


def _between(votes: Votes, names: tuple[str, ...]) -> NDArray[np.bool_]:
    a, b = _sides(votes, names)
    return np.logical_and(a, b)


def _without(votes: Votes, names: tuple[str, ...]) -> NDArray[np.bool_]:
    a, b = _sides(votes, names)
    return ~np.logical_or(a, b)


def _lost(votes: Votes, conflicts: Conflicts) -> NDArray[np.bool_]:
    group, outcome = _groups(votes)
    weight = outcome_weights(group, outcome, votes.weight)
    lost: NDArray[np.bool_] = ((weight > 0).sum(1) > 1)[group]
    if conflicts == "drop":
        return lost
    top = np.isclose(weight, weight.max(1, keepdims=True))
    wins: NDArray[np.bool_] = top & (top.sum(1, keepdims=True) == 1)
    return np.logical_and(lost, ~wins[group, outcome])


def _first_of_equals(votes: Votes) -> NDArray[np.bool_]:
    group, outcome = _groups(votes)
    _, first = np.unique(group * len(OUTCOMES) + outcome, return_index=True)
    keep = np.zeros(len(votes), np.bool_)
    keep[first] = True
    return keep


def _with_enough(votes: Votes, least: int) -> NDArray[np.bool_]:
    keep = np.ones(len(votes), np.bool_)
    while True:
        both = np.concatenate([votes.a[keep], votes.b[keep]])
        few = np.bincount(both, minlength=len(votes.models)) < least
        lost = keep & (few[votes.a] | few[votes.b])
        if not lost.any():
            return keep
        keep &= ~lost
