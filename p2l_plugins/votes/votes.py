"""The one table of votes, and what is done to it: splits by prompt, merging, the families' rules. No torch here."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B, Family
from p2l_plugins.prompts import Turns, canonical_bytes
from p2l_plugins.similar import hint

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """V votes on P distinct prompts.

    Attributes:
        models: names; `a` and `b` index them. Some may have no vote.
        prompts: P distinct prompts. Some may have no vote.
        groups: (P,) a label of each prompt (category, or benchmark, or empty).
        prompt: (V,) index into `prompts`; not decreasing, except in an import, which keeps the order of the rows.
        a, b: (V,) the two sides.
        outcome: (V,) index into `outcomes.OUTCOMES`.
        weight: (V,) weight of each vote.
        scores: (P, M) scores of a score matrix, NaN where not run; None for a votes file.
        labels: of "language" and "category" those that some row has, each (V,) strings or None.
        timestamp: (V,) seconds since 1970 (UTC), NaN where a row has none; None where no row has one.

    Raises:
        DataError: an index, an outcome or a weight out of range.
    """

    models: tuple[str, ...]
    prompts: list[Turns]
    groups: list[str]
    prompt: Index
    a: Index
    b: Index
    outcome: Index
    weight: Array
    scores: Array | None = None
    labels: dict[str, NDArray[np.object_]] = field(default_factory=dict)
    timestamp: Array | None = None

    def __post_init__(self) -> None:
        limits = {"prompt": len(self.prompts), "a": len(self.models), "b": len(self.models), "outcome": len(OUTCOMES)}
        for name, limit in limits.items():
            column = getattr(self, name)
            if column.size and not 0 <= column.min() <= column.max() < limit:
                value = column.min() if column.min() < 0 else column.max()
                raise DataError(f"votes: {name} is {value}, out of the range 0 to {limit - 1}")
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise DataError("votes: every weight must be a number above 0")

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def times(self) -> Array | None:
        """(P,) time of each prompt's first vote, in seconds; None where a vote has no time stamp."""
        if self.timestamp is None or np.isnan(self.timestamp).any():
            return None
        times = np.full(len(self.prompts), np.inf)
        np.minimum.at(times, self.prompt, self.timestamp)
        return times

    @property
    def newest(self) -> float:
        """Time of the newest vote, in seconds; NaN where none has one."""
        stamps = self.timestamp
        return math.nan if stamps is None or np.isnan(stamps).all() else float(np.nanmax(stamps))

    def take(self, which: NDArray[np.bool_] | Index) -> Votes:
        """The votes that a mask (V,) or indices choose; all prompts stay."""
        return replace(
            self,
            prompt=self.prompt[which],
            a=self.a[which],
            b=self.b[which],
            outcome=self.outcome[which],
            weight=self.weight[which],
            labels={name: column[which] for name, column in self.labels.items()},
            timestamp=None if self.timestamp is None else self.timestamp[which],
        )

    def select(self, keep: NDArray[np.bool_]) -> Votes:
        """The prompts where `keep` (P,) is true, with their votes."""
        kept = self.take(keep[self.prompt])
        return replace(
            kept,
            prompts=[p for p, k in zip(self.prompts, keep, strict=True) if k],
            groups=[g for g, k in zip(self.groups, keep, strict=True) if k],
            prompt=(np.cumsum(keep) - 1)[kept.prompt],
            scores=None if self.scores is None else self.scores[keep],
        )

    def with_votes(self) -> Votes:
        """The prompts that have a vote."""
        return self.select(np.bincount(self.prompt, minlength=len(self.prompts)) > 0)

    def by_prompt(self) -> Votes:
        """The votes in the order of their prompts."""
        return self.take(np.argsort(self.prompt, kind="stable"))

    def decisive(self) -> NDArray[np.bool_]:
        """(V,) votes with a winner."""
        return self.outcome < TIE

    def renamed(self, models: Sequence[str]) -> Votes:
        """The same votes with `a` and `b` as indices into another list of models.

        Raises:
            DataError: a model that is not in the list.
        """
        position = {name: i for i, name in enumerate(models)}
        unknown = [name for name in self.models if name not in position]
        if unknown:
            raise DataError(f"model {unknown[0]!r} is not known; {hint(unknown[0], models, 'known models:')}")
        index = np.array([position[name] for name in self.models], np.int64)
        scores = None
        if self.scores is not None:
            scores = np.full((len(self.prompts), len(models)), np.nan)
            scores[:, index] = self.scores
        return replace(self, models=tuple(models), a=index[self.a], b=index[self.b], scores=scores)

    @property
    def voted_models(self) -> tuple[str, ...]:
        """The models that have a vote."""
        voted = np.unique(np.concatenate([self.a, self.b])).tolist()
        return tuple(self.models[i] for i in voted)

    def summary(self) -> dict[str, Any]:
        """Counts of votes, of the prompts and models that have one, and of outcomes."""
        counts = np.bincount(self.outcome, minlength=len(OUTCOMES)).tolist()
        return {
            "votes": len(self),
            "prompts": len(np.unique(self.prompt)),
            "models": len(np.unique(np.concatenate([self.a, self.b]))),
            "outcomes": dict(zip(OUTCOMES, counts, strict=True)),
        }


