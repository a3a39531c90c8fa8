"""Whether routing works in a running proxy: a few small requests, and what their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from litellm_router.called import takes_part
from litellm_router.names import Names, p2l_model
from p2l_plugins.cache.address import Malformed, split
from p2l_plugins.errors import ConfigError, DataError

PROMPT = "Are you there? Answer with one word."
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Observed:
    """What became of the requests to a group.

    Attributes:
        group: its name.
        requests: how many were sent.
        first: requests that the first of the ranking answered.
        problems: sentences, each once.
    """

    group: str
    requests: int
    first: int
    problems: list[str]


def checked_address(url: str) -> str:
    """The address of a proxy, without a last `/`.

    Raises:
        ConfigError: not an address that can be named in messages; this one's never holds it.
    """
    try:
        parts = split(url)
        valid = parts.scheme in ("http", "https") and len(parts.hosts) == 1 and not parts.user and not parts.query
    except Malformed:
        valid = False
    if not valid:
        raise ConfigError("--live must be http://HOST:PORT or https://HOST:PORT, without user and password")
    return url.strip().rstrip("/")


def groups_of(client: httpx.Client) -> list[str]:
    """The model groups of a proxy with deployments that name two models: those that a request of no team can ask for.

    Raises:
        DataError: the proxy does not answer, refuses the key, or has no such group.
    """
    answer = _asked(client, "GET", "/model/info")
    if answer.status_code != httpx.codes.OK:
        raise DataError(
            f"{client.base_url}/model/info answers with status {answer.status_code}; give a key that may list the "
            "models with --key"
        )
    content = answer.json()
    listed = content.get("data") or [] if isinstance(content, dict) else []
    every = Names(one for one in listed if isinstance(one, dict)).groups
    named = [group for group in every if len({p2l_model(one) for one in group.deployments} - {None}) > 1]
    several = named or [group for group in every if takes_part(group.deployments)]
    groups = [group.name for group in several if group.team is None and not group.wildcard]
    if not groups:
        of_others = f"; name a model of {several[0].title} with --group" if several else ""
        raise DataError(
            f"{client.base_url}: no model group has deployments of two models, by p2l_model or by name{of_others}"
        )
    return groups


def observe(client: httpx.Client, group: str, requests: int) -> Observed:
    """Sends equal requests of a few tokens to a group.

    Raises:
        DataError: the proxy does not answer.
    """
    body = {"model": group, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 16}
    answers = [_asked(client, "POST", "/v1/chat/completions", body) for _ in range(requests)]
    problems = [problem for answer in answers if (problem := _problem(answer)) is not None]
    first = sum(_is_first(answer) for answer in answers)
    return Observed(group, requests, first, list(dict.fromkeys(problems)))


def _asked(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    try:
        return client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise DataError(f"{client.base_url}{path}: no answer ({type(error).__name__})") from None


def _is_first(answer: httpx.Response) -> bool:
    ranking = _ranking(answer)
    return bool(ranking) and answer.headers.get("x-p2l-model") == ranking[0] and "x-p2l-error" not in answer.headers


def _ranking(answer: httpx.Response) -> Sequence[str]:
    ranking: str = answer.headers.get("x-p2l-ranking", "")
    return ranking.split(",") if ranking else []


def _problem(answer: httpx.Response) -> str | None:
    error, model, ranking = answer.headers.get("x-p2l-error"), answer.headers.get("x-p2l-model"), _ranking(answer)
    if error == "not_followed":
        return f"{model} answered although {ranking[0]} was chosen: this LiteLLM does not follow the ranking"
    if error is not None:
        return f"P2L left a request to LiteLLM's own strategy (x-p2l-error: {error})"
    if answer.status_code != httpx.codes.OK:
        return f"a request failed with status {answer.status_code}"
    if not ranking:
        return "a response has no x-p2l headers: the callback is not turned on, or p2l_settings.headers is false"
    if model != ranking[0]:
        return f"{model or 'an unranked deployment'} answered, not {ranking[0]}: the first of the ranking failed"
    return None
