"""The values that every log writes in its own way: outcomes, names, labels, time stamps, user turns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from p2l_plugins.errors import EmptyPrompt, PromptError
from p2l_plugins.files.prompts import label
from p2l_plugins.files.rows import BadRow, delimiter_hint
from p2l_plugins.outcomes import BAD, OUTCOMES
from p2l_plugins.prompts import Turns, as_turns, clean, prompt_in
from p2l_plugins.votes.tally import Skip, shown

#: How logs write an outcome.
WINNERS = {
    **{name: code for code, name in enumerate(OUTCOMES)},
    "both_bad": BAD,
    "bothbad": BAD,
    "tie (both bad)": BAD,
}


_BOOLEANS = {"true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+%?")
#: A comma before three digits may be one of thousands; after a lone zero it is not.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+%?")
_LATEST = 1e11  # seconds; a greater number is in a smaller unit


def outcome_of(winner: Any) -> int:
    """The outcome's index.

    Raises:
        BadRow: rule "unknown-winner".
    """
    code = WINNERS.get(winner.strip()) if isinstance(winner, str) else None
    if code is None:
        valid = ", ".join(map(repr, WINNERS))
        raise BadRow("unknown-winner", f"winner is {shown(winner)}; valid: {valid}")
    return code


def model_name(value: Any, column: str) -> str:
    """A model's name.

    Raises:
        BadRow: rule "bad-model".
    """
    if not isinstance(value, str) or not value.strip():
        raise BadRow("bad-model", f"{column} is {shown(value)}, but must be a model's name")
    return clean(value)


def two_models(row: Mapping[str, Any], prefix: str = "") -> tuple[str, str]:
    """The names under `model_a` and `model_b`.

    Raises:
        BadRow: rule "bad-model".
        Skip: rule "same-model".
    """
    for key in ("model_a", "model_b"):
        if key not in row:
            raise BadRow("bad-model", absent(f"{prefix}{key}", row))
    a, b = (model_name(row.get(key), f"{prefix}{key}") for key in ("model_a", "model_b"))
    if a == b:
        raise Skip("same-model", f"model_a and model_b are both {a!r}")
    return a, b


def absent(column: str, row: Mapping[str, Any]) -> str:
    """That a row has no such column, and which it has."""
    return f"column {column!r} is missing; the row has {shown(list(row))}{delimiter_hint(row)}"


def clean_label(value: Any) -> str | None:
    """A label as text; None where there is none, and for a list or an object."""
    text = None if isinstance(value, Mapping | list) else label(value)
    return None if text is None else clean(text)


def finite(value: Any, what: str, rule: str = "bad-score") -> float:
    """A number, NaN where there is none; the one check of numbers that all importers share.

    Numbers as text may be true or false, a percentage (`85%` is 0.85), or have a decimal comma (`0,85`).

    Args:
        value: of a cell.
        what: names the value in messages.
        rule: under which a row with another value is counted.

    Raises:
        BadRow: it is no number, infinite, or one that can be read in two ways.
    """
    number = _number(value)
    if number is not None and not math.isinf(number):
        return number
    if number is None and isinstance(value, str) and _THOUSANDS.fullmatch(value.strip()):
        raise BadRow(
            rule,
            f"{what} is {shown(value)}, whose comma may be a decimal one or one of thousands; write it with a point",
        )
    kind = "finite number" if number is not None else "number"
    raise BadRow(rule, f"{what} is {shown(value)}, but must be a {kind} or empty")


def _number(value: Any) -> float | None:
    """A value as a number, NaN where there is none; None for what is no number."""
    if value is None or value == "":
        return math.nan
    try:
        if not isinstance(value, str):
            return float(value)
        text = value.strip()
        if text.casefold() in _BOOLEANS:
            return _BOOLEANS[text.casefold()]
        if _DECIMAL_COMMA.fullmatch(text) and not _THOUSANDS.fullmatch(text):
            text = text.replace(",", ".")
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def seconds(value: Any, column: str = "timestamp") -> float:
    """A time stamp in seconds since 1970, NaN where there is none: a number, a datetime, or ISO 8601 text (UTC).

    A number above 10¹¹ (the year 5138) is in milli-, micro- or nanoseconds, by its size.

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
            for _ in range(3):
                number = number / 1000 if abs(number) >= _LATEST else number
            if abs(number) < _LATEST:
                return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRow(
        "bad-timestamp", f"{column} is {shown(value)}; valid: seconds or milliseconds since 1970, or ISO 8601 text"
    )


def turns_of(value: Any, column: str) -> Turns:
    """User turns of a text, a list of texts, or a list of chat messages, of which only the user's count.

    Raises:
        Skip: rule "empty-prompt".
        BadRow: rule "bad-prompt": neither of these.
    """
    try:
        return as_turns(prompt_in("" if value is None else value))
    except EmptyPrompt as error:
        raise Skip("empty-prompt", str(error)) from None
    except PromptError:
        raise BadRow(
            "bad-prompt", f"{column} is {type(value).__name__}; valid: text, a list of texts, or a list of messages"
        ) from None


def decoded(value: Any) -> Any:
    """A list or an object that a log holds as JSON text; any other value stays."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
