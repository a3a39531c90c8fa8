"""The leaderboard of the votes themselves: no bundle, no prompt is read, what was voted is what counts.

Maximum likelihood of one outcome model, with standard errors that do not trust it: the sandwich H⁻¹ S H⁻¹ (Huber 1967;
White 1982), where S sums the outer products of the scores. LMArena's arena-rank gives its intervals so, each vote for
itself; here the votes on one prompt are added up first (Liang & Zeger 1986), because they are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.leaderboards.categories import ALL, FALSE_DISCOVERIES, MAX_CATEGORIES, CategoryBoards
from p2l_plugins.leaderboards.fit import fit, hessian, targets
from p2l_plugins.leaderboards.intervals import (
    REPLICATES,
    Errors,
    Replicates,
    difference,
    false_discovery,
    intervals,
    intervals_of,
    opponent_weights,
    relative,
)
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.outcomes import BAD, TIE, A, Array, B, Family, Mask, has_eta, nll_gradients, win_matrix
from p2l_plugins.votes.report import components
from p2l_plugins.votes.votes import Votes

Method = Literal["sandwich", "bootstrap", "none"]

#: Weight of ½ ridge Σβ² where a model only won or only lost: its coefficient would be infinite.
RIDGE = 0.1

#: Prompts whose scores are in memory at once.
_STEP = 2**14


@dataclass(frozen=True)
class VotesBoard(Leaderboard):
    """The leaderboard of votes.

    `win_rate` is what the outcome model says against all others, so that it does not depend on who met whom.

    Attributes:
        n_votes: votes that went in.
        per_model: (M,) votes on each model.
        method: of the intervals.
        one_sided: models that only won or only lost: a weak prior keeps the coefficients finite.
    """

    n_votes: int = 0
    per_model: tuple[int, ...] = ()
    method: Method = "sandwich"
    one_sided: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As of every leaderboard, with the numbers of votes."""
        record = super().to_dict()
        rows = record.pop("leaderboard")
        if "intervals" in record:
            record["intervals"]["method"] = self.method
        if self.one_sided:
            record["one_sided"] = list(self.one_sided)
        counts = dict(zip(self.models, self.per_model, strict=True))
        for row in rows:
            row["votes"] = counts[row["model"]]
        return {**record, "n_votes": self.n_votes, "leaderboard": rows}


def pair_counts(votes: Votes, weight: Array | None = None) -> tuple[Array, Array, Array]:
    """(win, tie, bad), each (M, M): weights of "a beats b", and the symmetric ones of the two ties.

    Args:
        votes: of M models.
        weight: (V,) in place of their own.
    """
    m, own = len(votes.models), votes.weight if weight is None else weight

    def summed(first: Any, second: Any, rows: Mask) -> Array:
        flat = np.bincount(first[rows] * m + second[rows], own[rows], minlength=m * m)
        return flat.reshape(m, m).astype(np.float64)

    win = summed(votes.a, votes.b, votes.outcome == A) + summed(votes.b, votes.a, votes.outcome == B)
    tie, bad = (summed(votes.a, votes.b, votes.outcome == kind) for kind in (TIE, BAD))
    return win, tie + tie.T, bad + bad.T


