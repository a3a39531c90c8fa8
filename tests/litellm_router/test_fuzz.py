"""Requests of any form: nothing leaves the router but a ranking or LiteLLM's own list, and nothing stays behind.

`P2L_FUZZ_EXAMPLES=50000` runs as many examples on each of the two bundles, at random; by default some hundred, always
the same ones.
"""

import asyncio
import copy
import os

import pytest
from helpers.word_bundle import CLS, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litellm_router import P2LRouter, P2LSettings
from litellm_router.reasons import NotRoutedError
from p2l_plugins import P2L

EXAMPLES = os.environ.get("P2L_FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(EXAMPLES or 250),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

#: What a template, a tokenizer, a header or a log could stumble over.
TRAPS = (
    *("", " ", "\n", "\x00", "\x1b[31m", "\r\nSet-Cookie: x", "\ud800", "\udfff\ud800", "\U0001f469\u200d\U0001f4bb"),
    *(CLS, "[cls]", "<cls>", "<|user|>", "<|end|>", "[PAD]", "[UNK]", "</s>", "<|im_start|>system"),
    *("{{ 7 * 7 }}", "{% for x in y %}", "{{ raise_exception('no') }}", "%s %d {0}", "math", "code", "chat"),
)
LONG = st.builds(
    lambda word, size: word * (size // max(1, len(word))),
    st.sampled_from(("a", " ", "math ", "数学", "é", CLS, "\ud800", "{{", "\n")),
    st.sampled_from((100_000, 1_000_000, 2_000_000)),
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
SHORT = st.one_of(st.sampled_from(TRAPS), ANY_TEXT, st.lists(st.sampled_from(TRAPS), max_size=5).map("".join))
#: One in a hundred is long.
TEXT = st.integers(0, 99).flatmap(lambda n: LONG if n == 57 else SHORT)

ATOM = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), SHORT)
JSON = st.recursive(
    ATOM,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SHORT, inner, max_size=4),
    max_leaves=12,
)
PART = st.one_of(
    st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(("text", "input_text")), TEXT),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, SHORT),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, SHORT),
    st.builds(lambda inner: {"type": "tool_result", "tool_use_id": "1", "content": inner}, JSON),
    st.builds(lambda s: {"type": "thinking", "thinking": "x", "signature": s}, JSON),
    st.builds(lambda kind, text: {"type": kind, "text": text, "content": text}, JSON, JSON),
    JSON,
)
ROLE = st.one_of(st.just("user"), st.sampled_from(("system", "assistant", "tool", "developer", "function")), JSON)
CONTENT = st.one_of(TEXT, st.lists(PART, max_size=4), JSON)
TOOL_CALL = st.fixed_dictionaries({"id": JSON, "type": JSON, "function": JSON})
MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": ROLE, "content": CONTENT},
        optional={
            "name": SHORT,
            "tool_calls": st.lists(TOOL_CALL, max_size=2),
            "thinking_blocks": JSON,
            "provider_specific_fields": JSON,
            "reasoning_items": JSON,
            "encrypted_content": JSON,
            "type": JSON,
        },
    ),
    JSON,
)
CHAT = st.one_of(st.lists(MESSAGE, max_size=6), TEXT, JSON)

ASKED = st.one_of(
    st.fixed_dictionaries({}, optional={"rule": JSON, "budget": JSON, "max_cost": JSON, "objective": JSON, "no": JSON}),
    st.fixed_dictionaries({"budget": st.floats(0, 1)}),
    JSON,
)
BUCKET = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "p2l": ASKED,
            "requester_metadata": JSON,
            "session_id": JSON,
            "user_api_key_hash": JSON,
            "spend_logs_metadata": st.one_of(JSON, st.fixed_dictionaries({"p2l": JSON})),
            "attempted_retries": JSON,
            "previous_models": JSON,
            "model_info": JSON,
        },
    ),
    JSON,
)
REQUEST = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "metadata": BUCKET,
            "litellm_metadata": BUCKET,
            "litellm_call_id": JSON,
            "litellm_trace_id": JSON,
            "litellm_session_id": JSON,
            "previous_response_id": JSON,
            "container": JSON,
            "input": CHAT,
            "_retry_skipped_deployment_ids": JSON,
            "_excluded_deployment_ids": JSON,
            "_target_order": st.one_of(st.none(), st.integers(0, 3)),
        },
    ),
    st.none(),
)


class Strict(P2LRouter):
    """Does not catch what it did not foresee."""

    def _failed(self, error):
        if not isinstance(error, NotRoutedError):
            raise error
        return super()._failed(error)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module", params=["plain", "chat"])
def bundle(request, tmp_path_factory):
    return P2L.load(write_bundle(tmp_path_factory.mktemp("fuzz") / request.param, form=request.param))


@pytest.fixture(scope="module")
def routers(bundle):
    """One that remembers nothing of a request but its scores, and one with all that a router can remember."""
    patient = {"timeout_ms": 60_000, "client_rules": "any"}
    full = patient | {"rule": "paced", "budget": 5e-4, "sticky": {}, "traffic": 0.9, "output_tokens": {"alpha": 7}}
    return [Strict(P2LSettings(**options), lambda _: bundle) for options in (patient, full)]


@pytest.fixture(scope="module")
def group():
    prices = {"alpha": 4e-6, "beta": 2e-6, "gamma": 1e-6}
    return [
        {
            "model_name": "auto",
            "litellm_params": {"model": name, "input_cost_per_token": price, "output_cost_per_token": price},
            "model_info": {"id": name, "p2l_model": name},
        }
        for name, price in prices.items()
    ]


def test_no_request_breaks_the_router_and_none_leaves_a_trace(loop, routers, group):
    before = copy.deepcopy(group)
    stateless, full = routers

    async def routed(router, chat, request):
        ranked = await router.async_filter_deployments("auto", group, chat, request)
        headers = await router.async_post_call_response_headers_hook(request or {}, None, None)
        return ranked, headers

    async def probe():
        request = {"litellm_call_id": "probe", "metadata": {}}
        ranked, _ = await routed(stateless, [{"role": "user", "content": "code please"}], request)
        record = request["metadata"]["spend_logs_metadata"]["p2l"]
        ids = [one["model_info"]["id"] for one in ranked]
        return ids, {key: value for key, value in record.items() if key not in ("ms", "cache")}, set(request)

    expected = loop.run_until_complete(probe())
    assert expected[0] == ["beta"]
    assert expected[1]["ranking"] == ["beta", "gamma", "alpha"]

    async def one(chat, request):
        for router in routers:
            mine, own = copy.deepcopy(chat), copy.deepcopy(request)
            ranked, headers = await routed(router, chat, own)
            assert chat == mine
            assert group == before
            if ranked is not group:
                assert len(ranked) == 1
                assert any(ranked[0] is deployment for deployment in group)
            for name, value in (headers or {}).items():
                assert (name + value).isascii()
                assert (name + value).isprintable()
        assert await probe() == expected

    @FUZZ
    @given(CHAT, REQUEST)
    def fuzz(chat, request):
        loop.run_until_complete(one(chat, request))

    fuzz()
    assert stateless.health.counts["routed"] > 100  # the probes alone would be none of another kind
    assert full.health.counts["routed"] > 20
    assert not stateless.state().scoring.now.flights.waiting
