"""What became of a request so far: which deployments it was offered and which took it.

LiteLLM asks the callback again at every retry and hop. Its own record of a request's failures lags behind on some
versions and is kept among metadata that clients write to, so the memory lives here. It is found by the running task,
and by a random token in the request's metadata where another task asks: a log, the headers of a response.
"""

from __future__ import annotations

import contextvars
import random
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from litellm_router.chat import texts
from litellm_router.collect.sample import Sample
from litellm_router.conversations import Conversation, Conversations, Turn
from litellm_router.deployments import Groups
from litellm_router.record import Record
from litellm_router.request import BUCKETS, bucket_of

#: Requests that are remembered at the same time; past it the oldest is forgotten, and tried again from its best model.
MOST_OPEN = 10_000

#: Key of the token in a request's metadata.
TOKEN = "p2l_request"  # noqa: S105


class _Evidence(NamedTuple):
    """What LiteLLM itself has counted of a request's failures; what it holds may come from a client."""

    retry_count: object
    attempted_retries: object
    attempted_fallbacks: object
    previous: int
    excluded: tuple[str, ...]

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> _Evidence:
        bucket = bucket_of(request)
        earlier = bucket.get("previous_models")
        return cls(
            bucket.get("request_retry_count"),
            bucket.get("attempted_retries"),
            bucket.get("attempted_fallbacks"),
            len(earlier) if isinstance(earlier, (list, tuple)) else 0,
            tuple(sorted(texts(request.get("_excluded_deployment_ids")))),
        )

    @property
    def any(self) -> bool:
        """Whether there is a failure."""
        return bool(self.retry_count or self.previous or self.excluded)

    def begins_after(self, earlier: _Evidence) -> bool:
        """Whether LiteLLM counts from the start again, in metadata that hold what an earlier request left there."""
        now, before = self.attempted_retries, earlier.attempted_retries
        return (
            now == 0 and isinstance(before, int) and before > 0
        ) and self.attempted_fallbacks == earlier.attempted_fallbacks


_NOTHING = _Evidence(None, None, None, 0, ())


