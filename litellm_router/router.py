"""The LiteLLM callback: ranks a model group's deployments for each prompt, and tells the client what was decided.

It is called for healthy deployments only, by the proxy and by the async SDK. Whatever goes wrong here, the request goes
on with the deployments as they were, and LiteLLM's own strategy decides.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import litellm
from litellm.integrations.custom_logger import CustomLogger

from litellm_router.decision import decide
from litellm_router.deployments import Deployment, Groups, failed_ids, takes_part
from litellm_router.headers import headers_of
from litellm_router.health import Health
from litellm_router.prices import prompt_tokens
from litellm_router.scoring import NotRoutedError, Scorer, Scoring, load_bundle
from litellm_router.settings import KEY, P2LSettings
from p2l_plugins.errors import ConfigError, PromptError
from p2l_plugins.prompts import Turns, as_turns, user_turns

#: Where a decision stands in a request's metadata; LiteLLM hands this bucket to every logger.
SPEND_LOGS, RECORD = "spend_logs_metadata", "p2l"

#: Seconds that the proxy may take to read its config before the bundle is no longer loaded ahead of the first request.
STARTUP_S = 120.0


class P2LRouter(CustomLogger):
    """Routes each request of a group with two or more models of the bundle to the best of them.

    Args:
        settings: fixed settings; None reads `litellm.p2l_settings`, where the proxy puts them, at every request.
        load: gives the scorer for the settings; called in a thread.
    """

    def __init__(
        self, settings: P2LSettings | None = None, load: Callable[[P2LSettings], Scorer] = load_bundle
    ) -> None:
        super().__init__()
        self.health = Health()
        self._fixed = settings
        self._load = load
        self._raw: object = None
        self._settings: P2LSettings | ConfigError | None = None
        self._scoring: Scoring | None = None
        self._groups: Groups | None = None
        self._lock = threading.Lock()

    def settings(self) -> P2LSettings:
        """The settings as they stand now.

        Raises:
            ConfigError: a wrong key or value.
        """
        if self._fixed is not None:
            return self._fixed
        raw = getattr(litellm, KEY, None)
        if self._settings is None or raw != self._raw:
            self._raw = dict(raw) if isinstance(raw, Mapping) else raw
            try:
                self._settings = P2LSettings.read(raw)
            except ConfigError as error:
                self._settings = error
        if isinstance(self._settings, ConfigError):
            raise self._settings
        return self._settings

    def scoring(self, settings: P2LSettings) -> Scoring:
        """The scoring of these settings; another bundle, cache or number of threads starts anew."""
        scoring = self._scoring
        if scoring is not None and (scoring.settings is settings or _same_scoring(scoring.settings, settings)):
            return scoring
        with self._lock:
            if self._scoring is None or not _same_scoring(self._scoring.settings, settings):
                if self._scoring is not None:
                    self._scoring.close()
                self._scoring = Scoring(settings, self._load)
            return self._scoring

    def warm_up(self) -> None:
        """Begins to load the bundle, so that the first request finds it; a wrong setting is logged."""
        try:
            self.scoring(self.settings()).start()
        except ConfigError as error:
            self.health.not_routed(NotRoutedError("settings", str(error)))

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Copies of the deployments with an order, or the deployments as they are where P2L does not decide."""
        started = time.monotonic()
        request: dict[str, Any] = request_kwargs if isinstance(request_kwargs, dict) else {}
        try:
            if not isinstance(healthy_deployments, list) or not takes_part(healthy_deployments):
                return healthy_deployments
            ranked, record = await self._ranked(model, healthy_deployments, messages, request, started)
            self.health.routed()
        except Exception as error:
            ranked, record = healthy_deployments, self._failed(error)
        try:
            _note(request, record, 1e3 * (time.monotonic() - started))
        except Exception as error:  # metadata of an unknown form costs the headers, not the request
            self._failed(error)
        return ranked

    async def _ranked(
        self, model: str, deployments: list[Deployment], messages: object, request: dict[str, Any], started: float
    ) -> tuple[list[Deployment], dict[str, Any]]:
        try:
            settings = self.settings()
        except ConfigError as error:
            raise NotRoutedError("settings", str(error)) from None
        chat = messages if messages is not None else request.get("input")
        turns = _turns(chat)
        scoring = self.scoring(settings)
        deadline = started + settings.timeout_ms / 1e3
        scorer = await scoring.scorer(deadline)
        if settings.objective == "usable" and scorer.family != "grk":
            raise NotRoutedError(
                "settings", f"{KEY}.objective = 'usable' needs a bundle of the family grk, not {scorer.family}"
            )
        groups = self._groups
        if groups is None or groups.bundle is not scorer:
            groups = self._groups = Groups(scorer)
        group = groups.of(deployments)
        if group.unknown:
            self.health.misconfigured(
                f"model group {model!r}: model_info.p2l_model = {', '.join(map(repr, group.unknown))} is not in the "
                f"bundle and is left unranked; valid: {', '.join(scorer.models)}"
            )
        if len(group.models) < 2:
            raise NotRoutedError("models")
        scored = await scoring.score(scorer, turns, deadline)
        values = scoring.values(scorer, scored, group.columns, settings.objective)
        length = prompt_tokens(chat)
        costs = group.costs(length, settings.output_tokens)
        decision = decide(group.models, values, costs, settings, _uniform(request))
        failed = failed_ids(request, _bucket(request))
        ranked = group.ordered(decision.ranking, failed, request.get("_target_order"))
        # LiteLLM would keep only deployments of exactly that order; ours has taken its place
        request.pop("_target_order", None)
        record = decision.record() | {
            "cache": "hit" if scored.hit else "miss",
            "prompt_tokens": length,
            "fingerprint": scorer.fingerprint,
        }
        return ranked, record

    def _failed(self, error: Exception) -> dict[str, Any]:
        if not isinstance(error, NotRoutedError):
            # its message could hold text of the prompt: its type has to do
            error = NotRoutedError("internal", f"an unexpected {type(error).__name__} in the router")
        self.health.not_routed(error)
        return {"error": error.reason}

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """The `x-p2l-*` headers of a response, where P2L had a say."""
        try:
            record = (_bucket(data).get(SPEND_LOGS) or {}).get(RECORD)
            if not isinstance(record, Mapping) or not self.settings().headers:
                return None
            return headers_of(record, self._answered(litellm_call_info))
        except ConfigError:
            return headers_of({"error": "settings"}, None)
        except Exception:  # a record that a client wrote into its own metadata
            self.health.counts["headers"] += 1
            return None

    def _answered(self, call_info: Mapping[str, Any] | None) -> str | None:
        """The bundle's name of the model that answered: not the first of the ranking, where that one failed."""
        info = (call_info or {}).get("model_info") or {}
        name = info.get("p2l_model")
        return self._groups.canonical(name) if isinstance(name, str) and self._groups is not None else None


