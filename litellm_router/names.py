"""The model groups of a configuration, by the names that a callback sees, as LiteLLM's router resolves them.

A request's model is, in this order: an alias, once and not further; a team's public name, for a request of that team;
a group; a wildcard, the longest that fits. A callback is then given the alias's target, the team's public name, the
group, and for a wildcard the requested name, or since LiteLLM 1.110 the wildcard itself, where it is no team's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any


def _has_rust_core() -> bool:
    litellm = find_spec("litellm")
    places = None if litellm is None else litellm.submodule_search_locations
    # asking for "litellm.router_rust" would import LiteLLM, which takes seconds
    return places is not None and PathFinder.find_spec("router_rust", places) is not None


#: Whether this LiteLLM gives callbacks the wildcard of a group in place of the name that a request asks for.
SEES_WILDCARDS = _has_rust_core()


@dataclass(frozen=True, slots=True)
class NamedGroup:
    """The deployments among which a request chooses.

    Attributes:
        name: that requests ask for, or a wildcard of such names.
        team: whose requests find it, None for all.
        deployments: as LiteLLM holds them.
    """

    name: str
    team: str | None
    deployments: tuple[Mapping[str, Any], ...]

    @property
    def wildcard(self) -> bool:
        """Whether the name stands for many."""
        return "*" in self.name

    @property
    def title(self) -> str:
        """The name, and the team where there is one, for messages."""
        return repr(self.name) if self.team is None else f"{self.name!r} of team {self.team!r}"


class Names:
    """The groups of a configuration and what leads to them.

    Attributes:
        groups: in the order of the configuration.
        aliases: the target of each alias.
        sees_wildcards: whether a callback is given the wildcard of a group.

    Args:
        deployments: LiteLLM's `model_list`; what a router lists once more under its aliases is left out.
        aliases: `model_group_alias` of the router.
        sees_wildcards: as above.
    """

    def __init__(
        self, deployments: Iterable[Mapping[str, Any]], aliases: object = None, sees_wildcards: bool = SEES_WILDCARDS
    ) -> None:
        self.aliases = targets_of(aliases)
        self.sees_wildcards = sees_wildcards
        own = self._without_copies(list(deployments))
        self._internal = {
            _name(one): public for one in own if (public := _public_name(one)) is not None and public != _name(one)
        }
        named: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
        for one in own:
            named.setdefault((_public_name(one) or _name(one), _team(one)), []).append(one)
        self.groups = []
        for (name, team), found in named.items():
            # without a public name of its own, a team shares the group of that name with all
            shares = team is not None and not any(_public_name(one) for one in found)
            self.groups.append(NamedGroup(name, team, (*found, *(named.get((name, None), ()) if shares else ()))))

    def _without_copies(self, deployments: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        others = {_id(one) for one in deployments if _name(one) not in self.aliases} - {None}
        return [one for one in deployments if _name(one) not in self.aliases or _id(one) not in others]

    def reached(self, name: str) -> list[NamedGroup]:
        """The groups that requests for a name reach, whatever their team; none for one that leads nowhere."""
        name = self.aliases.get(name, name)
        return [group for group in self.groups if group.name == name] or self._fitting(name)

    def hidden(self, group: NamedGroup) -> bool:
        """Whether an alias of the group's own name leads elsewhere, so that no request for that name reaches it."""
        return self.aliases.get(group.name, group.name) != group.name

    def seen(self, group: NamedGroup) -> bool:
        """Whether a callback is given the group's own name; of a wildcard it may be what a request asks for."""
        return not group.wildcard or (self.sees_wildcards and group.team is None)

    def wrong_key(self, key: str) -> str | None:
        """Why settings under a name do nothing, as the end of a sentence that begins with it; None where they do."""
        if key in self.aliases:
            return f"is an alias, and P2L sees the group that it leads to; name {self.aliases[key]!r} instead"
        exact = [group for group in self.groups if group.name == key]
        if any(self.seen(group) for group in exact):
            return None
        if exact:
            return "is a wildcard, and P2L sees the name that a request asks for; name the models that it stands for"
        if key in self._internal:
            return f"is the name that LiteLLM gives a team's deployment; name {self._internal[key]!r} instead"
        return self._wrong_beside(key)

    def _wrong_beside(self, key: str) -> str | None:
        """As `wrong_key`, of a name that no group has."""
        fitting = self._fitting(key)
        if any(not self.seen(group) for group in fitting):
            return None
        if fitting:
            return f"fits a wildcard, and P2L sees that instead; name {fitting[0].name!r}"
        valid = sorted({group.name for group in self.groups if self.seen(group)})
        return f"is not a model group; valid: {', '.join(valid) or 'none, as model_list has no groups'}"

    def _fitting(self, name: str) -> list[NamedGroup]:
        """The groups of the wildcard that a name fits, the most special one of each team."""
        found: dict[str | None, NamedGroup] = {}
        for group in sorted((one for one in self.groups if one.wildcard), key=_specificity, reverse=True):
            if any(_fits(group.name, form) for form in (name, _with_provider(name))):
                found.setdefault(group.team, group)
        return list(found.values())


def p2l_model(deployment: Mapping[str, Any]) -> str | None:
    """The name that a deployment gives in `model_info.p2l_model`, or None."""
    name = (deployment.get("model_info") or {}).get("p2l_model")
    return name if isinstance(name, str) and name else None


def targets_of(aliases: object) -> dict[str, str]:
    """The target of each alias of `model_group_alias`, which may be a name or a mapping with `model`."""
    if not isinstance(aliases, Mapping):
        return {}
    pairs = ((name, to.get("model") if isinstance(to, Mapping) else to) for name, to in aliases.items())
    return {str(name): to for name, to in pairs if isinstance(to, str)}


def _fits(wildcard: str, name: str) -> bool:
    # LiteLLM does not ask that the whole name fits
    return re.match(re.escape(wildcard).replace(r"\*", "(.*)"), name) is not None


def _specificity(group: NamedGroup) -> tuple[int, int]:
    pattern = re.escape(group.name).replace(r"\*", "(.*)")
    return len(pattern), sum(pattern.count(sign) for sign in "*+?\\^$|()")


def _with_provider(name: str) -> str:
    import litellm

    try:
        return f"{litellm.get_llm_provider(name)[1]}/{name}"
    except Exception:  # of a name that LiteLLM does not know
        return name


def _info(deployment: Mapping[str, Any]) -> Mapping[str, Any]:
    info = deployment.get("model_info")
    return info if isinstance(info, Mapping) else {}


def _name(deployment: Mapping[str, Any]) -> str:
    return str(deployment.get("model_name"))


def _id(deployment: Mapping[str, Any]) -> str | None:
    id = _info(deployment).get("id")
    return id if isinstance(id, str) else None


def _team(deployment: Mapping[str, Any]) -> str | None:
    team = _info(deployment).get("team_id")
    return team if isinstance(team, str) and team else None


def _public_name(deployment: Mapping[str, Any]) -> str | None:
    """The name under which a team knows a deployment; without a team LiteLLM does not use it."""
    name = _info(deployment).get("team_public_model_name")
    return name if isinstance(name, str) and name and _team(deployment) is not None else None
