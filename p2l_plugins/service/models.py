"""Requests and responses of the interface; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from p2l_plugins.outcomes import Family
from p2l_plugins.routing.policies import Objective, RuleName

#: Most user turns of a prompt, models of a cost table, and characters of a model's name.
MAX_TURNS = 1024
MAX_COSTS = 1024
MAX_NAME = 256


def _prompt_form(value: Any) -> str | None:
    """Which of the two forms a prompt is meant to have, so that an error is about that one."""
    return "text" if isinstance(value, str) else "turns" if isinstance(value, list) else None


def _cost_form(value: Any) -> str:
    return "prices" if isinstance(value, dict | BaseModel) else "amount"


Turns = Annotated[list[str], Field(min_length=1, max_length=MAX_TURNS)]
Prompt = Annotated[
    Annotated[str, Tag("text")] | Annotated[Turns, Tag("turns")],
    Discriminator(
        _prompt_form,
        custom_error_type="prompt",
        custom_error_message="A prompt is a string or a list of strings",
    ),
    Field(description="One user turn, or the user turns of a conversation, oldest first."),
]
Prompts = Annotated[list[Prompt], Field(min_length=1)]
Name = Annotated[str, StringConstraints(max_length=MAX_NAME)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=10_000_000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScoresRequest(_Request):
    """Prompts to score."""

    prompts: Prompts


class ScoresResponse(BaseModel):
    """Coefficients of N prompts for M models."""

    bundle: str
    fingerprint: str
    family: Family
    models: list[str] = Field(description="M names, in the order of the coefficients")
    coefs: list[list[float]] = Field(description="N × M")
    raw_eta: list[float] | None = Field(description="N, for the families rk and grk; null for bt and bt-tie")
    truncated: list[bool] = Field(
        description="N: whether the prompt was longer than max_length, so that only a part of it counts"
    )
    unknown: list[float] = Field(
        description="N: share of the prompt's tokens that stand for what the tokenizer does not know"
    )
    cached: list[bool] = Field(description="N: whether the scores were in the cache")


class Overall(BaseModel):
    """Coefficients of the leaderboard of everyday prompts, for a prompt that can't be read."""

    coefs: list[float] = Field(description="M")
    raw_eta: float | None = Field(description="for the families rk and grk; null for bt and bt-tie")


class Bounds(BaseModel):
    """How far from 0 the bundle's numbers can be, so that others know scores that it can't have given."""

    coefs: float = Field(description="largest magnitude of a coefficient")
    raw_eta: float = Field(description="largest magnitude of raw_eta")


class BundleResponse(BaseModel):
    """The bundle that is served."""

    name: str
    fingerprint: str = Field(description="changes with everything that changes a score")
    family: Family
    models: list[str]
    aliases: dict[str, str] = Field(description="other names of models")
    ungrounded: list[str] = Field(description="models that compare among themselves only")
    support: dict[str, dict[str, float | None]] = Field(
        description="how much is known of each model: prompts, sets, kinds, votes (effective ones), and stderr of its "
        "level in log-odds; a model that is not in it counts as well known"
    )
    max_length: int = Field(description="tokens of a prompt that count")
    overall: Overall
    bounds: Bounds


class PredictRequest(BaseModel):
    """A prompt in the research endpoint's form: the user turns of one conversation. Other keys are ignored."""

    prompt: Prompt


class PredictResponse(BaseModel):
    """Its scores in that form."""

    coefs: list[float]
    eta: float | None = Field(
        description="rk: the tie threshold η; grk: log(θ − 1.000001), the published head's output; bt, bt-tie: null"
    )


class ModelsResponse(BaseModel):
    """The models, in the order of the coefficients."""

    models: list[str]


class Price(_Request):
    """USD per million tokens, and the expected length of an answer where it is another one than the request's."""

    input_price: Amount
    output_price: Amount
    output_tokens: Tokens | None = None


Cost = Annotated[Annotated[Amount, Tag("amount")] | Annotated[Price, Tag("prices")], Discriminator(_cost_form)]
Costs = Annotated[dict[Name, Cost], Field(min_length=1, max_length=MAX_COSTS)]


class CostsResponse(BaseModel):
    """The costs that `/v1/route` uses where a request brings none."""

    costs: dict[str, Any] | None


class RouteRequest(_Request):
    """A prompt or several, and between which models to choose how."""

    prompt: Prompt | None = None
    prompts: Prompts | None = Field(
        default=None, description="in place of prompt: several that one choice is made for, by means over them"
    )
    costs: Costs | None = Field(default=None, description="of the candidates; null: those the service was started with")
    rule: RuleName = Field(
        default="best", description="cap: budget for each request; lp: for the mean; paced: highest value − λ cost"
    )
    budget: Amount | None = Field(default=None, description="USD per request, for all rules but best")
    multiplier: Amount | None = Field(default=None, description="λ of paced, in value per USD; null: from the budget")
    objective: Objective = "win_rate"
    opponents: Annotated[dict[Name, Amount], Field(min_length=1, max_length=MAX_COSTS)] | None = Field(
        default=None, description="weight of each model that a win rate is against; null: the candidates, all alike"
    )
    output_tokens: Tokens = Field(default=500, description="expected length of an answer")


class Candidate(BaseModel):
    """A model that could be chosen."""

    model: str
    coef: float
    value: float = Field(description="the objective: win rate, or P(usable)")
    cost: float
    share: float = Field(description="probability with which it is chosen")


class Corner(BaseModel):
    """A corner of the curve of value over budget."""

    model: str
    cost: float
    value: float


class RouteResponse(BaseModel):
    """The decision, and what it was made from."""

    fingerprint: str
    rule: str
    objective: str
    budget: float | None
    multiplier: float | None
    choice: dict[str, float] = Field(description="probability of each model that is chosen: one, or two under lp")
    expected_cost: float
    value: float
    win_rate: float = Field(description="of the router itself")
    coefficient: float | None = Field(description="of the router itself; null where infinite")
    models: list[Candidate] = Field(description="highest value first")
    curve: list[Corner] = Field(description="corners of the upper concave hull, cheapest first")


class LeaderboardRequest(_Request):
    """Prompts whose leaderboard is asked for."""

    prompts: Prompts


class LeaderboardResponse(BaseModel):
    """The leaderboard of a set of prompts, best model first."""

    model_config = ConfigDict(extra="allow")

    bundle: str
    fingerprint: str
    family: Family
    n_prompts: int
    raw_eta: float | None
    leaderboard: list[dict[str, Any]]


class FeedbackRequest(_Request):
    """What a user thought of an answer."""

    user: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)] = Field(
        description="the user's name or id, as the router sees it; kept as a keyed hash only"
    )
    model: Name = Field(description="whose answer it was")
    liked: bool = Field(description="thumb up, or better than the other answer")
    other: Name | None = Field(default=None, description="the model whose answer stood beside it")
    prompt: Prompt | None = Field(default=None, description="what was asked, where it is known; it is not kept")


class StatusResponse(BaseModel):
    """Whether the process lives, or takes requests."""

    status: str


class Problem(BaseModel):
    """Why there is no answer: one sentence, without anything of the prompts."""

    detail: str
