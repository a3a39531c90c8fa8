"""Votes from files: votes files, score matrices, splits by prompt. No torch here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError, PromptError
from p2l_plugins.files.tables import Column, need_columns, read_table
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, Array, Family
from p2l_plugins.prompts import Turns, as_turns, canonical_bytes

#: Columns of a score matrix that describe a row; every other numeric column is a model.
DESCRIPTIVE = frozenset(
    "prompt id question_id doc_id index benchmark category language subset source metric weight timestamp".split()
)


@dataclass(frozen=True)
class Votes:
    """Votes grouped by distinct prompt.

    Attributes:
        models: names; `a` and `b` index them.
        prompts: P distinct prompts.
        groups: (P,) a label of each prompt (category, or benchmark, or empty).
        prompt: (V,) index into `prompts`, not decreasing.
        a, b: (V,) the two sides.
        outcome: (V,) index into `outcomes.OUTCOMES`.
        weight: (V,) weight of each vote.
        scores: (P, M) scores of a score matrix, NaN where not run; None for a votes file.
        times: (P,) time of each prompt's first vote, in seconds; None for files without time stamps.

    Raises:
        DataError: an index, an outcome or a weight out of range.
    """

    models: tuple[str, ...]
    prompts: list[Turns]
    groups: list[str]
    prompt: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    outcome: NDArray[np.int64]
    weight: Array
    scores: Array | None = None
    times: Array | None = None

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

    def select(self, keep: NDArray[np.bool_]) -> Votes:
        """The prompts where `keep` (P,) is true, with their votes."""
        new_index = np.cumsum(keep) - 1
        vote = keep[self.prompt]
        return replace(
            self,
            prompts=[p for p, k in zip(self.prompts, keep, strict=True) if k],
            groups=[g for g, k in zip(self.groups, keep, strict=True) if k],
            prompt=new_index[self.prompt[vote]],
            a=self.a[vote],
            b=self.b[vote],
            outcome=self.outcome[vote],
            weight=self.weight[vote],
            scores=None if self.scores is None else self.scores[keep],
            times=None if self.times is None else self.times[keep],
        )

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
            raise DataError(f"model {unknown[0]!r} is not known; known models: {', '.join(models)}")
        index = np.array([position[name] for name in self.models], np.int64)
        scores = None
        if self.scores is not None:
            scores = np.full((len(self.prompts), len(models)), np.nan)
            scores[:, index] = self.scores
        return replace(self, models=tuple(models), a=index[self.a], b=index[self.b], scores=scores)


def read_votes(path: Path, aliases: Mapping[str, str] | None = None, usable: float = 0.5, margin: float = 0.0) -> Votes:
    """A votes file or a score matrix, told apart by the column `winner`.

    Args:
        path: Parquet, JSONL or CSV.
        aliases: canonical name of each model name in the file; names that are not listed stay.
        usable: a score below this is not usable: two equal ones are "tie (bothbad)".
        margin: scores that differ by no more than this are a tie.

    Raises:
        DataError: what is wrong with the file: column, row, value, and what is valid.
    """
    table = read_table(path)
    need_columns(table, ["prompt"], path)
    names = aliases or {}
    if {"model_a", "model_b", "winner"} & set(table):
        return _from_votes(table, path, names)
    return _from_matrix(table, path, names, usable, margin)


def _from_votes(table: dict[str, Column], path: Path, aliases: Mapping[str, str]) -> Votes:
    need_columns(table, ["model_a", "model_b", "winner"], path)
    prompts, groups, prompt = _distinct(table, path)
    for column in ("model_a", "model_b"):
        for row, name in enumerate(table[column]):
            if not isinstance(name, str) or not name:
                raise DataError(f"{path}: row {row + 1}: {column} is {name!r}, but must be a model's name")
    side_a = [aliases.get(name, name) for name in table["model_a"]]
    side_b = [aliases.get(name, name) for name in table["model_b"]]
    models = tuple(sorted({*side_a, *side_b}))
    position = {name: i for i, name in enumerate(models)}
    code = {name: i for i, name in enumerate(OUTCOMES)}
    for row, winner in enumerate(table["winner"]):
        if winner not in code:
            valid = ", ".join(map(repr, OUTCOMES))
            raise DataError(f"{path}: row {row + 1}: winner is {winner!r}; valid: {valid}")
        if side_a[row] == side_b[row]:
            raise DataError(f"{path}: row {row + 1}: model_a and model_b are both {side_a[row]!r}")
    weight = np.ones(len(prompt))
    if "weight" in table:
        weight = np.array(
            [1.0 if w is None else _number(w, path, row, "weight") for row, w in enumerate(table["weight"])]
        )
        if not (weight > 0).all():
            row = int(np.flatnonzero(~(weight > 0))[0])
            raise DataError(f"{path}: row {row + 1}: weight is {weight[row]:g}, but must be above 0")
    order = np.argsort(prompt, kind="stable")
    times = None
    if "timestamp" in table and not any(value in (None, "") for value in table["timestamp"]):
        stamps = np.array([_seconds(value, path, row) for row, value in enumerate(table["timestamp"])])
        times = np.full(len(prompts), np.inf)
        np.minimum.at(times, prompt, stamps)
    return Votes(
        models=models,
        prompts=prompts,
        groups=groups,
        prompt=prompt[order],
        a=np.array([position[m] for m in side_a], np.int64)[order],
        b=np.array([position[m] for m in side_b], np.int64)[order],
        outcome=np.array([code[w] for w in table["winner"]], np.int64)[order],
        weight=weight[order],
        times=times,
    )


def _seconds(value: Any, path: Path, row: int) -> float:
    """A time stamp in seconds: a number, a datetime, or ISO 8601 text; without a time zone it is UTC."""
    try:
        if isinstance(value, str):
            value = float(value) if value.replace(".", "", 1).isdigit() else datetime.fromisoformat(value)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise DataError(f"{path}: row {row + 1}: timestamp is {value!r}; valid: seconds, or ISO 8601 text")
    return seconds


def _from_matrix(
    table: dict[str, Column], path: Path, aliases: Mapping[str, str], usable: float, margin: float
) -> Votes:
    columns = _model_columns(table, path)
    if len(columns) < 2:
        raise DataError(
            f"{path}: neither a votes file (prompt, model_a, model_b, winner) nor a score matrix (prompt and one "
            f"numeric column per model, two at least); the file has {', '.join(map(repr, table))}"
        )
    models = tuple(aliases.get(name, name) for name in columns)
    if len(set(models)) < len(models):
        twice = next(name for name in models if models.count(name) > 1)
        raise DataError(f"{path}: two columns are both the model {twice!r}")
    prompts, groups, row_prompt = _distinct(table, path)
    raw = np.stack(list(columns.values()), axis=1)
    total = np.zeros((len(prompts), len(models)))
    count = np.zeros_like(total)
    np.add.at(total, row_prompt, np.nan_to_num(raw))
    np.add.at(count, row_prompt, ~np.isnan(raw))
    with np.errstate(invalid="ignore"):
        scores = total / count
    first, second = np.triu_indices(len(models), 1)
    difference = scores[:, first] - scores[:, second]
    known = ~np.isnan(difference)
    prompt, pair = np.nonzero(known)
    d, top = difference[known], np.fmax(scores[:, first], scores[:, second])[known]
    outcome = np.where(d > margin, 0, np.where(d < -margin, 1, np.where(top >= usable, 2, 3)))
    return Votes(
        models=models,
        prompts=prompts,
        groups=groups,
        prompt=prompt,
        a=first[pair],
        b=second[pair],
        outcome=outcome,
        weight=np.ones(len(prompt)),
        scores=scores,
    )


def _distinct(table: dict[str, Column], path: Path) -> tuple[list[Turns], list[str], NDArray[np.int64]]:
    """Distinct prompts, their labels, and each row's index into them."""
    labels = table.get("category") or table.get("benchmark") or [""] * len(table["prompt"])
    index: dict[Turns, int] = {}
    groups: list[str] = []
    rows = np.empty(len(table["prompt"]), np.int64)
    for row, prompt in enumerate(table["prompt"]):
        try:
            turns = as_turns(prompt)
        except PromptError as error:
            raise DataError(f"{path}: row {row + 1}: {error}") from None
        if turns not in index:
            index[turns] = len(index)
            groups.append(str(labels[row] or ""))
        rows[row] = index[turns]
    return list(index), groups, rows


