"""What a request to a deployment is expected to cost, from the prices that LiteLLM itself would charge it with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import litellm

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"


class Price(NamedTuple):
    """USD per token of the prompt and of the answer."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, output_tokens: float) -> float:
        """Expected USD of one request."""
        return prompt_tokens * self.input + output_tokens * self.output


def price_of(deployment: Mapping[str, Any]) -> Price | None:
    """Prices of a deployment, or None where one of the two is unknown.

    Each comes from the first place that has it: `litellm_params`, `model_info`, LiteLLM's table of prices under
    `base_model` or else the deployment's model. What is not a number of at least 0 counts as unknown.
    """
    params = deployment.get("litellm_params") or {}
    info = deployment.get("model_info") or {}
    prices = []
    for key in (INPUT, OUTPUT):
        value = params.get(key)
        if value is None:
            value = info.get(key)
        if value is None:
            value = _listed(info.get("base_model") or params.get("base_model") or params.get("model")).get(key)
        number = _number(value)
        if number is None:
            return None
        prices.append(number)
    return Price(*prices)


def _number(value: object) -> float | None:
    # YAML reads 1e-6 (without a point) as a string
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


_tables: dict[tuple[object, ...], Mapping[str, Any]] = {}


def _listed(model: object) -> Mapping[str, Any]:
    """LiteLLM's own entry of a model, or nothing. Looking up an unknown model is slow, so misses are remembered too."""
    if not isinstance(model, str):
        return {}
    # LiteLLM replaces or extends its table when prices are reloaded or registered
    key = (model, id(litellm.model_cost), len(litellm.model_cost))
    found = _tables.get(key)
    if found is None:
        try:
            info = litellm.get_model_info(model)
            # LiteLLM's router lists the names of its deployments without prices, and the info then says 0: the entry
            # itself tells what is free from what is unknown
            entry = litellm.model_cost.get(info.get("key") or model)
            found = entry if isinstance(entry, Mapping) else info
        except Exception:  # litellm raises a plain Exception for a model that it does not know
            found = {}
        if len(_tables) >= 10_000:
            _tables.clear()
        _tables[key] = found
    return found
