"""The report of `p2l evaluate` for a forecast that is given as probabilities, not as coefficients. NumPy only."""

from __future__ import annotations

from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.evaluate import Evaluation, judge_forecasts
from p2l_plugins.evaluation.quality import difference, vote_log_probabilities
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.votes.votes import Votes


def judge(log_p: Array, votes: Votes, baseline: Votes | None, family: Family) -> Evaluation:
    """Judges a forecast (V, 4) of votes beside the marginal and the constant, as `evaluate_votes` judges a bundle.

    Args:
        log_p: log-probabilities in the order of `OUTCOMES`, −inf for outcomes that the family does not have.
        votes: held-out votes.
        baseline: votes that the others are fitted on, with the same models; None: in folds of `votes` by prompt.
        family: which outcomes there are.
    """
    source = votes if baseline is None else baseline
    parts = Parts.of(votes.groups, None if baseline is None else source.groups)
    fitted = fit_forecasts(parts, source, family)
    forecasts = {
        "p2l": log_p,
        "marginal": vote_log_probabilities(votes, *fitted.marginal, family),
        "constant": fitted.constant[votes.prompt],
    }
    losses, calibrated, quality = judge_forecasts(forecasts, votes, family)
    return Evaluation(
        n_prompts=len(votes.prompts),
        n_votes=len(votes),
        n_decisive=int(votes.decisive().sum()),
        n_baseline_prompts=None if baseline is None else len(baseline.prompts),
        p2l=quality["p2l"],
        marginal=quality["marginal"],
        constant=quality["constant"],
        differences={name: difference(forecasts, losses, name, votes) for name in quality if name != "p2l"},
        calibration=calibrated,
    )
