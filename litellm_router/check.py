"""What is wrong with a proxy's configuration, as far as it concerns P2L: one sentence per problem."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litellm_router.called import GIVEN, called
from litellm_router.deployments import column_of, is_little_known
from litellm_router.matching import match, why_not
from litellm_router.names import SEES_WILDCARDS, NamedGroup, Names, p2l_model
from litellm_router.prices import INPUT, OUTPUT, Price, listed, price_of
from litellm_router.settings import ENVIRON, KEY, Collect, P2LSettings
from p2l_plugins.cache.address import check
from p2l_plugins.errors import ConfigError
from p2l_plugins.scoring.engine import Scorer
from p2l_plugins.similar import ADD, hint
from p2l_plugins.votes.litellm_config import candidate_name

CALLBACK = "litellm_router.p2l_router"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment that is a model of the bundle.

    Attributes:
        group: its group.
        deployment: LiteLLM's name of its model.
        model: the bundle's name.
        rule: by which it is that: `p2l_model`, or one of `naming`.
        price: where it is known.
        support: effective votes on the model; None where the bundle does not say.
    """

    group: str
    deployment: str
    model: str
    rule: str
    price: Price | None
    support: float | None = None


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A deployment that answers chats and is no model of the bundle, and advice, as a part of a sentence."""

    group: str
    deployment: str
    advice: str


def candidates(deployments: Iterable[Mapping[str, Any]], bundle: Scorer) -> list[Candidate]:
    """The deployments that are models of the bundle, by `p2l_model` or by their names."""
    found = []
    for deployment in deployments:
        one = match(deployment, bundle)
        if one is not None:
            said = bundle.support.get(one.model)
            votes = None if said is None else said.votes
            price = price_of(deployment)
            found.append(Candidate(_group(deployment), _label(deployment), one.model, one.rule, price, votes))
    return found


def unmatched(deployments: Iterable[Mapping[str, Any]], bundle: Scorer) -> list[Unmatched]:
    """The deployments whose names no rule could match, with the nearest names or the remedy."""
    found = []
    for deployment in deployments:
        name = called(deployment)
        if name is not None and name.rule != GIVEN and match(deployment, bundle) is None:
            advice = why_not(deployment) or hint(name.name, bundle.models, then=ADD)
            found.append(Unmatched(_group(deployment), _label(deployment), advice))
    return found


@dataclass(frozen=True, slots=True)
class Routed:
    """Whether P2L decides the requests for a name.

    Attributes:
        name: of a group, a wildcard or an alias.
        team: whose requests the name means this for; None for all.
        routed: whether it does.
        reason: why, or why not.
    """

    name: str
    team: str | None
    routed: bool
    reason: str


def problems(
    settings: P2LSettings, deployments: Sequence[Mapping[str, Any]], bundle: Scorer, aliases: object = None
) -> list[str]:
    """What keeps P2L from doing what the configuration asks for.

    Args:
        settings: of P2L.
        deployments: LiteLLM's `model_list`.
        bundle: the models that deployments may name.
        aliases: `model_group_alias` of LiteLLM's router.
    """
    names = Names(deployments, aliases)
    says = [
        sentence
        for group in names.groups
        for sentence in group_problems(settings, group.name, group.deployments, bundle)
    ]
    models = [_models(group, bundle, settings.min_support) for group in names.groups]
    # what one team has a choice of needs none for the others
    chosen = {
        id(one)
        for group, named in zip(names.groups, models, strict=True)
        if len(named) > 1
        for one in group.deployments
    }
    for group, named in zip(names.groups, models, strict=True):
        alone = (
            len(named) == 1
            and _given(group.deployments)
            and not names.hidden(group)
            and settings.rule_of(group.name) is not None
        )
        if alone and not any(id(one) in chosen for one in group.deployments):
            says.append(
                f"model_list: group {group.title} has one model of the bundle, so there is nothing to choose; name "
                "another in model_info.p2l_model of a deployment of this group"
            )
    if not any(models):
        first = next((name for one in deployments if (name := candidate_name(one)) is not None), "")
        known = hint(first, bundle.models, then=ADD)
        says.append(f"model_list: no deployment names a model of the bundle in model_info.p2l_model; {known}")
    for key in settings.groups:
        if (wrong := names.wrong_key(key)) is not None:
            says.append(f"{KEY}.groups.{key} {wrong}")
    if settings.collect is not None:
        says += _collect(settings.collect, names)
    if isinstance(settings.output_tokens, dict):
        says += [
            f"{KEY}.output_tokens.{name} is not a model of the bundle; {hint(name, bundle.models)}"
            for name in settings.output_tokens
            if name not in bundle.models
        ]
    return list(dict.fromkeys(says))


def _collect(collect: Collect, names: Names) -> list[str]:
    """What keeps votes from being collected."""
    known = [group.name for group in names.groups]
    says = [
        f"{KEY}.collect.groups: {name!r} is not a model group; {hint(name, known)}"
        for name in collect.groups
        if not names.reached(name)
    ]
    judges = [one for group in names.reached(collect.judge) for one in group.deployments]
    if not judges and not listed({"litellm_params": {"model": collect.judge}}):
        says.append(f"{KEY}.collect.judge = {collect.judge!r} is no model group; {hint(collect.judge, known)}")
    elif any(price_of(one) is None for one in judges):
        says.append(
            f"{KEY}.collect.judge: a deployment of {collect.judge!r} has no known price, so no budget would hold"
        )
    return says


def routed_groups(
    settings: P2LSettings, deployments: Sequence[Mapping[str, Any]], bundle: Scorer, aliases: object = None
) -> list[Routed]:
    """Which groups P2L decides, each with the reason; aliases come after the groups. Arguments as of `problems`."""
    names = Names(deployments, aliases)
    found = [Routed(group.name, group.team, *_routed(settings, names, group, bundle)) for group in names.groups]
    for alias, target in names.aliases.items():
        for group in names.reached(alias):
            routed, reason = _decided(settings, group, bundle)
            found.append(Routed(alias, group.team, routed, f"an alias of {target!r}: {reason}"))
    return found


def _routed(settings: P2LSettings, names: Names, group: NamedGroup, bundle: Scorer) -> tuple[bool, str]:
    if names.hidden(group):
        return False, f"an alias of this name leads to {names.aliases[group.name]!r}"
    return _decided(settings, group, bundle)


def _decided(settings: P2LSettings, group: NamedGroup, bundle: Scorer) -> tuple[bool, str]:
    rule = settings.rule_of(group.name)
    models = _models(group, bundle, settings.min_support)
    if rule is None:
        return False, f"{KEY}.groups.{group.name}.mode is 'off'"
    if not models:
        return False, "no deployment names a model of the bundle"
    if len(models) == 1:
        return False, f"one model of the bundle: {models[0]}"
    if rule.mode == "shadow":
        return False, "mode is 'shadow': decisions are recorded, and LiteLLM's own strategy decides"
    return True, f"{len(models)} models of the bundle: {', '.join(models)}"


def _models(group: NamedGroup, bundle: Scorer, least: float) -> list[str]:
    ranked = candidates(group.deployments, bundle)
    return list(dict.fromkeys(one.model for one in ranked if not is_little_known(bundle, one.model, least)))


#: Where LiteLLM's configuration has the address of a Redis that the cache falls back to.
_REDIS_URLS = (
    ("litellm_settings", "cache_params", "url"),
    ("litellm_settings", "cache_params", "redis_url"),
    ("general_settings", "coordination_redis", "url"),
    ("router_settings", "redis_url"),
)


def address_problems(settings: P2LSettings, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the addresses of a configuration, by key: never with a word of the address.

    Args:
        settings: P2L's part of it.
        config: all of it.
    """
    says = []
    for key, url in _addresses(settings, config):
        try:
            check(url, key)
        except ConfigError as error:
            says.append(str(error))
    return says


