"""What the router reads of a chat: the user's turns, its length, what it asks of a model, whose state it holds.

The routes of LiteLLM hand over messages (OpenAI's and Anthropic's), items of a Responses input, or Gemini's contents;
all are read as one list. Everything here comes from clients: no form of it may raise anything but `NotRoutedError`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from litellm_router.injected import without_injected
from litellm_router.reasons import NotRoutedError
from p2l_plugins.errors import PromptError
from p2l_plugins.prompts import Turns, as_turns, content_text, text_bytes, user_turns
from p2l_plugins.routing.explain import estimated_input_tokens

_fast_json: Callable[[object], bytes] | None
try:
    import orjson

    _fast_json = orjson.dumps
except ImportError:  # a LiteLLM without its proxy
    _fast_json = None

#: Keys and item types that hold state which only the provider that made it can read.
_SEALED_KEYS = ("encrypted_content", "signature", "thought_signature", "thoughtSignature")
_SEALED_TYPES = frozenset(
    {"redacted_thinking", "item_reference", "compaction", "code_interpreter_call", "computer_call", "web_search_call"}
    | {"file_search_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "image_generation_call"}
    | {"server_tool_use", "web_search_tool_result", "code_execution_tool_result", "container_upload"}
)

#: Types of the items by which a model answers, beside messages of its role.
_ANSWERS = frozenset({"function_call", "custom_tool_call", "reasoning"})

#: Where parts of a message are nested, and how deep they are looked for.
_NESTED = ("content", "thinking_blocks", "reasoning_items", "tool_calls", "provider_specific_fields", "function")
_DEPTH = 6

#: Keys without which a part holds no state.
_TELLING = frozenset((*_SEALED_KEYS, *_NESTED))

#: Text that a model reads, by the keys of a message or a part; and what is sent as JSON.
_READ = frozenset(
    {"content", "text", "thinking", "refusal", "arguments", "name", "output", "tool_calls", "function"}
    | {"parts", "functionCall", "functionResponse"}
)
_JSON = frozenset({"input", "args", "response"})

#: Where the routes have the system prompt, and definitions of tools and of the answer's form.
_SYSTEM = ("system", "instructions", "systemInstruction", "system_instruction")
_DEFINED = ("tools", "functions", "response_format", "text")

#: What a model must be able to take, by the type of a part; the names are those of LiteLLM's own table.
_NEEDS = {
    "image": "supports_vision",
    "image_url": "supports_vision",
    "input_image": "supports_vision",
    "input_audio": "supports_audio_input",
    "audio": "supports_audio_input",
}
_PDF, _TOOLS, _SCHEMA = "supports_pdf_input", "supports_function_calling", "supports_response_schema"

#: All of them.
SUPPORTS = (*dict.fromkeys(_NEEDS.values()), _PDF, _TOOLS, _SCHEMA)

#: Who makes state of such a form.
_MAKERS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("google", lambda item: bool(item.get("thought_signature") or item.get("thoughtSignature"))),
    ("anthropic", lambda item: item.get("type") == "thinking" and bool(item.get("signature"))),
    ("anthropic", lambda item: item.get("type") == "redacted_thinking"),
    ("openai", lambda item: bool(item.get("encrypted_content"))),
)

_LONGEST_ID = 4096


def chat_of(messages: object, request: Mapping[str, Any]) -> object:
    """The chat of a request, in the form of messages.

    Args:
        messages: as LiteLLM hands them to a callback; None for a Responses input and for Gemini's contents.
        request: its keyword arguments.
    """
    if messages is not None:
        return messages
    contents = request.get("contents")
    if contents is None:
        return request.get("input")
    items = contents if isinstance(contents, (list, tuple)) else [contents]
    return [_from_content(one) if isinstance(one, Mapping) else {"role": "user", "content": one} for one in items]


def _from_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """One of Gemini's contents as a message."""
    parts = []
    given = content.get("parts")
    for part in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(part, (dict, Mapping)):
            continue
        data = part.get("inlineData") or part.get("inline_data") or part.get("fileData") or part.get("file_data")
        if isinstance(data, Mapping):
            kind = str(data.get("mimeType") or data.get("mime_type"))
            parts.append({"type": kind.partition("/")[0], "media_type": kind})
        else:
            parts.append(dict(part))
    return {"role": "assistant" if content.get("role") == "model" else "user", "content": parts}


