"""The record of a request: what P2L decided and who answered, for headers, metrics, loggers and replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from litellm_router.request import bucket_key

#: Where the record stands in a request's metadata; LiteLLM hands this bucket to every logger.
SPEND_LOGS, RECORD = "spend_logs_metadata", "p2l"

#: Models that `x-p2l-ranking` names: a large group would fill a reverse proxy's buffer for headers.
RANKING_LENGTH = 20


class Attempt(TypedDict, total=False):
    """One attempt of a request.

    Attributes:
        deployment: its id; model: the bundle's name of its model, None where the bundle does not know it.
        error: status of the answer, or the error's name; missing where it answered.
    """

    deployment: str
    model: str | None
    error: int | str


class Beside(TypedDict):
    """A model that answered without having been ranked, such as one of a fallback group."""

    model: str
    value: float | None
    cost: float | None


class Record(TypedDict, total=False):
    """Plain JSON values; nothing in it comes from the prompt's text.

    Attributes:
        error: why P2L did not decide, in one word; then of the keys below there is only `ms`.
        ms: that routing added to the request.
        model: the first of the ranking.
        ranking: names of the group's models, the best first.
        rule: of the decision; objective: what its values are.
        values: of each model, a win rate or P(usable).
        costs: expected USD at each model, None where its price is unknown.
        budget: of the rule, in USD; max_cost: of this request.
        mixture: the probability of each model that the rule `lp` may draw.
        multiplier: λ of the rule `paced`.
        mode: `route` or `shadow`.
        cache: whether the scores were there, `hit` or `miss`.
        prompt_tokens: estimated.
        fingerprint: of the bundle.
        personal: evidence behind the user's own board.
        client: what became of `metadata.p2l`: `applied`, `refused` or `invalid`.
        offered: ids of the deployments that LiteLLM was handed last.
        deployment: the id of the one that took the request last.
        answered: the bundle's name of its model, until it fails; None where the bundle does not know it.
        attempts: all of them, in their order.
        beside: value and expected USD of the model that answered, where it was not ranked.
        cost: USD that the answer cost, as LiteLLM has it.
        truncated: whether the prompt was longer than the bundle reads; missing where its scorer does not say.
        little_known: models of the group that the bundle knows too little of, by `min_support`: they are not ranked.
        unknown: share of the prompt's text that the bundle's tokenizer does not know; missing where that is none.
        reason: why the overall scores decided in place of the prompt's own: `unknown_text` or `no_text`.
        not_followed: whether LiteLLM took a deployment that was not offered.
    """

    error: str
    ms: float
    model: str
    ranking: list[str]
    rule: str
    objective: str
    values: dict[str, float]
    costs: dict[str, float | None]
    budget: float | None
    max_cost: float
    mixture: dict[str, float]
    multiplier: float
    mode: str
    cache: str
    prompt_tokens: int
    fingerprint: str
    personal: dict[str, float]
    client: str
    offered: list[str]
    deployment: str
    answered: str | None
    attempts: list[Attempt]
    beside: Beside
    cost: float
    truncated: bool
    little_known: list[str]
    unknown: float
    reason: str
    not_followed: bool


def note(request: dict[str, Any], record: Record, marks: Mapping[str, Any]) -> None:
    """Puts a record, itself and no copy, into the request's metadata, where every logger finds it.

    Args:
        marks: that go beside it, for this package alone.
    """
    key = bucket_key(request)
    bucket = request.get(key)
    if bucket is None:
        bucket = request[key] = {}
    if not isinstance(bucket, dict):
        return
    logged = bucket.get(SPEND_LOGS)
    bucket |= {**marks, SPEND_LOGS: {**(logged if isinstance(logged, Mapping) else {}), RECORD: record}}


def headers_of(record: Record, answered: str | None) -> dict[str, str]:
    """Headers of a decision's record.

    `x-p2l-model` is the model that answered, which is not the first of `x-p2l-ranking` where that one failed; the
    predicted value (`x-p2l-win-rate`, or `x-p2l-usable` for that objective) and the expected `x-p2l-cost` in USD are
    those of this model. A request that P2L did not decide has `x-p2l-error` with the reason instead.

    Args:
        record: of the request.
        answered: the bundle's name of the model that answered, or None where the answer came from an unranked
            deployment, or none came.
    """
    if "error" in record:
        return _ascii({"x-p2l-error": record["error"], "x-p2l-ms": _number(record.get("ms"), ".2f")})
    value = "x-p2l-usable" if record["objective"] == "usable" else "x-p2l-win-rate"
    return _ascii(
        {
            "x-p2l-model": answered,
            "x-p2l-cache": record["cache"],
            "x-p2l-ms": _number(record.get("ms"), ".2f"),
            "x-p2l-ranking": ",".join(record["ranking"][:RANKING_LENGTH]),
            value: _number(_of(record, answered, "value"), ".4f"),
            "x-p2l-cost": _number(_of(record, answered, "cost"), ".6g"),
            "x-p2l-truncated": "true" if record.get("truncated") else None,
            "x-p2l-unknown": _number(record.get("unknown"), ".2f"),
            "x-p2l-reason": record.get("reason"),
            "x-p2l-error": "not_followed" if record.get("not_followed") else None,
        }
    )


def _of(record: Record, model: str | None, what: Literal["value", "cost"]) -> float | None:
    """The value or the expected cost of the model that answered."""
    ranked = (record["values"] if what == "value" else record["costs"]).get(model or "")
    beside = record.get("beside")
    return beside[what] if ranked is None and beside is not None and beside["model"] == model else ranked


def _number(value: object, form: str) -> str | None:
    return format(value, form) if isinstance(value, (int, float)) else None


def _ascii(headers: Mapping[str, object]) -> dict[str, str]:
    """Values that any HTTP server takes: printable ASCII, the rest replaced by `?`; None is left out."""
    return {
        name: "".join(c if " " <= c <= "~" else "?" for c in str(value))
        for name, value in headers.items()
        if value is not None
    }
