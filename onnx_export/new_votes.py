"""Votes over the models of a bundle, and those of one new model, turned so that it is side a."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Array, Family, Ids, Mask
from p2l_plugins.similar import hint
from p2l_plugins.votes.votes import Votes, flipped


@dataclass(frozen=True)
class VoteCounts:
    """What became of the votes in a file.

    Attributes:
        used: votes of the new model with models of the bundle.
        prompts: distinct prompts of these.
        others: votes that do not involve the new model.
        unknown: votes of the new model with models that the bundle does not have.
        unknown_models: their names.
        ties: ties left out, because the family allows none.
    """

    used: int
    prompts: int
    others: int
    unknown: int
    unknown_models: tuple[str, ...]
    ties: int


def places(votes: Votes, models: Sequence[str]) -> Ids:
    """Where `models` have each of the models of the votes (M,); −1: nowhere."""
    position = {name: i for i, name in enumerate(models)}
    return np.array([position.get(name, -1) for name in votes.models], np.int64)


def ties_in(votes: Votes, keep: Mask, family: Family) -> Mask:
    """(V,) the votes of `keep` that are ties, where the family allows none."""
    return keep & ~votes.decisive() if family == "bt" else np.zeros_like(keep)


def moved(votes: Votes, models: Sequence[str], place: Ids, keep: Mask, scores: Array | None = None) -> Votes:
    """The votes where `keep` (V,) is true, and their prompts, over other models.

    Args:
        place: (M,) of each of the present models among `models`.
        scores: (P, len(models)) in place of theirs.
    """
    a, b = np.maximum(place[votes.a], 0), np.maximum(place[votes.b], 0)
    return replace(votes, models=tuple(models), a=a, b=b, scores=scores).take(keep).with_votes()


def votes_of(
    votes: Votes, name: str, models: Sequence[str], family: Family, drop_ties: bool = False
) -> tuple[Votes, VoteCounts]:
    """The votes in which `name` meets one of `models`, with `name` as side a.

    Returns:
        Votes over `(*models, name)`: `a` is M throughout, `b` indexes `models`; and what was left out.

    Raises:
        DataError: no vote of `name`, none with a known model, or ties that the family does not allow.
    """
    if name not in votes.models:
        raise DataError(f"no vote is on {name!r}; {hint(name, votes.models, 'the votes are on')}")
    index = places(votes, models)
    new = votes.models.index(name)
    mine = (votes.a == new) | (votes.b == new)
    opponent = index[np.where(votes.a == new, votes.b, votes.a)]
    unknown = mine & (opponent < 0)
    strangers = tuple(
        model
        for i, model in enumerate(votes.models)
        if index[i] < 0 and i != new and (unknown & ((votes.a == i) | (votes.b == i))).any()
    )
    keep = mine & (opponent >= 0)
    if not mine.any():
        raise DataError(f"no vote is on {name!r}: its scores are all missing, or nothing else has one on its prompts")
    if not keep.any():
        raise DataError(
            f"all {int(mine.sum())} votes on {name!r} are with models that the bundle does not have "
            f"({', '.join(strangers[:3])}); {hint(strangers[0], models, 'the bundle has')}"
        )
    ties = ties_in(votes, keep, family)
    if ties.any() and not drop_ties:
        raise DataError(
            f"{int(ties.sum())} of {int(keep.sum())} votes on {name!r} are ties, which the family 'bt' does not allow; "
            "leave them out with --drop-ties"
        )
    keep &= ~ties
    if not keep.any():
        raise DataError(f"all votes on {name!r} with models of the bundle are ties, which the family 'bt' can't use")
    turned = replace(
        votes,
        models=(*models, name),
        a=np.full(len(votes), len(models), np.int64),
        b=np.maximum(opponent, 0),
        outcome=np.where(votes.a == new, votes.outcome, flipped(votes.outcome)),
        scores=None,
    )
    chosen = turned.take(keep).with_votes()
    counts = VoteCounts(
        len(chosen), len(chosen.prompts), int((~mine).sum()), int(unknown.sum()), strangers, int(ties.sum())
    )
    return chosen, counts