def _turns(chat: object) -> Turns:
    """The user's turns of a chat, of a Responses input (its items have the form of messages), or of a bare string."""
    try:
        if isinstance(chat, str):
            return as_turns(chat)
        if isinstance(chat, (list, tuple)):
            return user_turns(chat)
    except PromptError:
        pass
    raise NotRoutedError("no_text")


def _uniform(request: Mapping[str, Any]) -> float:
    """A random number, no secret, that is the same at every attempt of one request."""
    seed = request.get("litellm_call_id") or request.get("litellm_trace_id")
    return random.Random(seed if isinstance(seed, str) else None).random()  # noqa: S311


def _bucket(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request's metadata: `litellm_metadata` on the routes that have it, else `metadata`."""
    bucket = request.get("litellm_metadata" if "litellm_metadata" in request else "metadata")
    return bucket if isinstance(bucket, dict) else {}


def _note(request: dict[str, Any], record: dict[str, Any], ms: float) -> None:
    """Writes the decision into the request's metadata, for the headers and for every logger."""
    key = "litellm_metadata" if "litellm_metadata" in request else "metadata"
    bucket = request.get(key)
    if bucket is None:
        bucket = request[key] = {}
    if not isinstance(bucket, dict):
        return
    attempts = bucket.get("attempted_retries")
    logged = bucket.get(SPEND_LOGS)
    logged = logged if isinstance(logged, Mapping) else {}
    first = logged.get(RECORD)
    if type(attempts) is int and attempts > 0 and isinstance(first, Mapping) and "error" not in record:
        # the next attempt of one request always finds its scores: what the client waited for is the first attempt
        record = record | {"cache": first.get("cache", record["cache"])}
        ms += first["ms"] if isinstance(first.get("ms"), float) else 0.0
    bucket[SPEND_LOGS] = {**logged, RECORD: record | {"ms": round(ms, 3)}}


def _same_scoring(a: P2LSettings, b: P2LSettings) -> bool:
    return all(getattr(a, key) == getattr(b, key) for key in ("bundle", "threads", "cache_entries", "cache_ttl_s"))


def warm_up_in_proxy(router: P2LRouter) -> None:
    """Loads the bundle as soon as the proxy that imports this has read its config, ahead of the first request.

    LiteLLM calls no hook at start, and imports callbacks before it reads their settings; it makes its router after
    both. So a daemon thread looks for that router, and gives up after a while: then the first request starts the load.
    """
    if "litellm.proxy.proxy_server" not in sys.modules:
        return

    def wait() -> None:
        end = time.monotonic() + STARTUP_S
        while time.monotonic() < end:
            if getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None) is not None:
                router.warm_up()
                return
            time.sleep(0.05)

    threading.Thread(target=wait, name="p2l-warm-up", daemon=True).start()


#: The callback that `litellm_router.p2l_router` names.
p2l_router = P2LRouter()
warm_up_in_proxy(p2l_router)
