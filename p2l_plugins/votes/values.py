"""The values that every log writes in its own way: outcomes, names, labels, time stamps, user turns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from p2l_plugins.errors import EmptyPrompt, PromptError
from p2l_plugins.files.prompts import label
from p2l_plugins.files.rows import BadRow
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
    a, b = (model_name(row.get(key), f"{prefix}{key}") for key in ("model_a", "model_b"))
    if a == b:
        raise Skip("same-model", f"model_a and model_b are both {a!r}")
    return a, b


def clean_label(value: Any) -> str | None:
    """A label as text; None where there is none, and for a list or an object."""
    text = None if isinstance(value, Mapping | list) else label(value)
    return None if text is None else clean(text)


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
        except ValueError:
            return value
    return value
