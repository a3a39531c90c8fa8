"""A real HTTP provider for tests: the first part of the path says how it answers."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
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
    which may be left out.

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
        if body.get("stream"):
            content = "".join(
                ("" if kind is None else f"event: {kind}\n") + f"data: {json.dumps(event)}\n\n"
                for kind, event in EVENTS.get(route, chat_events)(how, body["model"])
            )
            end = "" if route == "messages" else "data: [DONE]\n\n"
            return self.send(200, f"{content}{end}".encode(), "text/event-stream")
        return self.send(200, json.dumps(ANSWERS.get(route, chat)(how, body["model"], self.server.tokens)).encode())


def chat(text, model, tokens):
    """A chat completion, or a text completion: clients read the half that they know."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "one",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "text": text, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
    }


def message(text, model, tokens):
    """A message of Anthropic's."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": tokens},
    }


def response(text, model, tokens):
    """A response."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}]
    usage = {"input_tokens": 10, "output_tokens": tokens, "total_tokens": 10 + tokens}
    return whole_response(model) | {"status": "completed", "output": output, "usage": usage}


def whole_response(model):
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "output": [], "error": None}
    whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0}
    return whole | {"instructions": None, "incomplete_details": None, "metadata": {}}


def chat_events(text, model):
    """The stream of a chat completion."""
    for delta in ({"role": "assistant", "content": ""}, *({"content": word} for word in text.partition(" ")), {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield (
            None,
            {"id": "one", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]},
        )


def completion_events(text, model):
    """The stream of a text completion."""
    for word, reason in ((text, None), ("", "stop")):
        choice = {"index": 0, "text": word, "finish_reason": reason, "logprobs": None}
        yield None, {"id": "one", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}


def responses_events(text, model):
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
    yield None, {"type": "response.completed", "response": response(text, model, 5)}


def message_events(text, model):
    """The stream of a message of Anthropic's."""
    start = message(text, model, 0) | {"content": [], "stop_reason": None}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    stop = {"type": "content_block_stop", "index": 0}
    for event in ({"type": "message_start", "message": start}, block, delta, stop, end, {"type": "message_stop"}):
        yield event["type"], event


ANSWERS = {"messages": message, "responses": response}
EVENTS = {"messages": message_events, "responses": responses_events, "completions": completion_events}


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """A provider on a free loopback port while the block runs."""
    server = Upstream()
    with serving(server):
        yield server
