"""Which requests are chats: LiteLLM asks its callbacks for images, files and batches too, with made-up messages.

In a proxy the route says it. In the SDK the methods that are being called do, since a callback is not told which.
"""

from __future__ import annotations

import contextvars
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

#: Routes whose requests are ranked: chats, completions, messages, responses, contents.
_CHAT_ROUTE = re.compile(
    r"(/(chat/completions|completions|messages|responses)/?|:(stream)?generatecontent)$", re.IGNORECASE
)

#: Methods of LiteLLM's router for anything else.
_OTHER_CALL = re.compile(
    r"_?a?(image|speech|transcription|embedding|moderation|rerank|file|fine_tuning|video|ocr|search|vector|container|"
    r"create_|retrieve_|cancel_|list_|delete_|try_retrieve|realtime|pass_through)"
)

#: Frames that are looked at, from the callback outwards.
_FRAMES = 40

#: Whether the call under way is a chat, for a callback that runs in another thread than it.
IS_CHAT: contextvars.ContextVar[bool | None] = contextvars.ContextVar("p2l_is_chat", default=None)


def is_chat(request: Mapping[str, Any]) -> bool:
    """Whether a request is a chat, by the kind of call and not by its text; to be called from within the call."""
    route = _route(request)
    if route is not None:
        return _CHAT_ROUTE.search(route) is not None
    known = IS_CHAT.get()
    return called_is_chat() if known is None else known


def called_is_chat() -> bool:
    """Whether none of LiteLLM's methods that are being called is for something else than a chat."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return True
        code = frame.f_code
        if (
            "litellm" in code.co_filename
            and "litellm_router" not in code.co_filename
            and _OTHER_CALL.match(code.co_name)
        ):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return True


def _route(request: Mapping[str, Any]) -> str | None:
    """The path of a proxy's request; None where there is no proxy."""
    asked = request.get("proxy_server_request")
    url = asked.get("url") if isinstance(asked, Mapping) else None
    return unquote(urlsplit(url).path) if isinstance(url, str) and url else None
