"""Votes as columns while they are imported and cleaned, and the values that every log writes in its own way."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import PromptError
from p2l_plugins.files.rows import BadRow
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B
from p2l_plugins.prompts import Turns, as_turns, clean, user_turns
from p2l_plugins.votes.tally import Skip, shown

Index = NDArray[np.int64]
Labels = NDArray[np.object_]

#: How logs write an outcome.
WINNERS = {
    **{name: code for code, name in enumerate(OUTCOMES)},
    "both_bad": BAD,
    "bothbad": BAD,
    "tie (both bad)": BAD,
}
#: Labels of a vote that a votes file keeps.
LABELS = ("language", "category")


@dataclass(frozen=True)
class VoteTable:
    """V votes in the order of their rows.

    Attributes:
        models: M names; `a` and `b` index them. Some may have no vote.
        prompts: P distinct prompts. Some may have no vote.
        prompt: (V,) index into `prompts`.
        a, b: (V,) the two sides, always different.
        outcome: (V,) index into `outcomes.OUTCOMES`.
        weight: (V,) above 0.
        labels: of "language" and "category" those that some row has, each (V,) strings or None.
        timestamp: (V,) seconds since 1970 (UTC), NaN where a row has none; None where no row has one.
    """

    models: tuple[str, ...]
    prompts: list[Turns]
    prompt: Index
    a: Index
    b: Index
    outcome: Index
    weight: Array
    labels: dict[str, Labels]
    timestamp: Array | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, keep: NDArray[np.bool_]) -> VoteTable:
        """The votes where `keep` (V,) is true."""
        return replace(
            self,
            prompt=self.prompt[keep],
            a=self.a[keep],
            b=self.b[keep],
            outcome=self.outcome[keep],
            weight=self.weight[keep],
            labels={name: column[keep] for name, column in self.labels.items()},
            timestamp=None if self.timestamp is None else self.timestamp[keep],
        )

    def summary(self) -> dict[str, Any]:
        """Counts of votes, prompts, models and outcomes."""
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
        self._columns = {name: array("q") for name in ("prompt", "a", "b", "outcome")}
        self._weight, self._time = array("d"), array("d")
        self._labels: dict[str, list[str | None]] = {name: [] for name in LABELS}

    def add(
        self,
        turns: Turns,
        model_a: str,
        model_b: str,
        outcome: int,
        *,
        weight: float = 1.0,
        language: str | None = None,
        category: str | None = None,
        timestamp: float = math.nan,
    ) -> None:
        """Adds a vote; the two models must differ."""
        values = (
            self._prompts.setdefault(turns, len(self._prompts)),
            self._models.setdefault(model_a, len(self._models)),
            self._models.setdefault(model_b, len(self._models)),
            outcome,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._weight.append(weight)
        self._time.append(timestamp)
        self._labels["language"].append(language)
        self._labels["category"].append(category)

    def table(self) -> VoteTable:
        """The votes so far."""
        labels = {name: np.array(column, np.object_) for name, column in self._labels.items() if any(column)}
        time = np.array(self._time, np.float64)
        return VoteTable(
            models=tuple(self._models),
            prompts=list(self._prompts),
            **{name: np.array(column, np.int64) for name, column in self._columns.items()},
            weight=np.array(self._weight, np.float64),
            labels=labels,
            timestamp=None if np.isnan(time).all() else time,
        )


def outcome_of(winner: Any) -> int:
    """The outcome's index.

    Raises:
        BadRow: rule "unknown-winner".
    """
    code = WINNERS.get(winner) if isinstance(winner, str) else None
    if code is None:
        valid = ", ".join(map(repr, WINNERS))
        raise BadRow("unknown-winner", f"winner is {shown(winner)}; valid: {valid}")
    return code


def flipped(outcome: Index) -> Index:
    """The outcomes with the two sides exchanged."""
    return np.array([B, A, TIE, BAD], np.int64)[outcome]


def model_name(value: Any, column: str) -> str:
    """A model's name.

    Raises:
        BadRow: rule "bad-model".
    """
    if not isinstance(value, str) or not value.strip():
        raise BadRow("bad-model", f"{column} is {shown(value)}, but must be a model's name")
    return clean(value)


def label(value: Any) -> str | None:
    """A label as text; None where there is none."""
    if value is None or value == "" or isinstance(value, Mapping | list):
        return None
    return clean(str(value))


def seconds(value: Any, column: str = "timestamp") -> float:
    """A time stamp in seconds since 1970, NaN where there is none: a number, a datetime, or ISO 8601 text (UTC).

    Raises:
        BadRow: rule "bad-timestamp".
    """
    if value is None or value == "":
        return math.nan
    moment = value
    try:
        if isinstance(moment, str):
            try:
                moment = float(moment)
            except ValueError:
                moment = datetime.fromisoformat(moment)
        if isinstance(moment, datetime):
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if not isinstance(moment, bool) and math.isfinite(number := float(moment)):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRow("bad-timestamp", f"{column} is {shown(value)}; valid: seconds since 1970, or ISO 8601 text")


def turns_of(value: Any, column: str) -> Turns:
    """User turns of a text, a list of texts, or a list of chat messages, of which only the user's count.

    Raises:
        Skip: rule "empty-prompt".
        BadRow: rule "bad-prompt": neither of these.
    """
    if value is None:
        raise Skip("empty-prompt")
    if not isinstance(value, str) and isinstance(value, Sequence):
        value = [turn for turn in value if turn is not None]
    messages = isinstance(value, list) and any(isinstance(turn, Mapping) for turn in value)
    texts = isinstance(value, str) or (isinstance(value, list) and all(isinstance(turn, str) for turn in value))
    if not messages and not texts:
        raise BadRow(
            "bad-prompt", f"{column} is {type(value).__name__}; valid: text, a list of texts, or a list of messages"
        )
    try:
        return user_turns(value) if messages else as_turns(value)
    except PromptError:
        raise Skip("empty-prompt") from None
