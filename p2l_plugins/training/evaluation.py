"""How good a P2L is on held-out votes, beside baselines that see no prompt. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import OUTCOMES, Array, Family, log_probabilities
from p2l_plugins.scorer import Scores
from p2l_plugins.training.data import Votes
from p2l_plugins.training.marginal import fit_marginal

FOLDS = 5


@dataclass(frozen=True)
class VoteQuality:
    """How well predicted probabilities fit votes.

    Attributes:
        log_loss: weighted mean −log P(outcome); a family without the outcome counts a tie half for each side.
        brier: mean squared error summed over outcomes.
        accuracy: share of votes whose outcome was the likeliest.
        decisive_log_loss: −log P(winner | there is a winner), over votes with a winner.
        decisive_accuracy: share of those votes whose winner was the likelier side; an even prediction counts half.
    """

    log_loss: float
    brier: float
    accuracy: float
    decisive_log_loss: float
    decisive_accuracy: float


@dataclass(frozen=True)
class Routed:
    """Mean score when the model that ranks first answers, on prompts with scores of the candidates.

    `gain` is p2l − best_single, with the standard error of the paired difference over prompts.
    """

    n: int
    candidates: int
    p2l: float
    best_single: float
    best_single_model: str
    random: float
    oracle: float
    gain: float
    gain_stderr: float


@dataclass(frozen=True)
class Evaluation:
    """The report of `evaluate_votes`."""

    n_prompts: int
    n_votes: int
    n_decisive: int
    p2l: VoteQuality
    marginal: VoteQuality
    constant: VoteQuality
    routed: Routed | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        result: dict[str, Any] = {
            "n_prompts": self.n_prompts,
            "n_votes": self.n_votes,
            "n_decisive": self.n_decisive,
        }
        for name in ("p2l", "marginal", "constant"):
            result[name] = {key: round(value, 6) for key, value in vars(getattr(self, name)).items()}
        if self.routed is not None:
            result["routed"] = {k: round(v, 6) if isinstance(v, float) else v for k, v in vars(self.routed).items()}
        result["notes"] = self.notes
        return result

    def to_markdown(self) -> str:
        """Two small tables."""
        lines = [
            f"{self.n_prompts} prompts, {self.n_votes} votes, {self.n_decisive} decisive",
            "",
            "| | log loss | Brier | accuracy | log loss (decisive) | accuracy (decisive) |",
            "|:---|---:|---:|---:|---:|---:|",
        ]
        for name in ("p2l", "marginal", "constant"):
            q: VoteQuality = getattr(self, name)
            cells = (q.log_loss, q.brier, q.accuracy, q.decisive_log_loss, q.decisive_accuracy)
            lines.append(f"| {name} | " + " | ".join(f"{x:.4f}" for x in cells) + " |")
        if self.routed is not None:
            r = self.routed
            lines += [
                "",
                f"| routed score (n = {r.n}, {r.candidates} models) | random | best single | p2l | oracle | gain |",
                "|:---|---:|---:|---:|---:|---:|",
                f"| {r.best_single_model} is the best single | {r.random:.4f} | {r.best_single:.4f} | {r.p2l:.4f} "
                f"| {r.oracle:.4f} | {r.gain:+.4f} ± {r.gain_stderr:.4f} |",
            ]
        return "\n".join([*lines, *(f"\nNote: {note}" for note in self.notes)])


def evaluate_votes(scores: Scores, votes: Votes, baseline: Votes | None = None) -> Evaluation:
    """Judges scores of the prompts of held-out votes.

    Args:
        scores: of `votes.prompts`, in their order.
        votes: held-out votes; their models must be the bundle's.
        baseline: votes that the marginal leaderboard and the best single model are chosen on. None: cross-fitted on
            `votes` in five folds by prompt, which favours the baseline, because it sees the same source.

    Raises:
        DataError: a model that the bundle does not have.
    """
    family = scores.family
    mine = votes.renamed(scores.models)
    notes = []
    if baseline is None:
        notes.append(f"the marginal baseline is cross-fitted on the same file in {FOLDS} folds by prompt")
    table_beta, table_eta = _marginal_table(mine, None if baseline is None else baseline.renamed(scores.models), family)
    p2l_eta = None if scores.raw_eta is None else scores.raw_eta.astype(np.float64)
    ours = _vote_probabilities(mine, scores.coefs.astype(np.float64), p2l_eta, family)
    theirs = _vote_probabilities(mine, table_beta, table_eta, family)
    frequency = np.bincount(mine.outcome, mine.weight, minlength=len(OUTCOMES)) / mine.weight.sum()
    if family in ("bt", "bt-tie"):
        constant = np.tile([0.5, 0.5, 0.0, 0.0], (len(mine), 1))
    else:
        sides = frequency[:2].sum() / 2
        row = [sides, sides, frequency[2], frequency[3]]
        if family == "rk":
            row = [sides, sides, frequency[2] + frequency[3], 0.0]
        constant = np.tile(row, (len(mine), 1))
    return Evaluation(
        n_prompts=len(mine.prompts),
        n_votes=len(mine),
        n_decisive=int(mine.decisive().sum()),
        p2l=vote_quality(ours, mine, family),
        marginal=vote_quality(theirs, mine, family),
        constant=vote_quality(constant, mine, family),
        routed=None if mine.scores is None else routed(scores.coefs, mine, baseline),
        notes=notes,
    )


def _marginal_table(votes: Votes, baseline: Votes | None, family: Family) -> tuple[Array, Array | None]:
    """Marginal coefficients for each prompt (P, M) and raw_eta (P,)."""
    shape = (len(votes.prompts), len(votes.models))
    if baseline is not None:
        coefs, raw_eta = fit_marginal(baseline, family)
        return np.broadcast_to(coefs, shape), None if raw_eta is None else np.full(shape[0], raw_eta)
    beta, eta = np.zeros(shape), np.zeros(shape[0])
    fold = np.random.default_rng(0).permutation(shape[0]) % FOLDS
    for k in range(FOLDS):
        inside = fold == k
        rest = votes.select(~inside)
        coefs, raw_eta = fit_marginal(rest if len(rest) else votes, family)
        beta[inside] = coefs
        if raw_eta is not None:
            eta[inside] = raw_eta
    return beta, eta if family in ("rk", "grk") else None


def _vote_probabilities(votes: Votes, coefs: Array, raw_eta: Array | None, family: Family) -> Array:
    """P of each outcome for each vote, (V, 4)."""
    eta = None if raw_eta is None else raw_eta[votes.prompt]
    return np.exp(log_probabilities(family, coefs[votes.prompt, votes.a], coefs[votes.prompt, votes.b], eta))


def vote_quality(probability: Array, votes: Votes, family: Family) -> VoteQuality:
    """Quality of probabilities (V, 4) for votes."""
    target = np.zeros_like(probability)
    rows = np.arange(len(votes))
    if family in ("bt", "bt-tie"):
        target[rows, np.minimum(votes.outcome, 1)] = 1.0
        target[votes.outcome >= 2] = [0.5, 0.5, 0.0, 0.0]
    else:
        target[rows, np.minimum(votes.outcome, 2) if family == "rk" else votes.outcome] = 1.0
    log_p = np.log(np.maximum(probability, 1e-300))
    weight = votes.weight / votes.weight.sum()
    hit = (target * (probability == probability.max(axis=1, keepdims=True))).sum(axis=1)
    hit = hit / (probability == probability.max(axis=1, keepdims=True)).sum(axis=1).clip(1)
    decisive = votes.decisive()
    two = probability[decisive][:, :2]
    share = two[np.arange(len(two)), votes.outcome[decisive]] / two.sum(axis=1)
    w = votes.weight[decisive]
    nothing = float("nan")
    return VoteQuality(
        log_loss=float(weight @ -(target * log_p).sum(axis=1)),
        brier=float(weight @ ((probability - target) ** 2).sum(axis=1)),
        accuracy=float(weight @ hit),
        decisive_log_loss=float(np.average(-np.log(np.maximum(share, 1e-300)), weights=w)) if len(w) else nothing,
        decisive_accuracy=float(np.average((share > 0.5) + 0.5 * (share == 0.5), weights=w)) if len(w) else nothing,
    )


def routed(coefs: Any, votes: Votes, baseline: Votes | None = None, coverage: float = 0.9) -> Routed:
    """Routed score of a score matrix, among the models that ran on nearly all of its prompts.

    Args:
        coefs: (P, M) coefficients; the highest among the candidates that have a score for the prompt answers it.
        baseline: scores that choose the best single model; None: the best in hindsight on `votes` itself, which
            favours the baseline.
        coverage: a candidate has scores for at least this share of the prompts.
    """
    if votes.scores is None:
        raise DataError("routing is judged on a score matrix, not on votes")
    candidates = np.flatnonzero((~np.isnan(votes.scores)).mean(axis=0) >= coverage)
    if candidates.size < 2:
        raise DataError("routing needs two models at least that ran on nearly all prompts of the score matrix")
    score = votes.scores[:, candidates]
    keep = ~np.isnan(score).all(axis=1)
    score, beta = score[keep], np.asarray(coefs, np.float64)[keep][:, candidates]
    known = ~np.isnan(score)
    pick = np.where(known, beta, -np.inf).argmax(axis=1)
    reference = score
    if baseline is not None and baseline.scores is not None:
        reference = baseline.renamed(votes.models).scores[:, candidates]  # type: ignore[index]
    single = int(np.nanmean(reference, axis=0).argmax())
    rows = np.arange(len(score))
    mine = score[rows, pick]
    # where the single model was not run, the next best single that was
    order = np.argsort(-np.nanmean(reference, axis=0))
    first = order[known[:, order].argmax(axis=1)]
    theirs = score[rows, first]
    difference = mine - theirs
    return Routed(
        n=len(score),
        candidates=int(candidates.size),
        p2l=float(mine.mean()),
        best_single=float(theirs.mean()),
        best_single_model=votes.models[candidates[single]],
        random=float(np.nanmean(score, axis=1).mean()),
        oracle=float(np.nanmax(score, axis=1).mean()),
        gain=float(difference.mean()),
        gain_stderr=float(difference.std(ddof=1) / np.sqrt(len(score))) if len(score) > 1 else float("nan"),
    )
