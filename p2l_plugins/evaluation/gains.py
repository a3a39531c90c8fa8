"""What choosing by prompt gains over one model, from a score matrix or from votes in which not every model answers.

Votes say how the models that met on a prompt compare, and nothing of the others. So a choice is compared with the one
model on the prompts where both have a score, and what it gains there is taken for all prompts on which they differ.
NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2l_plugins.outcomes import TIE, A, Array, Ids, Mask
from p2l_plugins.votes.votes import Votes


def prompt_scores(votes: Votes) -> Array:
    """(P, M) scores of a matrix; of votes, each model's mean over its votes on the prompt. NaN: none.

    A win counts 1, a tie ½, a loss and "both bad" 0.
    """
    if votes.scores is not None:
        return votes.scores
    total, count = np.zeros((2, len(votes.prompts), len(votes.models)))
    half = np.where(votes.outcome == TIE, 0.5, 0.0)
    for side, wins in ((votes.a, votes.outcome == A), (votes.b, (votes.outcome != A) & (votes.outcome < TIE))):
        np.add.at(total, (votes.prompt, side), votes.weight * (wins + half))
        np.add.at(count, (votes.prompt, side), votes.weight)
    with np.errstate(invalid="ignore"):
        scores: Array = np.where(count > 0, total / count, np.nan)
    return scores


@dataclass(frozen=True, slots=True)
class Gain:
    """What a policy scores more than the one model.

    Attributes:
        mean: over all prompts; NaN where the two differ but never both have a score.
        stderr: its standard error by prompt.
        differ: share of the prompts on which the policy takes another model.
        compared: prompts of these on which both have a score.
        n: prompts.
    """

    mean: float
    stderr: float
    differ: float
    compared: int
    n: int

    @property
    def known(self) -> bool:
        """Whether there is a figure."""
        return bool(np.isfinite(self.mean) and np.isfinite(self.stderr))


def gain_over(scores: Array, pick: Ids, base: Ids) -> Gain:
    """The gain of the models `pick` (P,) over the models `base` (P,) on scores (P, M) with NaN.

    With d the differences where both have a score, the gain is (share of prompts that differ) · mean d. Where all have
    scores this is the mean difference with its usual standard error.
    """
    n, rows = len(pick), np.arange(len(pick))
    other: Mask = pick != base
    gap = (scores[rows, pick] - scores[rows, base])[other]
    gap = gap[~np.isnan(gap)]
    share = float(other.mean()) if n else 0.0
    if not other.any():
        return Gain(0.0, 0.0, 0.0, 0, n)
    if gap.size < 2:
        return Gain(float("nan"), float("nan"), share, int(gap.size), n)
    mean = float(gap.mean())
    within, between = share**2 * float(gap.var(ddof=1)) / gap.size, mean**2 * share * (1 - share) / n
    return Gain(share * mean, float(np.sqrt(within + between)), share, int(gap.size), n)
