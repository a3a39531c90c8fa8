"""What a deployment can't do, as far as its `model_info` or LiteLLM's own table of models says so."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from litellm_router.prices import listed

WINDOW = "max_input_tokens"

#: What the models of a maker are called, in LiteLLM's names.
_NAMES = {
    "anthropic": ("claude", "anthropic"),
    "google": ("gemini", "google"),
    "openai": ("openai/", "azure/", "gpt", "o1", "o3", "o4"),
}


def window_of(deployment: Mapping[str, Any]) -> float:
    """Most tokens of a prompt; infinite where nobody says."""
    own = (deployment.get("model_info") or {}).get(WINDOW)
    window = listed(deployment).get(WINDOW) if own is None else own
    if not isinstance(window, (int, float)) or isinstance(window, bool) or window <= 0:
        return math.inf
    return float(window)


def lacks(deployment: Mapping[str, Any], needs: Collection[str], tokens: int) -> bool:
    """Whether a deployment is known to be unable to take a request.

    What nobody says is no fact: a model that LiteLLM does not list, or lists without saying anything of what it
    supports, can do all.

    Args:
        needs: names of LiteLLM's table, such as `supports_vision`.
        tokens: of the prompt.
    """
    info, table = deployment.get("model_info") or {}, listed(deployment)
    if tokens > window_of(deployment):
        return True
    # LiteLLM lists what it has been asked for, with None for all that it does not know
    described = any(known is not None for key, known in table.items() if key.startswith("supports_"))
    return any(not _supports(info.get(need), table.get(need), described) for need in needs)


def _supports(own: object, listed: object, described: bool) -> bool:
    if own is not None:
        return bool(own)
    return bool(listed) if described else listed is not False


def can_read(deployment: Mapping[str, Any], maker: str) -> bool:
    """Whether a deployment's provider may be the one that made a conversation's state.

    Args:
        maker: `anthropic`, `google` or `openai`.
    """
    model = str((deployment.get("litellm_params") or {}).get("model")).lower()
    return any(name in model for name in _NAMES[maker])
