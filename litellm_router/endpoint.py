"""Scores from an HTTP scorer, such as `p2l serve`, so that a proxy holds no model.

    GET  /v1/bundle  → {"fingerprint", "family", "models", "aliases", "max_length", "overall", …}
    POST /v1/scores {"prompts": [[turn, …], …]} → {"fingerprint", "coefs": [[…], …], "raw_eta": […] | null,
                                                 "truncated", "unknown"}

with `Authorization: Bearer …` where a key is set, and 429 while the scorer is busy. The calls run in the engine's
threads, several prompts in one, over connections that stay open. Where nobody takes a call it is made once more, since
a balancer may have another replica for it. An answer is read up to a bound in bytes and time, and
every score belongs to the fingerprint that came with it: scores of another bundle than the one known are not used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from litellm_router.reasons import NotRoutedError
from p2l_plugins.cache.breaker import Breaker
from p2l_plugins.cache.entry import WIDEST, Bounds, Entry
from p2l_plugins.outcomes import Family, has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.bundle import resolve_model
from p2l_plugins.scoring.scorer import BATCH_TOKENS, Scores
from p2l_plugins.support import Support

#: Calls at the same time.
WORKERS = 4

#: Most bytes of an answer.
MAX_BYTES = 16 * 2**20

#: Seconds for which a call may go on at least: what comes too late for one request still serves the next.
LEAST_S = 1.0

#: Seconds for which a scorer that said 429 is not asked: prompts of a batch would else come again one by one.
PAUSE_S = 0.1


class OverallInfo(BaseModel):
    """What a scorer says of everyday prompts."""

    model_config = ConfigDict(frozen=True)

    coefs: tuple[FiniteFloat, ...]
    raw_eta: FiniteFloat | None = None


class BoundsInfo(BaseModel):
    """What a scorer says of how far from 0 its numbers can be."""

    model_config = ConfigDict(frozen=True)

    coefs: FiniteFloat = Field(gt=0)
    raw_eta: FiniteFloat = Field(gt=0)


class BundleInfo(BaseModel):
    """What a scorer says of its bundle; further keys are left alone."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str = Field(pattern=r"^[0-9A-Za-z]{16,64}$")
    family: Family
    models: tuple[str, ...] = Field(min_length=1)
    aliases: dict[str, str] = {}
    support: dict[str, Support] = {}
    max_length: int = Field(default=2**31, ge=1)
    overall: OverallInfo | None = None
    bounds: BoundsInfo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> BundleInfo:
        overall = self.overall
        if overall is not None and len(overall.coefs) != len(self.models):
            raise ValueError("overall has another number of coefs than there are models")
        if overall is not None and (overall.raw_eta is not None) != has_eta(self.family):
            raise ValueError("overall has a raw_eta that the family does not have, or lacks one that it has")
        return self


class Reply(BaseModel):
    """The scores of some prompts."""

    fingerprint: str
    coefs: list[list[float]]
    raw_eta: list[float] | None = None
    truncated: list[bool] | None = None
    unknown: list[Annotated[float, Field(ge=0, le=1)]] | None = None


Form = TypeVar("Form", bound=BaseModel)


