"""What the router reads of a LiteLLM request: the user's turns, its session, its share of the traffic, its metadata.

Everything here comes from clients: no form of it may raise anything but `NotRoutedError`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from litellm_router.reasons import NotRoutedError
from litellm_router.settings import Rule, tightened
from p2l_plugins.errors import PromptError
from p2l_plugins.prompts import Turns, as_turns, text_bytes, user_turns
from p2l_plugins.routing.explain import estimated_input_tokens

#: Where a request's metadata may be.
BUCKETS = ("litellm_metadata", "metadata")

#: Keys and item types that hold state which only the provider that made it can read.
_SEALED_KEYS = ("encrypted_content", "signature", "thought_signature", "thoughtSignature")
_SEALED_TYPES = frozenset(
    {"redacted_thinking", "item_reference", "compaction", "code_interpreter_call", "computer_call", "web_search_call"}
    | {"file_search_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "image_generation_call"}
    | {"server_tool_use", "web_search_tool_result", "code_execution_tool_result", "container_upload"}
)
_SEALED_DEPTH = 6

#: Where parts of a message are nested.
_NESTED = ("content", "thinking_blocks", "reasoning_items", "tool_calls", "provider_specific_fields", "function")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for.

    Attributes:
        rule: that decides it, as its group's rule and the request itself have it.
        client: what became of its own rule: `applied`, `refused` or `invalid`; None where it brought none.
        session: the conversation that it belongs to, or None.
        sealed: whether only the model that has the conversation can read it.
        turns: of the user.
        prompt_tokens: estimated.
    """

    rule: Rule
    client: str | None
    session: str | None
    sealed: bool
    turns: Turns
    prompt_tokens: int


def read(chat: object, request: Mapping[str, Any], rule: Rule | None, client_rules: str) -> Wanted:
    """What a request asks for.

    Args:
        chat: messages, or the input of a response.
        rule: of its group; None leaves the group to LiteLLM.
        client_rules: what it may ask for, see `tightened`.

    Raises:
        NotRoutedError: `off`, `traffic` or `no_text`.
    """
    if rule is None:
        raise NotRoutedError("off")
    session = session_of(request)
    if rule.traffic < 1 and share_of(request, session) >= rule.traffic:
        raise NotRoutedError("traffic")
    rule, client = tightened(rule, asked_of(request), client_rules)
    return Wanted(rule, client, session, sealed(chat, request), turns_of(chat), prompt_tokens(chat))


def turns_of(chat: object) -> Turns:
    """The user's turns of a chat, of a Responses input (its items have the form of messages), or of a bare string.

    Raises:
        NotRoutedError: `no_text`.
    """
    try:
        if isinstance(chat, str):
            return as_turns(chat)
        if isinstance(chat, (list, tuple)):
            return user_turns(chat)
    except PromptError:
        pass
    raise NotRoutedError("no_text")


def prompt_tokens(messages: object) -> int:
    """Estimated tokens of all text in a request: UTF-8 bytes / 4, rounded up. Images, audio and tools do not count."""
    return estimated_input_tokens(_text_bytes(messages))


def _text_bytes(value: object) -> int:
    if isinstance(value, str):
        return text_bytes(value)
    if isinstance(value, (list, tuple)):
        return sum(_text_bytes(part) for part in value if isinstance(part, (str, Mapping)))
    if isinstance(value, Mapping):
        return _text_bytes(value.get("content") or value.get("text"))
    return 0


def bucket_key(request: Mapping[str, Any]) -> str:
    """The key of the request's metadata: `litellm_metadata` on the routes that have it, else `metadata`."""
    return "litellm_metadata" if "litellm_metadata" in request else "metadata"


def bucket_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request's metadata."""
    bucket = request.get(bucket_key(request))
    return bucket if isinstance(bucket, dict) else {}


def asked_of(request: Mapping[str, Any]) -> object:
    """What the client asks of P2L: `metadata.p2l` of the request's body, wherever the route put it."""
    for bucket in (request.get("metadata"), request.get("litellm_metadata")):
        if isinstance(bucket, Mapping):
            for holder in (bucket, bucket.get("requester_metadata")):
                if isinstance(holder, Mapping) and holder.get("p2l") is not None:
                    return holder["p2l"]
    return None


def session_of(request: Mapping[str, Any]) -> str | None:
    """The conversation that a request belongs to, or None."""
    bucket = bucket_of(request)
    for holder, key in ((request, "litellm_session_id"), (bucket, "session_id"), (bucket, "litellm_session_id")):
        value = holder.get(key)
        if isinstance(value, str) and value:
            # who owns the key owns the session: another tenant's id of the same text is another session
            owner = bucket.get("user_api_key_hash") or bucket.get("user_api_key") or ""
            return hashlib.blake2b(f"{owner}\0{value}".encode("utf-8", "replace"), digest_size=16).hexdigest()
    return None


def uniform(request: Mapping[str, Any]) -> float:
    """A random number in [0, 1), no secret, that is the same at every attempt of one request."""
    seed = request.get("litellm_call_id") or request.get("litellm_trace_id")
    data = seed.encode("utf-8", "surrogatepass") if isinstance(seed, str) else None
    return random.Random(data).random()  # noqa: S311


def share_of(request: Mapping[str, Any], session: str | None) -> float:
    """A number in [0, 1) that is the same for all requests of a session, and at every attempt of one request."""
    return random.Random(f"traffic {session}").random() if session else uniform(request)  # noqa: S311


def sealed(chat: object, request: Mapping[str, Any]) -> bool:
    """Whether the conversation carries state of one provider that another can't read, such as encrypted reasoning."""
    if request.get("previous_response_id") or request.get("container"):
        return True
    return isinstance(chat, (list, tuple)) and any(_holds_state(item, _SEALED_DEPTH) for item in chat)


def _holds_state(item: object, depth: int) -> bool:
    if isinstance(item, (list, tuple)):
        return depth > 0 and any(_holds_state(part, depth - 1) for part in item)
    if depth == 0 or not isinstance(item, Mapping):
        return False
    if item.get("role") == "user" and isinstance(item.get("content"), str):
        return False
    kind = item.get("type")
    return (
        (isinstance(kind, str) and kind in _SEALED_TYPES)
        or any(item.get(key) for key in _SEALED_KEYS)
        or any(_holds_state(item.get(key), depth - 1) for key in _NESTED)
    )


def texts(values: object) -> list[str]:
    """The texts among values of an unknown form."""
    return [value for value in values if isinstance(value, str)] if isinstance(values, Iterable) else []
