"""Which deployments LiteLLM's own later checks would keep, asked of LiteLLM itself.

A callback narrows before LiteLLM looks at context windows, tags, exclusions and affinity. To hand it a best model that
these then take away would fail the request. So the callback asks the router in the middle of its own pick, with the
deployments that may still be tried; the router calls the callback again for that, which answers from `ASKED`.
"""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import litellm
import openai
from litellm.integrations.custom_logger import CustomLogger

from litellm_router.deployments import KEEP_S, id_of
from litellm_router.request import bucket_of
from litellm_router.routers import healthy, settings_of, window_of

#: Ids that the question under way is about; None outside of one.
ASKED: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar("p2l_asked", default=None)

#: Whether the router may be asked; its sync calls have checks of their own.
MAY_ASK: contextvars.ContextVar[bool] = contextvars.ContextVar("p2l_may_ask", default=True)

#: Keys of a request that narrow the choice.
_NARROWING = (
    "enable_tag_filtering",
    "web_search_options",
    "_excluded_deployment_ids",
    "_retry_skipped_deployment_ids",
)

#: Keys of a request that LiteLLM's pre-call checks read beside its length.
_CHECKED = ("allowed_model_region", "response_format", "tools", "functions")

#: Keys of a message that holds nothing but text, and tokens that count for a message beside it.
_PLAIN, _ABOUT_A_MESSAGE = {"role", "content"}, 32

_windows: dict[object, tuple[float, float]] = {}
_MOST_WINDOWS = 1000

#: Where LiteLLM keeps what its routing plugins have left, in the metadata.
_PLUGINS = "_routing_plugin_candidate_models"

#: Parts of a message that every model takes.
_TEXT = frozenset({"text", "input_text", "output_text", "refusal"})


async def kept_by_litellm(
    router: Any, model: str, request: Mapping[str, Any], messages: Any, ids: Collection[str]
) -> set[str]:
    """Those of some deployments that a pick would choose among; empty where LiteLLM refuses them all.

    Args:
        ids: of the deployments that may be tried.
    """
    token = ASKED.set(frozenset(ids))
    try:
        found = await healthy(router, model, request, messages)
    except (openai.APIError, ValueError):  # its own way to say that nobody is left
        return set()
    finally:
        ASKED.reset(token)
    return {id_of(one) for one in found} & set(ids) if isinstance(found, list) else set(ids)


def may_remove(
    router: Any, name: str, deployments: Collection[Mapping[str, Any]], request: Mapping[str, Any], chat: Any
) -> bool:
    """Whether a check that comes after the callback could take a deployment away; the operator's `order` apart.

    Args:
        name: of the group; deployments: of the group; chat: messages, or the input of a response.
    """
    settings = settings_of(router)
    tools = request.get("tools")
    return bool(
        settings.enable_tag_filtering
        or any(request.get(key) for key in _NARROWING)
        or bucket_of(request).get(_PLUGINS) is not None
        or any((one.get("model_info") or {}).get("enable_tag_filtering") for one in deployments)
        or len({one.get("model_name") for one in deployments}) > 1  # a group of groups, with an order of its own
        or (isinstance(tools, list) and any(not isinstance(t, dict) or t.get("type") != "function" for t in tools))
        or _others_filter()
        or _needs_more_than_text(chat)
        or (settings.enable_pre_call_checks and _pre_call_checks_may_remove(router, name, deployments, request, chat))
    )


def _pre_call_checks_may_remove(
    router: Any, name: str, deployments: Collection[Mapping[str, Any]], request: Mapping[str, Any], chat: Any
) -> bool:
    """Whether LiteLLM's pre-call checks could take a deployment away; they cost milliseconds, this some microseconds.

    A text has no more tokens than bytes, so a prompt whose bytes fit into the smallest window fits.
    """
    if any(request.get(key) is not None for key in _CHECKED):
        return True
    if any((one.get("litellm_params") or {}).get("rpm") is not None for one in deployments):
        return True
    length = _bytes_of_plain_text(chat)
    return length is None or length > _smallest_window(router, name, deployments)


def _smallest_window(router: Any, name: str, deployments: Collection[Mapping[str, Any]]) -> float:
    """In tokens; infinite where LiteLLM knows none. Remembered for a while: reading it is slow."""
    key = (id(router), name, tuple(map(id_of, deployments)))
    now = time.monotonic()
    kept = _windows.get(key)
    if kept is None or now - kept[0] > KEEP_S:
        windows = (window_of(router, name, one) for one in deployments)
        if len(_windows) >= _MOST_WINDOWS:
            _windows.clear()
        kept = _windows[key] = (now, min((one for one in windows if one is not None), default=math.inf))
    return kept[1]


def _bytes_of_plain_text(chat: Any) -> int | None:
    """No less than the tokens of messages that hold nothing but text; None for others."""
    if isinstance(chat, str):
        return len(chat.encode("utf-8", "replace")) + _ABOUT_A_MESSAGE
    if not isinstance(chat, (list, tuple)):
        return None
    total = _ABOUT_A_MESSAGE
    for message in chat:
        if not isinstance(message, Mapping) or not message.keys() <= _PLAIN:
            return None
        content = message.get("content")
        parts = content if isinstance(content, (list, tuple)) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, Mapping) else part
            if not isinstance(text, str):
                return None
            total += len(text.encode("utf-8", "replace"))
        total += _ABOUT_A_MESSAGE
    return total


def _others_filter() -> bool:
    """Whether another callback narrows too."""
    return any(
        isinstance(one, CustomLogger)
        and type(one).async_filter_deployments is not CustomLogger.async_filter_deployments
        and not getattr(one, "is_p2l", False)
        for one in litellm.callbacks
    )


def _needs_more_than_text(chat: Any) -> bool:
    if not isinstance(chat, (list, tuple)):
        return False
    for message in chat:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)) and any(
            not isinstance(part, str) and not (isinstance(part, Mapping) and part.get("type") in _TEXT)
            for part in content
        ):
            return True
    return False
