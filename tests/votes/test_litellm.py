"""LiteLLM's logs with feedback."""

import json
import time

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import BAD, TIE, A, B
from p2l_plugins.votes.litellm_logs import litellm_votes, read_feedback
from p2l_plugins.votes.tally import Tally

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def log(model="x", rating=None, **keys):
    row = {"id": "1", "model": model, "model_group": "g", "messages": MESSAGES, "metadata": {}, "startTime": 5.0}
    if rating is not None:
        row["metadata"] = {"spend_logs_metadata": {"feedback": {"rating": rating}}}
    return {**row, **keys}


def placed(rows, name="row"):
    return [(f"{name} {i}", row) for i, row in enumerate(rows, 1)]


def imported(*rows, on_error="refuse", feedback=None, **options):
    tally = Tally(on_error)
    known = None if feedback is None else read_feedback(placed(feedback, "feedback"), tally)
    return litellm_votes(placed(rows), tally, feedback=known, **options), tally


def pairs(votes):
    return [(votes.models[a], votes.models[b], int(o)) for a, b, o in zip(votes.a, votes.b, votes.outcome, strict=True)]


@pytest.mark.parametrize(
    "place",
    [
        lambda f: {"feedback": f},
        lambda f: {"feedback": json.dumps(f)},
        lambda f: {"metadata": {"feedback": f}},
        lambda f: {"metadata": {"spend_logs_metadata": {"feedback": f}}},
        lambda f: {"metadata": {"requester_metadata": {"feedback": f}}},
        lambda f: {"metadata": json.dumps({"spend_logs_metadata": {"feedback": f}})},
    ],
)
def test_pairwise_feedback_is_a_vote_wherever_it_stands(place):
    feedback = {"winner": "model_b", "model_a": "x", "model_b": "y"}
    votes, tally = imported(log(**place(feedback)))
    assert votes.prompts == [("hello",)]
    assert pairs(votes) == [("x", "y", B)]
    assert votes.timestamp.tolist() == [5.0]
    assert not tally.dropped


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [
        ("up", "down", A),
        (False, True, B),
        (1, -1, A),
        (0.2, 0.9, B),
        ("thumbs_up", "true", TIE),
        ("down", 0, BAD),
        ("0.75", "0.5", A),
    ],
)
def test_two_ratings_of_the_same_prompt_are_a_vote(a, b, outcome):
    votes, _ = imported(log("x", a), log("y", b))
    assert pairs(votes) == [("x", "y", outcome)]


def test_bare_ratings_and_other_keys_count():
    rows = [log("x", feedback="up"), log("y", feedback={"thumbs": "down"}), log("z", feedback={"score": 0.5})]
    votes, _ = imported(*rows)
    assert pairs(votes) == [("x", "y", A), ("x", "z", A), ("y", "z", B)]


def test_margin_usable_and_the_best_rating():
    rows = [log("x", 8), log("y", 7), log("z", 1)]
    votes, _ = imported(*rows, max_score=10, margin=0.15)
    assert pairs(votes) == [("x", "y", TIE), ("x", "z", A), ("y", "z", A)]
    assert imported(*rows, max_score=10, margin=0.15, usable=0.9)[0].outcome.tolist() == [BAD, A, A]


def test_several_ratings_of_one_model_are_averaged():
    votes, _ = imported(log("x", 1), log("x", 0), log("y", 0.4, startTime=9.0))
    assert pairs(votes) == [("x", "y", A)]
    assert votes.timestamp.tolist() == [9.0]


def test_ratings_without_a_partner_and_rows_without_feedback_are_counted():
    votes, tally = imported(
        log("x", "up"),
        log("x", "down"),
        log("y", "up", messages=[{"role": "user", "content": "other"}]),
        log("y"),
        log("y", "up", status="failure"),
    )
    assert len(votes) == 0
    assert tally.dropped == {"no-partner": 3, "no-feedback": 1, "failed-request": 1}


def test_prompts_that_the_log_does_not_hold_are_dropped_by_name():
    redacted = [{"role": "user", "content": "redacted-by-litellm"}]
    cut = [{"role": "user", "content": "abc... (litellm_truncated skipped 9 chars. note) ...xyz"}]
    votes, tally = imported(
        log("x", "up", messages=redacted),
        log("x", "up", messages=cut),
        log("x", "up", messages="{}"),
        log("x", "up", messages=None),
    )
    assert len(votes) == 0
    assert tally.dropped == {"redacted-prompt": 1, "truncated-prompt": 1, "empty-prompt": 2}