def turns_of(chat: object, injected: Collection[str] = ()) -> Turns:
    """What the user wrote in a chat, a Responses input, or a bare string: without what a program put in between.

    Args:
        injected: names of tags whose blocks do not count, beside the known ones.

    Raises:
        NotRoutedError: `no_text`.
    """
    try:
        if isinstance(chat, str):
            return as_turns(chat)
        if isinstance(chat, (list, tuple)):
            return without_injected(user_turns(chat), injected)
    except PromptError:
        pass
    raise NotRoutedError("no_text")


def prompt_tokens(chat: object, request: Mapping[str, Any] | None = None) -> int:
    """Estimated tokens of all that a model reads: UTF-8 bytes / 4, rounded up; images and audio do not count.

    That is the chat with its tool calls and their results, the system prompt wherever its route has it, and the
    definitions of tools and of the answer's form.
    """
    total = _bytes(chat, _DEPTH)
    if request:
        for key in _SYSTEM:
            if key in request:
                total += _bytes(request[key], _DEPTH)
        for key in _DEFINED:
            if key in request:
                total += _json_bytes(request[key])
    return estimated_input_tokens(total)


def tokens_since_answer(chat: object) -> int | None:
    """As `prompt_tokens`, of what stands after a model's last answer in the chat; None where there is no answer."""
    parts = chat if isinstance(chat, (list, tuple)) else ()
    last = len(parts) - 1
    while last >= 0 and not is_answer(parts[last]):
        last -= 1
    return None if last < 0 else estimated_input_tokens(_bytes(parts[last + 1 :], _DEPTH))


def _bytes(value: object, depth: int) -> int:
    if isinstance(value, str):
        return text_bytes(value)
    if depth == 0 or value is None:
        return 0
    total = 0
    if isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, (str, dict, Mapping)):
                total += _bytes(part, depth - 1)
    elif isinstance(value, (dict, Mapping)):
        for key, part in value.items():  # of which most messages have two
            if key in _READ:
                total += text_bytes(part) if isinstance(part, str) else _bytes(part, depth - 1)
            elif key in _JSON:
                total += _json_bytes(part)
    return total


def _json_bytes(value: object) -> int:
    if value is None or isinstance(value, (bool, int, float)):
        return 0
    if isinstance(value, str):
        return text_bytes(value)
    try:
        if _fast_json is not None:
            return len(_fast_json(value))
    except TypeError:  # of a form that only the other one writes, if any
        pass
    try:
        return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    except (TypeError, ValueError, RecursionError):  # objects that are not JSON, or nested without end
        return 0


def needs_of(chat: object, request: Mapping[str, Any]) -> frozenset[str]:
    """What a model must be able to take for this request, by the names of LiteLLM's own table of models."""
    needs = set()
    if request.get("tools") or request.get("functions"):
        needs.add(_TOOLS)
    if any(_asks_for_schema(request.get(key)) for key in ("response_format", "text")):
        needs.add(_SCHEMA)
    if isinstance(chat, (list, tuple)):
        for item in chat:
            content = item.get("content") if isinstance(item, (dict, Mapping)) else None
            for part in content if isinstance(content, (list, tuple)) else ():
                if isinstance(part, (dict, Mapping)) and (need := _need(part)) is not None:
                    needs.add(need)
    return frozenset(needs)


def _need(part: Mapping[str, Any]) -> str | None:
    kind = _kind(part)
    if kind in {"document", "file", "input_file", "application"}:
        return _PDF if _is_pdf(part) else None
    return _NEEDS.get(kind)


def _is_pdf(part: Mapping[str, Any]) -> bool:
    holders = (part, *(one for key in ("source", "file") if isinstance(one := part.get(key), Mapping)))
    keys = ("media_type", "format", "filename", "file_data", "file_url", "url")
    said = (one.get(key) for one in holders for key in keys)
    return any(isinstance(text, str) and "pdf" in (text[:100] + text[-10:]).lower() for text in said)


def _asks_for_schema(form: object) -> bool:
    if not isinstance(form, Mapping):
        return False
    inner = form.get("format")
    return form.get("type") == "json_schema" or (isinstance(inner, Mapping) and inner.get("type") == "json_schema")


def _kind(item: Mapping[str, Any]) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


