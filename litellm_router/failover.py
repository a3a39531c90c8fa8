"""Lets every error of a provider reach the next best model, where the operator has not said otherwise.

By itself LiteLLM retries server errors, rate limits, refused keys and time-outs, and gives up at 400, 404, 413, 422,
content policy and a context that is too long. `model_group_retry_policy` makes it retry those too, on every version, in
async and sync calls, with `num_retries: 0` as well, and touches no group but those that P2L routes.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from litellm.types.router import RetryPolicy

from litellm_router.deployments import KEEP_S
from litellm_router.names import Names, p2l_model
from litellm_router.settings import P2LSettings

#: Errors that lie in the request, so that LiteLLM's `num_retries` does not count for them.
_OF_THE_REQUEST = frozenset({"BadRequestErrorRetries", "ContentPolicyViolationErrorRetries"})

#: Names that requests ask for, of which is known whether they are routed: a wildcard stands for any number.
MOST_NAMES = 1000

#: Statuses of errors that another deployment of the same model would answer with too.
_SAME_EVERYWHERE = frozenset({400, 413, 422})


class Failover:
    """The retry policies that P2L gave to groups of LiteLLM's routers, under the names that requests ask for.

    Attributes:
        models_of: how many models that P2L ranks deployments are of; until the bundle is known, by `p2l_model` alone.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.models_of: Callable[[Sequence[Mapping[str, Any]]], int] = named
        self._ours: weakref.WeakKeyDictionary[Any, dict[str, RetryPolicy]] = weakref.WeakKeyDictionary()
        self._asked: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
        self._names: weakref.WeakKeyDictionary[Any, tuple[float, Names]] = weakref.WeakKeyDictionary()

    def set_up(self, router: Any, settings: P2LSettings, asked: Collection[str] | None = None) -> list[str]:
        """Gives the groups that P2L routes a policy, where the settings want it; returns the names that got one.

        LiteLLM looks a policy up by the name that a request asks for: an alias, a team's public name, a name that a
        wildcard stands for. It reads it at the start of the request, so a name should have it before its first one.

        Args:
            asked: names, and the aliases that lead to them; None for those of all groups.
        """
        if router is None or settings.failover == "off":
            return []
        names = _names_of(router)
        if asked is None:
            self._asked.pop(router, None)
            asked = [group.name for group in names.groups]
        led = [alias for alias, target in names.aliases.items() if target in asked]
        wanted = dict.fromkeys([*led, *asked])
        given = {
            name: policy for name in wanted if (policy := self._policy_of(router, settings, names, name)) is not None
        }
        return self._give(router, given)

    def before(self, router: Any, settings: P2LSettings, name: str) -> list[str]:
        """As `set_up`, of the name that a request is about to ask for; quick for one that was asked for before.

        Of names that wildcards stand for, the first `MOST_NAMES` get a policy.
        """
        if router is None or settings.failover == "off":
            return []
        asked = self._asked.setdefault(router, set())
        if name in asked or len(asked) >= MOST_NAMES or not self._kept_names(router).reached(name):
            return []
        asked.add(name)
        return self.set_up(router, settings, [name])

    def _kept_names(self, router: Any) -> Names:
        """The names of a router, as they were some seconds ago at most."""
        now = self._clock()
        kept = self._names.get(router)
        if kept is None or now - kept[0] >= KEEP_S:
            kept = self._names[router] = (now, _names_of(router))
        return kept[1]

    def _give(self, router: Any, wanted: Mapping[str, RetryPolicy]) -> list[str]:
        """Gives names their policies; returns those for which something changed.

        A policy of the operator's for a name stays as it is.
        """
        policies = router.model_group_retry_policy or {}
        if not isinstance(policies, Mapping):
            return []
        ours = self._ours.setdefault(router, {})
        new = {
            name: policy
            for name, policy in wanted.items()
            if policies.get(name) != policy and (name not in policies or policies[name] == ours.get(name))
        }
        if new:
            ours |= new
            router.model_group_retry_policy = {**policies, **new}
        return list(new)

    def _policy_of(self, router: Any, settings: P2LSettings, names: Names, name: str) -> RetryPolicy | None:
        """The policy of requests that ask for a name; None where P2L routes none of them.

        Several teams may have models under one name: the largest choice counts.
        """
        models = deployments = 0
        for group in names.reached(name):
            rule = settings.rule_of(group.name if names.seen(group) else names.aliases.get(name, name))
            found = self.models_of(group.deployments)
            if found > 1 and rule is not None and rule.mode == "route":
                models, deployments = max(models, found), max(deployments, len(group.deployments))
        return _policy(router, models, deployments, settings.max_attempts) if models else None


def most_attempts(retries: object, max_attempts: int) -> int:
    """Most attempts of a request: those of the setting, or as many as LiteLLM's `num_retries` asks for."""
    return max(max_attempts, retries + 1 if isinstance(retries, int) else 0)


def same_everywhere(error: Exception | None) -> bool:
    """Whether an error lies in the request, so that another deployment of the same model would raise it too."""
    return getattr(error, "status_code", None) in _SAME_EVERYWHERE


def named(deployments: Sequence[Mapping[str, Any]]) -> int:
    """How many names deployments give in `p2l_model`."""
    return len({p2l_model(one) for one in deployments} - {None})


def _names_of(router: Any) -> Names:
    return Names(router.get_model_list() or [], router.model_group_alias)


def _policy(router: Any, models: int, deployments: int, max_attempts: int) -> RetryPolicy:
    """What a general policy of the operator's says stands in ours too.

    Args:
        models: number of a group's models; deployments: of all its deployments.
        max_attempts: most models that one request is tried at.
    """
    refused = min(models, max_attempts) - 1
    other = min(deployments, most_attempts(router.num_retries, max_attempts)) - 1
    retries = {name: refused if name in _OF_THE_REQUEST else other for name in RetryPolicy.model_fields}
    given = router.retry_policy
    given = RetryPolicy.model_validate(given) if isinstance(given, Mapping) else given
    if isinstance(given, RetryPolicy):  # more retries than deployments would end in an error of LiteLLM's own
        retries |= {name: min(n, deployments - 1) for name, n in given.model_dump(exclude_none=True).items()}
    return RetryPolicy(**retries)
