"""Where a model stands better or worse than over all prompts: by category and on single prompts, with alternatives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from p2l_plugins.errors import P2LError
from p2l_plugins.leaderboards import strengths_pages
from p2l_plugins.leaderboards.categories import CategoryBoards, CategoryMeans
from p2l_plugins.leaderboards.intervals import opponent_weights, relative
from p2l_plugins.leaderboards.leaderboard import Leaderboard, mean_win_rates
from p2l_plugins.outcomes import Array, Coefficients, Mask, win_probability
from p2l_plugins.prompts import Prompt

_PER_CATEGORY = 2  # example prompts at either end of each category


@dataclass(frozen=True)
class Example:
    """A prompt and how the model does on it.

    Attributes:
        prompt: itself.
        relative: the model's win rate on it less the mean of the comparable models.
        coefs, raw_eta: all models' scores of the prompt, (M,) and a number where the family has it.
        category: of the prompt.
    """

    prompt: Prompt
    relative: float
    coefs: Array
    raw_eta: float | None
    category: str | None


class StrengthsOf:
    """Accumulates scored prompts, in pieces, for the report on one model; memory does not grow with the prompts.

    Args:
        means: of the bundle's models, without prompts.
        model: its column.
        examples: prompts at either end.
        opponents: weight of each opponent in the win rates; default: all others alike.

    Raises:
        P2LError: the model is the only opponent.
    """

    def __init__(
        self, means: CategoryMeans, model: int, examples: int = 5, opponents: Mapping[str, float] | None = None
    ) -> None:
        self.index = model
        self._means = means
        self._apart = np.array([name in means.ungrounded for name in means.models])
        self._opponents = opponents
        self._q = opponent_weights(means.models, means.ungrounded, opponents)
        if np.isnan(self._q[model]).any():
            raise P2LError(f"{means.models[model]} has no opponent among those that were named")
        self._examples = examples
        self._ends: dict[str | None, tuple[list[Example], list[Example]]] = {}

    def add(
        self,
        prompts: Sequence[Prompt],
        scores: Coefficients,
        categories: Sequence[str | None] | None = None,
        groups: Sequence[object] | None = None,
    ) -> None:
        """Adds N prompts with their scores, and the category and group of each."""
        labels = [None] * len(prompts) if categories is None else categories
        self._means.add(scores.coefs, scores.raw_eta, labels, groups)
        coefs = scores.coefs.astype(np.float64)
        rates = mean_win_rates(scores.family, coefs, scores.raw_eta, self._q)
        own = relative(rates, self._apart)[:, self.index]
        rows: dict[str | None, list[int]] = {None: list(range(len(prompts)))}  # None: all prompts
        for i, name in enumerate(labels):
            if name is not None:
                rows.setdefault(name, []).append(i)

        def example(i: int) -> Example:
            raw_eta = None if scores.raw_eta is None else float(scores.raw_eta[i])
            return Example(prompts[i], float(own[i]), coefs[i], raw_eta, labels[i])

        for name, inside in rows.items():
            count = self._examples if name is None else _PER_CATEGORY
            order = sorted(inside, key=lambda i: (-own[i], i))
            best, worst = self._ends.get(name, ([], []))
            best = sorted([*best, *map(example, order[:count])], key=lambda e: -e.relative)[:count]
            worst = sorted([*worst, *map(example, order[-count:])], key=lambda e: e.relative)[:count]
            self._ends[name] = (best, worst)

    def report(self, parents: Mapping[str, Sequence[str]] | None = None) -> Strengths:
        """The report on all prompts so far.

        Args:
            parents: wider categories, as in `CategoryMeans.boards`.

        Raises:
            P2LError: no prompts.
        """
        if any(name is not None for name in self._means.means):
            return Strengths(self.index, self._means.boards(self._opponents, parents), self._ends)
        return Strengths(self.index, CategoryBoards(self._means.overall(self._opponents), {}), self._ends)


@dataclass(frozen=True)
class Strengths:
    """The report on one model.

    Attributes:
        index: the model's column.
        found: the leaderboards of all prompts and of the categories, where there are some.
        ends: category, or None for all prompts → the prompts with the model's highest and lowest win rates relative to
            the other models.
    """

    index: int
    found: CategoryBoards
    ends: dict[str | None, tuple[list[Example], list[Example]]]

    @property
    def overall(self) -> Leaderboard:
        """The leaderboard of all prompts."""
        return self.found.overall

    @property
    def model(self) -> str:
        """The model's name."""
        return self.overall.models[self.index]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: model, n_prompts, `overall` (its row), `categories` by interaction, and `prompts` at either end.

        A prompt's difference is that of the win rate less the mean of the comparable models, from the overall
        leaderboard.
        `beats` and `beaten` are the probabilities that the best alternative beats the model and the other way round.
        """
        rows = [self._category(name, board) for name, board in self.found.boards.items()]
        return {
            "model": self.model,
            "family": self.overall.family,
            "n_prompts": self.overall.n_prompts,
            "overall": self._row(self.overall),
            "categories": sorted(rows, key=lambda row: -row["interaction"]),
            "prompts": self._examples(None),
        }

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """The report as markdown; long prompts are shortened."""
        return strengths_pages.markdown(self.to_dict())

    def to_html(self) -> str:
        """The report as a page in HTML that needs no other file and no script."""
        return strengths_pages.html(self.to_dict())

    def _row(self, board: Leaderboard) -> dict[str, Any]:
        return next(row for row in board.rows() if row["model"] == self.model)

    def _category(self, name: str, board: Leaderboard) -> dict[str, Any]:
        best = next((i for i in board.order if self._comparable[i]), None)
        alternative = None
        if best is not None:
            beats, beaten = self.found.wins[name][best, self.index], self.found.wins[name][self.index, best]
            alternative = {
                **_duel(board.models[best], beats, beaten),
                "win_rate": round(float(board.win_rate[best]), 6),
            }
        row = {"category": name, "n_prompts": board.n_prompts, **self._row(board), "best_alternative": alternative}
        return {**row, "prompts": self._examples(name)}

    def _examples(self, name: str | None) -> dict[str, list[dict[str, Any]]]:
        best, worst = self.ends.get(name, ([], []))
        level = float(relative(self.overall.win_rate, self.overall.apart)[self.index])
        return {
            "gains": [self._example(e, e.relative - level) for e in best if e.relative > level],
            "losses": [self._example(e, e.relative - level) for e in worst if e.relative < level],
        }

    def _example(self, example: Example, gain: float) -> dict[str, Any]:
        own = example.coefs[self.index]
        wins = win_probability(self.overall.family, own, example.coefs, example.raw_eta)
        losses = win_probability(self.overall.family, example.coefs, own, example.raw_eta)
        others = np.where(self._comparable, example.coefs, -np.inf)
        best = int(np.argmax(others))
        rate = float(wins @ self._opponents)
        return {
            "prompt": example.prompt if isinstance(example.prompt, str) else list(example.prompt),
            "category": example.category,
            "difference": round(gain, 6),
            "win_rate": round(rate, 6),
            "best_alternative": (
                _duel(self.overall.models[best], losses[best], wins[best]) if np.isfinite(others[best]) else None
            ),
        }

    @cached_property
    def _opponents(self) -> Array:
        """(M,) weights of the model's opponents."""
        own: Array = opponent_weights(self.overall.models, self.overall.ungrounded, self.overall.opponents)[self.index]
        return own

    @property
    def _comparable(self) -> Mask:
        """(M,) the other models that the model can be compared with."""
        same: Mask = self.overall.apart == self.overall.apart[self.index]
        same[self.index] = False
        return same


def _duel(name: str, beats: float, beaten: float) -> dict[str, Any]:
    return {"model": name, "beats": round(float(beats), 6), "beaten": round(float(beaten), 6)}
