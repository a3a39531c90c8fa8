"""Calls of models through LiteLLM: a Router of the operator's own deployments, with their keys, prices and limits.

The Router has a group for each candidate, so that the candidate and no other answers: fallbacks and aliases are left
out, and so are callbacks, which would send prompts to yet other places.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import litellm
from litellm.caching.caching import Cache
from litellm.router import Router
from litellm.secret_managers.main import get_secret

from litellm_router.prices import Price, price_of
from litellm_router.settings import ENVIRON
from p2l_plugins.errors import ConfigError, DataError, without_credentials
from p2l_plugins.files.tables import read_yaml_object
from p2l_plugins.similar import hint
from p2l_plugins.votes.litellm_config import config_models, read_config_models

#: Of `router_settings`: what could let another model answer, and what names groups that this Router does not have.
_LEFT_OUT = (
    "fallbacks",
    "default_fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "model_group_alias",
    "model_group_retry_policy",
    "model_group_affinity_config",
    "routing_groups",
    "caching_groups",
    "enable_tag_filtering",
    "plugins",
    "model_list",
    "set_verbose",
)

#: Header of a LiteLLM proxy with the cost of a call, as LiteLLM's client passes it on.
_COST_HEADER = "llm_provider-x-litellm-response-cost"


#: Characters of a token, about.
CHARACTERS = 4


class CallFailed(Exception):
    """A call without an answer; the message is the kind of error and its status, never a word of the prompt."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: empty where there is none.
        refused: whether the provider marks it as a refusal or filtered it.
        tokens: of the prompt and of the answer.
        cost: USD; None where the price is not known.
    """

    text: str
    refused: bool
    tokens: tuple[int, int]
    cost: float | None


class Models:
    """Models that can be called by their names.

    Args:
        groups: deployments by name, in the form of a `model_list`.
        settings: of LiteLLM's Router.
        timeout: most seconds of a call, retries included.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[Mapping[str, Any]]], settings: Mapping[str, Any], timeout: float
    ) -> None:
        self._groups = groups
        self._timeout = timeout
        deployments = [{**one, "model_name": name} for name, some in groups.items() for one in some]
        try:
            self._router = Router(model_list=deployments, **settings)
        except Exception as error:  # of any kind, for a wrong value
            raise ConfigError(f"router_settings: LiteLLM's Router refuses them ({type(error).__name__})") from None
        self._prices = {name: _dearest(some) for name, some in groups.items()}
        self._priced = {
            str((_field(one, "model_info") or {}).get("id")): price_of(one)
            for one in self._router.get_model_list() or ()
        }

    def price(self, name: str) -> Price | None:
        """The highest prices of a model's deployments; None where one is not known."""
        return self._prices[name]

    def places(self, name: str) -> list[str]:
        """Where a model's prompts go: hosts, or the names of providers."""
        return list(dict.fromkeys(map(_place, self._groups[name])))

    def missing_keys(self) -> list[str]:
        """Environment variables that deployments name and that are not set."""
        values = [value for some in self._groups.values() for one in some for value in one["litellm_params"].values()]
        names = [v.removeprefix(ENVIRON) for v in values if isinstance(v, str) and v.startswith(ENVIRON)]
        return list(dict.fromkeys(name for name in names if not os.environ.get(name)))

    async def ask(self, name: str, messages: list[dict[str, str]], max_tokens: int | None = None) -> Reply:
        """Calls a model, with the retries of the Router.

        Raises:
            CallFailed: no answer came.
        """
        options: dict[str, Any] = {"model": name, "messages": messages}
        options |= {} if max_tokens is None else {"max_tokens": max_tokens}
        async with self._calling():
            return self._reply(await self._router.acompletion(**options))

    async def stream(
        self, name: str, messages: list[dict[str, str]], max_tokens: int, say: Callable[[str], None], most: int
    ) -> Reply:
        """Calls a model and passes its answer on as it comes.

        Args:
            say: is given each piece of the answer.
            most: characters of the answer; what comes after them is neither passed on nor waited for.

        Returns:
            The answer; what it cost by the prices of the deployment, for the tokens that are reported or about as many.

        Raises:
            CallFailed: no answer came, or it broke off.
        """
        options: dict[str, Any] = {"model": name, "messages": messages, "max_tokens": max_tokens}
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        text, usage, finish = "", None, None
        async with self._calling():
            chunks = await self._router.acompletion(**options)
            async for chunk in chunks:
                usage = getattr(chunk, "usage", None) or usage
                for choice in chunk.choices[:1]:
                    piece = (getattr(choice.delta, "content", None) or "")[: most - len(text)]
                    text += piece
                    finish = choice.finish_reason or finish
                    say(piece)
                if len(text) >= most:
                    await chunks.aclose()
                    break
        tokens = _tokens(usage)
        tokens = (tokens[0] or about_tokens(messages), tokens[1] or len(text) // CHARACTERS)
        price = self._prices[name]
        cost = None if price is None else price.cost(*tokens)
        return Reply(text=text, refused=finish == "content_filter", tokens=tokens, cost=cost)

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[None]:
        """Ends a call at its time limit, and names its errors without a word of what was sent."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise CallFailed("timeout") from None
        except Exception as error:  # LiteLLM raises errors of its own, of openai, of httpx, and plain ones
            status = getattr(error, "status_code", None)
            raise CallFailed(" ".join(str(x) for x in (type(error).__name__, status) if x is not None)) from None

    def _reply(self, response: Any) -> Reply:
        choice, usage = response.choices[0], getattr(response, "usage", None)
        refusal = getattr(choice.message, "refusal", None)
        return Reply(
            text=choice.message.content or refusal or "",
            refused=bool(refusal) or choice.finish_reason == "content_filter",
            tokens=_tokens(usage),
            cost=self._cost(response),
        )

    def _cost(self, response: Any) -> float | None:
        """What LiteLLM charges; it says 0 where it knows no price."""
        hidden = getattr(response, "_hidden_params", None) or {}
        if hidden.get("cache_hit"):
            return 0.0
        cost = _number((hidden.get("additional_headers") or {}).get(_COST_HEADER))
        cost = cost or _number(hidden.get("response_cost"))
        return cost if cost or self._priced.get(str(hidden.get("model_id"))) is not None else None


def about_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens of a chat, about."""
    return sum(len(message["content"]) for message in messages) // CHARACTERS + 1


def _tokens(usage: Any) -> tuple[int, int]:
    return int(getattr(usage, "prompt_tokens", 0) or 0), int(getattr(usage, "completion_tokens", 0) or 0)


def of_config(path: Path, group: str | None, judges: Sequence[str], timeout: float) -> tuple[list[str], Models]:
    """The candidates of a proxy's configuration and its judges.

    A judge is a candidate of the whole configuration, else one of its groups, else a model that LiteLLM knows.

    Args:
        path: config.yaml.
        group: only its candidates.
        judges: names.
        timeout: of a call, seconds.

    Raises:
        ConfigError: a judge that nobody knows.
        DataError: as `read_config_models`.
    """
    candidates = read_config_models(path, group)
    content = read_yaml_object(path)
    listed = content["model_list"]
    _environment(content.get("environment_variables"))
    _settings(_resolved(content.get("litellm_settings")), path)
    everyone = {one.name: one.deployments for one in config_models(listed)}
    groups: dict[str, Sequence[Mapping[str, Any]]] = {one.name: one.deployments for one in candidates}
    for judge in judges:
        groups.setdefault(judge, everyone.get(judge) or _judge(judge, listed, everyone))
    valid = set(Router.get_valid_args())
    settings = _resolved(content.get("router_settings"))
    settings = {key: value for key, value in settings.items() if key in valid and key not in _LEFT_OUT}
    return [one.name for one in candidates], Models(groups, settings, timeout)


def of_endpoint(
    url: str, key: str | None, models: Sequence[str], judges: Sequence[str], timeout: float
) -> tuple[list[str], Models]:
    """The models of an OpenAI-compatible gateway.

    Args:
        url: its base, with or without /v1.
        key: for it.
        models: names; empty asks `GET /v1/models`.
        judges: names of models there.
        timeout: of a call, seconds.

    Raises:
        ConfigError: no address, or the gateway does not list its models.
    """
    url = url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError("--endpoint is not an address that begins with http:// or https://")
    base = url if url.endswith("/v1") else f"{url}/v1"
    names = list(models) or [name for name in _listed(base, key) if name not in judges]

    def deployment(name: str) -> dict[str, Any]:
        return {"litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": key or "none"}}

    every = dict.fromkeys([*names, *judges])
    _quiet()
    return names, Models({name: [deployment(name)] for name in every}, {"num_retries": 2}, timeout)


