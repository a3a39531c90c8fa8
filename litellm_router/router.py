"""The LiteLLM callback: ranks a model group's deployments for each prompt, and tells the client what was decided.

It is called for healthy deployments only, by the proxy and by the async SDK. Whatever goes wrong here, the request goes
on with the deployments as they were, and LiteLLM's own strategy decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import litellm
import numpy as np
from litellm.integrations.custom_logger import CustomLogger

from litellm_router import metrics
from litellm_router.asking import ASKED
from litellm_router.attempts import TOKEN, Attempts, Requests
from litellm_router.check import group_problems
from litellm_router.decision import decide, kept, opponents_of
from litellm_router.deployments import Deployment, Group, Groups, id_of, p2l_model, takes_part
from litellm_router.failover import Failover
from litellm_router.headers import headers_of
from litellm_router.health import Health
from litellm_router.loading import Scorer, load_scorer
from litellm_router.narrowing import Ranked
from litellm_router.personal import Personal
from litellm_router.prices import prompt_tokens
from litellm_router.reasons import NotRoutedError
from litellm_router.redis_client import close_soon, litellm_client
from litellm_router.request import (
    asked_of,
    note,
    sealed,
    session_of,
    share_of,
    turns_of,
    uniform,
)
from litellm_router.routers import is_anothers, router_of
from litellm_router.scoring import Scoring
from litellm_router.settings import KEY, P2LSettings, PersonalSettings, tightened
from litellm_router.shared import SharedTraffic
from litellm_router.startup import warm_up_in_proxy
from litellm_router.traffic import Traffic
from p2l_plugins.errors import ConfigError
from p2l_plugins.outcomes import Array

log = logging.getLogger("litellm_router")


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
        self.is_p2l = True
        self.health = Health()
        self.requests = Requests()
        self.failover = Failover()
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
        """The deployments of the best model that this request has not tried, or all where P2L does not decide.

        They are LiteLLM's own, never copied or changed. LiteLLM asks again at every retry and hop.

        Raises:
            Exception: what a provider answered last, once every model that may be tried was.
        """
        asked = ASKED.get()
        if asked is not None:  # LiteLLM asks in the middle of our own question to it
            return [one for one in healthy_deployments if id_of(one) in asked]
        if self._is_anothers(healthy_deployments):
            return healthy_deployments
        ranked = await self.ranked(model, healthy_deployments, messages, request_kwargs)
        if ranked is None:
            return healthy_deployments
        try:
            ids = await ranked.next()
            if ids:
                return ranked.offer(ids)
        except Exception as error:
            self._failed(error)
            return healthy_deployments
        ranked.raise_last_error()
        # nobody is left: where that is so from the start, LiteLLM says itself why
        return [] if ranked.attempts.tried else healthy_deployments

    def _is_anothers(self, deployments: Any) -> bool:
        """Whether these are of a router of the SDK that has another callback of this kind."""
        try:
            return bool(deployments) and is_anothers(id_of(deployments[0]), self)
        except Exception:  # of an unknown form, which is refused below
            return False

    async def ranked(
        self, model: str, deployments: list[Any], messages: object, request_kwargs: dict[str, Any] | None
    ) -> Ranked | None:
        """The ranking of a request, made at its first attempt; None where P2L does not decide. Never raises.

        Args:
            model: name of the group; deployments: that are healthy; messages, request_kwargs: as LiteLLM has them.
        """
        started = time.monotonic()
        request: dict[str, Any] = request_kwargs if isinstance(request_kwargs, dict) else {}
        attempts = None
        try:
            attempts = self.requests.of(request)
            if attempts is not None:
                attempts.settle(model, request)
            again = attempts is not None and attempts.goes_on
            if not isinstance(deployments, list) or not (again or takes_part(deployments)):
                return None
            chat = request.get("input") if messages is None else messages
            attempts = attempts or self.requests.begin(request)
            if not again:
                await self._decide(model, deployments, chat, request, attempts, started)
                self._note(model, request, attempts, started)
            self.health.routed()
            groups = self._groups
            if not attempts.ranking or groups is None:
                return None
            return Ranked(
                self.settings(), model, groups.of(deployments), deployments, attempts, request, chat, messages
            )
        except Exception as error:
            attempts = attempts or self.requests.begin(request)
            attempts.decided(model, [], self._failed(error))
            self._note(model, request, attempts, started)
            return None

    def _note(self, model: str, request: dict[str, Any], attempts: Attempts, started: float) -> None:
        """Tells headers, loggers and metrics what was decided."""
        try:
            seconds = time.monotonic() - started
            attempts.record["ms"] = round(1e3 * seconds, 3)
            note(request, attempts.record, {TOKEN: attempts.token})
            metrics.observe(model, attempts.record, seconds)
            if self._scoring is not None:
                self._cache_counters.carry(self._scoring.cache)
        except Exception as error:  # metadata of an unknown form costs the headers, not the request
            self._failed(error)

    async def _decide(
        self,
        model: str,
        deployments: list[Deployment],
        chat: object,
        request: dict[str, Any],
        attempts: Attempts,
        started: float,
    ) -> None:
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
        shadow = rule.mode == "shadow"
        # what a shadow decision would have cost is expected for good: the answer comes from elsewhere
        booked = None if shadow else attempts.token
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
        attempts.decided(model, [] if shadow else record["ranking"], record)

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
            self.set_up_failover(router_of(id_of(deployments[0])), [name])
        if len(group.models) < 2:
            raise NotRoutedError("models")
        return group

    def set_up_failover(self, router: Any, groups: Collection[str] | None = None) -> None:
        """Gives groups of a router what they need to have every error reach the next model, where that is wanted.

        LiteLLM reads it at the start of a request, so a group should have it before its first one.

        Args:
            groups: by name; None for all.
        """
        try:
            settings = self.settings()
            if router is None or settings.failover == "off":
                return
            named: dict[str, list[str | None]] = defaultdict(list)
            for deployment in router.get_model_list() or []:
                named[str(deployment.get("model_name"))].append(p2l_model(deployment))
            changed = []
            for group, members in named.items():
                rule = settings.rule_of(group)
                models = set(members) - {None}
                wanted = len(models) > 1 and rule is not None and rule.mode == "route"
                wanted = wanted and (groups is None or group in groups)
                if wanted and self.failover.set_up(router, group, len(models), len(members), settings.max_attempts):
                    changed.append(group)
            if changed:
                log.info(
                    "p2l sets model_group_retry_policy: every error of a provider goes on to the next best model, "
                    "%d at most, in %s; p2l_settings.failover: off leaves retries alone",
                    settings.max_attempts,
                    ", ".join(changed),
                )
        except ConfigError as error:
            self.health.misconfigured(f"{error}; LiteLLM's own strategy decides")
        except Exception as error:  # of a LiteLLM whose router is another
            self.health.misconfigured(f"failover could not be set up ({type(error).__name__})")

    def _failed(self, error: Exception) -> dict[str, Any]:
        if not isinstance(error, NotRoutedError):
            # its message could hold text of the prompt: its type has to do
            error = NotRoutedError("internal", f"an unexpected {type(error).__name__} in the router")
        self.health.not_routed(error)
        return {"error": error.reason}

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> None:
        """Books which deployment takes a request, at each of its attempts, and whether it is one that was offered."""
        try:
            attempts = self.requests.of_task(kwargs)
            if attempts is not None:
                self.requests.called(kwargs.get("litellm_call_id"), attempts)
                self._taken(attempts, kwargs.get("model_info"))
        except Exception:  # of a form that another LiteLLM gives them
            self.health.counts["taken"] += 1

    def _taken(self, attempts: Attempts, info: object) -> None:
        deployment = info.get("id") if isinstance(info, Mapping) else None
        if isinstance(deployment, str) and not attempts.take(deployment, self._model_in(info)):
            attempts.record["not_followed"] = True
            self.health.not_followed(attempts.offered, deployment)

    def _model_in(self, info: object) -> str | None:
        """The bundle's name of the model that a deployment's `model_info` names."""
        name = info.get("p2l_model") if isinstance(info, Mapping) else None
        return self._groups.canonical(name) if isinstance(name, str) and self._groups is not None else None

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
            # what a client wrote into its own metadata has no token of ours
            attempts = self.requests.named_in(data, data)
            if attempts is None or not self.settings().headers:
                return None
            return headers_of(attempts.record, self._answered(attempts, response, litellm_call_info))
        except ConfigError:
            return headers_of({"error": "settings"}, None)
        except Exception:  # of a form that another LiteLLM gives them
            self.health.counts["headers"] += 1
            return None

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Learns from an answer that ended: its length, and what it cost."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As `async_log_success_event`, for LiteLLM's sync calls."""
        try:
            params = kwargs.get("litellm_params") or {}
            attempts = self.requests.logged(kwargs)
            info = params.get("model_info") or {}
            if attempts is not None:
                self._taken(attempts, info)
                attempts.done = True
            traffic = self._traffic
            if traffic is None or kwargs.get("cache_hit"):
                return
            logged = kwargs.get("standard_logging_object") or {}
            tokens, cost = logged.get("completion_tokens"), logged.get("response_cost")
            traffic.answered(
                None if attempts is None else attempts.token,
                self._model_in(info),
                tokens if isinstance(tokens, int) and tokens > 0 else None,
                float(cost) if isinstance(cost, int | float) and 0 <= cost < float("inf") else None,
            )
        except Exception:  # a log record of an unknown form costs what could be learnt from it
            self.health.counts["usage"] += 1

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Keeps what a provider answered, for the client of a request that every model refuses."""
        self.log_failure_event(kwargs, response_obj, start_time, end_time)

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As `async_log_failure_event`, for LiteLLM's sync calls."""
        try:
            attempts = self.requests.logged(kwargs)
            error = kwargs.get("exception")
            if attempts is not None and isinstance(error, Exception):
                attempts.fail(error)
        except Exception:  # of an unknown form
            self.health.counts["usage"] += 1

    def _answered(self, attempts: Attempts, response: object, call_info: Mapping[str, Any] | None) -> str | None:
        """The bundle's name of the model that answered: not the first of the ranking, where that one failed."""
        if attempts.tried:  # an error reply has no response, and names nobody
            answered: str | None = None if response is None else attempts.record.get("answered")
            return answered
        return self._model_in((call_info or {}).get("model_info"))


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