class VoteBuilder:
    """Collects votes row by row; equal prompts are kept once."""

    def __init__(self) -> None:
        self._models: dict[str, int] = {}
        self._prompts: dict[Turns, int] = {}
        self._groups: list[str] = []
        self._columns = array("q"), array("q"), array("q"), array("q")  # prompt, a, b, outcome
        self._weight, self._time = array("d"), array("d")
        self._labels: dict[str, list[str | None]] = {"language": [], "category": []}

    def add(
        self,
        turns: Turns,
        models: tuple[str, str],
        outcome: int,
        *,
        weight: float = 1.0,
        language: str | None = None,
        category: str | None = None,
        timestamp: float = math.nan,
    ) -> None:
        """Adds a vote; the two models must differ."""
        if turns not in self._prompts:
            self._prompts[turns] = len(self._prompts)
            self._groups.append(category or "")
        values = (self._prompts[turns], *(self._models.setdefault(name, len(self._models)) for name in models), outcome)
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self._weight.append(weight)
        self._time.append(timestamp)
        self._labels["language"].append(language)
        self._labels["category"].append(category)

    def votes(self) -> Votes:
        """The votes so far, in the order of their rows."""
        time = np.array(self._time, np.float64)
        prompt, a, b, outcome = (np.array(column, np.int64) for column in self._columns)
        return Votes(
            models=tuple(self._models),
            prompts=list(self._prompts),
            groups=self._groups,
            prompt=prompt,
            a=a,
            b=b,
            outcome=outcome,
            weight=np.array(self._weight, np.float64),
            labels={name: np.array(column, np.object_) for name, column in self._labels.items() if any(column)},
            timestamp=None if np.isnan(time).all() else time,
        )


def flipped(outcome: Index) -> Index:
    """The outcomes with the two sides exchanged."""
    return np.array([B, A, TIE, BAD], np.int64)[outcome]


def outcome_of_scores(a: Array | float, b: Array | float, margin: float, usable: Array | float) -> Index:
    """Outcomes of two sides by their scores, of which the higher wins.

    Args:
        a, b: scores of the sides.
        margin: scores that differ by no more are a tie.
        usable: two equal scores are a tie where the better one reaches this, else "tie (bothbad)".
    """
    tied = np.where(np.fmax(a, b) >= usable, TIE, BAD)
    return np.where(np.subtract(a, b) > margin, A, np.where(np.subtract(b, a) > margin, B, tied)).astype(np.int64)


def held_out(prompts: Sequence[Turns], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """(P,) True for about `fraction` of the prompts.

    The side depends on the text and the seed alone, so a prompt that occurs in several files never stands on both.
    """
    limit = int(fraction * 2**64)
    salt = seed.to_bytes(8, "little", signed=True)
    digests = [hashlib.blake2b(canonical_bytes(p), digest_size=8, salt=salt).digest() for p in prompts]
    return np.array([int.from_bytes(d, "little") < limit for d in digests], np.bool_)


def ungrounded(parts: Sequence[Votes], family: Family) -> list[str]:
    """Models of the grounded family that occur only in sources without a single "tie (bothbad)".

    Such votes say which answer is better, but not whether any is usable, so these models' level is not identified.
    """
    if family != "grk":
        return []
    every = {name for part in parts for name in part.models}
    return sorted(every - {name for part in parts if (part.outcome == BAD).any() for name in part.models})


def merge(parts: Sequence[Votes], prompt_weights: Sequence[float | None]) -> Votes:
    """One set of votes over the union of the models, without scores and labels.

    Args:
        prompt_weights: per part, the total weight of one prompt's votes, shared among them; None keeps the votes'
            own weights.
    """
    models = tuple(sorted({name for part in parts for name in part.models}))
    renamed = [part.renamed(models) for part in parts]
    weights = []
    for part, total in zip(renamed, prompt_weights, strict=True):
        per_prompt = np.bincount(part.prompt, part.weight, minlength=len(part.prompts))
        weights.append(part.weight if total is None else part.weight * total / per_prompt[part.prompt])
    offsets = np.cumsum([0, *(len(part.prompts) for part in renamed[:-1])])
    stamps = [part.timestamp for part in renamed if part.timestamp is not None]
    return Votes(
        models=models,
        prompts=[p for part in renamed for p in part.prompts],
        groups=[g for part in renamed for g in part.groups],
        prompt=np.concatenate([part.prompt + o for part, o in zip(renamed, offsets, strict=True)]),
        a=np.concatenate([part.a for part in renamed]),
        b=np.concatenate([part.b for part in renamed]),
        outcome=np.concatenate([part.outcome for part in renamed]),
        weight=np.concatenate(weights),
        timestamp=np.concatenate(stamps) if len(stamps) == len(renamed) else None,
    )


def check_family(votes: Votes, family: Family, ties: str, path: Path) -> Votes:
    """Applies the rule for ties of a family without them: `ties="drop"` drops, `"refuse"` raises a DataError."""
    decisive = votes.decisive()
    if family != "bt" or decisive.all():
        return votes
    if ties != "drop":
        raise DataError(
            f"{path}: {int((~decisive).sum())} of {len(votes)} votes are ties, which the family 'bt' does not allow; "
            "choose bt-tie, rk or grk, or set 'ties: drop'"
        )
    return votes.take(decisive).with_votes()
