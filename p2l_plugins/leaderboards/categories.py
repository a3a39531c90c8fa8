"""Leaderboards by category: who is better on which prompts than their peers, and which of that is no accident.

All categories share their blocks, so that leaving one out gives every category's leaderboard and the overall one
together, and units that reach into several categories are left out whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import DataError
from p2l_plugins.leaderboards.figures import heat_map
from p2l_plugins.leaderboards.html import category_page
from p2l_plugins.leaderboards.interaction import marked, with_error
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.leaderboards.pair_means import Blocks, PairMeans
from p2l_plugins.leaderboards.tables import category_tables
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.support import Support

#: More categories than this are no table that anybody reads, and each costs memory.
MAX_CATEGORIES = 64

#: Blocks per category: with 64 categories of 130 models they take at most 0.6 GB.
CATEGORY_BLOCKS = 64

#: Name of the overall leaderboard in tables.
ALL = "all prompts"


class CategoryMeans:
    """Accumulates prompts and their categories, in pieces.

    Args:
        models: names.
        family: outcome model.
        ungrounded: models that compare among themselves only.
        seed: of the blocks.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        family: Family,
        ungrounded: frozenset[str] = frozenset(),
        seed: int = 0,
    ) -> None:
        self.models = models
        self.family = family
        self.ungrounded = ungrounded
        self.seed = seed
        self.means: dict[str | None, PairMeans] = {}
        self._blocks = Blocks(CATEGORY_BLOCKS, seed)

    def add(
        self,
        coefs: ArrayLike,
        raw_eta: ArrayLike | None,
        categories: Sequence[str | None],
        groups: Sequence[object] | None = None,
    ) -> None:
        """Adds N prompts.

        Args:
            coefs: (N, M).
            raw_eta: (N,), for families that have it.
            categories: (N,); a prompt without one (None) counts in the overall leaderboard only.
            groups: (N,) what each prompt belongs to, or None.

        Raises:
            DataError: more than `MAX_CATEGORIES` categories.
            P2LError: as `PairMeans.add`.
        """
        beta = np.asarray(coefs)
        raw = None if raw_eta is None else np.asarray(raw_eta)
        block = self._blocks.deal(len(beta), groups)
        rows: dict[str | None, list[int]] = {}
        for i, category in enumerate(categories):
            rows.setdefault(category, []).append(i)
        for category, own in rows.items():
            if category not in self.means:
                if category is not None and len(self.means) - (None in self.means) >= MAX_CATEGORIES:
                    raise DataError(f"there are more than {MAX_CATEGORIES} categories; merge some of them")
                self.means[category] = PairMeans(self.family, len(self.models), self._blocks.count)
            self.means[category].add(beta[own], None if raw is None else raw[own], block[own])

    @property
    def n(self) -> int:
        """Prompts so far."""
        return sum(means.n for means in self.means.values())

    def overall(self, opponents: Mapping[str, float] | None = None) -> Leaderboard:
        """The leaderboard of all prompts.

        Raises:
            P2LError: no prompts.
        """
        parts = self.means.values() or [PairMeans(self.family, len(self.models))]
        return self._board(PairMeans.merged(parts), opponents)

    def boards(
        self,
        opponents: Mapping[str, float] | None = None,
        parents: Mapping[str, Sequence[str]] | None = None,
    ) -> CategoryBoards:
        """The overall leaderboard and one per category, with the interaction of models and categories.

        Args:
            opponents: weight of each opponent in the win rate; default: all others alike.
            parents: names of further categories, each the union of others.

        Raises:
            DataError: fewer than two categories.
        """
        named = {name: means for name, means in self.means.items() if name is not None}
        if len(named) < 2:
            only = f"only one category, {next(iter(named))!r}" if named else "no category at all"
            raise DataError(f"the prompts have {only}; boards by category need at least two")
        parents = parents or {}
        unions = {name: PairMeans.merged(named[leaf] for leaf in leaves) for name, leaves in parents.items()}
        named = {**unions, **dict(sorted(named.items()))}
        overall = self._board(PairMeans.merged(self.means.values()), opponents)
        boards, found, wins = {}, {}, {}
        for name, means in named.items():
            board = boards[name] = self._board(means, opponents)
            found[name] = with_error(ALL, (board.coefs, board.moves), (overall.coefs, overall.moves), overall.apart)
            wins[name] = means.win
        boards = {name: replace(boards[name], interaction=one) for name, one in marked(found).items()}
        return CategoryBoards(overall, boards, {name: tuple(leaves) for name, leaves in parents.items()}, wins)

    def _board(self, means: PairMeans, opponents: Mapping[str, float] | None) -> Leaderboard:
        return Leaderboard.from_means(self.models, means, self.ungrounded, opponents)


@dataclass(frozen=True)
class CategoryBoards:
    """The overall leaderboard and those of the categories.

    Attributes:
        overall: of all prompts.
        boards: category → its leaderboard; `interaction` says who is better there than their peers, and its `holds`
            which of all interactions of all categories are real, at a false discovery rate of 5 %
            (Benjamini-Hochberg).
        parents: categories that are unions of others → those.
        wins: category → (M, M) mean P(a beats b) on its prompts.
    """

    overall: Leaderboard
    boards: dict[str, Leaderboard]
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wins: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def leaves(self) -> list[str]:
        """The categories that are not unions of others."""
        return [name for name in self.boards if name not in self.parents]

    def with_support(self, support: Mapping[str, Support]) -> CategoryBoards:
        """The same, with how much is known of each model."""
        boards = {name: replace(board, support=support) for name, board in self.boards.items()}
        return replace(self, overall=replace(self.overall, support=support), boards=boards)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the overall leaderboard with a key `categories`: name → leaderboard."""
        record = {**self.overall.to_dict(), "categories": {name: b.to_dict() for name, b in self.boards.items()}}
        if self.parents:
            record["parents"] = {name: list(leaves) for name, leaves in self.parents.items()}
        return record

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self, top: int | None = 20) -> str:
        """The overall table, that of the interactions, and one table per category."""
        return category_tables(self.to_dict(), top)

    def to_html(self, title: str = "Leaderboards", top: int | None = 20) -> str:
        """A page in HTML with the heat map and all tables; it needs no other file and no script."""
        return category_page(self.to_dict(), title, top)

    def plot(self, path: str | Path, title: str = "Better or worse than peers", top: int | None = 25) -> None:
        """Draws the heat map model × category.

        Args:
            path: .png, .svg or .pdf.
            title: of the figure.
            top: draw so many models, the best of the overall leaderboard.

        Raises:
            ConfigError: another ending, or matplotlib is missing.
        """
        heat_map(self.to_dict(), self.leaves, Path(path), title, top)
