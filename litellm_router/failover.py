"""Lets every error of a provider reach the next best model, where the operator has not said otherwise.

By itself LiteLLM retries server errors, rate limits, refused keys and time-outs, and gives up at 400, 404, 413, 422,
content policy and a context that is too long. `model_group_retry_policy` makes it retry those too, on every version, in
async and sync calls, with `num_retries: 0` as well, and touches no group but those that P2L routes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from litellm.types.router import RetryPolicy

from litellm_router.names import p2l_model
from litellm_router.settings import P2LSettings

#: Errors that lie in the request, so that LiteLLM's `num_retries` does not count for them.
_OF_THE_REQUEST = frozenset({"BadRequestErrorRetries", "ContentPolicyViolationErrorRetries"})

#: Statuses of errors that another deployment of the same model would answer with too.
_SAME_EVERYWHERE = frozenset({400, 413, 422})


class Failover:
    """The retry policies that P2L gave to groups of LiteLLM's routers."""

    def __init__(self) -> None:
        self._ours: weakref.WeakKeyDictionary[Any, dict[str, RetryPolicy]] = weakref.WeakKeyDictionary()

    def set_up(self, router: Any, settings: P2LSettings, groups: Collection[str] | None = None) -> list[str]:
        """Gives the groups that P2L routes a policy, where the settings want it; returns those that got one.

        LiteLLM reads it at the start of a request, so a group should have it before its first one.

        Args:
            groups: by name; None for all.
        """
        if router is None or settings.failover == "off":
            return []
        named: dict[str, list[str | None]] = defaultdict(list)
        for deployment in router.get_model_list() or []:
            named[str(deployment.get("model_name"))].append(p2l_model(deployment))
        changed = []
        for group, members in named.items():
            rule = settings.rule_of(group)
            models = set(members) - {None}
            wanted = len(models) > 1 and rule is not None and rule.mode == "route"
            wanted = wanted and (groups is None or group in groups)
            if wanted and self._give(router, group, len(models), len(members), settings.max_attempts):
                changed.append(group)
        return changed

    def _give(self, router: Any, group: str, models: int, deployments: int, max_attempts: int) -> bool:
        """Gives a group and its aliases a policy; returns whether something changed.

        A policy of the operator's for the group stays as it is; what a general one says stands in ours too.

        Args:
            models: number of the group's models; deployments: of all its deployments.
            max_attempts: most models that one request is tried at.
        """
        policies = router.model_group_retry_policy or {}
        if not isinstance(policies, Mapping):
            return False
        policy = _policy(router, models, deployments, max_attempts)
        ours = self._ours.setdefault(router, {})
        names = [
            name
            for name in (group, *_aliases(router, group))
            if policies.get(name) != policy and (name not in policies or policies[name] == ours.get(name))
        ]
        if not names:
            return False
        ours |= dict.fromkeys(names, policy)
        router.model_group_retry_policy = {**policies, **dict.fromkeys(names, policy)}
        return True


def most_attempts(retries: object, max_attempts: int) -> int:
    """Most attempts of a request: those of the setting, or as many as LiteLLM's `num_retries` asks for."""
    return max(max_attempts, retries + 1 if isinstance(retries, int) else 0)


def same_everywhere(error: Exception | None) -> bool:
    """Whether an error lies in the request, so that another deployment of the same model would raise it too."""
    return getattr(error, "status_code", None) in _SAME_EVERYWHERE


def _policy(router: Any, models: int, deployments: int, max_attempts: int) -> RetryPolicy:
    refused = min(models, max_attempts) - 1
    other = min(deployments, most_attempts(router.num_retries, max_attempts)) - 1
    retries = {name: refused if name in _OF_THE_REQUEST else other for name in RetryPolicy.model_fields}
    given = router.retry_policy
    given = RetryPolicy.model_validate(given) if isinstance(given, Mapping) else given
    if isinstance(given, RetryPolicy):  # more retries than deployments would end in an error of LiteLLM's own
        retries |= {name: min(n, deployments - 1) for name, n in given.model_dump(exclude_none=True).items()}
    return RetryPolicy(**retries)


def _aliases(router: Any, group: str) -> list[str]:
    aliases = router.model_group_alias
    if not isinstance(aliases, Mapping):
        return []
    return [name for name, to in aliases.items() if (to.get("model") if isinstance(to, Mapping) else to) == group]
