"""The LiteLLM callback: ranks a model group's deployments for each prompt, and tells the client what was decided.

It is called for healthy deployments only, by the proxy and by the async SDK. Whatever goes wrong here, the request goes
on with the deployments as they were, and LiteLLM's own strategy decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import litellm
from litellm.integrations.custom_logger import CustomLogger

from litellm_router import metrics
from litellm_router.asking import ASKED
from litellm_router.attempts import TOKEN, Attempts, Requests
from litellm_router.called import takes_part
from litellm_router.calls import is_chat
from litellm_router.chat import chat_of, deployment_in
from litellm_router.check import group_problems
from litellm_router.conversations import Turn, answer_text
from litellm_router.decision import Case, Decision
from litellm_router.deployments import Deployment, Group, column_of, id_of
from litellm_router.failover import Failover
from litellm_router.health import Health
from litellm_router.names import p2l_model
from litellm_router.narrowing import Ranked
from litellm_router.prices import price_of
from litellm_router.reasons import NotRoutedError
from litellm_router.record import Record, headers_of, note
from litellm_router.request import PRIVATE, read
from litellm_router.routers import deployment_of, is_anothers, proxy_router, router_of
from litellm_router.scoring import Loaded, load_scorer
from litellm_router.settings import KEY, P2LSettings
from litellm_router.state import State
from litellm_router.tracing import trace_decision
from litellm_router.traffic import Traffic
from p2l_plugins.errors import ConfigError
from p2l_plugins.routing.pacing import Pacer
from p2l_plugins.scoring.engine import Scorer

log = logging.getLogger("litellm_router")

#: Groups that are remembered as having several models.
MOST_GROUPS = 10_000


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
        self._state: State | None = None
        self._wrong: tuple[object, ConfigError] | None = None
        self._ranked: set[tuple[str, object]] = set()
        self._cache_counters = metrics.CacheCounters()
        self._lock = threading.Lock()

    def state(self) -> State:
        """What belongs to the settings as they stand now.

        Raises:
            ConfigError: a wrong key or value.
        """
        raw = getattr(litellm, KEY, None) if self._fixed is None else self._fixed
        state = self._state
        if state is not None and (state.raw is raw or state.raw == raw):
            return state
        with self._lock:
            if self._state is not None and self._state.raw == raw:
                return self._state
            if self._wrong is not None and self._wrong[0] == raw:
                raise self._wrong[1]
            try:
                self._state = State.of(raw, self._load, self._state)
            except ConfigError as error:
                self._wrong = (dict(raw) if isinstance(raw, Mapping) else raw, error)
                raise
            return self._state

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
        ranked = await self.ranked(model, healthy_deployments, messages, request_kwargs, parent_otel_span)
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
        self,
        model: str,
        deployments: list[Any],
        messages: object,
        request_kwargs: dict[str, Any] | None,
        span: Any = None,
    ) -> Ranked | None:
        """The ranking of a request, made at its first attempt; None where P2L does not decide. Never raises.

        Args:
            model: name of the group; deployments: that are healthy; messages, request_kwargs: as LiteLLM has them.
            span: of the request, where LiteLLM traces.
        """
        started = time.monotonic()
        request: dict[str, Any] = request_kwargs if isinstance(request_kwargs, dict) else {}
        attempts = None
        try:
            attempts = self.requests.of(request)
            if attempts is not None:
                attempts.settle(model, request)
            again = attempts is not None and attempts.goes_on
            if not isinstance(deployments, list) or not (again or self._takes_part(model, deployments, attempts)):
                return None
            if not is_chat(request):
                return None
            chat = chat_of(messages, request)
            state = self._checked_state()
            if not again and not await self._matched(state, model, deployments, started):
                return None
            attempts = attempts or self.requests.begin(request)
            if not again:
                await self._decide(state, model, deployments, chat, request, attempts, started)
                self._note(state, model, request, attempts, started, span)
            self.health.routed()
            if not attempts.ranking or attempts.groups is None:
                return None
            group = attempts.groups.of(deployments)
            return Ranked(state.settings, model, group, deployments, attempts, request, chat, messages)
        except Exception as error:
            attempts = attempts or self.requests.begin(request)
            attempts.decided(model, [], self._failed(error))
            self._note(self._state, model, request, attempts, started, span)
            return None

    def _takes_part(self, name: str, deployments: list[Deployment], attempts: Attempts | None) -> bool:
        """Whether there is a choice, or one is usual here and LiteLLM has left a single model."""
        if not deployments:
            return False
        return (attempts is None and _choice(name, deployments) in self._ranked) or takes_part(deployments)

    async def _matched(self, state: State, name: str, deployments: list[Deployment], started: float) -> bool:
        """Whether the bundle has two of the models, of deployments that name none: else they are none of P2L's."""
        if _choice(name, deployments) in self._ranked or _names_two(deployments):
            return True
        try:
            loaded = await state.scoring.loaded(started + state.settings.timeout_ms / 1e3)
        except NotRoutedError:  # what it is for is not known then, and the load itself is reported
            return False
        return len(loaded.groups.of(deployments).models) > 1

    def _checked_state(self) -> State:
        try:
            return self.state()
        except ConfigError as error:
            raise NotRoutedError("settings", str(error)) from None

    async def _decide(
        self,
        state: State,
        name: str,
        deployments: list[Deployment],
        chat: object,
        request: dict[str, Any],
        attempts: Attempts,
        started: float,
    ) -> None:
        """Read, score, decide, book."""
        settings, traffic = state.settings, state.traffic
        rule = traffic.rule_of(name)
        wanted = read(name, chat, request, rule, settings, traffic.conversations, attempts.uniform)
        deadline = started + settings.timeout_ms / 1e3
        loaded = await state.scoring.loaded(deadline)
        while True:
            attempts.groups = loaded.groups
            group = self._group(settings, name, deployments, loaded)
            signer = _signer(group, request)
            await attempts.join(wanted.conversation, traffic.conversations, group.models, deadline, signer)
            try:
                scored, evidence = await state.scoring.score(loaded, wanted.turns, request, deadline)
                break
            except NotRoutedError as why:
                if why.reason != "loading":
                    raise
            loaded = await state.scoring.newer(loaded, deadline)
        case = Case(name, group, wanted, scored, attempts.turn, attempts.uniform)
        decision, pacer = case.decide(loaded.scorer, loaded.values, traffic, settings.sticky)
        attempts.worth = partial(_worth, case, loaded, traffic)
        if state.collector is not None:
            attempts.sample = state.collector.sample(name, wanted, chat, request, group)
        attempts.answers = wanted.answers
        self._book(state, case, decision, pacer, attempts, evidence, loaded.scorer.fingerprint)

    def _book(
        self,
        state: State,
        case: Case,
        decision: Decision,
        pacer: Pacer | None,
        attempts: Attempts,
        evidence: dict[str, float] | None,
        fingerprint: str,
    ) -> None:
        """Has the record, the budget and a shadow's conversation say what was decided."""
        record = decision.record() | case.record() | {"fingerprint": fingerprint}
        if evidence is not None:
            record["personal"] = evidence
        if case.group.little_known:
            record["little_known"] = list(case.group.little_known)
        shadow, traffic = case.wanted.rule.mode == "shadow", state.traffic
        first = decision.ranking[0]
        # what a shadow decision would have cost is expected for good: the answer comes from elsewhere
        traffic.decided(None if shadow else attempts.token, pacer, float(decision.costs[first]))
        if shadow:  # its conversation stays where it would have been
            traffic.conversations.bind(case.wanted.conversation, Turn(decision.models[first], attempts.uniform))
        if state.shared is not None:
            state.shared.soon(traffic)
        attempts.decided(case.name, [] if shadow else record["ranking"], record)

    def _note(
        self, state: State | None, model: str, request: dict[str, Any], attempts: Attempts, started: float, span: Any
    ) -> None:
        """Tells headers, loggers, metrics and the trace what was decided."""
        try:
            seconds = time.monotonic() - started
            attempts.record["ms"] = round(1e3 * seconds, 3)
            note(request, attempts.record, {TOKEN: attempts.token})
            metrics.observe(model, attempts.record, seconds)
            trace_decision(span, model, attempts.record, seconds)
            if state is not None:
                self._cache_counters.carry(state.scoring.cache)
        except Exception as error:  # metadata of an unknown form costs the headers, not the request
            self._failed(error)

    def _group(self, settings: P2LSettings, name: str, deployments: list[Deployment], loaded: Loaded) -> Group:
        group = loaded.groups.of(deployments)
        if not group.checked:
            group.checked = True
            for sentence in group_problems(settings, name, deployments, loaded.scorer):
                self.health.misconfigured(sentence)
            self.failover.models_of = loaded.groups.models_of
            self.set_up_failover(router_of(id_of(deployments[0])), [name])
        if len(group.models) < 2:
            raise NotRoutedError("models" if _names_two(deployments) else "one_left")
        if len(self._ranked) < MOST_GROUPS:
            self._ranked.add(_choice(name, deployments))
        return group

    def set_up_failover(self, router: Any, groups: Collection[str] | None = None) -> None:
        """As `Failover.set_up`, by the settings as they stand now; what is wrong with them is said. Never raises."""
        changed = self._policies(lambda settings: self.failover.set_up(router, settings, groups))
        if changed:
            log.info(
                "p2l sets model_group_retry_policy: every error of a provider goes on to the next best model, "
                "%d at most, in %s; p2l_settings.failover: off leaves retries alone",
                self.state().settings.max_attempts,
                ", ".join(changed),
            )

    def _policies(self, give: Callable[[P2LSettings], list[str]]) -> list[str]:
        """The names that got a policy."""
        try:
            return give(self.state().settings)
        except ConfigError as error:
            self.health.misconfigured(f"{error}; LiteLLM's own strategy decides")
        except Exception as error:  # of a LiteLLM whose router is another
            self.health.misconfigured(f"failover could not be set up ({type(error).__name__})")
        return []

    def _failed(self, error: Exception) -> Record:
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
        if not isinstance(deployment, str):
            return
        model = self._model_in(info, attempts)
        if not attempts.take(deployment, model):
            attempts.record["not_followed"] = True
            self.health.not_followed(attempts.offered, deployment)
        if model is not None and "mode" in attempts.record and attempts.record["mode"] == "route":
            self._bind(attempts, Turn(model, attempts.uniform))

    def _bind(self, attempts: Attempts, turn: Turn | None) -> None:
        """Gives a request's conversation to the model that takes it, or back."""
        if self._state is not None and attempts.conversation is not None:
            self._state.traffic.conversations.bind(attempts.conversation, turn)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Takes away what only LiteLLM's router itself may say: which deployments to leave out.

        The name that is asked for may be one that a wildcard stands for, or of a group that was added since the start.
        """
        if isinstance(data, dict):
            for key in PRIVATE:
                data.pop(key, None)
            name = data.get("model")
            if isinstance(name, str):
                self._policies(lambda settings: self.failover.before(proxy_router(), settings, name))
        return data

    async def async_post_call_success_deployment_hook(
        self, request_data: dict[str, Any], response: Any, call_type: Any
    ) -> Any:
        """Remembers who answered a conversation, before its next request can come."""
        try:
            attempts = self.requests.of_task(request_data)
            if attempts is not None:
                self._remember(attempts, response)
        except Exception:  # of an unknown form
            self.health.counts["usage"] += 1

    def _remember(self, attempts: Attempts, response: object) -> None:
        model, state = attempts.record.get("answered"), self._state
        if attempts.remembered or attempts.record.get("mode") == "shadow":  # which stays where it would have been
            return
        if state is not None and model is not None and attempts.conversation is not None:
            turn = Turn(model, attempts.uniform)
            attempts.remembered = state.traffic.conversations.answered(attempts.conversation, response, turn)

    def _model_in(self, info: object, attempts: Attempts | None) -> str | None:
        """The model of the deployment with this `model_info`, in the bundle that the request began with."""
        groups = None if attempts is None else attempts.groups
        if groups is None:
            loaded = None if self._state is None else self._state.scoring.now
            groups = None if loaded is None else loaded.groups
        return groups.model_of(info) if isinstance(info, Mapping) and groups is not None else None

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
            if attempts is None or not self.state().settings.headers:
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
        try:
            self._collect(kwargs, response_obj)
        except Exception:  # of an unknown form
            self.health.counts["collect"] += 1

    def _collect(self, kwargs: Mapping[str, Any], response: object) -> None:
        """Has an answer compared with another model's, where its request was drawn for that."""
        attempts, state = self.requests.logged(kwargs), self._state
        if attempts is None or attempts.sample is None or state is None or state.collector is None:
            return
        sample, attempts.sample = attempts.sample, None
        answered = attempts.record.get("answered")
        if answered is not None and not kwargs.get("cache_hit"):
            state.collector.soon(sample, answered, answer_text(response))

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """As `async_log_success_event`, for LiteLLM's sync calls."""
        try:
            params = kwargs.get("litellm_params") or {}
            attempts = self.requests.logged(kwargs)
            info = params.get("model_info") or {}
            state = self._state
            model = self._model_in(info, attempts)
            if attempts is not None:
                self._taken(attempts, info)
                self._remember(attempts, response_obj)
                attempts.end()
            if state is None or kwargs.get("cache_hit"):
                return
            logged = kwargs.get("standard_logging_object") or {}
            tokens, cost = logged.get("completion_tokens"), logged.get("response_cost")
            if attempts is not None and isinstance(cost, int | float):
                attempts.record["cost"] = float(cost)
            state.traffic.answered(
                None if attempts is None else attempts.token,
                model,
                _length_of(tokens, 1 if attempts is None else attempts.answers),
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
                self._bind(attempts, attempts.turn)
        except Exception:  # of an unknown form
            self.health.counts["usage"] += 1

    def _answered(self, attempts: Attempts, response: object, call_info: Mapping[str, Any] | None) -> str | None:
        """The bundle's name of the model that answered: not the first of the ranking, where that one failed."""
        if attempts.tried:  # an error reply has no response, and names nobody
            answered: str | None = None if response is None else attempts.record.get("answered")
            return answered
        return self._model_in((call_info or {}).get("model_info"), attempts)


def _names_two(deployments: list[Deployment]) -> bool:
    """Whether deployments name two models in `p2l_model`."""
    return takes_part(one for one in deployments if p2l_model(one) is not None)


def _choice(name: str, deployments: list[Deployment]) -> tuple[str, object]:
    """What a request chooses from: a group, or a team's own of that name."""
    return name, (deployments[0].get("model_info") or {}).get("team_id")


def _length_of(tokens: object, answers: int) -> int | None:
    """Tokens of one of the answers of a request, of the sum that its usage says."""
    return max(1, round(tokens / answers)) if isinstance(tokens, int) and tokens > 0 else None


def _signer(group: Group, request: Mapping[str, Any]) -> str | None:
    """The model that gave the response that a request goes on from, by LiteLLM's own id of it."""
    deployment = deployment_in(request.get("previous_response_id"))
    return None if deployment is None else group.model_of(deployment)


def _worth(
    case: Case, loaded: Loaded, traffic: Traffic, model: str, deployment: str
) -> tuple[float | None, float | None]:
    """Value and expected USD of a model that is not of the group, for the same prompt."""
    column = column_of(loaded.scorer, model)
    if column is None:
        return None, None
    columns = [*case.group.columns, column]
    value = loaded.values.of(loaded.scorer, case.scored.used, columns, case.wanted.rule.objective)[-1]
    found = deployment_of(router_of(deployment), deployment)
    price = None if found is None else price_of(found)
    length = case.wanted.answers * min(traffic.answer_tokens([model])[0], case.wanted.max_output)
    return float(value), None if price is None else price.cost(case.wanted.prompt_tokens, length)
