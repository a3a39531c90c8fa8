"""What an operator can set: one frozen model, read from `litellm_settings.p2l_settings` of the proxy's config.

LiteLLM imports callbacks before it reads the keys after them, so the settings are read at use, not at import. A wrong
key or value never fails a request: the log says it once, and LiteLLM's own strategy decides until it is corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2l_plugins.errors import ConfigError

KEY = "p2l_settings"


class P2LSettings(BaseModel):
    """Settings of the router; every one has a default.

    Attributes:
        bundle: a bundle's folder, a Hugging Face hub id, or `starter`, the one that ships with the package.
        rule: `best` takes the model of highest value; `cap` the best one whose expected cost is within the budget; `lp`
            mixes two models so that the expected cost is the budget (Theorem 1 of arXiv 2502.14855).
        budget: USD per request, for `cap` and `lp`.
        objective: the value of a model: its predicted win rate against the group's models, or, for bundles of the
            family grk, the probability that its answer is usable.
        timeout_ms: longest time that routing may add to a request; past it LiteLLM's own strategy decides.
        output_tokens: expected length of an answer, for its expected cost.
        cache_entries: most prompts whose scores are kept in this process.
        cache_ttl_s: seconds until kept scores expire.
        threads: processor threads of one scoring, of which two run at a time; 0 lets ONNX Runtime choose, which is
            faster on an idle machine and slower beside a busy proxy.
        headers: whether responses carry the `x-p2l-*` headers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = Field(default="starter", min_length=1)
    rule: Literal["best", "cap", "lp"] = "best"
    budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    objective: Literal["win_rate", "usable"] = "win_rate"
    timeout_ms: float = Field(default=200.0, gt=0, le=60_000, allow_inf_nan=False)
    output_tokens: int = Field(default=500, ge=0)
    cache_entries: int = Field(default=10_000, ge=1)
    cache_ttl_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=0)
    headers: bool = True

    @model_validator(mode="after")
    def _budget_where_needed(self) -> P2LSettings:
        if self.rule != "best" and self.budget is None:
            raise ValueError(f"rule {self.rule!r} needs a budget, in USD per request")
        return self

    @classmethod
    def read(cls, raw: object) -> P2LSettings:
        """Settings from what the config holds; None means all defaults.

        Raises:
            ConfigError: one sentence that names the key, the value and what is valid.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{KEY} is {_short(raw)}, but must be a mapping with keys of {_keys()}")
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return f"{KEY}: {first['msg'].removeprefix('Value error, ')}"
    key = f"{KEY}.{'.'.join(str(part) for part in first['loc'])}"
    if first["type"] == "extra_forbidden":
        return f"{key} = {_short(first['input'])} is not a setting; valid: {_keys()}"
    return f"{key} = {_short(first['input'])} is not valid: {first['msg'][0].lower()}{first['msg'][1:]}"


def _keys() -> str:
    return ", ".join(P2LSettings.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
