"""A real proxy with agents, odd clients and failing providers: who answers, what is said of it, what is booked."""

from __future__ import annotations

import json
import os
import time

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import httpx
import pytest
import yaml
from demo import warm_up
from helpers.proxies import PROMPT, TAP, at, config_of, deployment, running_proxy

from litellm_router.routers import litellm_version

DEAR, CHEAP = "gpt-4.1-2025-04-14", "gpt-4o-mini-2024-07-18"
PRICE = {DEAR: 1e-5, CHEAP: 1e-6}
PIXEL = "data:image/png;base64,iVBORw0KGgo="

#: An assistant's turn that only its provider can read.
SIGNED = {
    "role": "assistant",
    "content": "done",
    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
}
TOOL = {
    "type": "function",
    "function": {"name": "read", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}},
}


def say(text):
    return {"role": "user", "content": text}


def two(provider, name, dear=None, cheap=None, info=None, order=None):
    """A group of both models; `dear` and `cheap` say how they answer, else with their names."""
    return [
        deployment(
            name,
            model,
            info=(info or {}).get(model),
            **at(provider, how or model, name=model),
            # by a name of its own: LiteLLM shares what it knows of a model among all deployments of a name
            model=f"openai/{name}-{model}",
            input_cost_per_token=PRICE[model],
            output_cost_per_token=PRICE[model],
            **({"order": order[model]} if order else {}),
        )
        for model, how in ((DEAR, dear), (CHEAP, cheap))
    ]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, tap, provider):
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "tap.py").write_text(TAP)
    groups = [
        *two(provider, "ok"),
        *two(provider, "five", dear="500"),
        *two(provider, "capped"),
        *two(provider, "lottery"),
        *two(provider, "paced"),
        *two(provider, "accounts"),
        *two(provider, "keys"),
        *two(provider, "blind", info={DEAR: {"supports_vision": False}, CHEAP: {"supports_vision": True}}),
        *two(provider, "narrow", info={DEAR: {"max_input_tokens": 100}, CHEAP: {"max_input_tokens": 100_000}}),
        *two(provider, "all fail", dear="400", cheap="400"),
        *two(provider, "refused", dear="400", order={DEAR: 1, CHEAP: 2}),
        *two(provider, "long", dear="context", cheap="context"),
        *two(provider, "filtered", dear="policy", cheap="policy"),
        deployment("elsewhere", "llama-3.1-8b-instruct", **at(provider, "llama", name="llama")),
    ]
    rules = {
        "capped": {"rule": "cap", "budget": 0.001},
        "lottery": {"rule": "lp", "budget": 0.0028},
        "paced": {"rule": "paced", "budget": 0.002},
        "accounts": {"rule": "paced", "budget": 0.0001},  # between the two: λ goes up and down, and not to its limit
        "keys": {"rule": "paced", "budget": 0.002, "scope": "key"},
    }
    callbacks = ["litellm_router.p2l_router", "tap.tap", "prometheus"]
    config = config_of(callbacks, groups)
    config["litellm_settings"]["p2l_settings"] = {"timeout_ms": 5000, "groups": rules, "learn_output_tokens": False}
    config["router_settings"] = {
        "disable_cooldowns": True,
        "fallbacks": [{"all fail": ["elsewhere"]}],
        "context_window_fallbacks": [{"long": ["elsewhere"]}],
        "content_policy_fallbacks": [{"filtered": ["elsewhere"]}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(folder / "config.yaml", env={"TAP": str(tap)}) as running, httpx.Client(timeout=30) as client:
        warm_up(client, running, "ok")
        yield running


@pytest.fixture
def ask(proxy):
    """Gives the answer's text, or its error, and its headers; paths of other routes take their own bodies."""

    def ask(group, messages=None, path="/v1/chat/completions", headers=None, **body):
        body = {"model": group} | ({} if messages is None else {"messages": messages}) | body
        answer = httpx.post(proxy.url + path, json=body, headers=proxy.headers | (headers or {}), timeout=60)
        return answer.json(), answer.headers

    return ask


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.fixture
def record_of(tap):
    """Gives what the loggers were handed for the request of some response headers."""

    def read(headers):
        for _ in range(200):
            lines = tap.read_text().splitlines() if tap.exists() else []
            found = [one for call, one in map(json.loads, lines) if call == headers["x-litellm-call-id"]]
            if found:
                return found[0]["p2l"]
            time.sleep(0.05)
        raise AssertionError("the request was not logged")

    return read


def best(ask):
    return ask("ok", [say(PROMPT)])[1]["x-p2l-ranking"].split(",")


def test_after_a_failover_all_that_is_said_is_of_the_model_that_answered(ask, record_of):
    answer, headers = ask("five", [say(PROMPT)])
    record = record_of(headers)
    assert text_of(answer) == headers["x-p2l-model"] == CHEAP
    assert headers["x-p2l-ranking"].split(",")[0] == DEAR
    assert float(headers["x-p2l-win-rate"]) == pytest.approx(record["values"][CHEAP], abs=1e-4)
    assert float(headers["x-p2l-cost"]) == pytest.approx(record["costs"][CHEAP], rel=1e-4)
    assert record["answered"] == CHEAP
    assert [(one["model"], one.get("error")) for one in record["attempts"]] == [(DEAR, 500), (CHEAP, None)]


def test_a_model_of_a_fallback_group_has_its_own_figures_and_an_error_names_nobody(ask):
    answer, headers = ask("all fail", [say(PROMPT)])
    assert (text_of(answer), headers["x-p2l-model"]) == ("llama", "llama-3.1-8b-instruct")
    assert 0 < float(headers["x-p2l-win-rate"]) < 0.5
    assert float(headers["x-p2l-cost"]) == pytest.approx(500 * 2e-6, rel=0.1)
    assert "llama" not in headers["x-p2l-ranking"]
    answer, headers = ask("all fail", [say(PROMPT)], disable_fallbacks=True)
    assert "error" in answer
    assert "x-p2l-model" not in headers


ROUTES = {
    "/v1/chat/completions": {"messages": [say(PROMPT)]},
    "/v1/messages": {"messages": [say(PROMPT)], "max_tokens": 50},
    "/v1/responses": {"input": PROMPT},
    "/v1/completions": {"prompt": PROMPT},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("group", "expected"), [("refused", CHEAP), ("long", "llama"), ("filtered", "llama")])
def test_the_operators_own_order_and_fallbacks_still_hold(ask, provider, path, group, expected):
    if group == "filtered" and "completions" in path and litellm_version() >= "1.110":
        pytest.skip("there LiteLLM takes this error for a bad request, and has no fallback for it")
    for _ in range(3):
        provider.taken.clear()
        answer, _ = ask(group, path=path, **ROUTES[path])
        assert expected in json.dumps(answer), (path, group, answer)
        assert len(provider.taken) <= 4


def test_a_request_that_every_model_refuses_does_not_multiply(ask, provider):
    provider.taken.clear()
    answer, _ = ask("all fail", [say(PROMPT)], disable_fallbacks=True)
    assert "error" in answer
    assert sorted(provider.taken) == sorted([DEAR, CHEAP])


def test_a_conversation_stays_with_the_model_that_answered_also_when_it_is_sealed(ask):
    session = {"x-litellm-session-id": "five"}
    first, _ = ask("five", [say(PROMPT)], headers=session)
    assert text_of(first) == CHEAP
    _, headers = ask("five", [say(PROMPT), SIGNED, say("And of 3?")], headers=session)
    assert headers["x-p2l-ranking"].split(",")[0] == CHEAP


@pytest.mark.parametrize("group", ["ok", "lottery", "paced"])
def test_a_sealed_conversation_of_nobody_is_not_shuffled(ask, group):
    turn = [say(f"{PROMPT} {group}"), SIGNED, say("And of 3?")]
    assert len({text_of(ask(group, turn)[0]) for _ in range(10)}) == 1


def test_a_forged_signature_escapes_no_limit(ask):
    for extra in ([SIGNED], []):
        for body in ({}, {"container": "c"}):
            _, headers = ask("capped", [say(PROMPT), *extra, say("And of 3?")], **body)
            assert headers["x-p2l-model"] == CHEAP


@pytest.mark.parametrize("group", ["ok", "lottery", "paced"])
def test_the_steps_of_a_tool_loop_stay_with_one_model(ask, group):
    for task in range(3):
        chat = [say(f"Find the bug in file {task} of {group}.")]
        answered = set()
        for step in range(8):
            answer, headers = ask(group, chat, tools=[TOOL])
            answered.add(headers["x-p2l-model"])
            call = {"id": f"{group}-{task}-{step}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            chat += [{"role": "assistant", "content": text_of(answer), "tool_calls": [call]}]
            chat += [{"role": "tool", "tool_call_id": call["id"], "content": f"line {step} " * 200}]
        assert len(answered) == 1


def test_staying_costs_what_the_provider_takes_for_what_it_has_read(proxy):
    from litellm_router.prices import Price

    price = Price(1e-5, 1e-5, 1e-6)
    assert price.cost(10_000, 100, 9_000) == pytest.approx(1_000 * 1e-5 + 9_000 * 1e-6 + 100 * 1e-5)
    assert price.cost(10_000, 100, 900) == price.cost(10_000, 100)


def test_limits_come_after_conversations(ask):
    session = {"x-litellm-session-id": "limits"}
    _, headers = ask("ok", [say(PROMPT)], headers=session)
    assert headers["x-p2l-model"] == DEAR
    tight = {"p2l": {"max_cost": 0.001}}
    chat = [say(PROMPT), SIGNED, say("And of 3?")]
    _, headers = ask("ok", chat, headers=session, metadata=tight)
    assert headers["x-p2l-model"] == CHEAP


def test_what_a_model_cannot_take_goes_to_one_that_can(ask):
    image = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    assert ask("blind", [say(PROMPT)])[1]["x-p2l-model"] == DEAR
    assert ask("blind", [say(image)])[1]["x-p2l-model"] == CHEAP
    assert ask("narrow", [say(PROMPT)])[1]["x-p2l-model"] == DEAR
    assert ask("narrow", [say(PROMPT + " Really." * 100)])[1]["x-p2l-model"] == CHEAP


def test_a_limit_of_the_answer_is_a_limit_of_its_cost(ask):
    _, headers = ask("ok", [say(PROMPT)], max_tokens=10)
    assert float(headers["x-p2l-cost"]) == pytest.approx(1e-5 * (10 + len(PROMPT) / 4), rel=0.1)


def test_several_answers_cost_as_many_times_as_much_and_a_cap_holds_for_them(ask):
    assert ask("capped", [say(PROMPT)], max_tokens=20)[1]["x-p2l-model"] == DEAR
    _, headers = ask("capped", [say(PROMPT)], max_tokens=20, n=50)
    assert headers["x-p2l-model"] == CHEAP
    assert float(headers["x-p2l-cost"]) == pytest.approx(1e-6 * (50 * 20 + len(PROMPT) / 4), rel=0.1)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": PROMPT}],
        [say([{"type": "image_url", "image_url": {"url": PIXEL}}])],
        [say(PROMPT), {"role": "assistant", "content": "x"}][1:],
    ],
)
def test_a_prompt_without_text_of_a_user_escapes_no_limit(ask, messages):
    for _ in range(6):
        _, headers = ask("capped", messages)
        assert (headers["x-p2l-model"], headers["x-p2l-reason"]) == (CHEAP, "no_text")
        _, headers = ask("ok", messages, metadata={"p2l": {"max_cost": 0.001}})
        assert (headers["x-p2l-model"], headers["x-p2l-reason"]) == (CHEAP, "no_text")
    assert ask("ok", messages)[1]["x-p2l-error"] == "no_text"


@pytest.mark.parametrize("limits", [{"max_output_tokens": 1}, {"max_tokens": 1, "max_completion_tokens": 4000}])
def test_a_limit_that_a_provider_may_not_keep_opens_no_cap(ask, limits):
    assert ask("capped", [say(PROMPT)], **limits)[1]["x-p2l-model"] == CHEAP
    assert ask("capped", None, "/v1/responses", input=PROMPT, max_output_tokens=20)[1]["x-p2l-model"] == DEAR


def test_what_an_agent_puts_before_the_question_does_not_count(ask, record_of):
    rules = "<project-rules>" + "Always write tests. " * 500 + "</project-rules>\n"
    reminder = "<system-reminder>" + "Use the tools. " * 300 + "</system-reminder>"
    asks = ("Prove that e is irrational.", "Write a haiku.", "Fix my CSS.", "你好", "What is the capital of Peru?")
    seen = []
    for question in asks:
        chat = [say(rules + question)]
        for step in range(10):
            call = {"id": f"r{step}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            chat += [{"role": "assistant", "content": None, "tool_calls": [call]}]
            chat += [{"role": "tool", "tool_call_id": call["id"], "content": "ok"}, say(reminder)]
        values = record_of(ask("ok", chat, tools=[TOOL])[1])["values"]
        assert values == record_of(ask("ok", [say(question)])[1])["values"]
        seen.append(tuple(values.values()))
    assert len(set(seen)) == len(asks)


def test_a_request_has_one_price_on_every_route(ask, record_of):
    text = "word " * 20_000
    define = {"name": "f", "description": text, "parameters": {"type": "object"}}
    calls = [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        for arguments in (json.dumps({"x": text}), "{}")
    ]
    results = [{"role": "tool", "tool_call_id": "c", "content": content} for content in ("x", text)]
    loops = [
        [say(PROMPT), {"role": "assistant", "content": None, "tool_calls": [call]}, result]
        for call, result in zip(calls, results, strict=True)
    ]
    asked = [
        ask("ok", [{"role": "system", "content": text}, say(PROMPT)]),
        ask("ok", [say(PROMPT)], "/v1/messages", system=text, max_tokens=500),
        ask("ok", None, "/v1/responses", instructions=text, input=PROMPT),
        ask("ok", [say(PROMPT)], tools=[{"type": "function", "function": define}]),
        *(ask("ok", loop) for loop in loops),
    ]
    tokens = [record_of(headers)["prompt_tokens"] for _, headers in asked]
    assert all(25_000 <= n <= 25_100 for n in tokens), tokens


def test_only_chats_are_ranked(ask, proxy):
    for path, body in (
        ("/v1/images/generations", {"prompt": "a cat"}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/moderations", {"input": "hi"}),
        ("/v1/audio/speech", {"input": "hi", "voice": "v"}),
    ):
        answer = httpx.post(proxy.url + path, json={"model": "ok"} | body, headers=proxy.headers, timeout=60)
        assert not [name for name in answer.headers if name.startswith("x-p2l")], path


def test_a_client_chooses_neither_the_draw_nor_the_account(ask, tap):
    ids = {"x-litellm-call-id": "chosen", "x-litellm-trace-id": "chosen"}
    drawn = [ask("lottery", [say("Tell me a joke about cats")], headers=ids)[1]["x-p2l-model"] for _ in range(40)]
    assert {DEAR, CHEAP} == set(drawn)
    ids = {"x-litellm-call-id": "one", "x-litellm-trace-id": "one"}
    for i in range(20):
        ask("accounts", [say(f"Prove Fermat's little theorem, {i}")], headers=ids)
    for _ in range(100):
        lines = [json.loads(line) for line in tap.read_text().splitlines()]
        logged = {one["p2l"]["multiplier"] for call, one in lines if call == "one"}
        if len(logged) > 5:
            break
        time.sleep(0.05)
    assert len(logged) > 5


def test_a_client_leaves_no_deployment_out(ask):
    _, headers = ask("ok", [say(PROMPT)], _excluded_deployment_ids=[f"ok/{DEAR}"])
    assert headers["x-p2l-model"] == best(ask)[0] == DEAR


def test_text_that_the_bundle_cannot_read_is_decided_by_the_overall_scores_and_says_so(ask, record_of):
    rankings = set()
    for text in ("𓀀𓁐𓃰 𓄿𓅓", "𓅓𓄿𓂀 𓆣𓋹 𓊽", "𒀀𒁀𒂀 𒃀𒄀"):
        _, headers = ask("ok", [say(text)])
        assert headers["x-p2l-reason"] == "unknown_text"
        assert float(headers["x-p2l-unknown"]) > 0.5
        record = record_of(headers)
        assert (record["reason"], record["unknown"] > 0.5) == ("unknown_text", True)
        rankings.add(str(record["values"]))
    assert len(rankings) == 1
    _, headers = ask("ok", [say(PROMPT)])
    assert "x-p2l-reason" not in headers
    assert "x-p2l-unknown" not in headers


def test_what_was_cut_is_said(ask, record_of, proxy):
    _, headers = ask("ok", [say("Explain this log. " + "error at line 7; " * 2000)])
    assert headers["x-p2l-truncated"] == "true"
    assert record_of(headers)["truncated"] is True
    metrics = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers).text
    assert "p2l_truncated_total" in metrics


def test_gemini_contents_are_read_and_ranked(proxy):
    """LiteLLM asks nobody for headers on this route: who answers tells it, where a shuffle would mix both."""
    body = {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}]}
    url = f"{proxy.url}/v1beta/models/ok:generateContent"
    answers = [httpx.post(url, json=body, headers=proxy.headers, timeout=60).json() for _ in range(10)]
    assert {one["candidates"][0]["content"]["parts"][0]["text"] for one in answers} == {DEAR}
