"""A real HTTP provider for tests: the first part of the path says how it answers."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from helpers.loopback import Answering, Loopback, serving

#: Errors that come with a status of 400 and mean more than that.
SAYS = {
    "context": ("context_length_exceeded", "This model's maximum context length is 10 tokens, not 20."),
    "policy": ("content_policy_violation", "content_policy_violation: the response was filtered"),
}


class Upstream(Loopback):
    """Answers at `/{how}/{name}/…`, on the routes of OpenAI and Anthropic.

    how: a status, `context`, `policy`, `hang` (until `released`), or a text to answer with; name: of the deployment,
    which may be left out. A request with tools is answered with a call of one too, and one that asks for reasoning with
    state that only this provider can read; no two answers have the same.

    Attributes:
        asked: requests by how.
        taken: names in the order in which they were asked.
        tokens: that an answer reports to have used.
    """

    def __init__(self):
        super().__init__(Handler)
        self.asked = Counter()
        self.taken = []
        self.tokens = 100

    def base(self, how, name=None):
        """The `api_base` of a deployment."""
        return f"http://127.0.0.1:{self.server_port}/{how}" + (f"/named:{name}" if name else "")


class Handler(Answering):
    server: Upstream

    def do_POST(self):  # noqa: N802 - the name that http.server calls
        body = self.body()
        how, *rest = [unquote(part) for part in self.path.split("/")[1:]]
        self.server.asked[how] += 1
        self.server.taken += [part.removeprefix("named:") for part in rest if part.startswith("named:")]
        if how == "hang":
            self.server.released.wait(20)
        status = int(how) if how.isdigit() else 400 if how in SAYS else 200
        if status != 200:
            code, message = SAYS.get(how, (how, "no"))
            error = {
                "message": message,
                "code": code,
                "type": "invalid_request_error" if status < 500 else "server_error",
            }
            return self.send(status, json.dumps({"type": "error", "error": error}).encode())
        route = "/".join(rest[-2:]) if rest[-2:] == ["chat", "completions"] else rest[-1]
        call = f"call_{secrets.token_hex(8)}" if body.get("tools") else None
        state = f"state_{secrets.token_hex(8)}" if body.get("thinking") or body.get("include") else None
        beside = Beside(call, state)
        if body.get("stream"):
            content = "".join(
                ("" if kind is None else f"event: {kind}\n") + f"data: {json.dumps(event)}\n\n"
                for kind, event in EVENTS.get(route, chat_events)(how, body["model"], beside)
            )
            end = "" if route == "messages" else "data: [DONE]\n\n"
            return self.send(200, f"{content}{end}".encode(), "text/event-stream")
        answer = ANSWERS.get(route, chat)(how, body["model"], self.server.tokens, beside)
        return self.send(200, json.dumps(answer).encode())


class Beside(NamedTuple):
    """What an answer has beside its text: the id of a call, a provider's state."""

    call: str | None = None
    state: str | None = None


def chat(text, model, tokens, beside=None):
    """A chat completion, or a text completion: clients read the half that they know."""
    message = {"role": "assistant", "content": text} | calls(beside and beside.call)
    return {
        "id": "one",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "text": text, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
    }


def calls(call):
    """The calls of tools in a message of a chat completion, or in a delta of its stream."""
    function = {"name": "read", "arguments": "{}"}
    return {} if call is None else {"tool_calls": [{"index": 0, "id": call, "type": "function", "function": function}]}


def message(text, model, tokens, beside):
    """A message of Anthropic's."""
    thinking = {"type": "thinking", "thinking": "hm", "signature": beside.state}
    use = {"type": "tool_use", "id": beside.call, "name": "read", "input": {}}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [
            *[thinking][: beside.state is not None],
            {"type": "text", "text": text},
            *[use][: beside.call is not None],
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": tokens},
    }


def response(text, model, tokens, beside):
    """A response."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}]
    output = [*items_before(beside), *output, *items_after(beside)]
    usage = {"input_tokens": 10, "output_tokens": tokens, "total_tokens": 10 + tokens}
    return whole_response(model) | {"status": "completed", "output": output, "usage": usage}


def items_before(beside):
    """The reasoning of a response, encrypted."""
    return [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": beside.state}] if beside.state else []


def items_after(beside):
    """The calls of tools of a response."""
    call = {"type": "function_call", "id": "f", "call_id": beside.call, "name": "read", "arguments": "{}"}
    return [call | {"status": "completed"}] if beside.call else []


def whole_response(model):
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "output": [], "error": None}
    whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0}
    return whole | {"instructions": None, "incomplete_details": None, "metadata": {}}


def chat_events(text, model, beside):
    """The stream of a chat completion."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in text.partition(" "))]
    for delta in (*deltas, *[calls(beside.call)][: beside.call is not None], {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield (
            None,
            {"id": "one", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]},
        )


def completion_events(text, model, beside):
    """The stream of a text completion."""
    for word, reason in ((text, None), ("", "stop")):
        choice = {"index": 0, "text": word, "finish_reason": reason, "logprobs": None}
        yield None, {"id": "one", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}


def responses_events(text, model, beside):
    """The stream of a response."""
    whole = whole_response(model)
    yield None, {"type": "response.created", "response": whole | {"status": "in_progress"}}
    for word in text.partition(" "):
        yield (
            None,
            {
                "type": "response.output_text.delta",
                "item_id": "m",
                "output_index": 0,
                "content_index": 0,
                "delta": word,
            },
        )
    for place, item in enumerate(items_after(beside), start=1):
        for kind in ("added", "done"):
            yield None, {"type": f"response.output_item.{kind}", "output_index": place, "item": item}
    yield None, {"type": "response.completed", "response": response(text, model, 5, beside)}


def message_events(text, model, beside):
    """The stream of a message of Anthropic's."""
    whole = message(text, model, 0, beside)
    yield "message_start", {"type": "message_start", "message": whole | {"content": [], "stop_reason": None}}
    for place, block in enumerate(whole["content"]):
        empty, deltas = EMPTY[block["type"]](block)
        yield "content_block_start", {"type": "content_block_start", "index": place, "content_block": empty}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": place, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": place}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    yield "message_delta", end
    yield "message_stop", {"type": "message_stop"}


#: How a block of a message begins in its stream, and what is added to it.
EMPTY = {
    "text": lambda block: (block | {"text": ""}, [{"type": "text_delta", "text": block["text"]}]),
    "tool_use": lambda block: (block, [{"type": "input_json_delta", "partial_json": "{}"}]),
    "thinking": lambda block: (
        block | {"thinking": "", "signature": ""},
        [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ],
    ),
}

ANSWERS = {"messages": message, "responses": response}
EVENTS = {"messages": message_events, "responses": responses_events, "completions": completion_events}


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """A provider on a free loopback port while the block runs."""
    server = Upstream()
    with serving(server):
        yield server
