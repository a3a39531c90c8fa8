"""The candidates of a LiteLLM configuration: which models its deployments are, by the names that a bundle gives them.

Asking the deployments, adopting them and routing among them read the configuration here, so that all use one name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import read_yaml_object

#: Values of `model_info.mode` of deployments that answer chats.
CHAT_MODES = ("chat", "completion", "responses")


@dataclass(frozen=True, slots=True)
class ConfigModel:
    """A model that a configuration offers.

    Attributes:
        name: of the candidate: `model_info.p2l_model`, or else the model's own name without its providers.
        groups: whose deployments it is, in the order of the configuration.
        deployments: entries of `model_list`.
    """

    name: str
    groups: tuple[str, ...]
    deployments: tuple[Mapping[str, Any], ...]


def candidate_name(deployment: Mapping[str, Any]) -> str | None:
    """The candidate behind a deployment; None for a wildcard and for what is known not to answer chats.

    `model_info.p2l_model` counts first, then the last part of `base_model` or of the deployment's model:
    `openrouter/openai/gpt-5-mini` is `gpt-5-mini`.
    """
    params, info = _part(deployment, "litellm_params"), _part(deployment, "model_info")
    if info.get("mode") not in (None, *CHAT_MODES):
        return None
    given = info.get("p2l_model")
    if isinstance(given, str) and given.strip():
        return given.strip()
    model = info.get("base_model") or params.get("base_model") or params.get("model")
    name = model.rpartition("/")[2].strip() if isinstance(model, str) else ""
    return name if name and "*" not in name else None


def config_models(deployments: Sequence[Mapping[str, Any]], group: str | None = None) -> list[ConfigModel]:
    """The candidates of a `model_list`, or of one of its groups, in its order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in deployments:
        name = candidate_name(one)
        if name is not None and group in (None, one.get("model_name")):
            found.setdefault(name, []).append(one)
    return [
        ConfigModel(name, tuple(dict.fromkeys(str(one.get("model_name")) for one in some)), tuple(some))
        for name, some in found.items()
    ]


def read_config_models(path: Path, group: str | None = None) -> list[ConfigModel]:
    """As `config_models`, of a proxy's config.yaml.

    Raises:
        DataError: no `model_list`, an unknown group, or no candidate.
    """
    listed = read_yaml_object(path).get("model_list")
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise DataError(f"{path}: model_list must be a list of deployments")
    groups = dict.fromkeys(str(one.get("model_name")) for one in listed)
    if group is not None and group not in groups:
        raise DataError(f"{path}: no group {group!r} in model_list; valid: {', '.join(groups) or 'none'}")
    models = config_models(listed, group)
    if not models:
        raise DataError(f"{path}: model_list has no deployment that answers chats")
    return models


def _part(deployment: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = deployment.get(key)
    return part if isinstance(part, Mapping) else {}
