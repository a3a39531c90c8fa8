"""How much is known of a model: what a bundle was fitted to, counted, and what that leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

Key = TypeVar("Key", int, str)

#: Effective votes below which boards mark a model: its level is then known to ±0.5 of log-odds at best.
LITTLE = 60.0


@dataclass(frozen=True, slots=True)
class Support:
    """What is known of one model.

    Attributes:
        prompts: different ones with a vote on it.
        sets: files with a vote on it.
        kinds: different categories (or benchmarks) of these prompts; a file without any is one kind.
        votes: effective ones: those on one prompt are about one answer and count as one, uneven weights count less
            (Kish 1965), and there are no more of them than prompts.
        stderr: of its level, in log-odds; None where nobody said.
    """

    prompts: int
    sets: int
    kinds: int
    votes: float
    stderr: float | None = None

    def __add__(self, other: Support) -> Support:
        """The evidence of both, of different prompts; of the level's standard errors, that of the weighted mean."""
        known = [one for one in (self.stderr, other.stderr) if one]
        error = None if not known else 1.0 / math.sqrt(sum(one**-2 for one in known))
        return Support(
            self.prompts + other.prompts,
            self.sets + other.sets,
            self.kinds + other.kinds,
            self.votes + other.votes,
            error,
        )

    def with_stderr(self, stderr: float) -> Support:
        """The same with a standard error of the level, rounded."""
        return replace(self, stderr=round(stderr, 4))

    def record(self) -> dict[str, float | None]:
        """JSON-ready."""
        return {
            "prompts": self.prompts,
            "sets": self.sets,
            "kinds": self.kinds,
            "votes": round(self.votes, 1),
            "stderr": self.stderr,
        }


def level_errors(support: Mapping[Key, Support], models: Iterable[Key]) -> list[float]:
    """Standard error of each model's level, by name or column; 0 where nobody said one."""
    return [support[name].stderr or 0.0 if name in support else 0.0 for name in models]
