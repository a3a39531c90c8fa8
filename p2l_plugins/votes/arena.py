"""Arena-style rows: two models, one winner, and the conversation in one of many forms.

Read are our own columns, those of the public data sets of LMArena (`chatbot_arena_conversations`,
`arena-human-preference-55k`, `-100k`, `-140k`) and of its Kaggle competitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.outcomes import TIE, A, B
from p2l_plugins.prompts import Turns, conversation_in
from p2l_plugins.votes.tally import Skip, Tally, shown
from p2l_plugins.votes.values import absent, clean_label, decoded, finite, outcome_of, seconds, turns_of, two_models
from p2l_plugins.votes.votes import VoteBuilder, Votes

#: What is read; other columns (answers, token counts, judges, …) are not.
COLUMNS = frozenset(
    "prompt messages conversation conversation_a conversation_b full_conversation model_a model_b winner "
    "winner_model_a winner_model_b winner_tie weight language category category_tag is_code timestamp tstamp "
    "anony".split()
)
_FLAGS = {"winner_model_a": A, "winner_model_b": B, "winner_tie": TIE}
#: Tags of LMArena that become a category; the first that is set counts.
_TAGS = (("math", "math"), ("creative_writing", "creative_writing"), ("if", "instruction_following"))


def arena_votes(
    rows: Iterable[tuple[str, Row]],
    tally: Tally,
    *,
    not_anonymous: Literal["keep", "drop"] = "keep",
) -> Votes:
    """One vote per row, on all user turns of its conversation.

    Rules that drop a row: "empty-prompt", "sides-differ" (the two sides saw different user turns), "same-model",
    and "not-anonymous" (the voter knew the models: `anony` is false).

    Args:
        rows: places and rows.
        not_anonymous: whether the last rule holds.

    Raises:
        DataError: the first bad row, unless the tally drops them.
    """
    builder = VoteBuilder()
    for place, row in rows:
        try:
            if not_anonymous == "drop" and _is_false(row.get("anony")):
                raise Skip("not-anonymous")
            outcome = _outcome(row)
            models = two_models(row)
            builder.add(
                _turns(row),
                models,
                outcome,
                weight=_weight(row.get("weight")),
                language=clean_label(row.get("language")),
                category=clean_label(row.get("category")) or _tagged(row),
                timestamp=seconds(row["tstamp"], "tstamp") if "tstamp" in row else seconds(row.get("timestamp")),
            )
        except BadRow as error:
            tally.bad(place, error)
    return builder.votes()


def _outcome(row: Row) -> int:
    if "winner" in row:
        return outcome_of(row["winner"])
    if not any(name in row for name in _FLAGS):
        raise BadRow("unknown-winner", absent("winner", row))
    flags = {}
    for name in _FLAGS:
        try:
            flags[name] = {0.0: False, 1.0: True}[finite(row.get(name) or 0, name)]
        except (BadRow, KeyError):
            raise BadRow("unknown-winner", f"{name} is {shown(row[name])}; valid: 0, 1") from None
    chosen = [code for name, code in _FLAGS.items() if flags[name]]
    if len(chosen) != 1:
        raise BadRow("unknown-winner", f"{len(chosen)} of {', '.join(_FLAGS)} are 1; valid: exactly one")
    return chosen[0]


def _turns(row: Row) -> Turns:
    """The user turns: of the full conversation, else of the two sides, else of the prompt or the messages."""
    sides = [_messages(row.get(name), name) for name in ("conversation_a", "conversation_b")]
    if all(side is not None for side in sides):
        turns = turns_of(sides[0], "conversation_a")
        if turns != turns_of(sides[1], "conversation_b"):
            raise Skip("sides-differ")
        full = _messages(row.get("full_conversation"), "full_conversation")
        return turns if not full else _full(full)
    if full := _messages(row.get("full_conversation"), "full_conversation"):
        return _full(full)
    prompt = row.get("prompt")
    if prompt is not None:
        if isinstance(prompt, str) and "winner_model_a" in row:  # Kaggle's prompts are JSON text in any file
            prompt = conversation_in(prompt)
        return turns_of(prompt, "prompt")
    for name in ("messages", "conversation"):
        if (messages := _messages(row.get(name), name)) is not None:
            return turns_of(messages, name)
    known = "prompt, messages, conversation, conversation_a and conversation_b, or full_conversation"
    if not any(name in row for name in ("prompt", "messages", "conversation", "full_conversation")):
        raise BadRow("bad-prompt", f"there is no prompt; valid columns: {known}; the row has {shown(list(row))}")
    raise Skip("empty-prompt", "the prompt is empty")


def _full(conversation: Any) -> Turns:
    """`full_conversation` groups the messages of a turn: {"user": …, "model_side_a": …, "model_side_b": …}."""
    messages = []
    for turn in conversation:
        grouped = isinstance(turn, Mapping) and isinstance(turn.get("user"), Mapping)
        messages.append({"role": "user", **turn["user"]} if grouped else turn)
    return turns_of(messages, "full_conversation")


def _messages(value: Any, column: str) -> Any:
    """Messages, which some files hold as JSON text."""
    messages = decoded(value)
    if isinstance(value, str) and not isinstance(messages, list):
        raise BadRow("bad-prompt", f"{column} is text that is not JSON; valid: a list of messages")
    return messages


def _weight(value: Any) -> float:
    if value is None:
        return 1.0
    try:
        weight = finite(value, "weight")
    except BadRow:
        weight = math.nan
    if not weight > 0:
        raise BadRow("bad-weight", f"weight is {shown(value)}, but must be a number above 0")
    return weight


def _tagged(row: Row) -> str | None:
    """A category from LMArena's tags: {"math_v0.1": {"math": true}, …} and `is_code`."""
    if row.get("is_code") in (True, "True", "true"):
        return "coding"
    tags = row.get("category_tag")
    if isinstance(tags, Mapping):
        for key, name in _TAGS:
            if any(isinstance(group, Mapping) and group.get(key) is True for group in tags.values()):
                return name
    return None


def _is_false(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value.lower() == "false") or value in (0, "0")
