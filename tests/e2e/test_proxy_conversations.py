"""Two real proxies on one Redis know a conversation again, without an id of it and though its prompt changes."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import contextlib
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml
from demo import warm_up
from helpers.proxies import at, config_of, deployment, entered, running_proxy
from helpers.servers import server

DEAR, CHEAP = "gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18"
PRICE = {DEAR: 1e-5, CHEAP: 1e-6}
KEY = "sk-of-both-proxies-3f0c1a9d7b5e2468"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PARAMETERS = {"type": "object", "properties": {}}
TOOLS = {
    CHAT: [{"type": "function", "function": {"name": "read", "parameters": PARAMETERS}}],
    MESSAGES: [{"name": "read", "input_schema": PARAMETERS}],
    RESPONSES: [{"type": "function", "name": "read", "parameters": PARAMETERS}],
}
THINKING = {"type": "enabled", "budget_tokens": 1024}
REASONING = {
    CHAT: {"thinking": THINKING},
    MESSAGES: {"thinking": THINKING},
    RESPONSES: {"include": ["reasoning.encrypted_content"]},
}
numbers = itertools.count()


def group(provider, name, maker):
    """Two models, of which `lp` draws each in about half of all conversations."""
    for model, price in PRICE.items():
        params = {"model": f"{maker}/{name}-{model}", "input_cost_per_token": 0, "output_cost_per_token": price}
        yield deployment(name, model, **at(provider, model, name=model) | params)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture(scope="module")
def proxies(valkey, provider, tmp_path_factory):
    config = config_of(
        ["litellm_router.p2l_router"],
        [*group(provider, "gpt", "openai"), *group(provider, "claude", "anthropic")],
        rule="lp",
        budget=0.0028,
        learn_output_tokens=False,
        timeout_ms=5000,
        cache={"deadline_ms": 2000},
    )
    config["router_settings"] = {"disable_cooldowns": True}
    path = tmp_path_factory.mktemp("proxies") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(valkey.port), "LITELLM_MASTER_KEY": KEY}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool, httpx.Client(timeout=30) as client:
        running = [running_proxy(path, env=env) for _ in range(2)]
        both = [stack.enter_context(one) for one in pool.map(entered, running)]
        for proxy in both:
            warm_up(client, proxy, "gpt")
        yield [proxy.url for proxy in both]


def say(text):
    return {"role": "user", "content": text}


def body_of(path, group, chat, tools, stream):
    """A request whose system prompt is another each time, as that of an agent with a clock in it."""
    now = f"You are an agent. It is {next(numbers)} o'clock."
    body = {"model": group, "stream": stream} | ({"tools": TOOLS[path]} if tools else REASONING[path])
    if path == CHAT:
        return body | {"messages": [{"role": "system", "content": now}, *chat], "max_tokens": 2000}
    if path == MESSAGES:
        return body | {"system": now, "messages": chat, "max_tokens": 2000}
    return body | {"instructions": now, "input": chat, "max_output_tokens": 2000}


def ask(url, path, body):
    """The model that answered, and its answer as the next request has it."""
    response = httpx.post(url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    assert response.status_code == 200, response.text
    if not body["stream"]:
        return response.headers["x-p2l-model"], ANSWER[path](response.json())
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return response.headers["x-p2l-model"], STREAMED[path](events)


def chat_answer(answer):
    message = answer["choices"][0]["message"]
    kept = {name: message[name] for name in ("tool_calls", "thinking_blocks") if message.get(name)}
    return [{"role": "assistant", "content": None if "tool_calls" in kept else message["content"]} | kept]


def streamed_chat(events):
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    blocks = [block for delta in deltas for block in delta.get("thinking_blocks") or ()]
    signed = [
        {"type": "thinking", "thinking": "hm", "signature": one["signature"]} for one in blocks if one.get("signature")
    ]
    text = "".join(delta.get("content") or "" for delta in deltas)
    named = [call for call in calls if call.get("id")]
    message = (
        {"content": text} | ({"tool_calls": named} if named else {}) | ({"thinking_blocks": signed} if signed else {})
    )
    return chat_answer({"choices": [{"message": message}]})


def streamed_message(events):
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    for event in events:
        if event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for name in ("text", "thinking", "signature"):
                block |= {name: block.get(name, "") + delta[name]} if name in delta else {}
    return [{"role": "assistant", "content": blocks}]


ANSWER = {
    CHAT: chat_answer,
    MESSAGES: lambda answer: [{"role": "assistant", "content": answer["content"]}],
    RESPONSES: lambda answer: answer["output"],
}
STREAMED = {
    CHAT: streamed_chat,
    MESSAGES: streamed_message,
    RESPONSES: lambda events: next(e["response"]["output"] for e in events if e["type"] == "response.completed"),
}


def result_of(path, answer):
    """What a tool gave, as the next request has it."""
    if path == CHAT:
        return {"role": "tool", "tool_call_id": answer[0]["tool_calls"][0]["id"], "content": "line"}
    if path == MESSAGES:
        call = next(block["id"] for block in answer[0]["content"] if block["type"] == "tool_use")
        return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": "line"}]}
    call = next(item["call_id"] for item in answer if item["type"] == "function_call")
    return {"type": "function_call_output", "call_id": call, "output": "line"}


def written(valkey, more_than):
    """Waits until a proxy has told the others who answered."""
    end = time.monotonic() + 10
    while (count := sum(1 for _ in valkey.client().scan_iter("p2l:turn:*", 1000))) <= more_than:
        assert time.monotonic() < end, "the answer is not in Redis"
        time.sleep(0.02)
    return count


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "group", "tools"),
    [
        (CHAT, "gpt", True),
        (MESSAGES, "gpt", True),
        (MESSAGES, "claude", True),
        (RESPONSES, "gpt", True),
        (CHAT, "claude", False),
        (MESSAGES, "claude", False),
        (RESPONSES, "gpt", False),
    ],
    ids=["chat", "messages adapted", "messages", "responses", "chat signed", "messages signed", "responses sealed"],
)
def test_a_conversation_that_alternates_between_proxies_keeps_its_model(proxies, valkey, path, group, tools, stream):
    known = written(valkey, -1)
    for task in range(3):
        chat = [say(f"Find the bug in file {task}: {next(numbers)}")]
        answered = []
        for step in range(5):
            model, answer = ask(proxies[step % 2], path, body_of(path, group, chat, tools, stream))
            answered.append(model)
            known = written(valkey, known)
            chat += [*answer, result_of(path, answer) if tools else say(f"And then? {step}")]
        assert len(set(answered)) == 1, answered