def test_rows_of_the_spend_logs_hold_json_text():
    request = {"model": "g", "messages": MESSAGES}
    rows = [
        {
            "request_id": str(i),
            "model": model,
            "messages": "{}",
            "proxy_server_request": json.dumps(request),
            "metadata": json.dumps({"spend_logs_metadata": {"feedback": {"rating": rating}}}),
            "startTime": "2026-01-02T03:04:05.000Z",
        }
        for i, (model, rating) in enumerate([("x", "up"), ("y", "down")])
    ]
    votes, _ = imported(*rows)
    assert votes.prompts == [("hello",)]
    assert pairs(votes) == [("x", "y", A)]
    assert votes.timestamp.tolist() == [1767323045.0]


def test_text_completions_and_responses_have_prompts_too():
    rows = [log("x", "up", messages="[complete me"), log("y", "down", messages={"input": "[complete me"})]
    votes, _ = imported(*rows)
    assert votes.prompts == [("[complete me",)]


def test_models_can_be_named_by_another_key():
    rows = [log("x", "up", model_group="a"), log("x", "down", model_group="b")]
    assert pairs(imported(*rows, name_by="model_group")[0]) == [("a", "b", A)]
    assert len(imported(*rows)[0]) == 0


def test_feedback_from_another_file_is_joined_by_any_id():
    rows = [
        log("x", id="r1"),
        log("y", id="r2", trace_id="t2"),
        log("z", id="r3", litellm_call_id="c3"),
        log("w", id="r4"),
    ]
    feedback = [
        {"request_id": "r1", "rating": "up"},
        {"trace_id": "t2", "trace_ref": "", "feedback": [{"score": 0, "comment": "no"}, {"score": 1}]},
        {"litellm_call_id": "c3", "thumbs": "down"},
        {"id": "lost", "rating": "up"},
    ]
    votes, tally = imported(*rows, feedback=feedback)
    assert pairs(votes) == [("x", "y", A), ("x", "z", A), ("y", "z", A)]
    assert tally.dropped == {"no-feedback": 1}
    assert tally.notes == ["1 of 4 requests with feedback are not in the log"]
    with pytest.raises(DataError, match="feedback 1: no id; valid: one of id, request_id, litellm_call_id, trace_id"):
        imported(*rows, feedback=[{"rating": "up"}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (log("x", "great"), "the rating is 'great'; valid: up, down, true, false, 1, -1, or 0 to 1"),
        (log("x", 7), "the rating is 7; valid"),
        (log("x", feedback={"comment": "?"}), r"feedback has \['comment'\]; valid: winner, rating, score, thumbs"),
        (log("", "up"), "model is '', but must be a model's name"),
        (log(feedback={"winner": "x", "model_a": "x", "model_b": "y"}), "winner is 'x'; valid: 'model_a'"),
        (log(feedback={"winner": "tie", "model_a": "x"}), "column 'feedback.model_b' is missing"),
        (log("x", "up", startTime="noon"), "startTime is 'noon'"),
    ],
)
def test_bad_values_are_refused_with_the_row_or_dropped(row, message):
    with pytest.raises(DataError, match=f"^row 1: {message}"):
        imported(row)
    votes, tally = imported(row, on_error="drop")
    assert len(votes) == 0
    assert tally.dropped.total() == 1


def test_what_litellm_really_logs_is_read(monkeypatch):
    litellm = pytest.importorskip("litellm")
    from litellm.integrations.custom_logger import CustomLogger

    logged = []

    class Keep(CustomLogger):
        def log_success_event(self, kwargs, response_obj, start_time, end_time):
            logged.append(json.loads(json.dumps(kwargs["standard_logging_object"], default=str)))

    monkeypatch.setattr(litellm, "callbacks", [Keep()])
    content = [{"type": "text", "text": "hello"}]
    messages = [MESSAGES[0], {"role": "user", "content": content}]
    for model, place in (("gpt-4o", "spend_logs_metadata"), ("gpt-4o-mini", "metadata")):
        feedback = {"feedback": {"rating": "up" if model == "gpt-4o" else "down"}}
        litellm.completion(f"openai/{model}", messages, mock_response="hi", metadata={place: feedback})
    deadline = time.monotonic() + 30
    while len(logged) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    votes, tally = imported(*logged)
    assert votes.prompts == [("hello",)]
    winner = np.where(votes.outcome == A, votes.a, votes.b)
    assert [votes.models[i] for i in winner] == ["gpt-4o"]
    assert not tally.dropped


def test_a_group_of_several_models_is_no_model():
    """Behind a routed group each answer is named by the model that gave it."""
    answered = {"spend_logs_metadata": {"p2l": {"answered": "llama"}, "feedback": {"rating": "down"}}}
    rows = [
        log("openai/gpt", "up", model_group="auto"),
        log("openai/llama-8b", model_group="auto", metadata=answered),
        log("z", "up", model_group="plain"),
    ]
    votes, tally = imported(*rows, name_by="model_group")
    assert sorted(pairs(votes)) == sorted(
        [("openai/gpt", "llama", A), ("openai/gpt", "plain", TIE), ("llama", "plain", B)]
    )
    assert tally.notes == ["auto: more than one model answered, so each answer is named by its model"]