def _addresses(settings: P2LSettings, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and text of each address of a Redis that P2L would use, so far as it can be known here."""
    given = settings.cache.url
    found: list[tuple[str, object]] = [(f"{KEY}.cache.url", given.get_secret_value())] if given is not None else []
    if given is None:
        for path in _REDIS_URLS:
            value: object = config
            for part in path:
                value = value.get(part) if isinstance(value, Mapping) else None
            found.append((".".join(path), value))
    for key, value in found:
        text = value if isinstance(value, str) else None
        if text is not None and text.startswith(ENVIRON):  # which another machine may have
            text = os.environ.get(text.removeprefix(ENVIRON))
        if text and settings.cache.shared:
            yield key, text


def group_problems(
    settings: P2LSettings, group: str, deployments: Sequence[Mapping[str, Any]], bundle: Scorer
) -> list[str]:
    """As `problems`, of the deployments of one group: names that the bundle does not know, prices, the group's rule."""
    says = []
    for deployment in deployments:
        where = f"model_list: {_label(deployment)} of group {group!r}"
        info = deployment.get("model_info") or {}
        name = info.get("p2l_model")
        if name is None or name is False:
            continue
        if not isinstance(name, str) or column_of(bundle, name) is None:
            known = hint(str(name), bundle.models, then=ADD)
            says.append(f"{where}: model_info.p2l_model = {name!r} is not in the bundle; {known}")
            continue
        says += [f"{where}: {problem}" for problem in _prices(deployment, info)]
    found = candidates(deployments, bundle)
    routed = _given(deployments) or len({one.model for one in found}) > 1
    says += _rule(settings, group, found, bundle) if found and routed else []
    little = dict.fromkeys(one.model for one in found if is_little_known(bundle, one.model, settings.min_support))
    return says + [
        f"{KEY}.min_support = {settings.min_support:g} leaves {model!r} of group {group!r} to LiteLLM's order: the "
        f"bundle knows it by {bundle.support[model].votes:g} effective votes"
        for model in little
        if routed
    ]


def _given(deployments: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a deployment names its model in `p2l_model`."""
    return any(p2l_model(one) is not None for one in deployments)


def _rule(settings: P2LSettings, group: str, found: Sequence[Candidate], bundle: Scorer) -> list[str]:
    rule = settings.rule_of(group)
    if rule is None:
        return []
    own = settings.groups.get(group)

    def key(name: str) -> str:
        return f"{KEY}.groups.{group}.{name}" if own and name in own.model_fields_set else f"{KEY}.{name}"

    says = []
    if rule.objective == "usable" and bundle.family != "grk":
        says.append(f"{key('objective')} = 'usable' needs a bundle of the family grk; this one is {bundle.family}")
    for name in rule.opponents or ():
        if column_of(bundle, name) is None:
            says.append(f"{key('opponents')}: {name!r} is not in the bundle; {hint(name, bundle.models)}")
    if rule.rule != "best" or rule.max_cost is not None:
        for one in found:
            # a wildcard's price is that of the model that a request asks for, where LiteLLM puts it there first
            if one.price is None and (SEES_WILDCARDS or "*" not in one.deployment):
                says.append(
                    f"model_list: {one.deployment} of group {group!r} has no known price, so the limit of "
                    f"{key('rule' if rule.rule != 'best' else 'max_cost')} ranks it last; set {INPUT} and {OUTPUT}"
                )
    return says


def _prices(deployment: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    says = []
    for name in (INPUT, OUTPUT):
        # the first place counts, and LiteLLM copies what stands there into the second
        for place, values in (("litellm_params", deployment.get("litellm_params") or {}), ("model_info", info)):
            value = values.get(name)
            if value is not None:
                if not _is_price(value):
                    says.append(f"{place}.{name} = {value!r} is not a price; valid: USD per token, at least 0")
                break
    return says


def _is_price(value: object) -> bool:
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _group(deployment: Mapping[str, Any]) -> str:
    return str(deployment.get("model_name"))


def _label(deployment: Mapping[str, Any]) -> str:
    params = deployment.get("litellm_params") or {}
    return repr(params.get("model") or (deployment.get("model_info") or {}).get("id"))
