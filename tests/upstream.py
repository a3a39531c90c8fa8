"""A real HTTP provider for tests: the first part of the path says how it answers."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

from loopback import Answering, Loopback, serving


class Upstream(Loopback):
    """Chat completions at `/{how}/…`; how: a status, `hang` (until `released`), or a text to answer with.

    Attributes:
        asked: requests by how.
        tokens: that an answer reports to have used.
    """

    def __init__(self):
        super().__init__(Handler)
        self.asked = Counter()
        self.tokens = 100

    def base(self, how):
        """The `api_base` of a deployment."""
        return f"http://127.0.0.1:{self.server_port}/{how}"


class Handler(Answering):
    server: Upstream

    def do_POST(self):  # noqa: N802 - the name that http.server calls
        body = self.body()
        how = unquote(self.path.split("/")[1])
        self.server.asked[how] += 1
        if how == "hang":
            self.server.released.wait(20)
        status = int(how) if how.isdigit() else 200
        tokens = self.server.tokens
        if status == 200 and body.get("stream"):
            events = responses_events if self.path.endswith("/responses") else chat_events
            content = "".join(f"data: {json.dumps(event)}\n\n" for event in events(how, body["model"]))
            return self.send(200, f"{content}data: [DONE]\n\n".encode(), "text/event-stream")
        answer = {
            "id": "one",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": how}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
        }
        error = {"error": {"message": "no", "code": how}}
        return self.send(status, json.dumps(answer if status == 200 else error).encode())


def chat_events(text, model):
    """The stream of a chat completion."""
    for delta in ({"role": "assistant", "content": ""}, *({"content": word} for word in text.partition(" ")), {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield {"id": "one", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


def responses_events(text, model):
    """The stream of a response."""
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "output": [], "error": None}
    whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0}
    whole |= {"instructions": None, "incomplete_details": None, "metadata": {}}
    yield {"type": "response.created", "response": whole | {"status": "in_progress"}}
    for word in text.partition(" "):
        yield {
            "type": "response.output_text.delta",
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
            "delta": word,
        }
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    yield {"type": "response.completed", "response": whole | {"status": "completed", "usage": usage}}


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """A provider on a free loopback port while the block runs."""
    server = Upstream()
    with serving(server):
        yield server
