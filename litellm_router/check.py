"""What is wrong with a proxy's configuration, as far as it concerns P2L: one sentence per problem."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litellm_router.deployments import column_of, p2l_model
from litellm_router.prices import INPUT, OUTPUT, Price, price_of
from litellm_router.settings import KEY, P2LSettings
from p2l_plugins.scoring.engine import Scorer

CALLBACK = "litellm_router.p2l_router"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment that takes part: its group, the bundle's name of its model, its price where it is known."""

    group: str
    deployment: str
    model: str
    price: Price | None


def candidates(deployments: Iterable[Mapping[str, Any]], bundle: Scorer) -> list[Candidate]:
    """The deployments that name a model of the bundle."""
    found = []
    for deployment in deployments:
        name = p2l_model(deployment)
        column = None if name is None else column_of(bundle, name)
        if column is not None:
            model = bundle.models[column]
            found.append(Candidate(_group(deployment), _label(deployment), model, price_of(deployment)))
    return found


def problems(settings: P2LSettings, deployments: Sequence[Mapping[str, Any]], bundle: Scorer) -> list[str]:
    """What keeps P2L from doing what the configuration asks for.

    Args:
        deployments: LiteLLM's `model_list`.
        bundle: the models that deployments may name.
    """
    known = f"valid: {', '.join(bundle.models)}"
    by_group: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for deployment in deployments:
        by_group[_group(deployment)].append(deployment)
    says = [one for group in by_group for one in group_problems(settings, group, by_group[group], bundle)]
    models = {group: {one.model for one in candidates(found, bundle)} for group, found in by_group.items()}
    for group, named in models.items():
        if len(named) == 1:
            says.append(
                f"model_list: group {group!r} has one model of the bundle, so there is nothing to choose; name another "
                "in model_info.p2l_model of a deployment of this group"
            )
    if not any(models.values()):
        says.append(f"model_list: no deployment names a model of the bundle in model_info.p2l_model; {known}")
    for group in settings.groups:
        if group not in by_group:
            says.append(f"{KEY}.groups.{group} is not a model group; valid: {', '.join(sorted(by_group))}")
    if isinstance(settings.output_tokens, dict):
        says += [
            f"{KEY}.output_tokens.{name} is not a model of the bundle; {known}"
            for name in settings.output_tokens
            if name not in bundle.models
        ]
    return list(dict.fromkeys(says))


def group_problems(
    settings: P2LSettings, group: str, deployments: Sequence[Mapping[str, Any]], bundle: Scorer
) -> list[str]:
    """As `problems`, of the deployments of one group: names that the bundle does not know, prices, the group's rule."""
    says = []
    for deployment in deployments:
        where = f"model_list: {_label(deployment)} of group {group!r}"
        info = deployment.get("model_info") or {}
        name = info.get("p2l_model")
        if name is None:
            continue
        if not isinstance(name, str) or column_of(bundle, name) is None:
            valid = ", ".join(bundle.models)
            says.append(f"{where}: model_info.p2l_model = {name!r} is not in the bundle; valid: {valid}")
            continue
        says += [f"{where}: {problem}" for problem in _prices(deployment, info)]
    found = candidates(deployments, bundle)
    return says + _rule(settings, group, found, bundle) if found else says


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
            says.append(f"{key('opponents')}: {name!r} is not in the bundle; valid: {', '.join(bundle.models)}")
    if rule.rule != "best" or rule.max_cost is not None:
        for one in found:
            if one.price is None:
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
