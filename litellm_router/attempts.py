"""What became of a request so far: which deployments it was offered and which took it.

LiteLLM asks the callback again at every retry and hop. Its own record of a request's failures lags behind on some
versions and is kept among metadata that clients write to, so the memory lives here, under a random token that is put
into the request's metadata.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litellm_router.request import bucket_of, texts

#: Requests that are remembered at the same time; past it the oldest is forgotten, and tried again from its best model.
MOST_OPEN = 20_000

#: Key of the token in a request's metadata.
TOKEN = "p2l_request"  # noqa: S105


@dataclass(slots=True)
class Attempts:
    """The attempts of one request.

    Attributes:
        token: that finds it again.
        trace: LiteLLM's id of the request, the same at all its attempts.
        group: the model group that was ranked last.
        ranking: place of each of its models, by name, 0 the best; empty where P2L did not decide.
        record: of the decision, for headers, metrics and loggers.
        tried: ids of the deployments that took the request, in this order; before: how many of another group's.
        models: theirs, as far as the bundle knows them.
        offered: ids that were handed to LiteLLM last; empty where it had its own choice.
        error: what the last one to fail raised.
        done: whether it was answered.
    """

    token: str
    trace: object
    group: str | None = None
    ranking: Mapping[str, int] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    before: int = 0
    models: set[str] = field(default_factory=set)
    offered: tuple[str, ...] = ()
    error: Exception | None = None
    done: bool = False
    _model: str | None = None
    _taken: bool = False
    _seen: tuple[object, ...] = ()

    def decided(self, group: str, ranking: Sequence[str], record: dict[str, Any]) -> None:
        """A group's models were ranked, the best first, or P2L left the request alone."""
        self.group, self.ranking = group, {name: place for place, name in enumerate(ranking)}
        self.record = record
        self.before, self.offered = len(self.tried), ()

    def offer(self, ids: Sequence[str], model: str | None, request: Mapping[str, Any]) -> None:
        """Deployments of one model are handed to LiteLLM; None: of models that the bundle does not know."""
        self._model = model
        self.offered, self._taken, self._seen = tuple(ids), False, _evidence(request)
        self.record["offered"] = list(ids)

    @property
    def goes_on(self) -> bool:
        """Whether its ranking holds: LiteLLM asks for who is next, since somebody has failed."""
        return bool(self.ranking) and len(self.tried) > self.before

    def settle(self, group: str, request: Mapping[str, Any]) -> None:
        """LiteLLM asks again, about the same group or another one: whoever took what was offered last has failed.

        A sync call has no hook that says who took it; LiteLLM's metadata do once it counts the failure. Nothing was
        tried where it asks again without having made a call, as a queue of priorities does.
        """
        if self.offered and not self._taken and _evidence(request) != self._seen:
            info = bucket_of(request).get("model_info")
            taken = info.get("id") if isinstance(info, Mapping) else None
            if isinstance(taken, str):
                self.take(taken, self._model if taken in self.offered else None)
        if group != self.group:
            self.group, self.ranking, self.offered, self.before = group, {}, (), len(self.tried)

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
        self.record |= {"deployment": deployment, "answered": model}
        return followed


class Requests:
    """The requests that go on. Safe to use from several threads.

    Args:
        most: most requests that are remembered.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._open: OrderedDict[str, Attempts] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: Mapping[str, Any]) -> Attempts | None:
        """The attempts that a request's metadata speak of; None for a request that is new."""
        found = self.named_in(request)
        # metadata that a caller of the SDK passes with each request hold the token of the one before
        new = found is None or found.done or found.trace != request.get("litellm_trace_id")
        return None if new else found

    def begin(self, request: Mapping[str, Any]) -> Attempts:
        """A request that is new."""
        attempts = Attempts(secrets.token_hex(16), request.get("litellm_trace_id"))
        with self._lock:
            self._open[attempts.token] = attempts
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return attempts

    def named_in(self, holder: Mapping[str, Any]) -> Attempts | None:
        """The request whose token the metadata of a request, or of its log record, hold."""
        token = bucket_of(holder).get(TOKEN)
        return self._open.get(token) if isinstance(token, str) else None


def _evidence(request: Mapping[str, Any]) -> tuple[object, ...]:
    """What changes in a request when LiteLLM has counted one more failure."""
    bucket = bucket_of(request)
    earlier = bucket.get("previous_models")
    return (
        bucket.get("request_retry_count"),
        bucket.get("attempted_retries"),
        len(earlier) if isinstance(earlier, (list, tuple)) else 0,
        tuple(sorted(texts(request.get("_excluded_deployment_ids")))),
    )
