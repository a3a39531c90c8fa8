"""`p2l update`: new votes on models that a bundle has, added to what it keeps of the votes before. No torch here.

The rule. The new bundle is written where, on the new votes and cross-validated by prompt, neither its log loss nor its
routed score is worse than the present bundle's by more than a standard error; and where the votes do not contradict
what is known: the present bundle must not lose to the constant forecast by more than two standard errors, unless it
keeps no votes and the new rows win against it by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_export.adopt import verify_rows
from onnx_export.anchored import AnchoredProblem
from onnx_export.edit import paired_gain, write_changed
from onnx_export.head import find_head, load_graph, read_states, replace_head, scale_eta
from onnx_export.joint import COARSE, JointRows, JointTask, Strength
from onnx_export.past import Past, past_of
from onnx_export.shrinkage import COMMON, DIFFER, CrossFit, Judge, tells, within
from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.gains import Gain, prompt_scores
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array, Ids, has_eta
from p2l_plugins.scoring.bundle import Bundle, Manifest
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.similar import ADD, hint, some
from p2l_plugins.votes.votes import Votes

#: Fewest prompts that cross-validation can judge by.
FEWEST = 10
#: Where no votes are kept, levels may be this near to those of the rows, and what models share this strongly shrunk.
LEVEL_DEVIATIONS, LEAST = (0.1, 0.4), 0.01
DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class News:
    """The votes of an update.

    Attributes:
        votes: over models of the bundle.
        unknown: votes with models that it does not have; strangers: these models.
        old: votes no newer than those that it keeps; ties: left out of a bt bundle.
    """

    votes: Votes
    unknown: int
    strangers: tuple[str, ...]
    old: int
    ties: int


@dataclass(frozen=True)
class Move:
    """What became of a model: votes, level before and after with its standard error, ranks on everyday prompts."""

    model: str
    votes: int
    before: float
    after: float
    stderr: float
    rank_before: int
    rank_after: int


@dataclass(frozen=True)
class Update:
    """What an update found.

    Attributes:
        news: its votes.
        strength: of the prior.
        log_loss: per vote, of the new rows (cross-validated), the present bundle, and the constant.
        less: what the log loss is less than the present bundle's, and its standard error.
        over_constant: what the present bundle's and the new rows' log loss is less than the constant's, with errors.
        gain: in routed score over the present bundle.
        kept: votes that the new bundle keeps, with what is forgotten taken off.
        moves: of the models, by rank.
    """

    news: News
    strength: Strength
    log_loss: dict[str, float]
    less: tuple[float, float]
    over_constant: dict[str, tuple[float, float]]
    gain: Gain
    kept: float
    moves: tuple[Move, ...] = ()

    def objection(self, keeps: bool) -> str | None:
        """Why it must not be written; `keeps`: the bundle keeps votes."""
        (now, now_error), (new, new_error) = (self.over_constant[name] for name in ("present", "new"))
        if now < -2 * now_error and (keeps or new < new_error):
            known = f"the {self.kept - len(self.news.votes):,.0f} votes that it keeps" if keeps else "what it knows"
            loss = self.log_loss
            return (
                f"these votes contradict {known}: the present bundle's log loss on them is {loss['present']:.4f}, and "
                f"{loss['constant']:.4f} is had by guessing; look at them with p2l votes check"
            )
        less, error = self.less
        if less < -error:
            return f"the new rows' log loss on these votes is worse by {-less:.4f} ± {error:.4f}"
        gain = self.gain
        if gain.known and gain.mean < -gain.stderr:
            return f"routing with the new rows scores {-gain.mean:.4f} ± {gain.stderr:.4f} less on these votes"
        return None

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        gain = self.gain
        return {
            "change": "update",
            "votes": len(self.news.votes),
            "prompts": len(self.news.votes.prompts),
            "kept_votes": round(self.kept, 1),
            "strength": {"differ": self.strength.differ, "common": self.strength.common},
            "log_loss": {name: round(x, 6) for name, x in self.log_loss.items()},
            "gain": [round(x, 6) for x in (gain.mean, gain.stderr)] if gain.known else None,
        }


def news_of(votes: Votes, manifest: Manifest, until: float) -> News:
    """The votes that an update uses, of those read with the bundle's aliases.

    Args:
        until: votes with a time up to here are left out; NaN: none.

    Raises:
        DataError: fewer than `FEWEST` prompts are left.
    """
    position = {name: i for i, name in enumerate(manifest.models)}
    index = np.array([position.get(name, -1) for name in votes.models], np.int64)
    a, b = index[votes.a], index[votes.b]
    known = (a >= 0) & (b >= 0)
    old = np.zeros_like(known) if votes.timestamp is None else known & (votes.timestamp <= until)
    ties = known & ~old & ~votes.decisive() if manifest.family == "bt" else np.zeros_like(known)
    turned = replace(votes, models=manifest.models, a=np.maximum(a, 0), b=np.maximum(b, 0), scores=None)
    used = turned.take(known & ~old & ~ties).with_votes()
    met = np.concatenate([votes.a[~known], votes.b[~known]])
    strangers = tuple(votes.models[i] for i in np.unique(met).tolist() if index[i] < 0)
    news = News(used, int((~known).sum()), strangers, int(old.sum()), int(ties.sum()))
    if len(used.prompts) < FEWEST:
        why = [f"{news.old} are no newer than those that the bundle keeps (--again uses them)"] if news.old else []
        if news.unknown:
            names = hint(strangers[0], manifest.models, "it has", ADD)
            why += [f"{news.unknown} are with models that it does not have ({some(strangers)}); {names}"]
        why += [f"{news.ties} are ties, which the family 'bt' does not allow"] if news.ties else []
        raise DataError(
            f"{len(used)} of {len(votes)} votes can be used, on {len(used.prompts)} prompts, but {FEWEST} prompts are "
            f"needed{': ' + ', '.join(why) if why else ''}"
        )
    return news


def update(
    bundle: Bundle,
    votes: Votes,
    output: Path,
    half_life_days: float | None = None,
    again: bool = False,
    force: bool = False,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Bundle, Update]:
    """Fits the rows of the models of new votes, with the votes that the bundle keeps, and writes the bundle with them.

    Args:
        votes: read with the bundle's aliases.
        half_life_days: after which a kept vote counts half, by the time from its newest vote to the newest new one;
            None: nothing is forgotten.
        again: use votes too that are no newer than the newest kept one.
        force: write it in any case.
        step: called with a line at the start of each step; progress: with the number of prompts that each run finished.

    Raises:
        DataError: too few votes, the rule forbids to write, or the output folder holds something. Nothing is written.
        BundleError: the bundle's head can't be changed.
    """
    manifest = bundle.manifest
    model = load_graph(bundle.folder)
    head = find_head(model, bundle.folder)
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    whole = past_of(bundle, manifest.models, weight, bias, np.zeros((1, weight.shape[1])))
    news = news_of(votes, manifest, float("nan") if again else whole.until)
    with replaced_folder(output) as folder:
        step(f"scoring {len(news.votes.prompts)} prompts")
        states, coefs, raw_eta = read_states(bundle, news.votes.prompts, progress)
        met = np.isin(np.arange(len(bias)), np.concatenate([news.votes.a, news.votes.b]))
        mine = np.flatnonzero(met | whole.known)
        names = [manifest.models[i] for i in mine]
        among = replace(
            news.votes,
            models=tuple(names),
            a=np.searchsorted(mine, news.votes.a),
            b=np.searchsorted(mine, news.votes.b),
        )
        task = JointTask.of(manifest.family, among, states, raw_eta)
        if whole.known.any():
            past = whole.of(names, weight[mine], bias[mine])
        else:  # the prior is that of the whole head, around the rows of these models
            fresh = past_of(bundle, manifest.models, weight, bias, task.features)
            past = Past.none(names, weight[mine], bias[mine], fresh.prior, fresh.strength)
        until = news.votes.newest
        past = past.forgotten(_share(past.until, until, half_life_days))
        found, fitted = fit(task, among, past, coefs[:, mine].astype(np.float64), step)
        found = replace(found, news=news)
        objection = found.objection(bool(past.known.any()))
        if objection is not None and not force:
            raise DataError(f"nothing was written: {objection}; --force writes it")
        kept, line = fitted
        kept = kept.with_votes(task, line, until)
        weight[mine], bias[mine] = kept.rows.weight, kept.rows.bias
        replace_head(model, head, weight, bias)
        if has_eta(manifest.family):
            scale_eta(model, *line)
        found = replace(found, kept=kept.votes)
        step("checking the new bundle")
        new = write_changed(bundle, folder, {"quality": {}}, found.record(), model, news.votes.prompts, kept.to_bytes())
        verify_rows(bundle, new, head, JointRows(weight, bias, *line), len(bias))
        found = replace(found, moves=_moves(bundle, new, among, past, kept))
    return Bundle.open(output), found


def fit(
    task: JointTask,
    votes: Votes,
    past: Past,
    coefs: Array,
    step: Callable[[str], None] = lambda message: None,
) -> tuple[Update, tuple[Past, tuple[float, float]]]:
    """The new rows, with what cross-validation says of them: the past seen from them, and the line of raw_eta.

    Args:
        votes: of the task.
        coefs: (P, M) of the present bundle.
    """
    n = len(task.features)
    parts = Parts.of(votes.groups)
    base: Ids = coefs.argmax(axis=1)
    judge = Judge(prompt_scores(votes), base, np.ones(task.models, np.bool_), np.ones(len(task.prompt), np.bool_))
    step("cross-validating how far the rows move")
    tasks = [task.select(parts.judged != k) for k in range(parts.count)]
    problems: dict[float, list[AnchoredProblem]] = {}

    def tried(strength: Strength, deviation: float) -> CrossFit:
        if deviation not in problems:
            problems[deviation] = [AnchoredProblem(one, past.loosened(deviation)) for one in tasks]
        new, eta = np.empty((n, task.models)), None if task.raw_eta is None else np.empty(n)
        for k, problem in enumerate(problems[deviation]):
            rows, _ = problem.solve(strength, problem.present(strength), COARSE)
            out = parts.judged == k
            new[out] = rows.coefs(task.features[out])
            if eta is not None and task.raw_eta is not None:
                eta[out] = rows.raw_eta(task.raw_eta[out])
        return judge.cross_fit(strength, task, new, eta)

    chosen, deviation = _choose(tried, past)
    step(f"fitting {task.models} rows to {len(votes)} votes")
    problem = AnchoredProblem(task, past.loosened(deviation))
    rows, theta = problem.solve(chosen.strength, problem.present(chosen.strength))
    line = (rows.slope, rows.shift)
    now = judge.cross_fit(past.strength, task, coefs, task.raw_eta).loss
    plain = fit_forecasts(parts, votes, task.family).constant[task.prompt, task.outcome]
    if task.family == "bt-tie":
        plain = np.full(len(task.outcome), np.log(0.5))
    constant = np.bincount(task.prompt, -task.weight * plain, minlength=n).astype(np.float64)
    weight = np.bincount(task.prompt, task.weight, minlength=n).astype(np.float64)
    losses = {"new": chosen.loss, "present": now, "constant": constant}
    found = Update(
        news=News(votes, 0, (), 0, 0),
        strength=chosen.strength,
        log_loss={name: float(loss.sum() / weight.sum()) for name, loss in losses.items()},
        less=_gain(now, chosen.loss, weight),
        over_constant={name: _gain(constant, losses[name], weight) for name in ("new", "present")},
        gain=chosen.gain,
        kept=past.votes + float(task.weight.sum()),
    )
    return found, (problem.after(chosen.strength, theta, line), line)


def _choose(tried: Callable[[Strength, float], CrossFit], past: Past) -> tuple[CrossFit, float]:
    """The fit of the strength that is chosen, and its deviation of levels.

    With kept votes theirs, unless a neighbour is better by more than a standard error, and from levels alone only by
    the rule of `shrinkage`. Without, the strongest shrinkage within a standard error of the lowest log loss.
    """
    loose = past.prior.level_deviation
    if past.known.any():
        own = past.strength.differ
        near = [max((s for s in DIFFER if s < own), default=own), min((s for s in DIFFER if s > own), default=own)]
        now = tried(past.strength, loose)
        others = [tried(replace(past.strength, differ=s), loose) for s in near if s != own]
        if not own:
            others = [fit for fit in others if tells(fit.gain, now.loss - fit.loss)]
        best = min([now, *others], key=lambda fit: float(fit.loss.sum()))
        return now if within(now.loss - best.loss) else best, loose
    levels = [
        (tried(Strength(True, 0.0, common), d), d)
        for d in (*LEVEL_DEVIATIONS, loose)
        for common in dict.fromkeys((LEAST, *filter(None, COMMON)))
    ]
    level, deviation = _least(levels)
    apart = [(tried(replace(level.strength, differ=s), deviation), deviation) for s in DIFFER]
    return _least([(level, deviation), *apart])


def _least(fits: Sequence[tuple[CrossFit, float]]) -> tuple[CrossFit, float]:
    lowest = min((fit for fit, _ in fits), key=lambda fit: float(fit.loss.sum()))
    return next(one for one in fits if within(one[0].loss - lowest.loss))


def _gain(first: Array, second: Array, weight: Array) -> tuple[float, float]:
    gain, error = paired_gain(first, second, weight)
    return gain, float("inf") if error is None else error


def _share(before: float, now: float, half_life_days: float | None) -> float:
    """What a kept vote counts; 1 where a time is not known."""
    if half_life_days is None or not np.isfinite(now - before):
        return 1.0
    return float(0.5 ** (max(0.0, now - before) / DAY_S / half_life_days))


def _moves(old: Bundle, new: Bundle, votes: Votes, before: Past, after: Past) -> tuple[Move, ...]:
    """What became of each model; levels are those of everyday prompts, their errors those of the centre's."""
    boards = [P2L(one).overall.coefs.astype(np.float64) for one in (old, new)]
    rank = [(-board).argsort(kind="stable").argsort(kind="stable") + 1 for board in boards]
    count = np.bincount(np.concatenate([votes.a, votes.b]), minlength=len(votes.models))
    precision = after.information + np.eye(len(votes.models)) / after.prior.level_deviation**2
    error = np.sqrt(np.diag(np.linalg.inv(precision)))
    at = [new.manifest.models.index(name) for name in votes.models]
    moves = [
        Move(
            name,
            int(count[i]),
            float(boards[0][j]),
            float(boards[1][j]),
            float(error[i]),
            int(rank[0][j]),
            int(rank[1][j]),
        )
        for i, (name, j) in enumerate(zip(votes.models, at, strict=True))
    ]
    return tuple(sorted(moves, key=lambda move: move.rank_after))
