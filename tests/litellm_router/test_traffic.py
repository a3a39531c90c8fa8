"""What the router remembers of its traffic, and what it reads of requests that clients may fill with anything."""

import asyncio

import numpy as np
import pytest

from litellm_router.chat import sealed
from litellm_router.conversations import Conversations, Turn
from litellm_router.request import asked_of, owner_of, session_of
from litellm_router.settings import P2LSettings, Rule
from litellm_router.traffic import AnswerLengths, Traffic, weight
from p2l_plugins.routing.pacing import Pacer


def test_lengths_start_as_configured_and_follow_the_answers():
    lengths = AnswerLengths(lambda model: 500.0)
    assert lengths.expected("a") == 500
    lengths.observe("a", 79)
    assert lengths.expected("a") == pytest.approx(500 - (500 - 79) / 21)
    rng = np.random.default_rng(0)
    for tokens in rng.integers(50, 151, 2000):
        lengths.observe("a", int(tokens))
    assert lengths.expected("a") == pytest.approx(100, rel=0.1)
    for _ in range(2000):
        lengths.observe("a", 1000)
    assert lengths.expected("a") == pytest.approx(1000, rel=0.01)
    assert lengths.expected("b") == 500


def test_the_weight_of_answers_is_a_running_mean_first_and_exponential_later():
    assert weight(0, 1) == pytest.approx(1 / 21)
    assert weight(10_000, 1) == pytest.approx(0.005)
    assert 1 - weight(7, 3) == pytest.approx((1 - weight(7, 1)) * (1 - weight(8, 1)) * (1 - weight(9, 1)))


def test_lengths_that_could_not_be_handed_over_are_kept():
    lengths = AnswerLengths(lambda model: 0.0)
    lengths.observe("a", 10)
    new = lengths.take_new()
    lengths.observe("a", 5)
    lengths.give_back(new)
    assert lengths.take_new() == {"a": (2, 15.0)}


def test_answers_seen_during_a_hand_over_are_not_lost():
    lengths = AnswerLengths(lambda model: 100.0)
    lengths.take_new()
    lengths.observe("a", 200)
    lengths.see({"a": (40, 50.0)})
    assert lengths.expected("a") == pytest.approx(50 + weight(40, 1) * 150)


def test_conversations_expire_and_the_oldest_go_first():
    now = [0.0]
    conversations = Conversations(10.0, 3, clock=lambda: now[0])

    def of(name, group="g"):
        return conversations.of("", group, name, [{"role": "user", "content": "hi"}], {})

    for name in "abc":
        conversations.bind(of(name), Turn(f"model of {name}", 0.5))
    held = [asyncio.run(conversations.found(of(name))) for name in "abc"]
    assert held == [None, Turn("model of b", 0.5), Turn("model of c", 0.5)]
    assert asyncio.run(conversations.found(of("b", "other group"))) is None
    now[0] = 10.0
    assert asyncio.run(conversations.found(of("b"))) is None


def test_a_budget_is_charged_once_per_request_and_corrected_by_the_real_cost():
    traffic = Traffic(P2LSettings(rule="paced", budget=1.0))
    rule, values, costs = traffic.rule_of("g"), np.array([0.1, 0.9]), np.array([0.5, 3.0])
    pacer = traffic.pacer("g", rule, values, costs)
    assert pacer is traffic.pacer("g", rule, values, costs)
    assert pacer is not traffic.pacer("other", rule, values, costs)
    for _ in range(200):
        pacer.charge(1.0)  # until the multiplier moves by its own gain
    start = pacer.multiplier
    traffic.decided("id", pacer, 3.0)
    once = pacer.multiplier
    assert once > start
    traffic.decided("id", pacer, 3.0)  # another attempt of the same request
    assert pacer.multiplier == once
    traffic.answered("id", "m", 10, 1.0)
    assert pacer.multiplier == pytest.approx(start)
    traffic.answered("id", "m", 10, 1.0)
    traffic.decided("id", pacer, 3.0)
    assert pacer.multiplier == pytest.approx(start)


def test_a_price_that_is_unknown_is_not_charged():
    traffic = Traffic(P2LSettings(rule="paced", budget=1.0))
    pacer = traffic.pacer("g", traffic.rule_of("g"), np.array([0.1, 0.9]), np.full(2, np.nan))
    traffic.decided("id", pacer, float("nan"))
    assert pacer.multiplier == 0.0