@dataclass(eq=False)
class Attempts:
    """The attempts of one request.

    Attributes:
        token: that finds it again.
        trace: LiteLLM's id of the request, the same at all its attempts.
        group: the model group that was ranked last; order: of the operator's, to which LiteLLM has fallen back in it.
        ranking: place of each of its models, by name, 0 the best; empty where P2L did not decide.
        record: of the decision, for headers, metrics and loggers.
        tried: ids of the deployments that took the request, in this order; before: how many of another group or order.
        models: those of this group and order, as far as the bundle knows them.
        offered: ids that were handed to LiteLLM last; empty where it had its own choice.
        done: whether it was answered.
        uniform: a random number in [0, 1) of our own, the same at all attempts; a conversation's, where one goes on.
        conversation: that it belongs to; turn: who has had it, or None.
        remembered: whether its answer is known to the conversation.
        answers: how many it asks for at once.
        groups: as the bundle that ranked its models knows them, whatever bundle is in use by its next attempt.
        worth: gives value and expected USD of a model that was not ranked, by its name and its deployment's id.
        sample: what is kept of it for a comparison with another model's answer; None for most.
    """

    token: str
    trace: object
    group: str | None = None
    order: object = None
    ranking: Mapping[str, int] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    tried: list[str] = field(default_factory=list)
    before: int = 0
    models: set[str] = field(default_factory=set)
    offered: tuple[str, ...] = ()
    done: bool = False
    uniform: float = field(default_factory=random.random)
    conversation: Conversation | None = None
    turn: Turn | None = None
    remembered: bool = False
    answers: int = 1
    groups: Groups | None = None
    worth: Callable[[str, str], tuple[float | None, float | None]] | None = None
    sample: Sample | None = None
    _error: weakref.ref[Exception] | None = None
    _model: str | None = None
    _taken: bool = False
    _failed: bool = False
    _seen: _Evidence = _NOTHING

    @property
    def error(self) -> Exception | None:
        """What the last one to fail raised, while LiteLLM holds it: it would keep the whole request in memory."""
        return None if self._error is None else self._error()

    async def join(
        self,
        conversation: Conversation,
        conversations: Conversations,
        models: Sequence[str],
        deadline: float,
        signer: str | None,
    ) -> None:
        """The request belongs to a conversation: who has it, and the number that was drawn for it.

        Args:
            models: of the group.
            deadline: on the clock `time.monotonic`.
            signer: the model that is known to have given what the request goes on from.
        """
        self.conversation = conversation
        self.turn = await conversations.found(conversation, models, deadline - time.monotonic())
        if self.turn is None and signer is not None:
            self.turn = Turn(signer, self.uniform)
        if conversation.answers:  # a client may name one session for all; a draw holds for one conversation
            self.uniform = conversations.share(conversation) if self.turn is None else self.turn.uniform

    def decided(self, group: str, ranking: Sequence[str], record: Record) -> None:
        """A group's models were ranked, the best first, or P2L left the request alone."""
        self.group, self.ranking = group, {name: place for place, name in enumerate(ranking)}
        self.record, self.offered = record, ()

    def offer(self, ids: Sequence[str], model: str | None, request: Mapping[str, Any]) -> None:
        """Deployments of one model are handed to LiteLLM; None: of models that the bundle does not know."""
        self._model, self.offered = model, tuple(ids)
        self._taken, self._failed, self._seen = False, False, _Evidence.of(request)
        self.record["offered"] = list(ids)

    def goes_on_in(self, request: Mapping[str, Any]) -> bool:
        """Whether LiteLLM asks for the same request again: since somebody failed, or without having called anybody.

        A caller of the SDK may pass one trace id and one dict of metadata with request after request.
        """
        if self.done or self.trace != request.get("litellm_trace_id"):
            return False
        if not self._taken:
            return True
        now = _Evidence.of(request)
        return now.any and (self._failed or now != self._seen) and not now.begins_after(self._seen)

    @property
    def goes_on(self) -> bool:
        """Whether its ranking holds: LiteLLM asks for who is next, since somebody has failed."""
        return bool(self.ranking) and len(self.tried) > self.before

    def settle(self, group: str, request: Mapping[str, Any]) -> None:
        """LiteLLM asks again, about the same group or another one: whoever took what was offered last has failed.

        A sync call has no hook that says who took it; LiteLLM's metadata do once it counts the failure. Nothing was
        tried where it asks again without having made a call, as a queue of priorities does. Another group, or a later
        order of the operator's, has chances of its own.
        """
        if self.offered and not self._taken and _Evidence.of(request) != self._seen:
            info = bucket_of(request).get("model_info")
            taken = info.get("id") if isinstance(info, Mapping) else None
            if isinstance(taken, str):
                self.take(taken, self._model if taken in self.offered else None)
        order = request.get("_target_order")
        if group != self.group or order != self.order:
            if group != self.group:
                self.ranking = {}
            self.group, self.order, self.offered, self.before = group, order, (), len(self.tried)
            self.models, self._error = set(), None

    def take(self, deployment: str, model: str | None) -> bool:
        """A deployment took the request; returns whether it was offered, where something was.

        Args:
            model: the bundle's name of its model; None for one that it does not know.
        """
        followed = self._taken or not self.offered or deployment in self.offered
        self._taken = True
        if deployment not in self.tried:
            self.tried.append(deployment)
        if model is not None:
            self.models.add(model)
        self.record["deployment"], self.record["answered"] = deployment, model
        attempts = self.record.setdefault("attempts", [])
        if not attempts or attempts[-1]["deployment"] != deployment or "error" in attempts[-1]:
            attempts.append({"deployment": deployment, "model": model})
            self._value(deployment, model)
        return followed

    def _value(self, deployment: str, model: str | None) -> None:
        """What a model of another group is worth for this prompt."""
        values = self.record.get("values")
        if model is None or values is None or model in values or self.worth is None:
            return
        value, cost = self.worth(model, deployment)
        self.record["beside"] = {"model": model, "value": value, "cost": cost}

    def end(self) -> None:
        """The request was answered: the bundle behind it may go."""
        self.done, self.groups, self.worth = True, None, None

    def fail(self, error: Exception) -> None:
        """Whoever took the request has failed."""
        attempts = self.record.get("attempts")
        if attempts:
            status = getattr(error, "status_code", None)
            attempts[-1]["error"] = status if isinstance(status, int) else type(error).__name__
        self._error, self._failed = weakref.ref(error), True
        self.record.pop("answered", None)


