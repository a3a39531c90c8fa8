"""What a configuration calls the model of a deployment. Knows neither the bundle nor LiteLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from litellm_router.names import p2l_model
from p2l_plugins.naming import SETTINGS
from p2l_plugins.votes.litellm_config import CHAT_MODES

#: The rule of a name that the operator gave.
GIVEN = "p2l_model"


#: Parameters that ask for a setting of reasoning.
_ASKING = ("reasoning_effort", "thinking", "chat_template_kwargs", "extra_body")


class Called(NamedTuple):
    """What a configuration says of a deployment's model.

    Attributes:
        name: `p2l_model`, or else `base_model`, or else the deployment's model with its providers.
        rule: which of these three, by its key.
        setting: of reasoning, in the words of `naming.SETTINGS`; None where nothing is set.
    """

    name: str
    rule: str
    setting: str | None = None


def called(deployment: Mapping[str, Any]) -> Called | None:
    """What a deployment is called; None where `p2l_model` is false, for wildcards, and for what answers no chats."""
    params, info = _part(deployment, "litellm_params"), _part(deployment, "model_info")
    given = p2l_model(deployment)
    if given is not None:
        return Called(given, GIVEN)
    if info.get(GIVEN) is not None or info.get("mode") not in (None, *CHAT_MODES):
        return None
    base = info.get("base_model") or params.get("base_model")
    name = base or params.get("model")
    if not isinstance(name, str) or not name or "*" in name:
        return None
    return Called(name, "base_model" if base else "model", setting_of(params))


def setting_of(params: Mapping[str, Any]) -> str | None:
    """The setting of reasoning that a deployment's `litellm_params` ask for.

    Asked for each deployment at each request, and nearly always there is none.
    """
    if params.keys().isdisjoint(_ASKING):
        return None
    effort = params.get("reasoning_effort")
    if isinstance(effort, Mapping):
        effort = effort.get("effort")
    if isinstance(effort, str):
        word = {"disable": "none", "off": "none"}.get(effort.lower(), effort.lower())
        return word if word in SETTINGS else None
    thinking = params.get("thinking")
    if isinstance(thinking, Mapping):
        return {"enabled": "thinking", "adaptive": "thinking", "disabled": "nothink"}.get(str(thinking.get("type")))
    body = _part(params, "extra_body")
    for place in (_part(params, "chat_template_kwargs"), _part(body, "chat_template_kwargs"), body):
        if isinstance(asked := place.get("enable_thinking"), bool):
            return "thinking" if asked else "nothink"
    return None


def takes_part(deployments: Iterable[Mapping[str, Any]]) -> bool:
    """Whether two deployments are called by different names."""
    first = None
    for deployment in deployments:
        name = called(deployment)
        if name is not None and first is not None and name != first:
            return True
        first = first or name
    return False


def _part(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = holder.get(key)
    return part if isinstance(part, Mapping) else {}
