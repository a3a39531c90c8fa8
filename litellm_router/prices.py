"""What a request to a deployment is expected to cost, from the prices that LiteLLM itself would charge it with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import litellm

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"
CACHED = "cache_read_input_token_cost"

#: Prompts below so many tokens are not cached by providers.
LEAST_CACHED = 1024


class Price(NamedTuple):
    """USD per token of the prompt, of the answer, and of what the provider has read before."""

    input: float
    output: float
    cached: float | None = None

    def cost(self, prompt_tokens: int, output_tokens: float, cached_tokens: int = 0) -> float:
        """Expected USD of one request.

        Args:
            cached_tokens: of the prompt, that this deployment has read before.
        """
        if self.cached is None or cached_tokens < LEAST_CACHED:
            cached_tokens = 0
        known = cached_tokens * (self.cached or 0.0)
        return (prompt_tokens - cached_tokens) * self.input + known + output_tokens * self.output


def price_of(deployment: Mapping[str, Any]) -> Price | None:
    """Prices of a deployment, or None where one of the two is unknown.

    Each comes from the first place that has it: `litellm_params`, `model_info`, LiteLLM's table of prices under
    `base_model` or else the deployment's model. What is not a number of at least 0 counts as unknown, and cached tokens
    cost as much as others where the place of the prompt's price has none for them.
    """
    place = _place(deployment, INPUT)
    read, written = _number(place.get(INPUT)), _number(_place(deployment, OUTPUT).get(OUTPUT))
    if read is None or written is None:
        return None
    return Price(read, written, _number(place.get(CACHED)))


def _place(deployment: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The first place that has a price."""
    for place in (deployment.get("litellm_params") or {}, deployment.get("model_info") or {}):
        if place.get(key) is not None:
            return place
    return listed(deployment)


def listed(deployment: Mapping[str, Any]) -> Mapping[str, Any]:
    """LiteLLM's own entry of a deployment's model, or nothing."""
    params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
    return _listed(info.get("base_model") or params.get("base_model") or params.get("model"))


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
            found = _completed(model, entry) if isinstance(entry, Mapping) else info
        except RuntimeError:
            return {}  # the table changed meanwhile, which says nothing of the model: the next request asks again
        except Exception:  # litellm raises a plain Exception for a model that it does not know
            found = {}
        if len(_tables) >= 10_000:
            _tables.clear()
        _tables[key] = found
    return found


def _completed(model: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry; one without a price, as LiteLLM lists longer names, with what its provider's own entry knows."""
    if entry.get(INPUT) is not None:
        return entry
    provider, _, plain = model.partition("/")
    shipped = litellm.model_cost.get(plain)
    if not isinstance(shipped, Mapping) or shipped.get("litellm_provider") != provider:
        return entry
    return {**shipped, **{key: value for key, value in entry.items() if value is not None}}
