"""Settings of a leaderboard task, and which of the bundle's models is the evaluated one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.scorer import P2L

logger = logging.getLogger(__name__)


class Settings(BaseModel):
    """Keys of the YAML task or of `--metadata`, which overrides all but `p2l_source`.

    Attributes:
        p2l_source: task, group or tag whose prompts are scored.
        p2l_bundle: bundle folder, hub id or `starter`.
        p2l_prompt: Jinja template of the prompt, in place of the source task's text.
        p2l_model: the evaluated model's name in the bundle; by default model_args say it.
        p2l_top: models that get a row of their own.
        p2l_include_path: folders in which the source task is searched, besides lm-eval's and the YAML's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p2l_source: str
    p2l_bundle: str = "starter"
    p2l_prompt: str | None = None
    p2l_model: str | None = None
    p2l_top: int = Field(default=10, ge=1)
    p2l_include_path: str | list[str] = []

    @classmethod
    def read(cls, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Settings:
        """Picks the keys out of a task's config.

        Raises:
            ConfigError: an unknown key, a wrong value, or no source task.
        """
        keys = {key: value for key, value in {**config, **metadata}.items() if key.startswith("p2l_")}
        keys |= {key: config[key] for key in ["p2l_source"] if key in config}
        if "p2l_source" not in keys:
            raise ConfigError('p2l_source is missing; name a task, as in --metadata \'{"p2l_source": "gsm8k"}\'')
        try:
            return cls(**keys)
        except ValidationError as error:
            first = error.errors()[0]
            problem = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
            raise ConfigError(f"{first['loc'][0]}: {problem}; valid keys: {', '.join(cls.model_fields)}") from None


def evaluated_model(p2l: P2L, name: str | None, metadata: Mapping[str, Any]) -> int | None:
    """Column of the evaluated model: of `name`, else of the name in lm-eval's model_args where the bundle knows it.

    A name from model_args is often a hub id or a path, so its last part counts too, whatever its case.

    Raises:
        BundleError: `name` is given and unknown; the message lists the known ones.
    """
    if name is not None:
        return p2l.index(name)
    given = [str(metadata[key]) for key in ("peft", "pretrained", "model", "path") if metadata.get(key)]
    known = {known.lower(): known for known in [*p2l.bundle.manifest.aliases, *p2l.models]}
    for candidate in itertools.chain.from_iterable((text, text.rstrip("/").rsplit("/", 1)[-1]) for text in given):
        try:
            return p2l.index(known.get(candidate.lower(), candidate))
        except BundleError:
            continue
    if given:
        logger.info("the bundle does not know the evaluated model %s; set p2l_model to its name there", given[0])
    return None
