"""A provider whose answers a function gives, by model and messages, and that counts its calls."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator

from helpers.loopback import Answering, Loopback, serving
from helpers.upstream import Beside, chat, chat_events


class Provider(Loopback):
    """Answers chats at `/v1/chat/completions`, and lists its models at `/v1/models`.

    Attributes:
        answer: gives a text for a model and its messages, or a status of an error.
        models: that it lists.
        asked: answered calls, by model and messages.
        statuses: by model, how often each status was sent.
        keys: values of the header Authorization.
        seconds: that a call takes.
        pause: between two events of a stream.
        most: calls at the same time, at most.
    """

    def __init__(self, answer, models=()):
        super().__init__(Handler)
        self.answer, self.models = answer, list(models)
        self.asked, self.statuses, self.keys = Counter(), Counter(), set()
        self.seconds, self.pause, self.most, self.now = 0.0, 0.0, 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def calls(self, model=None):
        """Calls that were answered, of a model or of all."""
        return sum(n for (name, _), n in self.asked.items() if model in (None, name))


class Handler(Answering):
    server: Provider

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        self.server.keys.add(self.headers.get("Authorization"))
        self.send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self):  # noqa: N802
        server, body = self.server, self.body()
        with server.lock:
            server.keys.add(self.headers.get("Authorization"))
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.seconds)
        model = body["model"]
        said = server.answer(model, body["messages"])
        status = said if isinstance(said, int) else 200
        with server.lock:
            server.now -= 1
            server.statuses[model, status] += 1
            if status == 200:
                server.asked[model, json.dumps(body["messages"], sort_keys=True)] += 1
        if status != 200:
            error = {"message": "no", "code": str(status), "type": "server_error"}
            return self.send(status, json.dumps({"error": error}).encode())
        if body.get("stream"):
            return self.stream(streamed(said, model, body["messages"]))
        made = chat(said, model, len(said.split()), Beside())
        made["usage"]["prompt_tokens"] = tokens_of(body["messages"])
        return self.send(200, json.dumps(made).encode())

    def stream(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side may have left
            for event in (*map(json.dumps, events), "[DONE]"):
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
                self.server.released.wait(self.server.pause)


def streamed(said, model, messages):
    """The events of an answer as a stream, with its usage at the end."""
    events = [event for _, event in chat_events(said, model, Beside())]
    tokens = {"prompt_tokens": tokens_of(messages), "completion_tokens": len(said.split())}
    tokens["total_tokens"] = sum(tokens.values())
    return [*events, events[-1] | {"choices": [], "usage": tokens}]


def tokens_of(messages):
    """Tokens that a prompt is said to have."""
    return sum(len(message["content"]) for message in messages) // 4


@contextlib.contextmanager
def provider(answer, models=()) -> Iterator[Provider]:
    """A provider on a free loopback port while the block runs."""
    server = Provider(answer, models)
    with serving(server):
        yield server
