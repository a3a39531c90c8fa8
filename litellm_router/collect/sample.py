"""Which requests may be compared again, and what is kept of one until its answer is there. No calls here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from litellm_router.deployments import Deployment, Group, id_of
from litellm_router.request import Wanted, asked_of, bucket_of
from litellm_router.routers import router_of
from p2l_plugins.prompts import Turns, content_text, text_bytes

#: Longest chat and answer that are compared, in bytes.
MOST_BYTES = 2**16

#: In the metadata of a LiteLLM key or team: false keeps its requests out.
KEY_SETTING = "p2l_collect"

_ROLES = ("system", "developer", "user", "assistant")
_SYSTEM = ("system", "instructions")
_TEXT = ("text", "input_text", "output_text")
_TOOLS = ("tools", "functions", "response_format", "text", "container", "previous_response_id")


class Sample(NamedTuple):
    """A request that will be compared, if it is answered.

    Attributes:
        router: LiteLLM's, that has the request.
        turns: of the user: the prompt of the vote.
        messages: system, user and assistant texts, as another model is asked.
        group: its models and their deployments.
        max_tokens: of an answer; None where the request does not say.
    """

    router: Any
    turns: Turns
    messages: list[dict[str, str]]
    group: Group
    max_tokens: int | None

    def deployments_of(self, model: str) -> list[Deployment]:
        """Those of one model of the group, by its name in the bundle."""
        return [
            one for one, member in zip(self.group.deployments, self.group.members, strict=True) if member.model == model
        ]


def sample_of(wanted: Wanted, chat: object, request: Mapping[str, Any], group: Group) -> Sample | None:
    """What is kept of a request; None where it, its key or its team is left out, or it is more than plain text."""
    if refused(request) or wanted.sealed or wanted.goes_on or wanted.needs:
        return None
    messages = plain_chat(chat, request)
    router = None if messages is None else router_of(id_of(group.deployments[0]))
    if messages is None or router is None:
        return None
    limit = int(wanted.max_output) if wanted.max_output != float("inf") else None
    return Sample(router, wanted.turns, messages, group, limit)


def refused(request: Mapping[str, Any]) -> bool:
    """Whether the request (`metadata.p2l.collect: false`), its key or its team says no."""
    asked, bucket = asked_of(request), bucket_of(request)
    if isinstance(asked, Mapping) and asked.get("collect") is False:
        return True
    holders = (bucket.get("user_api_key_metadata"), bucket.get("user_api_key_team_metadata"))
    return any(isinstance(one, Mapping) and one.get(KEY_SETTING) is False for one in holders)


def plain_chat(chat: object, request: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """A chat as texts with roles; None where it holds anything else, asks for a form, or is too long."""
    if any(request.get(key) for key in _TOOLS) or (request.get("n") or 1) != 1:
        return None
    items = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
    if not isinstance(items, (list, tuple)) or not items:
        return None
    system = [{"role": "system", "content": text} for key in _SYSTEM if (text := content_text(request.get(key)))]
    messages = [*system, *(found for item in items if (found := _message(item)) is not None)]
    if len(messages) != len(system) + len(items) or messages[-1]["role"] != "user":
        return None
    return messages if sum(text_bytes(one["content"]) for one in messages) <= MOST_BYTES else None


def _message(item: object) -> dict[str, str] | None:
    if not isinstance(item, Mapping) or item.get("role") not in _ROLES or item.get("tool_calls"):
        return None
    content = item.get("content")
    parts = content if isinstance(content, (list, tuple)) else ()
    if not isinstance(content, str) and not parts:
        return None
    if any(not isinstance(one, Mapping) or one.get("type") not in _TEXT for one in parts):
        return None
    return {"role": str(item["role"]), "content": content_text(content)}


def shown(messages: Sequence[Mapping[str, str]]) -> str:
    """A chat as a judge reads it: the text of the only message, or all with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"({one['role']})\n{one['content']}" for one in messages)
