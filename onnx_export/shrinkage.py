"""How far votes may move the rows of a head: chosen by cross-validation by prompt, on log loss and on routed score.

The rule. A strength is a candidate where its cross-validated log loss is within one standard error (paired by prompt)
of the lowest. Of these, the one that routes best is taken, if what it gains over the best single model is above one
standard error and the log loss says too, by two standard errors, that the models differ from prompt to prompt; or if
the gain is above two. Else the models get a level only, and the bundle always takes the best one. NumPy and scipy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_export.joint import COARSE, JointProblem, JointTask, Known, Strength
from p2l_plugins.evaluation.gains import Gain, gain_over
from p2l_plugins.outcomes import Array, Ids, Mask

#: s of what all models share, and of how they differ, strongest shrinkage first.
COMMON = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
DIFFER = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: What a gain and a log loss must reach, in standard errors, to route by prompt.
LIKELY, CERTAIN = 1.0, 2.0


@dataclass(frozen=True)
class CrossFit:
    """What each prompt's fit without its fold says of it.

    Attributes:
        strength: of the prior.
        coefs: (P, M); raw_eta: (P,) or None.
        loss: (P,) weighted sum of −log P over the prompt's votes.
        gain: over the best single model.
    """

    strength: Strength
    coefs: Array
    raw_eta: Array | None
    loss: Array
    gain: Gain


@dataclass(frozen=True)
class Judge:
    """What a cross-fit is judged by.

    Attributes:
        scores: (P, M) of the prompts (`gains.prompt_scores`).
        base: (P,) the best single model, seen from the other folds.
        routed: (M,) models that a prompt can be routed to.
        counted: (V,) votes of the task whose loss counts.
    """

    scores: Array
    base: Ids
    routed: Mask
    counted: Mask

    def picks(self, coefs: Array) -> Ids:
        """(P,) the model of the highest coefficient."""
        chosen: Ids = np.where(self.routed, coefs, -np.inf).argmax(axis=1)
        return chosen

    def cross_fit(self, strength: Strength, task: JointTask, coefs: Array, raw_eta: Array | None) -> CrossFit:
        """Judges coefficients (P, M) and raw_eta (P,)."""
        loss = np.where(self.counted, task.weight, 0.0) * task.losses(coefs, raw_eta)[0]
        by_prompt = np.bincount(task.prompt, loss, minlength=len(coefs)).astype(np.float64)
        return CrossFit(strength, coefs, raw_eta, by_prompt, gain_over(self.scores, self.picks(coefs), self.base))


class Folds:
    """The fits of every fold, kept so that each strength starts from the one before.

    Args:
        task: all votes.
        known: what the head knows of its models.
        fold: (P,) fold of each prompt.
        keep: (P,) prompts to fit on, of those of the other folds; None: all of them.
        frozen, ties: as of `JointProblem`.
    """

    def __init__(
        self,
        task: JointTask,
        known: Known,
        fold: Ids,
        keep: Mask | None = None,
        frozen: Mask | None = None,
        ties: bool = True,
    ) -> None:
        self.task, self.fold = task, fold
        use = np.ones(len(fold), np.bool_) if keep is None else keep
        self._problems = [
            JointProblem(task.select((fold != k) & use), known, frozen, ties) for k in range(int(fold.max()) + 1)
        ]
        self._before: list[tuple[Strength, Array] | None] = [None] * len(self._problems)

    def fit(self, strength: Strength) -> tuple[Array, Array | None]:
        """Coefficients (P, M) and raw_eta (P,) of each prompt from the fit without its fold."""
        task = self.task
        coefs = np.empty((len(self.fold), task.models))
        raw_eta = None if task.raw_eta is None else np.empty(len(self.fold))
        for k, problem in enumerate(self._problems):
            rows, theta = problem.solve(strength, self._before[k], COARSE)
            self._before[k] = (strength, theta)
            out = self.fold == k
            coefs[out] = rows.coefs(task.features[out])
            if raw_eta is not None and task.raw_eta is not None:
                raw_eta[out] = rows.raw_eta(task.raw_eta[out])
        return coefs, raw_eta


@dataclass(frozen=True)
class Choice:
    """The strength that was chosen, and all that were tried.

    Attributes:
        chosen: the fit that the bundle is made by.
        level: the fit in which the models differ by a level only.
        lowest: the fit of the lowest log loss.
        promising: the fit that would be chosen if what it gains were certain.
        told: gain in log loss per vote of the lowest over the level alone, with its standard error.
        tried: in the order of trying.
    """

    chosen: CrossFit
    level: CrossFit
    lowest: CrossFit
    promising: CrossFit
    told: tuple[float, float]
    tried: tuple[CrossFit, ...]

    @property
    def routes(self) -> bool:
        """Whether the bundle takes other models on other prompts."""
        return self.chosen is not self.level


def strengths(any_known: bool, common: float) -> Iterator[Strength]:
    """What is tried with a strength of the common part: from levels alone to the least shrinkage."""
    yield Strength(False, 0.0, common)
    if any_known:
        yield Strength(True, 0.0, common)
    yield from (Strength(any_known, s, common) for s in DIFFER)


def choose_strength(
    task: JointTask,
    known: Known,
    fold: Ids,
    judge: Judge,
    step: Callable[[str], None] = lambda message: None,
) -> Choice:
    """Tries the strengths in the folds and applies the rule; `step` gets a line now and then."""
    folds = Folds(task, known, fold)

    def tried(strength: Strength) -> CrossFit:
        return judge.cross_fit(strength, task, *folds.fit(strength))

    step("cross-validating what all models share")
    levels = [tried(Strength(False, 0.0, common)) for common in COMMON]
    lowest = min(levels, key=lambda fit: float(fit.loss.sum()))
    level = next(fit for fit in levels if within(fit.loss - lowest.loss))
    step("cross-validating how the models differ")
    rest = [tried(s) for s in strengths(bool((known.index >= 0).any()), level.strength.common) if s != level.strength]
    votes = float(task.weight[judge.counted].sum())
    return decide(level, [*levels, *rest], votes)


def decide(level: CrossFit, tried: Sequence[CrossFit], votes: float) -> Choice:
    """The rule, for fits of which `level` is the best that has levels only; `votes` is the weight that was judged."""
    apart = [fit for fit in tried if fit.strength.own or fit.strength.differ]
    lowest = min([level, *apart], key=lambda fit: float(fit.loss.sum()))
    close = [fit for fit in apart if within(fit.loss - lowest.loss)] or [lowest]
    promising = max(close, key=lambda fit: fit.gain.mean if fit.gain.known else -np.inf)
    saved = level.loss - lowest.loss
    told, error = float(saved.sum()) / votes, standard_error(saved) / votes
    chosen = promising if promising is not level and tells(promising.gain, saved) else level
    return Choice(chosen, level, lowest, promising, (told, error), tuple(tried))


def tells(gain: Gain, saved: Array) -> bool:
    """Whether to route by prompt, for a gain in score and what is saved in log loss (P,) over levels alone."""
    if not gain.known:
        return False
    likely = gain.mean > LIKELY * gain.stderr and float(saved.sum()) > CERTAIN * standard_error(saved)
    return likely or gain.mean > CERTAIN * gain.stderr


def within(excess: Array) -> bool:
    """Whether a sum over prompts is at most its standard error."""
    return float(excess.sum()) <= standard_error(excess)


def standard_error(x: Array) -> float:
    """Of the sum of x (P,) over prompts."""
    return float(np.sqrt(len(x)) * x.std(ddof=1)) if len(x) > 1 else float("inf")
