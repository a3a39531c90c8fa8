"""Routes LiteLLM requests to the best model per prompt.

`litellm_settings.callbacks: ["litellm_router.p2l_router"]` turns it on in the proxy, for every model group with at
least two deployments that are different models of the bundle, by their names or by `model_info.p2l_model`. In the async
SDK: `litellm.callbacks = [p2l_router]`; for all its methods, `P2LRoutingStrategy.install(router)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litellm_router.router import P2LRouter
    from litellm_router.settings import P2LSettings
    from litellm_router.startup import p2l_router
    from litellm_router.strategy import P2LRoutingStrategy

__all__ = ["P2LRouter", "P2LRoutingStrategy", "P2LSettings", "p2l_router"]

_HOMES = {
    "P2LRouter": "router",
    "P2LRoutingStrategy": "strategy",
    "P2LSettings": "settings",
    "p2l_router": "startup",
}


def __getattr__(name: str) -> Any:
    """Imports LiteLLM, which takes seconds, only when one of the names is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
