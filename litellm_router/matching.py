"""Which model of a bundle a deployment is: by `model_info.p2l_model`, or else by its provider's name for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import litellm

from litellm_router.called import GIVEN, called
from p2l_plugins.naming import OWN_NAMES, Match, ModelNames
from p2l_plugins.scoring.engine import Scorer


def match(deployment: Mapping[str, Any], bundle: Scorer) -> Match | None:
    """The bundle's model of a deployment and the rule by which it is that; None where nothing says.

    A `p2l_model` that the bundle does not know is none, whatever the provider calls the model.
    """
    name = called(deployment)
    if name is None:
        return None
    names = names_of(bundle)
    if name.rule == GIVEN:
        exact = names.exactly(name.name)
        return None if exact is None else Match(exact, GIVEN)
    return names.find(name.name, name.setting, base=name.rule == "base_model")


def why_not(deployment: Mapping[str, Any]) -> str | None:
    """What to do for a deployment whose name no rule could match, where that is not to name a model."""
    name = called(deployment)
    if name is not None and name.rule == "model" and name.name.partition("/")[0].lower() in OWN_NAMES:
        return "at this provider the name is the operator's own; set model_info.base_model or p2l_model"
    return None


def names_of(bundle: Scorer) -> ModelNames:
    """The names of a bundle's models, made once."""
    return _names(bundle.models, tuple(sorted(bundle.aliases.items())))


@lru_cache(maxsize=8)
def _names(models: tuple[str, ...], aliases: tuple[tuple[str, str], ...]) -> ModelNames:
    return ModelNames(models, dict(aliases), list(litellm.model_cost))