class RemoteScorer:
    """A scorer of another process. Safe to use from several threads.

    Attributes:
        workers: calls at the same time.
        batch_tokens: estimated tokens of the prompts of one call.

    Args:
        url: of the scorer, to which `/v1/…` is added.
        key: of the `Authorization` header, or None.
        timeout_s: that connecting, or a part of an answer, may take.

    Raises:
        NotRoutedError: `endpoint`, where the scorer does not answer as it should.
    """

    workers = WORKERS
    batch_tokens = BATCH_TOKENS

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 1.0) -> None:
        self._url = url
        self._longest_s = max(LEAST_S, 2 * timeout_s)
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._longest_s,
            limits=httpx.Limits(max_connections=WORKERS + 1),
        )
        self._breaker = Breaker(f"the scorer at {url}", topic="p2l")
        self._busy_until = 0.0
        self._gone = False
        try:
            self._info = self._call("GET", "/v1/bundle", BundleInfo)
        except BaseException:
            self._client.close()
            raise

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""
        return self._info.models

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of models, to names in `models`."""
        return self._info.aliases

    @property
    def support(self) -> dict[str, Support]:
        """How much is known of each model; one that is not in it counts as well known."""
        return self._info.support

    @property
    def family(self) -> Family:
        """The outcome model."""
        return self._info.family

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""
        return self._info.fingerprint

    @property
    def max_length(self) -> int:
        """Tokens after which a prompt is cut."""
        return self._info.max_length

    @property
    def bounds(self) -> Bounds:
        """How far from 0 the scores can be; the widest where the scorer does not say."""
        said = self._info.bounds
        return WIDEST if said is None else Bounds(said.coefs, said.raw_eta)

    @property
    def overall(self) -> Entry | None:
        """The coefficients of everyday prompts; None where the scorer does not say."""
        said = self._info.overall
        return None if said is None else Entry(np.array(said.coefs, np.float32), said.raw_eta)

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name.
        """
        return resolve_model(model, self._info.models, self._info.aliases)

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        """Coefficients of prompts.

        Raises:
            NotRoutedError: `endpoint` where the scorer can't be reached or refuses, `busy` where it says so, `loading`
                where it has another bundle by now, `scorer` for an answer that makes no sense.
        """
        if time.monotonic() < self._busy_until:
            raise NotRoutedError("busy", f"{self._url} is busy")
        if self._gone:  # a scorer of what is there now takes this one's place
            raise NotRoutedError("loading", f"{self._url} has another bundle by now")
        if not self._breaker.allows():
            raise NotRoutedError("endpoint", f"{self._url} is left alone for some seconds after failures in a row")
        body = {"prompts": [list(turns) for turns in prompts]}
        reply = self._call("POST", "/v1/scores", Reply, body)
        if reply.fingerprint != self.fingerprint:
            self._gone = True
        if self._gone:
            raise NotRoutedError("loading", f"{self._url} has another bundle by now")
        n = len(prompts)
        lengths = {len(row) for row in reply.coefs}
        if len(reply.coefs) != n or lengths != {len(self.models)}:
            shape = f"{len(reply.coefs)} rows of {', '.join(map(str, sorted(lengths))) or 'no'} coefficients"
            raise NotRoutedError("scorer", f"{self._url} gave {shape} for {n} prompts and {len(self.models)} models")
        eta, cut, unknown = reply.raw_eta, reply.truncated, reply.unknown
        if any(said is not None and len(said) != n for said in (eta, cut, unknown)):
            raise NotRoutedError(
                "scorer", f"{self._url} gave raw_eta, truncated or unknown of another length than {n} prompts"
            )
        return Scores(
            self.models,
            np.array(reply.coefs, np.float32),
            None if eta is None else np.array(eta, np.float32),
            self.family,
            self._info.aliases,
            truncated=None if cut is None else np.array(cut, np.bool_),
            unknown=None if unknown is None else np.array(unknown, np.float32),
            support=self._info.support,
        )

    def _call(self, method: str, path: str, form: type[Form], body: Any = None) -> Form:
        started = time.monotonic()
        try:
            try:
                status, content = self._exchange(method, path, body, started + self._longest_s)
            except (httpx.ConnectError, httpx.RemoteProtocolError):  # of a replica that is on its way out
                status, content = self._exchange(method, path, body, started + self._longest_s)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RuntimeError) as error:
            kind = "timeout" if isinstance(error, httpx.TimeoutException) else type(error).__name__
            self._breaker.failed(kind, time.monotonic() - started)
            raise NotRoutedError("endpoint", f"{self._url} does not answer ({kind})") from None
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            self._breaker.failed(str(status), time.monotonic() - started)
        else:
            self._breaker.succeeded()
        if status == httpx.codes.TOO_MANY_REQUESTS:
            self._busy_until = time.monotonic() + PAUSE_S
            raise NotRoutedError("busy", f"{self._url} is busy")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise NotRoutedError("endpoint", f"{self._url} refuses the key ({status}): check p2l_settings.endpoint_key")
        if status != httpx.codes.OK:
            raise NotRoutedError("endpoint", f"{self._url} answered {method} {path} with status {status}")
        try:
            return form.model_validate_json(content)
        except ValidationError as error:  # its message could hold what the prompt holds: the place has to do
            where = ".".join(map(str, error.errors()[0]["loc"])) or "all of it"
            raise NotRoutedError(
                "endpoint" if form is BundleInfo else "scorer",
                f"{self._url}: the answer to {method} {path} is not of the form of a P2L scorer ({where})",
            ) from None

    def _exchange(self, method: str, path: str, body: Any, deadline: float) -> tuple[int, bytes]:
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        parts, size = [], 0
        with self._client.stream(method, path, content=content, headers=headers) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise httpx.ReadError(f"more than {MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer is too slow")
            return response.status_code, b"".join(parts)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()