def _judge(
    name: str, listed: Sequence[Mapping[str, Any]], everyone: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Sequence[Mapping[str, Any]]:
    """Deployments of a group of this name, or one of a model that LiteLLM knows."""
    own = [one for some in config_models(listed, name) for one in some.deployments]
    if own:  # without the ids, which the candidates' groups have
        return [{**one, "model_info": _without_id(one)} for one in own]
    try:
        litellm.get_llm_provider(name)
    except Exception:  # of several kinds
        raise ConfigError(
            f"the judge {name!r} is neither a model of the configuration nor one that LiteLLM knows; "
            f"{hint(name, list(everyone))}, a group, or PROVIDER/MODEL"
        ) from None
    return [{"litellm_params": {"model": name}}]


def _without_id(deployment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (deployment.get("model_info") or {}).items() if key != "id"}


def _listed(base: str, key: str | None) -> Iterator[str]:
    try:
        answer = httpx.get(f"{base}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=30)
        answer.raise_for_status()
        listed = answer.json()["data"]
        found = [one["id"] for one in listed if isinstance(one.get("id"), str) and "*" not in one["id"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", type(error).__name__)
        raise ConfigError(
            f"{without_credentials(base)}/models does not list models ({status}); name them with --models A,B,C"
        ) from None
    yield from found


def _environment(values: object) -> None:
    """`environment_variables` of a configuration, as the proxy sets them."""
    for key, value in (values if isinstance(values, Mapping) else {}).items():
        found = _resolve(value)
        if found is not None:
            os.environ.setdefault(str(key), str(found))


def _settings(settings: Mapping[str, Any], path: Path) -> None:
    """`litellm_settings` that change calls: plain values of LiteLLM's own, and its cache."""
    for key, value in settings.items():
        plain = isinstance(value, str | int | float) and "callback" not in key and key != "cache"
        if plain and hasattr(litellm, key):
            setattr(litellm, key, value)
    if settings.get("cache") is True:
        given = settings.get("cache_params")
        try:
            litellm.cache = Cache(**{"type": "redis", **(given if isinstance(given, Mapping) else {})})
        except Exception as error:  # of the store that it connects to
            raise DataError(
                f"{path}: litellm_settings.cache_params: LiteLLM refuses them ({type(error).__name__})"
            ) from None
    _quiet()


def _quiet() -> None:
    """Keeps LiteLLM from printing to the terminal, where it would also show what it was sent."""
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _resolved(values: object) -> dict[str, Any]:
    return _resolve(values) if isinstance(values, Mapping) else {}


def _resolve(value: Any) -> Any:
    """A value in which each `os.environ/NAME` is what LiteLLM finds for it."""
    if isinstance(value, Mapping):
        return {key: _resolve(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolve(one) for one in value]
    return get_secret(value) if isinstance(value, str) and value.startswith(ENVIRON) else value


def _dearest(deployments: Sequence[Mapping[str, Any]]) -> Price | None:
    prices = [price_of(one) for one in deployments]
    known = [one for one in prices if one is not None]
    if not known or len(known) < len(prices):
        return None
    return Price(max(one.input for one in known), max(one.output for one in known))


def _place(deployment: Mapping[str, Any]) -> str:
    params = deployment["litellm_params"]
    base = params.get("api_base") or params.get("base_url")
    host = urlsplit(str(_resolve(base))).hostname if base else None
    if host is not None:
        return host
    if params.get("custom_llm_provider"):
        return str(params["custom_llm_provider"])
    try:
        return str(litellm.get_llm_provider(params["model"])[1])
    except Exception:  # of several kinds
        return "an unknown provider"


def _field(deployment: Any, name: str) -> Any:
    return deployment.get(name) if isinstance(deployment, Mapping) else getattr(deployment, name, None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
