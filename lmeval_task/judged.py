"""The report of `p2l evaluate` for a forecast that is given as probabilities, not as coefficients. NumPy only."""

from __future__ import annotations

import math
from dataclasses import replace

from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.calibration import calibrations
from p2l_plugins.evaluation.evaluate import Evaluation
from p2l_plugins.evaluation.quality import difference, log_losses, targets, vote_log_probabilities, vote_quality
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.training.data import Votes


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
    target = targets(votes, family)
    losses = {name: log_losses(p, target) for name, p in forecasts.items()}
    calibrated = {name: calibrations(p, votes, family) for name, p in forecasts.items()}
    quality = {}
    for name, p in forecasts.items():
        decisive = calibrated[name].classes.get("decisive")
        quality[name] = replace(
            vote_quality(p, votes, family),
            calibration_error=calibrated[name].error,
            decisive_calibration_error=math.nan if decisive is None else decisive.error,
        )
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
