"""The LiteLLM callback: ranks a model group's deployments for each prompt, and tells the client what was decided.

It is called for healthy deployments only, by the proxy and by the async SDK. Whatever goes wrong here, the request goes
on with the deployments as they were, and LiteLLM's own strategy decides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import litellm
import numpy as np
from litellm.integrations.custom_logger import CustomLogger

from litellm_router import metrics
from litellm_router.check import group_problems
from litellm_router.decision import decide, kept, opponents_of
from litellm_router.deployments import Deployment, Group, Groups, takes_part
from litellm_router.headers import headers_of
from litellm_router.health import Health
from litellm_router.loading import Scorer, load_scorer
from litellm_router.personal import Personal
from litellm_router.prices import prompt_tokens
from litellm_router.reasons import NotRoutedError
from litellm_router.redis_client import close_soon, litellm_client
from litellm_router.request import (
    RECORD,
    SPEND_LOGS,
    asked_of,
    bucket_of,
    call_of,
    failed_ids,
    note,
    sealed,
    session_of,
    share_of,
    turns_of,
    uniform,
)
from litellm_router.scoring import Scoring
from litellm_router.settings import KEY, P2LSettings, PersonalSettings, tightened
from litellm_router.shared import SharedTraffic
from litellm_router.startup import warm_up_in_proxy
from litellm_router.traffic import Traffic
from p2l_plugins.errors import ConfigError
from p2l_plugins.outcomes import Array


class P2LRouter(CustomLogger):
    """Routes each request of a group with two or more models of the bundle to the best of them.

    Args:
        settings: fixed settings; None reads `litellm.p2l_settings`, where the proxy puts them, at every request.
        load: gives the scorer for the settings; called in a thread.
    """

    def __init__(
        self, settings: P2LSettings | None = None, load: Callable[[P2LSettings], Scorer] = load_scorer
    ) -> None:
        super().__init__()
        self.health = Health()
        self._fixed = settings
        self._load = load
        self._raw: object = None
        self._settings: P2LSettings | ConfigError | None = None
        self._scoring: Scoring | None = None
        self._traffic: Traffic | None = None
        self._groups: Groups | None = None
        self._shared: SharedTraffic | None = None
        self._users: tuple[P2LSettings, Personal] | None = None
        self._cache_counters = metrics.CacheCounters()
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
                self._scoring = Scoring(settings, self._load, client=litellm_client)
            return self._scoring

    def traffic(self, settings: P2LSettings) -> Traffic:
        """What is remembered of the traffic; other settings start anew."""
        traffic = self._traffic
        if traffic is not None and traffic.settings is settings:
            return traffic
        with self._lock:
            if self._traffic is None or self._traffic.settings != settings:
                if self._shared is not None:
                    close_soon(self._shared.aclose)
                self._traffic = Traffic(settings)
                self._shared = _shared(settings)
            return self._traffic

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
            seconds = time.monotonic() - started
            note(request, record, 1e3 * seconds)
            metrics.observe(model, record, seconds)
            if self._scoring is not None:
                self._cache_counters.carry(self._scoring.cache)
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
        traffic = self.traffic(settings)
        rule = traffic.rule_of(model)
        if rule is None:
            raise NotRoutedError("off")
        session = session_of(request)
        if rule.traffic < 1 and share_of(request, session) >= rule.traffic:
            raise NotRoutedError("traffic")
        rule, asked = tightened(rule, asked_of(request), settings.client_rules)
        chat = messages if messages is not None else request.get("input")
        turns = turns_of(chat)
        scoring = self.scoring(settings)
        deadline = started + settings.timeout_ms / 1e3
        scorer = await scoring.scorer(deadline)
        group = self._group(settings, model, deployments, scorer)
        opponents = opponents_of(rule, scorer)
        current = traffic.current(model, session)
        bound = sealed(chat, request)
        if bound and current not in group.models:
            raise NotRoutedError("sealed")
        scored = await scoring.score(scorer, turns, deadline)
        evidence = None
        if settings.personal is not None:
            users = self._personal(settings, settings.personal, scorer, scoring)
            scored, evidence = await users.scored(request, scored, deadline)
        values = scoring.values(scorer, scored, group.columns, rule.objective, opponents)
        length = prompt_tokens(chat)
        costs = group.costs(length, traffic.answer_tokens(group.models))
        pacer = traffic.pacer(model, rule, values, costs)
        multiplier = 0.0 if pacer is None else pacer.multiplier
        decision = decide(group.models, values, costs, rule, uniform(request), multiplier)
        ranking = decision.ranking
        if current in group.models and settings.sticky is not None:
            # an unknown price counts for nothing here: the model has the conversation already
            worth = values if pacer is None else values - multiplier * _known(costs)
            margin = 1.0 if bound else settings.sticky.margin
            ranking = kept(ranking, worth, group.models.index(current), margin)
            decision = replace(decision, ranking=ranking)
        first = ranking[0]
        # what a shadow decision would have cost is expected for good: the answer comes from elsewhere
        booked = None if rule.mode == "shadow" else call_of(request)
        traffic.decided(booked, model, session, group.models[first], pacer, float(costs[first]))
        if self._shared is not None:
            self._shared.soon(traffic)
        record = decision.record() | {
            "mode": rule.mode,
            "cache": "hit" if scored.hit else "miss",
            "prompt_tokens": length,
            "fingerprint": scorer.fingerprint,
        }
        if evidence is not None:
            record["personal"] = evidence
        if asked is not None:
            record["client"] = asked
        if rule.mode == "shadow":
            return deployments, record
        ranked = group.ordered(ranking, failed_ids(request), request.get("_target_order"))
        # LiteLLM would keep only deployments of exactly that order; ours has taken its place
        request.pop("_target_order", None)
        return ranked, record

    def _personal(self, settings: P2LSettings, own: PersonalSettings, scorer: Scorer, scoring: Scoring) -> Personal:
        kept = self._users
        if kept is None or kept[0] is not settings or kept[1].scorer is not scorer:
            shared = scoring.cache.shared
            try:
                users = Personal(settings, own, scorer, None if shared is None else shared.client)
            except ConfigError as error:
                raise NotRoutedError("settings", f"{KEY}.{error}") from None
            kept = self._users = (settings, users)
        return kept[1]

    def _group(self, settings: P2LSettings, name: str, deployments: list[Deployment], scorer: Scorer) -> Group:
        groups = self._groups
        if groups is None or groups.bundle is not scorer:
            groups = self._groups = Groups(scorer)
        group = groups.of(deployments)
        if not group.checked:
            group.checked = True
            for sentence in group_problems(settings, name, deployments, scorer, scorer.family):
                self.health.misconfigured(sentence)
        if len(group.models) < 2:
            raise NotRoutedError("models")
        return group

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
            record = (bucket_of(data).get(SPEND_LOGS) or {}).get(RECORD)
            if not isinstance(record, Mapping) or not self.settings().headers:
                return None
            return headers_of(record, self._answered(litellm_call_info))
        except ConfigError:
            return headers_of({"error": "settings"}, None)
        except Exception:  # a record that a client wrote into its own metadata
            self.health.counts["headers"] += 1
            return None

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Learns from an answer that ended: its length, and what it cost."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As `async_log_success_event`, for LiteLLM's sync calls."""
        try:
            traffic = self._traffic
            if traffic is None or kwargs.get("cache_hit"):
                return
            info = (kwargs.get("litellm_params") or {}).get("model_info") or {}
            name = info.get("p2l_model")
            model = self._groups.canonical(name) if isinstance(name, str) and self._groups is not None else None
            logged = kwargs.get("standard_logging_object") or {}
            tokens, cost = logged.get("completion_tokens"), logged.get("response_cost")
            traffic.answered(
                call_of(kwargs),
                model,
                tokens if isinstance(tokens, int) and tokens > 0 else None,
                float(cost) if isinstance(cost, int | float) and 0 <= cost < float("inf") else None,
            )
        except Exception:  # a log record of an unknown form costs what could be learnt from it
            self.health.counts["usage"] += 1

    def _answered(self, call_info: Mapping[str, Any] | None) -> str | None:
        """The bundle's name of the model that answered: not the first of the ranking, where that one failed."""
        info = (call_info or {}).get("model_info") or {}
        name = info.get("p2l_model")
        return self._groups.canonical(name) if isinstance(name, str) and self._groups is not None else None


def _shared(settings: P2LSettings) -> SharedTraffic | None:
    try:
        client = settings.cache.client(litellm_client)
    except ConfigError:  # the scoring says so, and goes on without
        return None
    return client and SharedTraffic(client, settings.cache.namespace)


def _known(costs: Array) -> Array:
    return np.nan_to_num(costs, nan=0.0)


#: What a change of makes the scoring start anew.
_OF_THE_SCORING = ("bundle", "endpoint", "endpoint_key", "threads", "cache")


def _same_scoring(a: P2LSettings, b: P2LSettings) -> bool:
    return all(getattr(a, key) == getattr(b, key) for key in _OF_THE_SCORING)


#: The callback that `litellm_router.p2l_router` names.
p2l_router = P2LRouter()
warm_up_in_proxy(p2l_router)
