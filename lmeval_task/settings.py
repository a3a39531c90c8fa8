"""Settings of our tasks, and which of the bundle's models is the evaluated one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.similar import similar

logger = logging.getLogger(__name__)

_NAMED_BY = ("peft", "pretrained", "model", "path")  # arguments of lm-eval's models that name them


class Settings(BaseModel):
    """Keys of the YAML task or of `--metadata`, which overrides all but `p2l_source` and `p2l_overrides`.

    Attributes:
        p2l_source: task, group or tag whose prompts are scored.
        p2l_bundle: bundle folder, hub id or `starter`.
        p2l_prompt: field of the document or Jinja template of the prompt, in place of the source task's text.
        p2l_model: the evaluated model's name in the bundle; by default model_args say it.
        p2l_top: models that get a row of their own.
        p2l_include_path: folders in which the source task is searched, besides lm-eval's and the YAML's own.
        p2l_overrides: settings of the source task that a group of the harness changes.
        p2l_votes: held-out votes of the preference tasks.
        p2l_training_votes: votes that their baselines are fitted on.
        p2l_names: model names in the votes → names in the bundle.
        p2l_higher_is_better, p2l_lower_is_better: metrics of X_p2l of which a higher, or a lower, value of one prompt
            is better, where lm-eval's definitions do not say so.
        p2l_usable, p2l_margin: of a score matrix, as in `p2l evaluate`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p2l_source: str = ""
    p2l_bundle: str = "starter"
    p2l_prompt: str | None = None
    p2l_model: str | None = None
    p2l_top: int = Field(default=10, ge=1)
    p2l_include_path: str | list[str] = []
    p2l_overrides: dict[str, Any] = {}
    p2l_votes: str | None = None
    p2l_training_votes: str | None = None
    p2l_names: dict[str, str] = {}
    p2l_higher_is_better: list[str] = []
    p2l_lower_is_better: list[str] = []
    p2l_usable: float = 0.5
    p2l_margin: float = Field(default=0.0, ge=0)

    @classmethod
    def read(cls, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Settings:
        """Picks the keys out of a task's config.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        keys = {key: value for key, value in {**config, **metadata}.items() if key.startswith("p2l_")}
        keys |= {key: config[key] for key in ("p2l_source", "p2l_overrides") if key in config}
        try:
            return cls(**keys)
        except ValidationError as error:
            first = error.errors()[0]
            problem = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
            raise ConfigError(f"{first['loc'][0]}: {problem}; valid keys: {', '.join(cls.model_fields)}") from None

    def source(self) -> str:
        """The source task.

        Raises:
            ConfigError: there is none.
        """
        if not self.p2l_source:
            raise ConfigError('p2l_source is missing; name a task, as in --metadata \'{"p2l_source": "gsm8k"}\'')
        return self.p2l_source


def evaluated_model(p2l: P2L, name: str | None, metadata: Mapping[str, Any]) -> int | None:
    """Column of the evaluated model: of `name`, else of the name in lm-eval's model_args where the bundle knows it.

    A name from model_args is often a hub id or a path, so its last part counts too, whatever its case.

    Raises:
        BundleError: `name` is given and unknown; the message lists the known ones.
    """
    if name is not None:
        return p2l.index(name)
    given = _given_names(metadata)
    known = {known.lower(): known for known in [*p2l.bundle.manifest.aliases, *p2l.models]}
    for candidate in itertools.chain.from_iterable((text, text.rstrip("/").rsplit("/", 1)[-1]) for text in given):
        try:
            return p2l.index(known.get(candidate.lower(), candidate))
        except BundleError:
            continue
    if given:
        logger.warning("%s; without it there is no row of the evaluated model", unknown_model(p2l, metadata, shown=3))
    return None


def required_model(p2l: P2L, name: str | None, metadata: Mapping[str, Any]) -> int:
    """As `evaluated_model`, for a task that can't do without.

    Raises:
        BundleError: as `evaluated_model`.
        ConfigError: the bundle does not know the model; the message says which ones are alike and how to map the name.
    """
    column = evaluated_model(p2l, name, metadata)
    if column is None:
        raise ConfigError(unknown_model(p2l, metadata))
    return column


def unknown_model(p2l: P2L, metadata: Mapping[str, Any], shown: int | None = None) -> str:
    """The sentence that says which models are known, those most alike first, and how to map a name.

    Args:
        p2l: whose models.
        metadata: with the name that lm-eval was given.
        shown: so many of the models; None: all.
    """
    bundle, given = p2l.bundle.manifest.name, _given_names(metadata)
    last = given[0].rstrip("/").rsplit("/", 1)[-1] if given else ""
    near = similar(last, p2l.models)
    alike = [*near, *(name for name in p2l.models if name not in near)]
    said = f"does not know the evaluated model {given[0]!r}" if given else "is not told which model is evaluated"
    more = "" if shown is None or shown >= len(alike) else f" and {len(alike) - shown} more"
    return (
        f"the bundle {bundle!r} {said}; its models: {', '.join(alike[:shown])}{more}; set p2l_model to the one that "
        f'it is: --metadata \'{{"p2l_model": "{alike[0]}"}}\''
    )


def _given_names(metadata: Mapping[str, Any]) -> list[str]:
    return [str(metadata[key]) for key in _NAMED_BY if metadata.get(key)]