def is_answer(item: object) -> bool:
    """Whether a model wrote an item of a chat."""
    return isinstance(item, (dict, Mapping)) and (item.get("role") in ("assistant", "model") or _kind(item) in _ANSWERS)


def answers(chat: object) -> Iterator[Mapping[str, Any]]:
    """What models wrote in a chat, the latest first."""
    if isinstance(chat, (list, tuple)):
        yield from (item for item in reversed(chat) if is_answer(item))


def opening(chat: object, request: Mapping[str, Any]) -> str:
    """The system prompt and the user's first message: what all requests of a conversation begin with."""
    parts = [content_text(request.get("system")), content_text(request.get("instructions"))]
    for item in chat if isinstance(chat, (list, tuple)) else [{"role": "user", "content": chat}]:
        if isinstance(item, (dict, Mapping)) and not is_answer(item):
            parts.append(content_text(item.get("content")))
            if item.get("role") == "user":
                break
    return "\0".join(parts)


def goes_on(chat: object) -> bool:
    """Whether the chat ends with results of tools: the model is in the middle of its answer to the user."""
    if not isinstance(chat, (list, tuple)) or len(chat) < 2:
        return False
    found = False
    for item in reversed(chat):
        if is_answer(item):
            break
        if not isinstance(item, (dict, Mapping)):
            return False
        if item.get("role") in ("tool", "function") or _kind(item).endswith("_output"):
            found = True
        elif item.get("role") == "user":
            content = item.get("content")
            parts = content if isinstance(content, (list, tuple)) else [content]
            results = [_is_result(part) for part in parts]
            texts = [part for part, result in zip(parts, results, strict=True) if not result]
            found = found or any(results)
            try:
                without_injected(user_turns([{"role": "user", "content": texts}]), (), keep=False)
            except PromptError:
                continue
            return False
    return found


def _is_result(part: object) -> bool:
    return isinstance(part, (dict, Mapping)) and (part.get("type") == "tool_result" or "functionResponse" in part)


def sealed(chat: object, request: Mapping[str, Any]) -> bool:
    """Whether the conversation carries state of one provider that another can't read, such as encrypted reasoning."""
    if request.get("previous_response_id") or request.get("container"):
        return True
    return isinstance(chat, (list, tuple)) and any(_holds_state(item, _DEPTH) for item in chat)


def _holds_state(item: object, depth: int) -> bool:
    # a request may have any number of parts, so each is looked at once and quickly
    if depth == 0 or isinstance(item, str):
        return False
    if isinstance(item, (list, tuple)):
        return any(_holds_state(part, depth - 1) for part in item)
    if not isinstance(item, (dict, Mapping)):
        return False
    if _kind(item) in _SEALED_TYPES:
        return True
    if _TELLING.isdisjoint(item):
        return False
    own_words = item.get("role") == "user" and isinstance(item.get("content"), str)
    return not own_words and (
        any(item.get(key) for key in _SEALED_KEYS)
        or any(_holds_state(item[key], depth - 1) for key in _NESTED if key in item)
    )


def maker_of(chat: object) -> str | None:
    """Who made the state that a chat holds, by its form; None where that does not tell."""
    return next((found for item in answers(chat) if (found := _maker(item, _DEPTH)) is not None), None)


def _maker(item: object, depth: int) -> str | None:
    if depth == 0:
        return None
    if isinstance(item, (dict, Mapping)):
        own = next((maker for maker, holds in _MAKERS if holds(item)), None)
        return own or _maker([item.get(key) for key in _NESTED], depth)
    parts = item if isinstance(item, (list, tuple)) else ()
    return next((found for part in parts if (found := _maker(part, depth - 1)) is not None), None)


def deployment_in(response_id: object) -> str | None:
    """The deployment's id that LiteLLM wrote into the id of a response, or None."""
    if not isinstance(response_id, str) or not response_id.startswith("resp_") or len(response_id) > _LONGEST_ID:
        return None
    try:
        text = base64.b64decode(response_id.removeprefix("resp_")).decode()
    except ValueError:
        return None
    fields = dict(part.partition(":")[::2] for part in text.removeprefix("litellm:").split(";"))
    return fields.get("model_id") or None


def texts(values: object) -> list[str]:
    """The texts among values of an unknown form."""
    return [value for value in values if isinstance(value, str)] if isinstance(values, Iterable) else []
