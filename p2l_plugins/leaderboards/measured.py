"""The leaderboard of the votes themselves: no bundle, no prompt is read, what was voted is what counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.leaderboards.categories import ALL, MAX_CATEGORIES, CategoryBoards
from p2l_plugins.leaderboards.interaction import interaction, marked
from p2l_plugins.leaderboards.intervals import Difference, difference, intervals, intervals_of, opponent_weights
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.leaderboards.votes_fit import VotesFit, bootstrap, fitted, pair_counts, sandwich, scores_of
from p2l_plugins.outcomes import BAD, Family, Mask
from p2l_plugins.votes.report import components
from p2l_plugins.votes.votes import Votes

Method = Literal["sandwich", "bootstrap", "none"]


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


def _board(votes: Votes, family: Family, method: Method, seed: int) -> tuple[VotesBoard, VotesFit]:
    if not len(votes):
        raise DataError("there are no votes")
    if family == "bt" and not votes.decisive().all():
        ties = int((~votes.decisive()).sum())
        raise DataError(
            f"{ties:,} of {len(votes):,} votes are ties, which the outcome model bt does not know; choose --family "
            "bt-tie, rk or grk"
        )
    m = len(votes.models)
    found = fitted(family, pair_counts(votes))
    q = opponent_weights(votes.models, frozenset())
    rate = found.win_rate(found.x, q)
    used = np.unique(votes.prompt)
    count = np.bincount(np.concatenate([votes.a, votes.b]), minlength=m)
    span, apart = None, np.zeros(m, bool)
    if method != "none" and len(used) > 1:
        if method == "sandwich":
            span = intervals_of(found.coefs, rate, sandwich(votes, found, q, len(used)), len(used), apart)
        else:
            span = intervals(found.coefs, rate, bootstrap(votes, found, q, used, seed), apart)
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

    A category orders the largest set of models that its votes connect; the others are not in its leaderboard. The
    interaction is that among these models, with the standard error of the sandwich for both leaderboards together.

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
    gaps: dict[str, Difference] = {}
    for name in names:
        own = votes.take(labels == name)
        try:
            own = only_connected(own, family, 1, name)
        except DataError:  # of grk, where no answer of a category is bad
            continue
        boards[name], found = _board(own, family, method, seed)
        gaps[name] = _gap(own, found, votes, whole)
    if len(boards) < 2:
        raise DataError(f"fewer than two values of {by!r} have votes that the outcome model {family} can be fitted to")
    return CategoryBoards(overall, {name: replace(boards[name], interaction=gap) for name, gap in marked(gaps).items()})


def _labels(votes: Votes, by: str) -> Any:
    if by in votes.labels:
        return votes.labels[by]
    return np.array(votes.groups if by == "category" else [""] * len(votes.prompts), np.object_)[votes.prompt]


def _gap(own: Votes, found: VotesFit, votes: Votes, whole: VotesFit) -> Difference:
    """The interaction of a category and its models, from how each prompt's votes move both fits."""
    m = len(own.models)
    apart, place = np.zeros(m, bool), [votes.models.index(name) for name in own.models]
    coefs, overall = found.coefs, whole.coefs[place]
    value = interaction(coefs, overall, apart)
    units, all_units = len(np.unique(own.prompt)), len(np.unique(votes.prompt))
    if units < 2:
        return difference(ALL, value, None, 0)
    narrow = found.bread()[:m] * np.sqrt(units / (units - 1))
    wide = whole.bread()[place] * np.sqrt(all_units / (all_units - 1))
    squares = np.zeros(m)
    for here, there in zip(scores_of(own, found), scores_of(votes, whole), strict=True):
        moved = interaction(coefs + here @ narrow.T, overall + there @ wide.T, apart)
        squares += ((moved - value) ** 2).sum(axis=0)
    return difference(ALL, value, np.sqrt(squares), units)
