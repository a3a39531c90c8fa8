"""Who answered a conversation so far, though most clients send no id for it.

What models answer comes back with the next request: text, the ids of tool calls, a provider's signatures. A keyed hash
of each is remembered with the model that took the request, by owner of the API key; nobody can name another's
conversation, and no text is kept. Where no answer is known, a conversation that begins alike was the same one. Proxies
share it through Redis, behind the requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from litellm_router.chat import answers, opening
from p2l_plugins.cache.breaker import Breaker
from p2l_plugins.cache.redis import pipeline, raw_values

SCHEMA = 1

#: Answers of a chat that are looked up, the latest first, and marks of one answer.
ANSWERS, MARKS = 3, 8

#: Parts of one answer that are looked at.
PARTS = 256

#: Writes to Redis that may be under way; what comes on top stays in this process.
WRITES = 64

#: Seconds that a write may take.
WRITE_S = 0.5

#: Keys under which a provider's own state comes.
_STATE = ("signature", "encrypted_content", "thought_signature", "thoughtSignature", "data")


class Turn(NamedTuple):
    """Who has a conversation.

    Attributes:
        model: the bundle's name.
        uniform: the random number that was drawn for the conversation.
    """

    model: str
    uniform: float


class Conversation(NamedTuple):
    """What all requests of a conversation have in common.

    Attributes:
        owner: of the API key.
        opening: its system prompt and first user message, as a hash.
        session: the client's own id of it, as a hash with its owner and model group, or None.
        answers: hashes of what the latest answers in it hold.
    """

    owner: str
    opening: bytes
    session: bytes | None
    answers: tuple[bytes, ...]

    @property
    def keys(self) -> list[bytes]:
        """What it is found by, the surest first: its id, the answers in it, how it began."""
        session = [] if self.session is None else [self.session]
        return [*session, *self.answers, *([self.opening] if self.answers else [])]


class Conversations:
    """The conversations of a proxy. Safe to use from several threads.

    Args:
        ttl_s: seconds without a request until a conversation is forgotten.
        most: marks that are remembered.
        secret: keys the hashes; empty takes one of this process, and shares nothing.
        client: gives the Redis client of the running event loop, or None.
        namespace: first part of every key in Redis.
        deadline_s: longest that a look into Redis may take.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        ttl_s: float = 3600.0,
        most: int = 10_000,
        secret: bytes = b"",
        client: Callable[[], Any] | None = None,
        namespace: str = "p2l",
        deadline_s: float = 0.015,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s, self._most, self._clock = ttl_s, most, clock
        self._secret = secret or secrets.token_bytes(32)
        self._client = client if secret else None  # without a common secret no other proxy finds anything
        self._namespace, self._deadline_s = namespace, deadline_s
        self._breaker = Breaker("the conversations in Redis", topic="p2l")
        self._turns: OrderedDict[bytes, tuple[float, Turn]] = OrderedDict()
        self._writes: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()

    def of(self, owner: str, group: str, session: str | None, chat: object, request: Mapping[str, Any]) -> Conversation:
        """What identifies the conversation of a request."""
        begins = self._hash("opening", owner, opening(chat, request))
        marks = [key for one in islice(answers(chat), ANSWERS) for key in self._marks(owner, begins, one)]
        own = None if session is None else self._hash("session", owner, group, session)
        return Conversation(owner, begins, own, tuple(marks))

    def share(self, conversation: Conversation) -> float:
        """A number in [0, 1) that is the same for all requests of a conversation; nobody else can compute it."""
        data = conversation.session or conversation.opening
        return int.from_bytes(self._hash("share", data.hex())[:7], "big") / 2**56

    async def found(
        self, conversation: Conversation, models: Iterable[str] = (), timeout_s: float = math.inf
    ) -> Turn | None:
        """Who has a conversation, or None.

        Args:
            models: that may have it; Redis holds no names.
            timeout_s: longest wait, where that is shorter than the deadline.
        """
        keys = conversation.keys
        turn = next((turn for key in keys if (turn := self._get(key)) is not None), None)
        return turn if turn is not None or not keys else await self._shared(keys, models, timeout_s)

    def bind(self, conversation: Conversation, turn: Turn | None) -> None:
        """Gives a conversation to a model, or to nobody."""
        self._set([*conversation.keys, conversation.opening], turn)

    def answered(self, conversation: Conversation, response: object, turn: Turn) -> bool:
        """Remembers who gave an answer, by what it holds; returns whether that could be seen: a stream comes later."""
        owner, begins = conversation.owner, conversation.opening
        marks = [key for part in _answers_in(response) for key in self._marks(owner, begins, part)]
        keys = list(dict.fromkeys([*marks, *conversation.keys, begins]))
        self._set(keys, turn)
        self._write_soon(keys, turn)
        return bool(marks)

    def _marks(self, owner: str, begins: bytes, answer: object) -> list[bytes]:
        # an id or a signature is one of its kind; an answer's text is so within its conversation
        return [
            self._hash(kind, owner, begins.hex() if kind == "text" else "", text)
            for kind, text in islice(_marks_of(answer), MARKS)
        ]

    def _get(self, key: bytes) -> Turn | None:
        with self._lock:
            expires, turn = self._turns.get(key, (0.0, None))
            if turn is not None and expires <= self._clock():
                del self._turns[key]
                return None
            return turn

    def _set(self, keys: Iterable[bytes], turn: Turn | None) -> None:
        with self._lock:
            for key in keys:
                if turn is None:
                    self._turns.pop(key, None)
                    continue
                self._turns[key] = (self._clock() + self._ttl_s, turn)
                self._turns.move_to_end(key)
            while len(self._turns) > self._most:
                self._turns.popitem(last=False)

    async def _shared(self, keys: Sequence[bytes], models: Iterable[str], timeout_s: float) -> Turn | None:
        client = None if self._client is None or not self._breaker.allows() else self._client()
        if client is None:
            return None
        started = time.monotonic()
        try:
            async with asyncio.timeout(min(self._deadline_s, timeout_s)):
                values = await raw_values(client, [self._key(key) for key in keys])
        except Exception as error:  # whatever a client raises, the conversation is taken for a new one
            self._breaker.failed(type(error).__name__, time.monotonic() - started)
            return None
        self._breaker.succeeded()
        names = list(models)
        turns = (self._read(key, value, names) for key, value in zip(keys, values, strict=True) if value is not None)
        turn = next((turn for turn in turns if turn is not None), None)
        if turn is not None:
            self._set(keys[:1], turn)
        return turn

    def _write_soon(self, keys: Sequence[bytes], turn: Turn) -> None:
        if self._client is None or not keys or len(self._writes) >= WRITES:
            return
        try:
            task = asyncio.get_running_loop().create_task(self._write(keys, turn))
        except RuntimeError:  # a sync call
            return
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, keys: Sequence[bytes], turn: Turn) -> None:
        client = None if self._client is None or not self._breaker.allows() else self._client()
        if client is None:
            return
        started = time.monotonic()
        try:
            async with asyncio.timeout(WRITE_S):
                pipe = pipeline(client)
                for key in keys:
                    pipe.set(self._key(key), self._value(key, turn), ex=max(1, round(self._ttl_s)))
                await pipe.execute()
        except Exception as error:  # whatever a client raises
            self._breaker.failed(type(error).__name__, time.monotonic() - started)
        else:
            self._breaker.succeeded()

    def _key(self, key: bytes) -> str:
        return f"{self._namespace}:turn:{SCHEMA}:{key.hex()}"

    def _value(self, key: bytes, turn: Turn) -> str:
        """A turn in Redis, which holds no names: the keyed hash is of all three, so nobody else can make or move it."""
        number = repr(turn.uniform)
        return f"{number} {self._hash('turn', key.hex(), number, turn.model).hex()}"

    def _read(self, key: bytes, value: object, models: Iterable[str]) -> Turn | None:
        """The turn that `_value` wrote for one of the models, or None."""
        if not isinstance(value, bytes):
            return None
        try:
            uniform = float(value.partition(b" ")[0])
        except ValueError:
            return None
        if not 0 <= uniform < 1:
            return None
        turns = (Turn(model, uniform) for model in models)
        return next((turn for turn in turns if hmac.compare_digest(self._value(key, turn).encode(), value)), None)

    def _hash(self, *parts: str) -> bytes:
        data = "\0".join(parts).encode("utf-8", "replace")
        return hashlib.blake2b(data, digest_size=16, key=self._secret[:64]).digest()