#: The request of the running task.
_CURRENT: contextvars.ContextVar[Attempts | None] = contextvars.ContextVar("p2l_request", default=None)


def _tokens() -> Iterator[str]:
    """Names that nobody can guess, drawn in blocks: at each call of the system another thread may take its turn."""
    while True:
        block = secrets.token_hex(16 * 256)
        yield from (block[i : i + 32] for i in range(0, len(block), 32))


class Requests:
    """The requests that go on. Safe to use from several threads.

    Args:
        most: most requests that are remembered.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._open: OrderedDict[str, Attempts] = OrderedDict()
        self._traces: dict[object, Attempts] = {}
        self._calls: OrderedDict[str, Attempts] = OrderedDict()
        self._tokens = _tokens()
        self._lock = threading.Lock()

    def of(self, request: Mapping[str, Any]) -> Attempts | None:
        """The attempts of a request that is tried again; None for one that is new."""
        found = self.of_task(request)
        return found if found is not None and found.goes_on_in(request) else None

    def begin(self, request: Mapping[str, Any]) -> Attempts:
        """A request that is new."""
        trace = request.get("litellm_trace_id")
        with self._lock:
            attempts = Attempts(next(self._tokens), trace)
            self._open[attempts.token] = attempts
            if isinstance(trace, str):
                self._traces[trace] = attempts
            while len(self._open) > self._most:
                _, oldest = self._open.popitem(last=False)
                if isinstance(oldest.trace, str) and self._traces.get(oldest.trace) is oldest:
                    del self._traces[oldest.trace]
        _CURRENT.set(attempts)
        return attempts

    def of_task(self, request: Mapping[str, Any]) -> Attempts | None:
        """The request of the running task, by LiteLLM's id of it; where it has none, by the token in the metadata."""
        current, trace = _CURRENT.get(), request.get("litellm_trace_id")
        if current is not None and trace is not None and current.trace == trace and current.token in self._open:
            return current
        return self.named_in(request, request)

    def called(self, call: object, attempts: Attempts) -> None:
        """Remembers LiteLLM's id of an attempt, which its log record has too."""
        if isinstance(call, str):
            with self._lock:
                self._calls[call] = attempts
                while len(self._calls) > self._most:
                    self._calls.popitem(last=False)

    def logged(self, record: Mapping[str, Any]) -> Attempts | None:
        """The request of a log record."""
        call = record.get("litellm_call_id")
        found = self._calls.get(call) if isinstance(call, str) else None
        return found or self.named_in(record.get("litellm_params") or {}, record)

    def carry_over(self, request: Mapping[str, Any]) -> None:
        """Has the running thread know a request that began in another one."""
        found = self.named_in(request, request)
        if found is not None:
            _CURRENT.set(found)

    def named_in(self, holder: Mapping[str, Any], call: Mapping[str, Any]) -> Attempts | None:
        """The request whose token some metadata hold.

        Args:
            holder: of the metadata: a request, or the parameters of its log record.
            call: holds LiteLLM's id of the request, where metadata are shared by several.
        """
        for key in BUCKETS:
            bucket = holder.get(key)
            token = bucket.get(TOKEN) if isinstance(bucket, dict) else None
            found = self._open.get(token) if isinstance(token, str) else None
            if found is not None:
                trace = call.get("litellm_trace_id")
                return found if trace is None or trace == found.trace else self._trace(trace)
        return None

    def _trace(self, trace: object) -> Attempts | None:
        return self._traces.get(trace) if isinstance(trace, str) else None
