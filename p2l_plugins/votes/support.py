"""What votes know of each model: prompts, sets, kinds and effective votes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns
from p2l_plugins.support import Support
from p2l_plugins.votes.votes import Votes

#: Variance of a log-odds times effective votes, for a share of one half.
ONE_VOTE = 4.0


def support(parts: Sequence[Votes]) -> dict[str, Support]:
    """What the votes of one set or several, one a file, say of each model that they have a vote on.

    The same prompt in two sets, with two judges say, is one prompt; the same label in two sets is one kind.
    """
    prompts: dict[str, set[Turns]] = {}
    kinds: dict[str, set[tuple[str, int]]] = {}
    sets: dict[str, int] = {}
    effective: dict[str, float] = {}
    for number, part in enumerate(parts):
        weight = prompt_weights(part)
        labels = [(group, 0) if group else ("", number) for group in part.groups]
        for model, column in zip(part.models, weight.T, strict=True):
            met = np.flatnonzero(column)
            if not len(met):
                continue
            prompts.setdefault(model, set()).update(part.prompts[i] for i in met)
            kinds.setdefault(model, set()).update(labels[i] for i in met)
            sets[model] = sets.get(model, 0) + 1
            effective[model] = effective.get(model, 0.0) + effective_number(column[met])
    votes = {model: min(effective[model], float(len(found))) for model, found in prompts.items()}
    return {
        model: Support(len(found), sets[model], len(kinds[model]), votes[model], level_error(votes[model]))
        for model, found in prompts.items()
    }


def level_error(votes: float) -> float:
    """Standard error of a log-odds near 0 that so many effective votes tell: a vote has the variance ¼ as a share."""
    return float(np.sqrt(ONE_VOTE / votes))


def prompt_weights(votes: Votes) -> Array:
    """(P, M) weight of each prompt's votes on each model."""
    shape = len(votes.prompts), len(votes.models)
    flat = np.zeros(shape[0] * shape[1])
    for side in (votes.a, votes.b):
        flat += np.bincount(votes.prompt * shape[1] + side, votes.weight, minlength=len(flat))
    return flat.reshape(shape)


def effective_number(weight: Array) -> float:
    """Kish's effective number of units with these weights (N,): as many of equal weight would tell as much."""
    return float(weight.sum() ** 2 / (weight**2).sum())
