"""The leaderboard of a set of prompts: the one coefficient vector closest to all of the prompts' own.

It minimises the cross-entropy to the predicted outcome probabilities, averaged over prompts and over all pairs of
models (arXiv 2502.14855, aggregated leaderboards); it is not the mean of the coefficients. The loss is linear in its
targets, so fitting to the mean probabilities of each pair is exact: the prompts are read once, O(M²) numbers are kept,
and one small problem is solved by Newton's method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import P2LError
from p2l_plugins.leaderboards.figures import leaderboard_figure
from p2l_plugins.leaderboards.fit import fit
from p2l_plugins.leaderboards.html import leaderboard_page
from p2l_plugins.leaderboards.interaction import marked, of_other_units, with_error
from p2l_plugins.leaderboards.intervals import (
    Difference,
    Intervals,
    difference,
    opponent_weights,
    relative,
)
from p2l_plugins.leaderboards.jackknife import Moves, left_out
from p2l_plugins.leaderboards.pair_means import Blocks, PairMeans
from p2l_plugins.leaderboards.tables import markdown_table
from p2l_plugins.outcomes import Array, Family, Mask, Numbers, usable_probability, win_matrix
from p2l_plugins.support import LITTLE, Support

_CELLS = (
    2**18
)  # pairs of models on the prompts of one step of `mean_win_rates`: the step stays in the processor's cache


@dataclass(frozen=True)
class Leaderboard:
    """The aggregate leaderboard of a set of prompts.

    Attributes:
        models: names, in the bundle's order.
        family: outcome model.
        coefs: (M,) fitted coefficients.
        raw_eta: fitted second output, for families that have it.
        win_rate: (M,) mean over prompts and over the opponents of P(beats the opponent); ties are not wins. NaN for a
            model that has no opponent.
        n_prompts: prompts that went in.
        ungrounded: models of `grk` whose level nothing ties to the others: they come after them, whatever their
            coefficients, and compare among themselves only.
        intervals: over prompts; None where they were not asked for, or all prompts are one unit.
        difference: of the win rates from another leaderboard's, where one was given.
        interaction: of a category: who is better there than the overall leaderboard and the category predict.
        opponents: weight of each opponent in the win rate; None: all other comparable models alike.
        support: how much is known of each model; one that is not in it counts as well known.
        moves: of the coefficients and win rates, as its units are left out; None where there are no intervals.
    """

    models: tuple[str, ...]
    family: Family
    coefs: Array
    raw_eta: float | None
    win_rate: Array
    n_prompts: int
    ungrounded: frozenset[str] = frozenset()
    intervals: Intervals | None = None
    difference: Difference | None = None
    interaction: Difference | None = None
    opponents: Mapping[str, float] | None = None
    support: Mapping[str, Support] = field(default_factory=dict)
    moves: Moves | None = field(default=None, repr=False)

    @classmethod
    def from_means(
        cls,
        models: tuple[str, ...],
        means: PairMeans,
        ungrounded: frozenset[str] = frozenset(),
        opponents: Mapping[str, float] | None = None,
    ) -> Leaderboard:
        """Fits the leaderboard of accumulated pair means; with intervals where they keep blocks.

        Args:
            models: names.
            means: of the prompts.
            ungrounded: compare among themselves only.
            opponents: weight of each opponent in the win rate; default: all others alike.

        Raises:
            P2LError: no prompts.
        """
        if not means.n:
            raise P2LError("a leaderboard needs at least one prompt")
        win = means.win
        coefs, raw_eta = fit(means.family, win, means.tie, means.bad, means.start())
        q = opponent_weights(models, ungrounded, opponents)
        win_rate = (win * q).sum(axis=1)
        board = cls(models, means.family, coefs, raw_eta, win_rate, means.n, ungrounded, opponents=opponents)
        moves = left_out(means, coefs, raw_eta, q)
        if moves is None:
            return board
        return replace(board, moves=moves, intervals=moves.intervals(coefs, win_rate, board.apart))

    @property
    def apart(self) -> Mask:
        """(M,) which models are ungrounded."""
        return np.array([name in self.ungrounded for name in self.models])

    @property
    def order(self) -> list[int]:
        """Ids of the models, best first; ungrounded ones after all others."""
        return [int(i) for i in np.lexsort((-self.coefs, self.apart))]

    def against(self, other: Mapping[str, Any], name: str) -> Leaderboard:
        """This leaderboard with the difference of its win rates from another one's.

        Args:
            other: what `to_dict` gave for it. Its prompts are taken to be others than this one's; without intervals it
                counts as known.
            name: of the other, for tables.

        Raises:
            P2LError: not a leaderboard, or one of other models or opponents.
        """
        try:
            rows = {str(row["model"]): row for row in other["leaderboard"]}
            rates = [(row["win_rate"], row.get("win_rate_stderr", 0.0)) for row in map(rows.get, self.models) if row]
            rate, stderr = np.array(rates, np.float64).reshape(-1, 2).T  # None becomes NaN
            opponents = other.get("opponents")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise P2LError(f"{name}: not a leaderboard as `p2l leaderboard --json` prints it") from None
        if set(rows) != set(self.models):
            raise P2LError(f"{name}: its models are not those of this leaderboard, so that win rates can't be compared")
        if opponents != (None if self.opponents is None else dict(self.opponents)):
            raise P2LError(f"{name}: its win rates are against other opponents; make it with the same --opponents")
        gap = relative(self.win_rate, self.apart) - relative(rate, self.apart)
        own = self.intervals
        together = None if own is None else np.sqrt(own.win_stderr**2 + stderr**2)
        return replace(self, difference=difference(name, gap, together, own.units if own else 0))

    def among_peers(self, overall: Leaderboard, name: str) -> Leaderboard:
        """This leaderboard with the interaction: who is better on its prompts than their peers.

        Args:
            overall: the leaderboard of other prompts, of the same models.
            name: of the other.
        """
        own, wide = of_other_units(self.moves, overall.moves)
        found = with_error(name, (self.coefs, own), (overall.coefs, wide), self.apart)
        return replace(self, interaction=marked({name: found})[name])

    def rows(self) -> list[dict[str, Any]]:
        """One record per model, best first.

        Keys: rank, model, coef, win_rate; usable for grk. With intervals: rank_low, rank_high, coef_low, coef_high,
        win_rate_low, win_rate_high, usable_low, usable_high; stderr and win_rate_stderr, of coefficient and win rate
        less the mean of the comparable models. Where the bundle says how much it knows of a model: support (effective
        votes), level_stderr (of its level, in log-odds, by which usable is nearer to one half), little_known. With
        another leaderboard to compare with: difference (of the win rate less that mean), difference_low,
        difference_high, p_value. Of a category: interaction (in log-odds), interaction_low, interaction_high, p_value,
        and holds, whether it is real among those of all categories. A number that there is not is None.
        """
        return [self._row(rank, i) for rank, i in enumerate(self.order, start=1)]

    def _row(self, rank: int, i: int) -> dict[str, Any]:
        row = {
            "rank": rank,
            "model": self.models[i],
            "coef": _number(self.coefs[i]),
            "win_rate": _number(self.win_rate[i]),
        }
        known = self.support.get(self.models[i])
        error = 0.0 if known is None or known.stderr is None else known.stderr
        if self.family == "grk":
            row["usable"] = _number(usable_probability(self.coefs[i], error))
        if known is not None:
            row |= {
                "support": round(known.votes, 1),
                "level_stderr": known.stderr,
                "little_known": known.votes < LITTLE,
            }
        if self.models[i] in self.ungrounded:
            row["grounded"] = False
        if (span := self.intervals) is not None:
            row |= {"rank_low": int(span.rank_low[i]), "rank_high": int(span.rank_high[i])}
            row |= {"coef_low": _number(span.coef_low[i]), "coef_high": _number(span.coef_high[i])}
            row |= {"win_rate_low": _number(span.win_low[i]), "win_rate_high": _number(span.win_high[i])}
            if self.family == "grk":
                low, high = usable_probability([span.coef_low[i], span.coef_high[i]], error)
                row |= {"usable_low": _number(low), "usable_high": _number(high)}
            row |= {"stderr": _number(span.stderr[i]), "win_rate_stderr": _number(span.win_stderr[i])}
        for name, gap in (("difference", self.difference), ("interaction", self.interaction)):
            if gap is not None:
                row[name] = _number(gap.value[i])
                row |= {f"{name}_low": _number(gap.low[i]), f"{name}_high": _number(gap.high[i])}
                row["p_value"] = _number(gap.p_value[i])
                if gap.holds is not None:
                    row["holds"] = bool(gap.holds[i])
        return row

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: family, n_prompts, raw_eta and the rows; with intervals, their level and number of units."""
        raw_eta = None if self.raw_eta is None else round(self.raw_eta, 6)
        record: dict[str, Any] = {"family": self.family, "n_prompts": self.n_prompts, "raw_eta": raw_eta}
        if self.intervals is not None:
            record["intervals"] = {"level": self.intervals.level, "units": self.intervals.units}
        if self.opponents is not None:
            record["opponents"] = dict(self.opponents)
        if self.difference is not None:
            record["reference"] = self.difference.reference
        return {**record, "leaderboard": self.rows()}

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self, top: int | None = None) -> str:
        """A table in markdown, best model first; `top` limits its rows."""
        return markdown_table(self.to_dict(), top)

    def to_html(self, title: str = "Leaderboard", top: int | None = None) -> str:
        """A page in HTML that needs no other file and no script; light and dark."""
        return leaderboard_page(self.to_dict(), title, top)

    def plot(self, path: str | Path, title: str = "Leaderboard", top: int | None = 30) -> None:
        """Draws the coefficients with their intervals, best model first.

        Args:
            path: .png, .svg or .pdf.
            title: of the figure.
            top: draw this many models.

        Raises:
            ConfigError: another ending, or matplotlib is missing.
        """
        leaderboard_figure(self.to_dict(), Path(path), title, top)


