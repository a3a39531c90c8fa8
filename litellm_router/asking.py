"""Which deployments LiteLLM's own later checks would keep, asked of LiteLLM itself.

A callback narrows before LiteLLM looks at context windows, tags, exclusions and affinity. To hand it a best model that
these then take away would fail the request. So the callback asks the router in the middle of its own pick, with the
deployments that may still be tried; the router calls the callback again for that, which answers from `ASKED`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection, Mapping
from typing import Any

import litellm
import openai
from litellm.integrations.custom_logger import CustomLogger

from litellm_router.deployments import id_of
from litellm_router.request import bucket_of
from litellm_router.routers import healthy, settings_of

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


def may_remove(router: Any, deployments: Collection[Mapping[str, Any]], request: Mapping[str, Any], chat: Any) -> bool:
    """Whether a check that comes after the callback could take a deployment away; the operator's `order` apart.

    Args:
        deployments: of the group; chat: messages, or the input of a response.
    """
    settings = settings_of(router)
    tools = request.get("tools")
    return bool(
        settings.enable_pre_call_checks
        or settings.enable_tag_filtering
        or any(request.get(key) for key in _NARROWING)
        or bucket_of(request).get(_PLUGINS) is not None
        or any((one.get("model_info") or {}).get("enable_tag_filtering") for one in deployments)
        or len({one.get("model_name") for one in deployments}) > 1  # a group of groups, with an order of its own
        or (isinstance(tools, list) and any(not isinstance(t, dict) or t.get("type") != "function" for t in tools))
        or _others_filter()
        or _needs_more_than_text(chat)
    )


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
