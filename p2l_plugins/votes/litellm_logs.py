"""LiteLLM's logs with feedback: StandardLoggingPayload as loggers get it, or rows of LiteLLM_SpendLogs, as JSONL.

LiteLLM has no field for feedback in these logs. It keeps what a client sends as `metadata` under
`metadata.requester_metadata`, and `spend_logs_metadata` under that name; so feedback stands in one of these, at the
top level, or in a second file joined by an id. docs/votes.md has the accepted forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.tally import Skip, Tally, shown
from p2l_plugins.votes.values import decoded, finite, model_name, outcome_of, seconds, turns_of, two_models
from p2l_plugins.votes.votes import VoteBuilder, Votes, outcome_of_scores

NameBy = Literal["model", "model_group", "model_id"]

#: Keys that name a request, in a log row and in a row of feedback.
_IDS = ("id", "request_id", "litellm_call_id", "trace_id")
_RATINGS = ("rating", "score", "thumbs")
_WORDS = {"up": 1.0, "thumbs_up": 1.0, "true": 1.0, "down": 0.0, "thumbs_down": 0.0, "false": 0.0}
_REDACTED = "redacted-by-litellm"
_TRUNCATED = "litellm_truncated skipped"


@dataclass
class Feedback:
    """Feedback from a file of its own.

    Attributes:
        by_id: the feedback for a request, under each id that names it.
        unused: ids that no log row has had so far.
    """

    by_id: dict[str, list[Any]] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)


def read_feedback(rows: Iterable[tuple[str, Row]], tally: Tally) -> Feedback:
    """Feedback by request: rows with one of `id`, `request_id`, `litellm_call_id`, `trace_id`, and a rating or winner.

    Raises:
        DataError: a row without an id, unless the tally drops them (rule "bad-feedback").
    """
    feedback = Feedback()
    for place, row in rows:
        key = next((row[name] for name in _IDS if isinstance(row.get(name), str) and row[name]), None)
        if key is None:
            tally.bad(place, BadRow("bad-feedback", f"no id; valid: one of {', '.join(_IDS)}"))
            continue
        feedback.by_id.setdefault(key, []).extend(_listed(row.get("feedback", row)))
    feedback.unused = set(feedback.by_id)
    return feedback


def litellm_votes(
    rows: Iterable[tuple[str, Row]],
    tally: Tally,
    *,
    feedback: Feedback | None = None,
    name_by: NameBy = "model",
    max_score: float = 1.0,
    margin: float = 0.0,
    usable: float = 0.5,
) -> Votes:
    """Votes from pairwise feedback, then from ratings of two models' answers to the same prompt.

    Several ratings of one model on one prompt become their mean. Rules that drop a row: "no-feedback",
    "failed-request", "empty-prompt" (also where the log does not hold the messages), "redacted-prompt",
    "truncated-prompt", "same-model", and "no-partner", which counts ratings.

    Args:
        rows: places and log rows.
        feedback: from another file.
        name_by: the key of a row that names the model of a rated answer. A group (`model_group`) in which several
            models answered is none: there the model that answered counts, by P2L's record of it or the row's `model`.
        max_score: what numbers are divided by; −1, up, down, true and false stay.
        margin: ratings that differ by no more are a tie.
        usable: a tie of ratings below this is "tie (bothbad)".

    Raises:
        DataError: the first bad row, unless the tally drops them.
    """
    builder = VoteBuilder()
    ratings = _Ratings()
    for place, row in rows:
        try:
            _read_row(row, builder, ratings, feedback, name_by, max_score)
        except BadRow as error:
            tally.bad(place, error)
    if routed := ratings.without_routed():
        tally.note(f"{', '.join(routed)}: more than one model answered, so each answer is named by its model")
    ratings.compare(builder, tally, margin, usable)
    if feedback is not None and feedback.unused:
        tally.note(f"{len(feedback.unused)} of {len(feedback.by_id)} requests with feedback are not in the log")
    return builder.votes()


class _Ratings:
    """Ratings of each prompt's answers: turns → name → [sum, count, time of the last].

    A group's name is kept with that of the model that answered, until it is known whether it stands for one model.
    """

    def __init__(self) -> None:
        self._of: dict[Turns, dict[str, list[float]]] = {}
        self._in_groups: list[tuple[Turns, str, str, float, float]] = []

    def add(self, turns: Turns, model: str, rating: float, time: float) -> None:
        total = self._of.setdefault(turns, {}).setdefault(model, [0.0, 0.0, time])
        total[:] = total[0] + rating, total[1] + 1, max(total[2], time)

    def add_in_group(self, turns: Turns, group: str, model: str, rating: float, time: float) -> None:
        self._in_groups.append((turns, group, model, rating, time))

    def without_routed(self) -> list[str]:
        """Adds the ratings of groups, by the group where it is one model's; the groups of several models."""
        models: dict[str, set[str]] = {}
        for _, group, model, _, _ in self._in_groups:
            models.setdefault(group, set()).add(model)
        routed = [group for group, some in models.items() if len(some) > 1]
        for turns, group, model, rating, time in self._in_groups:
            self.add(turns, model if group in routed else group, rating, time)
        return routed

    def compare(self, builder: VoteBuilder, tally: Tally, margin: float, usable: float) -> None:
        """Adds a vote for every two models that were rated on one prompt."""
        for turns, answers in self._of.items():
            if len(answers) == 1:
                tally.drop("no-partner", int(next(iter(answers.values()))[1]))
            for (a, (sum_a, n_a, t_a)), (b, (sum_b, n_b, t_b)) in itertools.combinations(answers.items(), 2):
                outcome = int(outcome_of_scores(sum_a / n_a, sum_b / n_b, margin, usable))
                builder.add(turns, (a, b), outcome, timestamp=max(t_a, t_b))