def _number(value: SupportsFloat) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def mean_win_rates(family: Family, coefs: Numbers, raw_eta: ArrayLike | None, weights: Array) -> Array:
    """(N, M) mean P(beats an opponent) on each prompt; ties are not wins.

    Every prompt takes M² numbers on the way, so that some prompts at a time are in memory.

    Args:
        family: outcome model.
        coefs: (N, M).
        raw_eta: (N,), for families that have it.
        weights: (M, M) of each opponent of each model, from `opponent_weights`.
    """
    eta = None if raw_eta is None else np.asarray(raw_eta)
    rates = np.empty(coefs.shape)
    step = max(1, _CELLS // weights.size)
    for start in range(0, len(coefs), step):
        rows = slice(start, start + step)
        win = win_matrix(family, coefs[rows], None if eta is None else eta[rows])
        rates[rows] = (win * weights).sum(axis=-1)
    return rates


def aggregate(
    models: tuple[str, ...],
    family: Family,
    coefs: ArrayLike,
    raw_eta: ArrayLike | None = None,
    ungrounded: frozenset[str] = frozenset(),
    opponents: Mapping[str, float] | None = None,
    groups: Sequence[object] | None = None,
    blocks: int = 0,
    seed: int = 0,
) -> Leaderboard:
    """The leaderboard of N prompts at once.

    Args:
        models: names.
        family: outcome model.
        coefs: (N, M).
        raw_eta: (N,), for families that have it.
        ungrounded: compare among themselves only.
        opponents: weight of each opponent in the win rate; default: all others alike.
        groups: (N,) what each prompt belongs to, where prompts come in groups that are alike; None: each is its own.
        blocks: `BLOCKS` for intervals; 0: none.
        seed: of the blocks, where there are more units than blocks.
    """
    means = PairMeans(family, len(models), blocks)
    means.add(coefs, raw_eta, Blocks(blocks, seed).deal(len(np.asarray(coefs)), groups) if blocks else None)
    return Leaderboard.from_means(models, means, ungrounded, opponents)
