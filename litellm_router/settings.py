"""What an operator can set: one frozen model, read from `litellm_settings.p2l_settings` of the proxy's config.

LiteLLM imports callbacks before it reads the keys after them, so the settings are read at use, not at import. A wrong
key or value never fails a request: the log says it once, and LiteLLM's own strategy decides until it is corrected.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.errors import ConfigError, problem_of
from p2l_plugins.routing.policies import Objective, RuleName

KEY = "p2l_settings"

Scope = Literal["group", "key", "team"]
Money = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=0, le=10_000_000)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: YAML reads a bare `off` as false.
_OFF = BeforeValidator(lambda value: "off" if value is False else value)
_ON_OFF = BeforeValidator(lambda value: {False: "off", True: "on"}[value] if isinstance(value, bool) else value)

#: What a rule may be tightened to: `cap` limits each request, `lp` and `paced` the mean, `best` nothing.
STRICTNESS = {"best": 0, "paced": 1, "lp": 2, "cap": 3}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


#: How LiteLLM's configuration names an environment variable.
ENVIRON = "os.environ/"


def resolved(value: SecretStr, key: str) -> str:
    """The text of a setting, or of the environment variable that it names as os.environ/NAME.

    Args:
        key: of the setting, for the message.

    Raises:
        ConfigError: the variable is not set.
    """
    text = value.get_secret_value()
    if not text.startswith(ENVIRON):
        return text
    name = text.removeprefix(ENVIRON)
    found = os.environ.get(name)
    if not found:
        raise ConfigError(f"{key} is {text}, but the environment variable {name} is not set")
    return found


def _set_where_named(value: object) -> object:
    # LiteLLM puts null in the place of an environment variable that is not set
    if value is None:
        raise ValueError("is empty: the environment variable that it names is not set")
    return value


class RouterCacheSettings(CacheSettings):
    """The cache of the router.

    Attributes:
        url: of a Redis or Valkey (see `p2l_plugins.cache.address`), or os.environ/NAME; where it is not set, LiteLLM's
            own Redis, if it has one.
        secret: keys the hash of the prompts, or os.environ/NAME. Services with another one share nothing, and whoever
            reads the store can't test whether a prompt was asked.
    """

    def text_of(self, value: SecretStr, key: str) -> str:
        """The text of a setting, or of the environment variable that it names."""
        return resolved(value, key)

    _named = field_validator("url", "secret", mode="before")(_set_where_named)


class Sticky(_Model):
    """Conversations that stay with their model, since a switch loses the provider's prompt cache.

    Attributes:
        margin: how much more value another model must promise before a conversation moves to it.
        ttl_s: seconds without a request until a conversation is forgotten.
        sessions: most conversations that are remembered.
    """

    margin: float = Field(default=0.05, ge=0, le=1)
    ttl_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    sessions: int = Field(default=10_000, ge=1)


class PersonalSettings(_Model):
    """Boards of users, of what they ask and like; they need a secret of the cache, see docs/personal.md.

    Attributes:
        user: who the user of a request is: `key_user`, the user that the LiteLLM key belongs to, or `end_user`, whom
            the request names in `user`, which takes callers that may be trusted with it.
        weight: of the user's board against the prompt's own scores once there is much evidence.
        prompts: number of prompts at which the board has half of that weight.
        half_life_days: days after which a prompt or a vote counts half.
    """

    user: Literal["key_user", "end_user"] = "key_user"
    weight: Share = 0.5
    prompts: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    half_life_days: float = Field(default=30.0, gt=0, allow_inf_nan=False)


class Collect(_Model):
    """Votes from live traffic: a share of the answers is compared with another model's, see docs/own-models.md.

    Attributes:
        share: of the requests that are compared.
        judge: model group, or model that LiteLLM knows, that compares two answers.
        budget_per_day: USD for the second answers and the judge, of a day in UTC.
        store: path of a file, or `redis` for a stream in the cache's Redis.
        store_prompts: must be true: a vote is worth nothing without its prompt, so prompts are stored as they are.
        groups: model groups whose requests are compared; none: all that are routed.
    """

    share: Share
    judge: str = Field(min_length=1)
    budget_per_day: Money
    store: str = Field(min_length=1)
    store_prompts: bool = False
    groups: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _prompts_by_choice(self) -> Collect:
        if not self.store_prompts:
            raise ValueError(
                "collect stores the prompts that it compares, as votes need them; say so with store_prompts: true"
            )
        return self


class ClientRule(_Model):
    """What a request may ask for, in `metadata.p2l` of its body."""

    rule: RuleName | None = None
    budget: Money | None = None
    max_cost: Money | None = None
    objective: Objective | None = None


class GroupRule(ClientRule):
    """What one model group sets in place of the settings for all."""

    opponents: dict[str, Weight] | None = Field(default=None, min_length=1)
    mode: Annotated[Literal["route", "shadow", "off"], _OFF] | None = None
    traffic: Share | None = None
    scope: Scope | None = None


class Rule(GroupRule):
    """How a request is decided; each key may be set for all groups, for one group, or by a request.

    Attributes:
        rule: `best` takes the model of highest value; `cap` the best one whose expected cost is within the budget; `lp`
            mixes two models so that the expected cost of the request is the budget (Theorem 1 of arXiv 2502.14855);
            `paced` holds the mean cost of all requests at the budget with one multiplier, so that prompts that gain
            more from a dear model get it.
        budget: USD per request, for `cap`, `lp` and `paced`.
        max_cost: USD that no request may be expected to cost, whatever the rule.
        objective: the value of a model: its predicted win rate against the opponents, or, for bundles of the family
            grk, the probability that its answer is usable.
        opponents: weight of each opponent of a win rate, by name; none: the group's own models, all alike.
        mode: `route`, or `shadow`: decisions are made and recorded, and LiteLLM's own strategy decides.
        traffic: share of the requests that P2L decides, by conversation; the others are LiteLLM's.
        scope: whose budget `paced` holds: one for the model `group`, or one for each API `key` or `team`.
    """

    rule: RuleName = "best"
    objective: Objective = "win_rate"
    mode: Literal["route", "shadow"] = "route"
    traffic: Share = 1.0
    scope: Scope = "group"

    @model_validator(mode="after")
    def _budget_where_needed(self) -> Rule:
        if self.rule != "best" and self.budget is None:
            raise ValueError(f"rule {self.rule!r} needs a budget, in USD per request")
        return self


class P2LSettings(Rule):
    """Settings of the router; every one has a default.

    Attributes:
        bundle: a bundle's folder, a Hugging Face hub id, or `starter`, the one that ships with the package.
        endpoint: address of an HTTP scorer (`p2l serve`) in place of a bundle, such as http://scorer:8000, so that the
            proxy holds no model.
        endpoint_key: of its `Authorization: Bearer` header, or os.environ/NAME.
        groups: rule of single model groups, by name; mode `off` leaves a group to LiteLLM.
        client_rules: what `metadata.p2l` of a request may do: `tighten` limits only, `any`thing, or be ignored (`off`).
        timeout_ms: longest time that routing may add to a request; past it LiteLLM's own strategy decides.
        output_tokens: expected length of an answer before usage was seen: a number, or one per model by name.
        learn_output_tokens: whether the length is learnt from the answers' usage, per model.
        sticky: keeps conversations with their model; none: each question is decided on its own, and only the steps of
            one answer (calls of tools) and a provider's own state stay with the model that has them.
        unknown_limit: share of a prompt's text above which, where the bundle's tokenizer does not know it, the overall
            scores decide.
        min_support: effective votes below which a model is not ranked but left to LiteLLM's order, where the bundle
            says how much it knows of it.
        injected_tags: tags whose text in user messages no user wrote, beside the known ones of agents and editors.
        personal: blends a user's own board into the scores of their prompts; none: users are not told apart.
        cache: where scores are kept: in this process, and in a Redis that services share.
        collect: makes votes of a share of the answers; none: nothing is compared or stored.
        threads: processor threads of one scoring, of which two run at a time; 0 lets ONNX Runtime choose, which is
            faster on an idle machine and slower beside a busy proxy.
        failover: `on` lets every error of a provider reach the next best model, by a retry policy of LiteLLM's for the
            groups that P2L routes; `off` leaves retries as they are configured.
        max_attempts: most models that one request is tried at, where `num_retries` does not ask for more.
        headers: whether responses carry the `x-p2l-*` headers.
    """

    bundle: str = Field(default="starter", min_length=1)
    endpoint: str | None = None
    endpoint_key: SecretStr | None = Field(default=None, min_length=1)
    groups: dict[str, GroupRule] = {}
    client_rules: Annotated[Literal["tighten", "any", "off"], _OFF] = "tighten"
    timeout_ms: float = Field(default=200.0, gt=0, le=60_000, allow_inf_nan=False)
    output_tokens: Tokens | dict[str, Tokens] = 500
    learn_output_tokens: bool = True
    sticky: Sticky | None = None
    unknown_limit: Share = 0.5
    min_support: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    injected_tags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,63}$")], ...] = ()
    personal: PersonalSettings | None = None
    cache: RouterCacheSettings = RouterCacheSettings()
    collect: Collect | None = None
    threads: int = Field(default=1, ge=0)
    failover: Annotated[Literal["on", "off"], _ON_OFF] = "on"
    max_attempts: int = Field(default=3, ge=1, le=100)
    headers: bool = True

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            raise ValueError("is empty: the environment variable that it names is not set")
        try:
            parts = urlsplit(value)
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid or "@" in value or parts.query or parts.fragment:
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, without user and password")
        return value.rstrip("/")

    _named = field_validator("endpoint_key", mode="before")(_set_where_named)

    @model_validator(mode="after")
    def _one_scorer(self) -> P2LSettings:
        if self.endpoint is not None and "bundle" in self.model_fields_set:
            raise ValueError("bundle and endpoint are both set, but one of them scores; remove the other")
        if self.endpoint is None and self.endpoint_key is not None:
            raise ValueError("endpoint_key is set, but no endpoint that it would be for")
        return self

    @model_validator(mode="after")
    def _names_are_kept_as_a_hash(self) -> P2LSettings:
        if self.personal is not None and self.cache.secret is None:
            raise ValueError("personal needs cache.secret, which keys the hash of the users' names")
        return self

    def endpoint_secret(self) -> str | None:
        """The key of the HTTP scorer, or None.

        Raises:
            ConfigError: the environment variable is not set.
        """
        return None if self.endpoint_key is None else resolved(self.endpoint_key, f"{KEY}.endpoint_key")

    @property
    def scored_by(self) -> str:
        """The setting that says what scores, and its value, for messages."""
        return f"{KEY}.bundle = {self.bundle!r}" if self.endpoint is None else f"{KEY}.endpoint = {self.endpoint!r}"

    @model_validator(mode="after")
    def _groups_make_rules(self) -> P2LSettings:
        for name, group in self.groups.items():
            try:
                self.rule_of(name)
            except ValidationError as error:
                raise ValueError(f"groups.{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
            if group.mode == "off" and group.model_fields_set != {"mode"}:
                raise ValueError(f"groups.{name}: mode 'off' leaves nothing for other keys to do")
        return self

    def rule_of(self, group: str) -> Rule | None:
        """The rule of a model group; None where P2L leaves it to LiteLLM."""
        base = {key: getattr(self, key) for key in Rule.model_fields}
        own = self.groups.get(group)
        if own is not None:
            if own.mode == "off":
                return None
            base |= {key: getattr(own, key) for key in own.model_fields_set}
        return Rule.model_validate(base)

    def expected_tokens(self, model: str) -> int:
        """Expected tokens of a model's answer before usage was seen."""
        given = self.output_tokens
        return given if isinstance(given, int) else given.get(model, P2LSettings.model_fields["output_tokens"].default)

    @classmethod
    def read(cls, raw: object) -> P2LSettings:
        """Settings from what the config holds; None means all defaults.

        Raises:
            ConfigError: one sentence that names the key, the value and what is valid.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            valid = ", ".join(cls.model_fields)
            raise ConfigError(f"{KEY} is {reprlib.repr(raw)}, but must be a mapping with keys of {valid}")
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None


def tightened(rule: Rule, raw: object, client_rules: str) -> tuple[Rule, str | None]:
    """The rule of one request, and a word on what it asked for: `applied`, `refused` or `invalid`; None for nothing.

    Args:
        raw: `metadata.p2l` of the request's body, from a client that is not trusted.
        client_rules: with `tighten`, limits only become lower and rules stricter; what would loosen one is left out.
    """
    if raw is None or client_rules == "off":
        return rule, None
    if isinstance(raw, Mapping):  # whether its answer may be compared is no rule
        raw = {key: value for key, value in raw.items() if key != "collect"}
    try:
        asked = ClientRule.model_validate(raw)
    except ValidationError:
        return rule, "invalid"
    wanted = {key: value for key, value in asked.model_dump().items() if value is not None}
    if "budget" in wanted and rule.rule == "best":
        wanted.setdefault("rule", "cap")
    if client_rules == "tighten":
        refused = {
            key
            for key, value in wanted.items()
            if (key in ("budget", "max_cost") and (limit := getattr(rule, key)) is not None and value > limit)
            or (key == "rule" and STRICTNESS[value] < STRICTNESS[rule.rule])
        }
    else:
        refused = set()
    wanted = {key: value for key, value in wanted.items() if key not in refused}
    if rule.rule == "paced" and wanted.get("rule", "paced") == "paced" and "budget" in wanted:
        # one request can't have its own mean: its budget is a limit on this request
        wanted["max_cost"] = min(wanted.pop("budget"), wanted.get("max_cost") or rule.max_cost or float("inf"))
    try:
        result = Rule.model_validate(rule.model_dump() | wanted) if wanted else rule
    except ValidationError:
        return rule, "invalid"
    return result, "refused" if refused else "applied" if wanted else None


def _sentence(error: ValidationError) -> str:
    problem = problem_of(error, P2LSettings)
    if not problem.location:
        return f"{KEY}: {problem.message}"
    # an address or a secret, also one that stands under a wrong key, stays unsaid
    unsaid = problem.location[0] in ("cache", "endpoint") or "key" in str(problem.location[-1])
    shown = f"{KEY}.{problem.key}" + ("" if unsaid else f" = {problem.value}")
    if problem.kind == "extra_forbidden":
        valid = sorted(problem.valid, key="bundle".__ne__)  # which comes first
        return f"{shown} is not a setting; valid: {', '.join(valid)}"
    return f"{shown} is not valid: {problem.message}"