def _model_columns(table: dict[str, Column], path: Path) -> dict[str, Array]:
    """The columns of a score matrix that are models: those of numbers (N,), NaN where not run.

    Raises:
        DataError: an empty column, or one of numbers with a value that is none.
    """
    columns = {}
    for name, column in table.items():
        if name in DESCRIPTIVE:
            continue
        there = [(row, x) for row, x in enumerate(column) if x not in (None, "")]
        numbers = {row: y for row, x in there if (y := _as_float(x)) is not None}
        if there and len(numbers) < len(there) / 2:
            continue  # text
        odd = next(((row, x) for row, x in there if row not in numbers or math.isinf(numbers[row])), None)
        if odd is not None:
            raise DataError(
                f"{path}: row {odd[0] + 1}: the score of {name!r} is {odd[1]!r}, but must be a number or empty"
            )
        values = np.array([numbers.get(row, math.nan) for row in range(len(column))], np.float64)
        if np.isnan(values).all():
            raise DataError(f"{path}: the model {name!r} has no votes: its column holds no score; drop the column")
        columns[name] = values
    return columns


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any, path: Path, row: int, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: row {row + 1}: {name} is {value!r}, but must be a number")
    return number


def held_out(prompts: Sequence[Turns], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """(P,) True for about `fraction` of the prompts. The side depends on the text and the seed alone,

    so a prompt that occurs in several files never stands on both sides.
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
    """One set of votes over the union of the models.

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
    return Votes(
        models=models,
        prompts=[p for part in renamed for p in part.prompts],
        groups=[g for part in renamed for g in part.groups],
        prompt=np.concatenate([part.prompt + o for part, o in zip(renamed, offsets, strict=True)]),
        a=np.concatenate([part.a for part in renamed]),
        b=np.concatenate([part.b for part in renamed]),
        outcome=np.concatenate([part.outcome for part in renamed]),
        weight=np.concatenate(weights),
        times=None if any(part.times is None for part in renamed) else np.concatenate([p.times for p in renamed]),
    )


def check_family(votes: Votes, family: Family, ties: str, path: Path) -> Votes:
    """Applies the rule for ties of a family without them: `ties="drop"` drops, `"refuse"` raises a DataError."""
    tied = ~votes.decisive()
    if family != "bt" or not tied.any():
        return votes
    if ties != "drop":
        raise DataError(
            f"{path}: {int(tied.sum())} of {len(votes)} votes are ties, which the family 'bt' does not allow; "
            "choose bt-tie, rk or grk, or set 'ties: drop'"
        )
    keep = ~tied
    kept = replace(
        votes,
        prompt=votes.prompt[keep],
        a=votes.a[keep],
        b=votes.b[keep],
        outcome=votes.outcome[keep],
        weight=votes.weight[keep],
    )
    return kept.select(np.bincount(kept.prompt, minlength=len(votes.prompts)) > 0)
