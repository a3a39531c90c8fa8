"""The configuration of an adoption: what its deployments cost, and the lines that make it route with the new bundle."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import read_yaml_object, replaced_file
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns, text_bytes
from p2l_plugins.routing.explain import estimated_input_tokens, request_costs
from p2l_plugins.votes.litellm_config import ConfigModel, candidate_name

CALLBACK = "litellm_router.p2l_router"
_INPUT, _OUTPUT = "input_cost_per_token", "output_cost_per_token"
_COMMENTS = "comments are not kept: compare the two files before you use it"


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
        f"  p2l_settings: {yaml.safe_dump(dict(settings), default_flow_style=True, width=1000).strip()}",
        "# and in model_list, of each deployment:",
    ]
    for model in models:
        for deployment in model.deployments if model.name in adopted else ():
            params = deployment.get("litellm_params")
            called = params.get("model") if isinstance(params, Mapping) else "?"
            info = yaml.safe_dump({"p2l_model": model.name}, default_flow_style=True, width=1000).strip()
            lines += [f"#   {called}", f"#     model_info: {info}"]
    return "\n".join(lines)


def write_config(source: Path, target: Path, adopted: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A copy of a configuration that routes with the bundle; returns what to know of it.

    A callback and settings that are there stay; `p2l_model` is written into each deployment of an adopted model.

    Raises:
        DataError: a part of the configuration has another form than LiteLLM's.
    """
    config = copy.deepcopy(read_yaml_object(source))
    for deployment in config["model_list"]:
        name = candidate_name(deployment)
        if name in adopted:
            info = deployment.get("model_info")
            deployment["model_info"] = {**(info if isinstance(info, Mapping) else {}), "p2l_model": name}
    litellm = config.setdefault("litellm_settings", {})
    if litellm is None:
        litellm = config["litellm_settings"] = {}
    if not isinstance(litellm, dict):
        raise DataError(f"{source}: litellm_settings must be keys with values")
    there = litellm.get("callbacks") or []
    callbacks = [there] if isinstance(there, str) else list(there)
    litellm["callbacks"] = callbacks if CALLBACK in callbacks else [*callbacks, CALLBACK]
    own = litellm.get("p2l_settings")
    litellm["p2l_settings"] = {**(own if isinstance(own, dict) else {}), **settings}
    with replaced_file(target) as file:
        file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return f"{target}: {source} with the bundle; {_COMMENTS}"
