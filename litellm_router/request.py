"""What the router reads of a LiteLLM request: what it asks for, its conversation, its metadata.

Everything here comes from clients: no form of it may raise anything but `NotRoutedError`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litellm_router.chat import goes_on, maker_of, needs_of, prompt_tokens, sealed, tokens_since_answer, turns_of
from litellm_router.conversations import Conversation, Conversations
from litellm_router.reasons import NotRoutedError
from litellm_router.settings import P2LSettings, Rule, tightened
from p2l_plugins.prompts import Turns

#: Where a request's metadata may be.
BUCKETS = ("litellm_metadata", "metadata")

#: Keys of a request by which LiteLLM's router leaves deployments out; a client has no business with them.
PRIVATE = ("_excluded_deployment_ids", "_retry_skipped_deployment_ids", "_target_order")

#: Where the routes say how long an answer may be, and those of a response.
_LIMITS, _LIMIT_OF_RESPONSES = ("max_tokens", "max_completion_tokens"), ("max_output_tokens",)

#: Where they ask for several answers at once.
_ANSWERS, MOST_ANSWERS = ("n", "best_of"), 10_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for.

    Attributes:
        rule: that decides it, as its group's rule and the request itself have it.
        client: what became of its own rule: `applied`, `refused` or `invalid`; None where it brought none.
        payer: whose budget it is, for budgets of a key or a team.
        conversation: that it belongs to.
        sealed: whether it carries state that only the provider that made it can read; maker: of it, where its form
            tells.
        goes_on: whether the model is in the middle of its answer, between calls of tools.
        turns: of the user; none where there is no text, and a limit has to be kept all the same.
        prompt_tokens: estimated; new_tokens: those that no model has read yet.
        max_output: tokens that an answer may have; answers: how many are asked for at once.
        needs: what a model must be able to take.
    """

    rule: Rule
    client: str | None
    payer: str
    conversation: Conversation
    sealed: bool
    maker: str | None
    goes_on: bool
    turns: Turns
    prompt_tokens: int
    new_tokens: int
    max_output: float
    answers: int
    needs: frozenset[str]


def read(
    group: str,
    chat: object,
    request: Mapping[str, Any],
    rule: Rule | None,
    settings: P2LSettings,
    conversations: Conversations,
    uniform: float,
) -> Wanted:
    """What a request asks for.

    Args:
        group: its model group.
        chat: as `chat_of` gives it.
        rule: of its group; None leaves the group to LiteLLM.
        conversations: tell which one it belongs to.
        uniform: random number in [0, 1) that decides whether it is in the share of the traffic that is routed.

    Raises:
        NotRoutedError: `off`, `traffic` or `no_text`.
    """
    if rule is None:
        raise NotRoutedError("off")
    conversation = conversations.of(owner_of(request), group, session_of(request), chat, request)
    share = uniform if conversation.session is None else conversations.share(conversation)
    if rule.traffic < 1 and share >= rule.traffic:
        raise NotRoutedError("traffic")
    rule, client = tightened(rule, asked_of(request), settings.client_rules)
    return Wanted(
        rule,
        client,
        payer_of(request, rule.scope),
        conversation,
        closed := sealed(chat, request),
        maker_of(chat) if closed else None,
        goes_on(chat),
        _turns(chat, settings, rule),
        tokens := prompt_tokens(chat, request),
        tokens if (new := tokens_since_answer(chat)) is None else new,
        _max_output(chat, request),
        min(max((count for key in _ANSWERS if (count := _positive(request.get(key)))), default=1), MOST_ANSWERS),
        needs_of(chat, request),
    )


def _turns(chat: object, settings: P2LSettings, rule: Rule) -> Turns:
    """The user's turns: who leaves them out, or writes them as somebody else, does not escape the limits of a rule.

    Raises:
        NotRoutedError: `no_text`, where there are no limits.
    """
    try:
        return turns_of(chat, settings.injected_tags)
    except NotRoutedError:
        if rule.rule == "best" and rule.max_cost is None:
            raise
        return ()


def _max_output(chat: object, request: Mapping[str, Any]) -> float:
    """Tokens that an answer may have; of two limits the larger one, since it depends on the provider which holds."""
    is_response = chat is not None and chat is request.get("input")
    keys = _LIMIT_OF_RESPONSES if is_response else _LIMITS
    return max((limit for key in keys if (limit := _positive(request.get(key))) is not None), default=math.inf)


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


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


def owner_of(request: Mapping[str, Any]) -> str:
    """Who owns the API key of a request, as a hash; empty where there is no proxy."""
    bucket = bucket_of(request)
    return str(bucket.get("user_api_key_hash") or bucket.get("user_api_key") or "")


def payer_of(request: Mapping[str, Any], scope: str) -> str:
    """Whose budget a request draws on: that of its group (empty), its key or its team."""
    if scope == "group":
        return ""
    owner = owner_of(request) if scope == "key" else str(bucket_of(request).get("user_api_key_team_id") or "")
    return hashlib.blake2b(f"{scope}\0{owner}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def session_of(request: Mapping[str, Any]) -> str | None:
    """The client's own id of the conversation that a request belongs to, or None."""
    bucket = bucket_of(request)
    for holder, key in ((request, "litellm_session_id"), (bucket, "session_id"), (bucket, "litellm_session_id")):
        value = holder.get(key)
        if isinstance(value, str) and value:
            return value
    return None
