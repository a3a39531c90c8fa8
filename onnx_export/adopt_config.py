"""The configuration of an adoption: what its deployments cost, and the lines that make it route with the new bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from onnx_export.yaml_text import flow, with_values
from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import read_yaml_object, replaced_file
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns, text_bytes
from p2l_plugins.routing.explain import estimated_input_tokens, request_costs
from p2l_plugins.votes.litellm_config import ConfigModel, candidate_name

CALLBACK = "litellm_router.p2l_router"
_INPUT, _OUTPUT = "input_cost_per_token", "output_cost_per_token"

#: Values to be set, by keys inside one another; by index in a list.
Changes = dict[str, Any]


def config_prices(models: Sequence[ConfigModel]) -> dict[str, dict[str, float]]:
    """Prices in USD per million tokens of the models whose deployments state both, the first that does counting."""
    prices = {}
    for model in models:
        for deployment in model.deployments:
            found = _price(deployment)
            if found is not None:
                prices[model.name] = found
                break
    return prices


def _price(deployment: Mapping[str, Any]) -> dict[str, float] | None:
    stated: dict[str, float] = {}
    for part in ("model_info", "litellm_params"):
        values = deployment.get(part)
        for key in (_INPUT, _OUTPUT):
            price = values.get(key) if isinstance(values, Mapping) else None
            if price is not None:
                try:
                    stated[key] = float(price)  # PyYAML reads 2e-6 as text
                except (TypeError, ValueError):
                    continue
    if len(stated) < 2 or not all(0 <= price < float("inf") for price in stated.values()):
        return None
    return {"input_price": 1e6 * stated[_INPUT], "output_price": 1e6 * stated[_OUTPUT]}


def costs_of(
    models: Sequence[str], prompts: Sequence[Turns], table: Mapping[str, Any], source: object, output_tokens: int
) -> Array:
    """(P, C) USD per request of each model on each prompt; NaN where the table has no price.

    Raises:
        DataError: an entry of the table that is not a price.
    """
    tokens = np.array([estimated_input_tokens(sum(map(text_bytes, turns))) for turns in prompts])
    some = {name: table[name] for name in models if name in table}
    costs = np.full((len(prompts), len(models)), np.nan)
    if some:
        costs[:, [models.index(name) for name in some]] = request_costs(some, source, tokens, output_tokens)
    return costs


def settings_of(bundle: Path, saves: tuple[float, float] | None) -> dict[str, Any]:
    """`p2l_settings` that use a bundle; `saves` holds the budget at which it is as good for less."""
    paced = {} if saves is None else {"rule": "paced", "budget": float(f"{saves[0]:.3g}")}
    return {"bundle": str(bundle), **paced}


def yaml_lines(models: Sequence[ConfigModel], adopted: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The lines to paste: settings, and the model of each deployment."""
    lines = [
        "litellm_settings:",
        f'  callbacks: ["{CALLBACK}"]',
        f"  p2l_settings: {flow(dict(settings))}",
        "# and in model_list, of each deployment:",
    ]
    for model in models:
        for deployment in model.deployments if model.name in adopted else ():
            params = deployment.get("litellm_params")
            called = params.get("model") if isinstance(params, Mapping) else "?"
            info = flow({"p2l_model": model.name})
            lines += [f"#   {called}", f"#     model_info: {info}"]
    return "\n".join(lines)


def write_config(source: Path, target: Path, adopted: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A copy of a configuration that routes with the bundle; returns what to know of it.

    A callback and settings that are there stay; `p2l_model` is written into each deployment of an adopted model. All
    else stays as it is written, comments too, unless the file's form does not let the lines be put in.

    Raises:
        DataError: a part of the configuration has another form than LiteLLM's.
    """
    config = read_yaml_object(source)
    changes = _changes(config, source, adopted, settings)
    wanted = _changed(config, changes)
    text = with_values(source.read_bytes().decode("utf-8-sig"), changes, wanted)
    note = f"{target}: {source} with the bundle"
    if text is None:
        text = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
        note += "; its comments could not be kept: compare the two files before you use it"
    with replaced_file(target) as file:
        file.write_bytes(text.encode())
    return note


def _changes(config: Mapping[str, Any], source: Path, adopted: Sequence[str], settings: Mapping[str, Any]) -> Changes:
    named = {i: candidate_name(deployment) for i, deployment in enumerate(config["model_list"])}
    own = {i: {"model_info": {"p2l_model": name}} for i, name in named.items() if name in adopted}
    litellm = config.get("litellm_settings") or {}
    if not isinstance(litellm, dict):
        raise DataError(f"{source}: litellm_settings must be keys with values")
    there = litellm.get("callbacks") or []
    if not isinstance(there, str | list):
        raise DataError(f"{source}: litellm_settings.callbacks must be a name or a list of names")
    callbacks = [there] if isinstance(there, str) else there
    more = [] if CALLBACK in callbacks else [CALLBACK]
    return {"model_list": own, "litellm_settings": {"callbacks": [*callbacks, *more], "p2l_settings": dict(settings)}}


def _changed(value: Any, changes: Any) -> Any:
    """A value with changes put into it, key by key."""
    if not isinstance(changes, Mapping):
        return changes
    if isinstance(value, list):
        return [_changed(one, changes[i]) if i in changes else one for i, one in enumerate(value)]
    old = value if isinstance(value, Mapping) else {}
    return {**old, **{key: _changed(old.get(key), inner) for key, inner in changes.items()}}
