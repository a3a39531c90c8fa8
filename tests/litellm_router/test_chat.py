"""What is read of a chat, in the forms of all routes."""

import asyncio
import json
import time

import pytest

from litellm_router.calls import is_chat
from litellm_router.chat import (
    chat_of,
    deployment_in,
    goes_on,
    maker_of,
    needs_of,
    prompt_tokens,
    tokens_since_answer,
    turns_of,
)
from litellm_router.conversations import Conversations, Turn

CALL = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "ok"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "read", "input": {}}]}
USED = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]}


def say(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([say("hi")], False),
        ([say("hi"), {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT], True),
        ([say("hi"), {"role": "assistant", "tool_calls": [CALL]}, RESULT, say("and now?")], False),
        (
            [
                say("hi"),
                {"role": "assistant", "tool_calls": [CALL]},
                RESULT,
                say("<system-reminder>x</system-reminder>"),
            ],
            True,
        ),
        ([say("hi"), USE, USED], True),
        ([say("hi"), USE, {"role": "user", "content": [*USED["content"], {"type": "text", "text": "stop"}]}], False),
        (
            [say("hi"), {"type": "function_call", "call_id": "c"}, {"type": "function_call_output", "output": "ok"}],
            True,
        ),
        ([say("hi"), {"role": "assistant", "content": "yes"}, say("why?")], False),
        ("hi", False),
        ([["x"], None, {"type": ["x"], "role": {}}], False),
    ],
)
def test_the_middle_of_an_answer_is_known(chat, expected):
    assert goes_on(chat) is expected


def test_text_that_no_user_wrote_does_not_count():
    rules = "<project_rules>tests, please</project_rules>"
    assert turns_of([say(f"{rules}\nWhy?"), say("<system-reminder>x</system-reminder>"), say("Why?")]) == ("Why?",)
    assert turns_of([say("<user_query>Why?</user_query>")]) == ("Why?",)
    assert turns_of([say("<mine>x</mine>Why?")], ("mine",)) == ("Why?",)
    # a user may ask about such a block, in HTML, or with a tag that never ends
    for text in (rules, "<div>Why?</div>", "what is <context> for?"):
        assert turns_of([say(text)]) == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "<context>" * 30_000,
        "<context>" * 9_000 + "</context>" * 9_000,
        "<context" + " " * 300_000,
        "<a " * 100_000,
        "</ask>" * 50_000,
    ],
)
def test_odd_tags_are_read_in_one_pass(text):
    started = time.perf_counter()
    turns_of([say(text), say("<")])
    assert time.perf_counter() - started < 2


def test_contents_of_gemini_are_messages():
    contents = [
        {"role": "user", "parts": [{"text": "Why?"}, {"inlineData": {"mimeType": "image/png", "data": "x"}}]},
        {"role": "model", "parts": [{"text": "So.", "thoughtSignature": "s"}]},
    ]
    chat = chat_of(None, {"contents": contents})
    assert turns_of(chat) == ("Why?",)
    assert needs_of(chat, {}) == {"supports_vision"}
    assert maker_of(chat) == "google"


def test_needs_are_named_as_in_litellms_table():
    audio = [say([{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}])]
    assert needs_of(audio, {"tools": [CALL]}) == {"supports_audio_input", "supports_function_calling"}
    assert needs_of("hi", {"response_format": {"type": "json_schema"}}) == {"supports_response_schema"}
    assert needs_of("hi", {"text": {"format": {"type": "json_schema"}}}) == {"supports_response_schema"}
    assert needs_of([say("hi")], {"response_format": {"type": "json_object"}, "tools": []}) == frozenset()


