"""LiteLLM's routers in this process, and the few things about them that differ between its versions.

A callback is not told which router calls it. Since 1.109 `litellm.Router` is a facade over a core; since 1.110 the core
is written in Rust.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from importlib import import_module, metadata
from typing import Any

import litellm

#: The LiteLLM versions that the tests run on, the lowest first: those of tests/versions/.
TESTED = ("1.101.0", "1.106.2", "1.109.3", "1.110.2")

try:
    _global_holders: Any = import_module("litellm.router_utils.global_callback_holders")
except ImportError:  # before 1.110
    _global_holders = None

_installed: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

#: Most frames above a callback in which its router is looked for.
_FRAMES = 25


def litellm_version() -> str:
    """The installed version of LiteLLM."""
    try:
        return metadata.version("litellm")
    except metadata.PackageNotFoundError:  # vendored, without its metadata
        return "unknown"


def is_tested(version: str) -> bool:
    """Whether the tests run on a version, or on another patch of it."""
    return version.rpartition(".")[0] in {one.rpartition(".")[0] for one in TESTED}


def deployment_of(router: Any, deployment: str) -> Mapping[str, Any] | None:
    """A deployment of a router by its id; None where there is none."""
    try:
        found = router.get_deployment(model_id=deployment)
        made: Mapping[str, Any] | None = found.model_dump() if hasattr(found, "model_dump") else found
        return made
    except Exception:  # of a LiteLLM that has another router
        return None


def install(router: Any, callback: Any) -> None:
    """Makes a router of the SDK known, and the callback that is to decide for it."""
    _installed[router] = callback


def is_anothers(deployment: str, callback: Any) -> bool:
    """Whether the router that has a deployment was given another callback."""
    if len({id(one) for one in _installed.values()}) < 2:
        return False
    owner = _installed.get(router_of(deployment))
    return owner is not None and owner is not callback


def routers() -> list[Any]:
    """The routers that live."""
    found = [*_installed, *_holders(), proxy_router()]
    return list({id(one): one for one in found if one is not None}.values())


def proxy_router() -> Any:
    """The router of the proxy that this process is, or None."""
    return getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)


def router_of(deployment: str) -> Any:
    """The router that has a deployment, or None; where several have it, as in a test, the one that calls."""
    known = [one for one in routers() if has_deployment(one, deployment)]
    return _calling(known) if len(known) > 1 else next(iter(known), None)


def _calling(known: list[Any]) -> Any:
    """The router among some that stands on the stack of the current call, or None."""
    cores = {id(getattr(one, "_core", one)): one for one in known}
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        found = cores.get(id(frame.f_locals.get("self")))
        if found is not None or frame.f_back is None:
            return found
        frame = frame.f_back
    return None


def has_deployment(router: Any, deployment: str) -> bool:
    """Whether a router has a deployment of this id."""
    registry = getattr(router, "registry", None)
    return bool(router.has_model_id(deployment) if registry is None else registry().has_deployment(deployment))


def _holders() -> Iterable[Any]:
    """Routers that registered themselves with LiteLLM: by their callbacks, since 1.110 in a set of their own."""
    cores = [getattr(callback, "__self__", None) for callback in litellm.success_callback]
    cores = [core for core in cores if hasattr(core, "get_available_deployment")]
    cores += getattr(_global_holders, "routers_holding_global_callbacks", ())
    return [_facade(core) for core in cores]


def _facade(core: Any) -> Any:
    owner = getattr(core, "__dict__", {}).get("_core_owner")
    return core if owner is None else owner()


def window_of(router: Any, group: str, deployment: Mapping[str, Any]) -> int | None:
    """The most input tokens of a deployment, as the router's own checks read them; None where they know none."""
    registry = getattr(router, "registry", None)
    try:
        if registry is None:
            info = router.get_router_model_info(deployment=deployment, received_model_name=group)
        else:
            info = registry().router_model_info(deployment=deployment, received_model_name=group)
    except Exception:  # of a model that LiteLLM does not know, which its checks pass
        return None
    window = info.get("max_input_tokens") if isinstance(info, Mapping) else None
    return window if isinstance(window, int) else None


def settings_of(router: Any) -> Any:
    """What holds a router's settings as attributes: its `settings()` since 1.109, itself before."""
    settings = getattr(router, "settings", None)
    return settings() if callable(settings) else router


async def healthy(router: Any, model: str, request: Mapping[str, Any], messages: Any) -> Any:
    """The deployments that a pick would choose among, as the router itself says, its callbacks included.

    Raises:
        Exception: whatever the router raises where there is none.
    """
    select = getattr(router, "select", None)
    own = dict(request)  # the router takes keys out of it
    if select is not None:
        return await select(model, own, kind="healthy", messages=messages, input=request.get("input"))
    return await router.async_get_healthy_deployments(
        model=model, request_kwargs=own, messages=messages, input=request.get("input")
    )