def _of(value: object, name: str) -> Any:
    """A key of a mapping, or an attribute of one of LiteLLM's objects."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _answers_in(response: object) -> Iterator[object]:
    """The messages or items of a response, whatever its route."""
    for choice in _list(_of(response, "choices")):
        message = _of(choice, "message")
        yield message if message is not None else {"content": _of(choice, "text")}
    yield from _list(_of(response, "output"))
    for candidate in _list(_of(response, "candidates")):
        yield {"content": _list(_of(_of(candidate, "content"), "parts"))}
    if _of(response, "choices") is None and _of(response, "output") is None:
        content = _of(response, "content")
        if isinstance(content, (list, tuple)):
            yield {"content": content}


def answer_text(response: object) -> str:
    """The text of a response, whatever its route."""
    return "\n".join(text for part in _answers_in(response) for kind, text in _marks_of(part) if kind == "text")


def _marks_of(answer: object) -> Iterator[tuple[str, str]]:
    """What tells an answer from others: its text, the ids of its tool calls, the state of its provider."""
    content = _of(answer, "content")
    nested = [part for key in ("thinking_blocks", "reasoning_items", "tool_calls") for part in _list(_of(answer, key))]
    parts = [part for part in islice(chain(_list(content), nested), PARTS) if not isinstance(part, str)]
    for part in (answer, *parts):
        yield from (("state", text) for key in _STATE if (text := _text_of(part, key)))
    yield from (("call", text) for text in [_text_of(answer, "call_id"), *map(_call_of, parts)] if text)
    texts = [content] if isinstance(content, str) else _list(content)
    text = "\n".join(one if isinstance(one, str) else _text_of(one, "text") for one in texts).strip()
    if text:
        yield "text", text


def _call_of(part: object) -> str:
    """The id of a tool call, of a part that is one."""
    return _text_of(part, "id") if _of(part, "function") is not None or _of(part, "type") == "tool_use" else ""


def _text_of(value: object, name: str) -> str:
    text = _of(value, name)
    return text if isinstance(text, str) else ""