def test_all_that_a_model_reads_counts_and_what_it_has_read_is_told_apart():
    text = "x" * 4000
    assert prompt_tokens([say(text)]) == 1000
    assert prompt_tokens([say("")], {"system": [{"type": "text", "text": text}]}) == 1000
    assert prompt_tokens([say([{"type": "image_url", "image_url": {"url": text}}])]) == 0
    chat = [say(text), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "y" * 400}]
    assert tokens_since_answer(chat) == 100
    deep = nested = {}
    for _ in range(5000):
        nested["content"] = [{}]
        nested = nested["content"][0]
    assert prompt_tokens([deep], {"tools": [deep]}) == 0


def test_the_id_of_a_response_names_its_deployment():
    import base64

    made = base64.b64encode(b"litellm:custom_llm_provider:openai;model_id:one;response_id:resp_1").decode()
    assert deployment_in(f"resp_{made}") == "one"
    for odd in (None, 3, "resp_", "resp_###", "resp_" + "a" * 10_000, "other"):
        assert deployment_in(odd) is None


def conversation_of(conversations, chat, owner="key", session=None):
    return conversations.of(owner, "g", session, chat, {})


async def test_a_conversation_without_an_id_is_known_by_its_answers_and_by_nobody_elses():
    conversations = Conversations(secret=b"s")
    first = [say("Write a poem")]
    assert await conversations.found(conversation_of(conversations, first)) is None
    for model, text in (("a", "Roses"), ("b", "Violets")):  # two that begin alike
        response = {
            "choices": [{"message": {"content": text, "tool_calls": [{"id": f"call {model}", "function": {}}]}}]
        }
        conversations.answered(conversation_of(conversations, first), response, Turn(model, 0.5))
    for model, text in (("a", "Roses"), ("b", "Violets")):
        chat = [*first, {"role": "assistant", "content": text}, say("Another")]
        assert (await conversations.found(conversation_of(conversations, chat))).model == model
        assert await conversations.found(conversation_of(conversations, chat, owner="another key")) is None
        chat = [say("other words"), {"role": "assistant", "tool_calls": [{"id": f"call {model}", "function": {}}]}]
        assert (await conversations.found(conversation_of(conversations, chat))).model == model


async def test_two_proxies_know_it_through_redis(client):
    one, two = (Conversations(secret=b"s", client=lambda: client, deadline_s=5.0, namespace="test") for _ in range(2))
    stranger = Conversations(secret=b"t", client=lambda: client, deadline_s=5.0, namespace="test")
    first = [say("Write a poem")]
    response = {"choices": [{"message": {"content": "Roses"}}]}
    one.answered(conversation_of(one, first), response, Turn("a", 0.25))
    await asyncio.gather(*one._writes)
    chat = [*first, {"role": "assistant", "content": "Roses"}, say("Another")]
    assert await two.found(conversation_of(two, chat), ["b", "a"]) == Turn("a", 0.25)
    assert await stranger.found(conversation_of(stranger, chat), ["b", "a"]) is None
    stored = [key.decode() async for key in client.scan_iter("test:turn:*")]
    assert stored
    values = [value.decode() for value in await client.mget(stored)]
    assert not [text for text in stored + values if "Roses" in text or "poem" in text or text.endswith(" a")]
    assert min([await client.ttl(key) for key in stored]) > 0


async def test_who_has_a_conversation_can_not_be_made_or_moved_without_the_secret(client):
    one, two = (Conversations(secret=b"s", client=lambda: client, deadline_s=5.0, namespace="test") for _ in range(2))
    chats = [[say(text), {"role": "assistant", "content": f"on {text}"}, say("Another")] for text in "xy"]
    for chat, model in zip(chats, "ab", strict=True):
        one.answered(
            conversation_of(one, chat[:1]),
            {"choices": [{"message": {"content": chat[1]["content"]}}]},
            Turn(model, 0.25),
        )
    await asyncio.gather(*one._writes)
    x, y = ([f"test:turn:1:{key.hex()}" for key in conversation_of(two, chat).keys] for chat in chats)
    of_x, of_y = [list(filter(None, await client.mget(keys))) for keys in (x, y)]
    old = b"0.25 " + two._hash("model", "b").hex().encode()  # as values were
    flips = [bytes([*of_x[0][:i], of_x[0][i] ^ 1, *of_x[0][i + 1 :]]) for i in range(len(of_x[0]))]
    for wrong in (*of_y, of_x[0].replace(b"0.25", b"0.75"), old, b"0.25 b", b"\xff 1", b"0.25 \xc3\xa9", b"", *flips):
        await client.mset(dict.fromkeys(x, wrong))
        assert await two.found(conversation_of(two, chats[0]), ["a", "b"]) is None
    assert await two.found(conversation_of(two, chats[1]), ["a", "b"]) == Turn("b", 0.25)