def test_other_rules_have_no_multiplier():
    traffic = Traffic(P2LSettings())
    assert traffic.pacer("g", Rule(rule="cap", budget=1.0), np.zeros(2), np.ones(2)) is None


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "…", "signature": "abc"}]}],
        [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "abc"}]}],
        [{"role": "assistant", "content": "x", "thinking_blocks": [{"type": "thinking", "signature": "abc"}]}],
        [{"type": "reasoning", "encrypted_content": "abc", "summary": []}, {"role": "user", "content": "hi"}],
        [{"type": "item_reference", "id": "rs_1"}],
        [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "c"}],
        [{"role": "assistant", "tool_calls": [{"function": {"provider_specific_fields": {"thought_signature": "x"}}}]}],
        [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "s"}]}],
    ],
)
def test_state_of_one_provider_is_found(chat):
    assert sealed(chat, {})


@pytest.mark.parametrize(
    "chat",
    [
        None,
        "signature",
        [{"role": "user", "content": "my signature and encrypted_content"}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}],
        [{"role": "tool", "content": "result", "tool_call_id": "1"}],
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "plain", "signature": ""}]}],
        [{"type": "reasoning", "encrypted_content": None, "summary": []}],
        [None, 3, ["x"]],
    ],
)
def test_what_any_provider_can_read_is_not_sealed(chat):
    assert not sealed(chat, {})


def test_a_response_of_before_seals_the_conversation():
    assert sealed("and now?", {"previous_response_id": "resp_1"})


def test_a_session_belongs_to_the_key_that_named_it():
    conversations = Conversations()

    def conversation(request):
        return conversations.of(owner_of(request), "g", session_of(request), "hi", request).session

    one = {"metadata": {"session_id": "s", "user_api_key_hash": "k1"}}
    assert conversation(one) == conversation({"litellm_metadata": {"session_id": "s", "user_api_key_hash": "k1"}})
    assert conversation(one) != conversation({"metadata": {"session_id": "s", "user_api_key_hash": "k2"}})
    assert conversation({"litellm_session_id": "s"}) not in (None, b"s")
    for nothing in ({}, {"metadata": None}, {"metadata": {"session_id": 3}}, {"metadata": {"session_id": ""}}):
        assert conversation(nothing) is None
    conversation({"metadata": {"session_id": "\ud800"}})


def test_what_a_client_asks_is_found_on_every_route():
    asked = {"budget": 1.0}
    assert asked_of({"metadata": {"p2l": asked}}) == asked
    assert asked_of({"litellm_metadata": {}, "metadata": {"p2l": asked}}) == asked
    assert asked_of({"litellm_metadata": {"requester_metadata": {"p2l": asked}}}) == asked
    assert asked_of({"metadata": "x"}) is asked_of({}) is None


def test_a_conversation_draws_one_number_that_a_client_can_neither_choose_nor_tell():
    ours, others = Conversations(secret=b"s"), Conversations()
    conversation = [one.of("k", "g", "id", "hi", {}) for one in (ours, Conversations(secret=b"s"), others)]
    shares = [one.share(c) for one, c in zip((ours, Conversations(secret=b"s"), others), conversation, strict=True)]
    assert shares[0] == shares[1] != shares[2]
    drawn = [ours.share(ours.of("k", "g", str(i), "hi", {})) for i in range(2000)]
    assert np.mean(np.array(drawn) < 0.25) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("odd", [300.0, 1 / 300.0])
def test_a_first_request_that_is_unlike_the_others_does_not_keep_the_budget_from_being_spent(odd):
    rng = np.random.default_rng(0)
    n = 3000
    cost = np.tile([1.0, 10.0], (n, 1))
    gain = rng.exponential(0.1, n)
    gain[0] = 0.1 * odd  # what the dear model is worth more
    value = np.stack([np.full(n, 0.5), 0.5 + gain], axis=1)
    pacer, spent = Pacer(5.5), 0.0
    for v, c in zip(value, cost, strict=True):
        pacer.start_from(v, c)
        chosen = c[int((v - pacer.multiplier * c).argmax())]
        pacer.charge(chosen)
        spent += chosen
    assert spent / n == pytest.approx(5.5, rel=0.02)