def _read_row(
    row: Row, builder: VoteBuilder, ratings: _Ratings, feedback: Feedback | None, name_by: NameBy, max_score: float
) -> None:
    items = list(_feedback_of(row, feedback))
    if not items:
        raise Skip("no-feedback")
    if row.get("status") == "failure":
        raise Skip("failed-request")
    turns = logged_turns(row)
    time = seconds(row.get("startTime"), "startTime")
    for item in items:
        if isinstance(item, Mapping) and "winner" in item:
            outcome = outcome_of(item["winner"])
            builder.add(turns, two_models(item, "feedback."), outcome, timestamp=time)
        else:
            rating = _rating(item, max_score)
            name = model_name(row.get(name_by), name_by)
            if name_by == "model_group":
                ratings.add_in_group(turns, name, _answered(row) or name, rating, time)
            else:
                ratings.add(turns, name, rating, time)


def _answered(row: Row) -> str | None:
    """The model that answered: by the name that P2L recorded, else LiteLLM's."""
    record = _object(_object(_object(row.get("metadata")).get("spend_logs_metadata")).get("p2l"))
    return next((name for name in (record.get("answered"), row.get("model")) if isinstance(name, str) and name), None)


def _feedback_of(row: Row, feedback: Feedback | None) -> Iterator[Any]:
    """What the row itself holds, else what the file of feedback has for one of its ids."""
    metadata = _object(row.get("metadata"))
    places = [row, metadata, _object(metadata.get("spend_logs_metadata")), _object(metadata.get("requester_metadata"))]
    for place in places:
        if place.get("feedback") is not None:
            yield from _listed(place["feedback"])
            return
    if feedback is not None:
        for name in _IDS:
            key = row.get(name)
            if isinstance(key, str) and key in feedback.by_id:
                feedback.unused.discard(key)
                yield from feedback.by_id[key]
                return


def _listed(value: Any) -> list[Any]:
    value = decoded(value)
    return value if isinstance(value, list) else [value]


def _object(value: Any) -> Mapping[str, Any]:
    value = decoded(value)
    return value if isinstance(value, Mapping) else {}


def _rating(item: Any, max_score: float) -> float:
    """A rating from 0 to 1."""
    value = item
    if isinstance(item, Mapping):
        value = next((item[key] for key in _RATINGS if item.get(key) is not None), None)
        if value is None:
            raise BadRow("bad-feedback", f"feedback has {shown(list(item))}; valid: winner, {', '.join(_RATINGS)}")
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    try:
        number = finite(value, "the rating", "bad-feedback")
    except BadRow:
        number = math.nan
    if number == -1:
        return 0.0
    if not 0 <= number <= max_score:
        raise BadRow(
            "bad-feedback",
            f"the rating is {shown(value)}; valid: up, down, true, false, 1, -1, or 0 to {max_score:g} (--max-score)",
        )
    return number / max_score


def logged_turns(row: Row) -> Turns:
    """The user turns of a log row, from `messages`, else from the request that the spend logs store.

    Raises:
        Skip: "empty-prompt", "redacted-prompt", "truncated-prompt".
        BadRow: "bad-prompt": neither text nor messages.
    """
    turns = None
    for value in (row.get("messages"), row.get("proxy_server_request")):
        found = _conversation(value)
        if found is not None:
            turns = turns_of(found, "messages")
            break
    if turns is None:
        raise Skip("empty-prompt")
    if any(turn == _REDACTED for turn in turns):
        raise Skip("redacted-prompt")
    if any(_TRUNCATED in turn for turn in turns):
        raise Skip("truncated-prompt")
    return turns


def _conversation(value: Any) -> Any:
    """Messages, a text, or None: of a value, or of a request's body that holds it."""
    found = decoded(value)
    if isinstance(found, Mapping):
        body = _object(found.get("body")) or found
        inner = next((body[key] for key in ("messages", "input", "prompt") if body.get(key)), None)
        return None if inner is None else decoded(inner)
    if isinstance(found, list) and not any(isinstance(message, Mapping) for message in found):
        return value if isinstance(value, str) else found or None
    return found or None