def only_connected(votes: Votes, family: Family, component: int | None, source: str) -> Votes:
    """The votes of one connected set of models: coefficients compare only inside one.

    Args:
        votes: of one file or several.
        family: for `grk`, which grounds the coefficients, sets with "both bad" votes are comparable.
        component: number of the set, 1 the largest; None: there may be one only.
        source: of the votes, for messages.

    Raises:
        DataError: several sets, no set of this number, or no "both bad" for a model that needs them.
    """
    votes = _of_models(votes, np.bincount(np.concatenate([votes.a, votes.b]), minlength=len(votes.models)) > 0)
    if not len(votes):
        raise DataError(f"{source}: there are no votes")
    parts = components(votes)
    if family == "grk":
        grounded = {votes.models[i] for side in (votes.a, votes.b) for i in np.unique(side[votes.outcome == BAD])}
        if not grounded:
            raise DataError(
                f"{source}: no vote says 'tie (bothbad)', without which the outcome model grk has no zero; choose "
                "--family bt-tie or rk"
            )
        tied = [name for part in parts if grounded & set(part) for name in part]
        parts = [tied, *(part for part in parts if not grounded & set(part))]
    if component is None and len(parts) > 1:
        shown = "; ".join(f"{i}: {_some(part)}" for i, part in enumerate(parts[:4], start=1))
        more = f"; and {len(parts) - 4} more" if len(parts) > 4 else ""
        raise DataError(
            f"{source}: the models fall into {len(parts)} sets that were never compared ({shown}{more}), and no "
            "leaderboard can order them together; choose one with --component N"
        )
    number = component or 1
    if number > len(parts):
        raise ConfigError(f"--component is {number}; valid: 1 to {len(parts)}, the sets of models that were compared")
    inside = set(parts[number - 1])
    return _of_models(votes, np.array([name in inside for name in votes.models]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _of_models(votes: Votes, keep: Mask) -> Votes:
    """The votes between the models where `keep` (M,) is true, with those models only; all prompts stay."""
    if keep.all():
        return votes
    kept, place = votes.take(keep[votes.a] & keep[votes.b]), np.cumsum(keep) - 1
    models = tuple(name for name, k in zip(votes.models, keep, strict=True) if k)
    return replace(kept, models=models, a=place[kept.a], b=place[kept.b], scores=None)


def one_sided(family: Family, win: Array, tie: Array, bad: Array) -> Mask:
    """(M,) models whose coefficient has no finite maximum likelihood.

    It is finite where from every model a chain of wins leads to every other one, ties counting both ways (Ford 1957);
    the ground of `grk` is beaten by an answer that is better or as good as another, and beats those that are bad. Else
    these are all models but those of the largest set that has such chains.
    """
    m = len(win)
    above = (win + tie + (0.0 if family == "grk" else bad)) > 0
    if family == "grk":
        usable = (win.sum(axis=1) + tie.sum(axis=1)) > 0
        above = np.block([[above, usable[:, None]], [(bad.sum(axis=1) > 0)[None, :], np.zeros((1, 1), bool)]])
    reach = above | np.eye(len(above), dtype=bool)
    for _ in range(len(above).bit_length()):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    mutual = reach & reach.T
    anchor = mutual[m] if family == "grk" else mutual[int(mutual.sum(axis=1).argmax())]
    alone: Mask = ~anchor[:m]
    return alone


@dataclass(frozen=True)
class _Fit:
    """An optimum: x (P,) are the coefficients and, for `rk` and `grk`, raw_eta."""

    family: Family
    x: Array
    ridge: float
    one_sided: Mask
    sums: tuple[Array, Array, Array]

    @property
    def coefs(self) -> Array:
        return self.x[: len(self.one_sided)]

    @property
    def raw_eta(self) -> float | None:
        return float(self.x[-1]) if has_eta(self.family) else None

    def win_rate(self, x: Array, opponents: Array) -> Array:
        """(M,) at other parameters, too."""
        m = len(self.one_sided)
        raw = np.float64(x[m]) if has_eta(self.family) else None
        rate: Array = (win_matrix(self.family, x[:m], raw) * opponents).sum(axis=1)
        return rate

    def bread(self) -> Array:
        """H⁻¹ (P, P); nothing where the votes do not tell: without ties, `raw_eta` counts as known."""
        h = hessian(self.family, self.x, *targets(self.family, *self.sums))
        m = len(self.one_sided)
        h[np.arange(m), np.arange(m)] += self.ridge
        inverse = np.zeros_like(h)
        known = m if self.sums[1].sum() + (self.sums[2].sum() if self.family == "rk" else 0.0) <= 0 else len(h)
        inverse[:known, :known] = np.linalg.pinv(h[:known, :known], hermitian=True)
        if self.family != "grk":  # of coefficients whose mean is 0
            inverse[:m] -= inverse[:m].mean(axis=0)
            inverse[:, :m] -= inverse[:, :m].mean(axis=1, keepdims=True)
        return inverse

    def slopes(self, opponents: Array) -> Array:
        """(M, P) derivatives of the win rates, by central differences."""
        step = 1e-5
        up, down = (
            np.stack([self.win_rate(self.x + side * step * unit, opponents) for unit in np.eye(len(self.x))], axis=1)
            for side in (1, -1)
        )
        return (up - down) / (2 * step)


def _fitted(family: Family, sums: tuple[Array, Array, Array], start: tuple[Array, float] | None = None) -> _Fit:
    lone = one_sided(family, *sums)
    ridge = RIDGE if lone.any() else 0.0
    coefs, raw = fit(family, *sums, start or (np.zeros(len(lone)), 20.0 if family == "rk" else 0.0), ridge)
    return _Fit(family, coefs if raw is None else np.append(coefs, raw), ridge, lone, sums)


def _scores(votes: Votes, found: _Fit, step: int = _STEP) -> Iterator[Array]:
    """Gradients of the loss, summed over the votes of each prompt: (n, P) for `step` prompts at a time."""
    m, size = len(votes.models), len(found.x)
    eta = None if found.raw_eta is None else np.full(len(votes), found.raw_eta)
    _, d_a, d_b, d_eta = nll_gradients(found.family, found.coefs[votes.a], found.coefs[votes.b], votes.outcome, eta)
    for start in range(0, len(votes.prompts), step):
        stop = min(start + step, len(votes.prompts))
        v = slice(*np.searchsorted(votes.prompt, [start, stop]))
        row = (votes.prompt[v] - start) * size
        sums = np.zeros((stop - start) * size)
        for column, slope in ((votes.a[v], d_a[v]), (votes.b[v], d_b[v])):
            sums += np.bincount(row + column, slope * votes.weight[v], minlength=len(sums))
        if size > m:
            sums += np.bincount(row + m, d_eta[v] * votes.weight[v], minlength=len(sums))
        yield sums.reshape(-1, size)


def covariance(votes: Votes, family: Family, clusters: bool = True) -> tuple[Array, Array]:
    """Maximum-likelihood parameters (P,) and their sandwich covariance (P, P), without a correction for small samples.

    Args:
        votes: in the order of their prompts; of connected models.
        family: outcome model.
        clusters: votes on one prompt count as one unit; else each vote is one, as in arena-rank.
    """
    found = _fitted(family, pair_counts(votes))
    if not clusters:
        votes = replace(votes, prompt=np.arange(len(votes)), prompts=[("",)] * len(votes), groups=[""] * len(votes))
    bread = found.bread()
    meat = sum((s.T @ s for s in _scores(votes, found)), np.zeros_like(bread))
    return found.x, bread @ meat @ bread


def _sandwich(votes: Votes, found: _Fit, opponents: Array, units: int) -> Errors:
    """Standard errors, with the factor G / (G − 1) of G units."""
    m = len(found.coefs)
    bread = found.bread()
    meat = sum((s.T @ s for s in _scores(votes, found)), np.zeros_like(bread))
    spread = bread @ meat @ bread * (units / (units - 1))
    centre = np.eye(m) - 1.0 / m
    slopes = found.slopes(opponents)
    rate = found.win_rate(found.x, opponents)
    win, centred_win = slopes @ spread @ slopes.T, (centre @ slopes) @ spread @ (centre @ slopes).T
    with np.errstate(divide="ignore", invalid="ignore"):  # a rate of 0 or 1
        odds = np.sqrt(np.diag(win).clip(0)) / (rate * (1 - rate))
    return Errors(
        coef=np.sqrt(np.diag(spread)[:m].clip(0)),
        centred=np.sqrt(np.diag(centre @ spread[:m, :m] @ centre).clip(0)),
        win_odds=odds,
        win=np.sqrt(np.diag(centred_win).clip(0)),
    )


def _bootstrap(votes: Votes, found: _Fit, opponents: Array, used: Any, seed: int) -> Replicates:
    """The leaderboard of resampled prompts, each drawn with all its votes."""
    random, m = np.random.default_rng(seed), len(found.coefs)
    coefs, rates = np.empty((REPLICATES, m)), np.empty((REPLICATES, m))
    times = np.zeros(len(votes.prompts))
    for r in range(REPLICATES):
        times[used] = random.multinomial(len(used), np.full(len(used), 1.0 / len(used)))
        sums = pair_counts(votes, votes.weight * times[votes.prompt])
        drawn = _fitted(found.family, sums, (found.coefs, found.raw_eta or 0.0))
        coefs[r], rates[r] = drawn.coefs, drawn.win_rate(drawn.x, opponents)
    return Replicates(coefs, rates, len(used))


def votes_board(votes: Votes, family: Family = "bt-tie", method: Method = "sandwich", seed: int = 0) -> VotesBoard:
    """The leaderboard of votes on connected models.

    Args:
        votes: in the order of their prompts, as `only_connected` gives them.
        family: outcome model.
        method: of the intervals; "none" gives none, and so do the votes on a single prompt.
        seed: of the bootstrap.

    Raises:
        DataError: no votes, or a tie under `bt`.
    """
    return _board(votes, family, method, seed)[0]


def _board(votes: Votes, family: Family, method: Method, seed: int) -> tuple[VotesBoard, _Fit]:
    if not len(votes):
        raise DataError("there are no votes")
    if family == "bt" and not votes.decisive().all():
        ties = int((~votes.decisive()).sum())
        raise DataError(
            f"{ties:,} of {len(votes):,} votes are ties, which the outcome model bt does not know; choose --family "
            "bt-tie, rk or grk"
        )
    m = len(votes.models)
    found = _fitted(family, pair_counts(votes))
    q = opponent_weights(votes.models, frozenset())
    rate = found.win_rate(found.x, q)
    used = np.unique(votes.prompt)
    count = np.bincount(np.concatenate([votes.a, votes.b]), minlength=m)
    span, apart = None, np.zeros(m, bool)
    if method != "none" and len(used) > 1:
        if method == "sandwich":
            span = intervals_of(found.coefs, rate, _sandwich(votes, found, q, len(used)), len(used), apart)
        else:
            span = intervals(found.coefs, rate, _bootstrap(votes, found, q, used, seed), apart)
    lone = tuple(name for name, alone in zip(votes.models, found.one_sided, strict=True) if alone)
    board = VotesBoard(
        votes.models, family, found.coefs, found.raw_eta, rate, len(used), intervals=span, n_votes=len(votes),
        per_model=tuple(count.tolist()), method=method, one_sided=lone,
    )  # fmt: skip
    return board, found


def category_boards(
    votes: Votes,
    by: Literal["category", "language"],
    family: Family = "bt-tie",
    method: Method = "sandwich",
    seed: int = 0,
) -> CategoryBoards:
    """The leaderboard of all votes and one per category or language.

    A category orders the largest set of models that its votes connect; the others are not in its leaderboard. Its
    difference is that of the win rates among these models, with the standard error of the sandwich for both together.

    Args:
        votes: as of `votes_board`.
        by: what divides the votes; those without a label count over all only.
        family, method, seed: as of `votes_board`.

    Raises:
        DataError: as `votes_board`; fewer than two categories, or too many.
    """
    labels = _labels(votes, by)
    names = sorted({str(name) for name in labels if name})
    if not 2 <= len(names) <= MAX_CATEGORIES:
        raise DataError(f"the votes have {len(names)} values of {by!r}; boards by {by} need 2 to {MAX_CATEGORIES}")
    overall, whole = _board(votes, family, method, seed)
    boards: dict[str, Leaderboard] = {}
    for name in names:
        own = votes.take(labels == name)
        try:
            own = only_connected(own, family, 1, name)
        except DataError:  # of grk, where no answer of a category is bad
            continue
        board, found = _board(own, family, method, seed)
        boards[name] = replace(board, difference=_gap(own, found, votes, whole))
    if len(boards) < 2:
        raise DataError(f"fewer than two values of {by!r} have votes that the outcome model {family} can be fitted to")
    tests = [gap.p_value for board in boards.values() if (gap := board.difference) is not None]
    holding = np.split(
        false_discovery(np.concatenate(tests), FALSE_DISCOVERIES), np.cumsum([len(t) for t in tests])[:-1]
    )
    for name, holds in zip(boards, holding, strict=True):
        gap = boards[name].difference
        boards[name] = replace(boards[name], difference=gap and replace(gap, holds=holds))
    return CategoryBoards(overall, boards)


def _labels(votes: Votes, by: str) -> Any:
    if by in votes.labels:
        return votes.labels[by]
    return np.array(votes.groups if by == "category" else [""] * len(votes.prompts), np.object_)[votes.prompt]


def _gap(own: Votes, found: _Fit, votes: Votes, whole: _Fit) -> Any:
    """How the win rates of a category differ from those of all votes, among the category's models."""
    m = len(own.models)
    q, apart = opponent_weights(own.models, frozenset()), np.zeros(m, bool)
    place = [votes.models.index(name) for name in own.models]
    wide = np.zeros((len(votes.models), len(votes.models)))
    wide[np.ix_(place, place)] = q
    value = relative(found.win_rate(found.x, q), apart) - relative(whole.win_rate(whole.x, wide)[place], apart)
    centre = np.eye(m) - 1.0 / m
    narrow_slopes = centre @ found.slopes(q) @ found.bread()
    wide_slopes = centre @ whole.slopes(wide)[place] @ whole.bread()
    units = len(np.unique(own.prompt))
    if units < 2:
        return difference(ALL, value, None, 0)
    squares = np.zeros(m)
    for here, there in zip(_scores(own, found), _scores(votes, whole), strict=True):
        squares += ((here @ narrow_slopes.T - there @ wide_slopes.T) ** 2).sum(axis=0)
    return difference(ALL, value, np.sqrt(squares * units / (units - 1)), units)