async def test_without_redis_or_while_it_is_away_it_goes_on():
    class Away:
        async def mget(self, keys):
            raise ConnectionError

        def pipeline(self, **_):
            raise ConnectionError

    conversations = Conversations(secret=b"s", client=Away)
    chat = [say("hi"), {"role": "assistant", "content": "hello"}]
    assert await conversations.found(conversation_of(conversations, chat)) is None
    conversations.answered(conversation_of(conversations, chat), json.loads("{}"), Turn("a", 0.5))
    await asyncio.gather(*conversations._writes)
    assert (await conversations.found(conversation_of(conversations, chat))).model == "a"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": "y" * 4000}}]},
        {"role": "assistant", "content": [{"functionCall": {"name": "f", "args": {"x": "y" * 4000}}}]},
        {"role": "user", "content": [{"functionResponse": {"name": "f", "response": {"x": "y" * 4000}}}]},
        {"type": "function_call_output", "call_id": "c", "output": "y" * 4000},
    ],
)
def test_calls_and_results_count_in_the_forms_of_all_routes(message):
    assert 1000 <= prompt_tokens([message]) <= 1010


@pytest.mark.parametrize(
    "block",
    [
        "<environment_details>\n# VSCode Open Tabs\nsrc/main.py\n</environment_details>",
        "<environment_context>\n  <cwd>/home/me</cwd>\n</environment_context>",
        "<reminderInstructions>Use the tools.</reminderInstructions>",
    ],
)
def test_blocks_of_other_agents_do_not_count_before_or_after_the_question(block):
    for text in (f"{block}\nWhy?", f"Why?\n{block}", f"{block}{block}Why?"):
        assert turns_of([say(text)]) == ("Why?",)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/v1/chat/completions", True),
        ("http://h/openai/deployments/g/chat/completions?api-version=1", True),
        ("http://h/v1beta/models/g%3AstreamGenerateContent?alt=sse", True),
        ("http://h/anthropic/v1/messages", True),
        ("http://h/v1/messages/count_tokens", False),
        ("http://h/v1/rerank", False),
        ("http://h/v1/batches", False),
        ("http://h/v1/files", False),
        ("http://h/v1/realtime", False),
        ("http://h/v1/images/edits", False),
    ],
)
def test_a_route_says_what_is_a_chat(url, expected):
    assert is_chat({"proxy_server_request": {"url": url}}) is expected


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (
            {"output": [{"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        ),
        (
            {"candidates": [{"content": {"parts": [{"text": "So.", "thoughtSignature": "s"}]}}]},
            {"role": "assistant", "content": [{"text": "So.", "thoughtSignature": "s"}]},
        ),
        (
            {"content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        ),
    ],
)
async def test_answers_of_all_routes_are_known_again(response, answer):
    conversations = Conversations()
    assert conversations.answered(conversation_of(conversations, [say("a")]), response, Turn("m", 0.5))
    found = await conversations.found(conversation_of(conversations, [say("b"), answer]))
    assert found == Turn("m", 0.5)


async def test_a_stream_that_has_not_ended_is_not_yet_an_answer():
    conversations = Conversations()
    assert not conversations.answered(conversation_of(conversations, [say("a")]), object(), Turn("m", 0.5))
