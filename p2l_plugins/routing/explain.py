"""One routing decision with what explains it: each candidate's value and cost, the choice, the cost–value curve.

Behind `p2l route` and `POST /v1/route`. Costs and scores come in, a JSON-ready record goes out; nothing is read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import DataError, P2LError
from p2l_plugins.outcomes import Array, Coefficients, win_matrix
from p2l_plugins.routing import policies
from p2l_plugins.support import Support, level_errors

#: UTF-8 bytes per token: about right for English text and code, a little high for other scripts, and cheap.
BYTES_PER_TOKEN = 4


def estimated_input_tokens(n_bytes: int) -> int:
    """About how many tokens a model is paid for to read a prompt of so many bytes (`prompts.text_bytes`)."""
    return -(-n_bytes // BYTES_PER_TOKEN)


def request_costs(table: Mapping[str, Any], source: object, input_tokens: ArrayLike, output_tokens: int) -> Array:
    """USD per request of each entry of a cost table: (M,) for one prompt, (N, M) for N.

    Args:
        table: model → USD per request, or {input_price, output_price} in USD per million tokens and, where the model
            differs from `output_tokens`, the expected length of its answers as output_tokens.
        source: the file's path, or another name of the table, for messages.
        input_tokens: of the prompt, or (N,).
        output_tokens: expected length of an answer.

    Raises:
        DataError: an entry that is neither; the message names it.
    """
    length = np.asarray(input_tokens, np.float64)
    costs = []
    for name, entry in table.items():
        priced = isinstance(entry, dict) and {"input_price", "output_price"} <= entry.keys()
        numbers = [entry["input_price"], entry["output_price"]] if priced else [entry]
        if priced:
            numbers.append(entry.get("output_tokens", output_tokens))
        if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p < float("inf") for p in numbers):
            raise DataError(
                f"{source}: {name}: {entry!r} is not a cost; valid: a number (USD per request) or input_price and "
                "output_price (USD per million tokens; optional: output_tokens), at least 0"
            )
        per_token, fixed = (numbers[0] / 1e6, numbers[1] * numbers[2] / 1e6) if priced else (0.0, numbers[0])
        costs.append(per_token * length + fixed)
    return np.stack(costs, axis=-1)


def explain(
    scores: Coefficients,
    names: list[str],
    price: Array,
    rule: policies.RuleName = "best",
    budget: float | None = None,
    objective: policies.Objective = "win_rate",
    opponents: Mapping[str, float] | None = None,
    multiplier: float | None = None,
    support: Mapping[str, Support] | None = None,
) -> dict[str, Any]:
    """Applies a rule to one prompt, or to several that get one answer, and says what it was decided from.

    Values, costs and coefficients of several prompts are their means.

    Args:
        scores: of the prompts, (N, M).
        names: the candidates, by name or alias.
        price: (len(names),) USD per request of each, or (N, len(names)).
        rule: `best`, `cap`, `lp` or `paced`.
        budget: USD per request, for all but `best`.
        objective: `win_rate`, or `usable` (grk only).
        opponents: weight of each model that a win rate is against; None: the candidates, all alike.
        support: how much is known of each model, which `usable` takes into account.
        multiplier: λ of `paced`, in value per USD; None takes the one with which a `pacing.Pacer` begins here.

    Returns:
        rule, objective, budget, multiplier; `choice` (model → probability), `expected_cost` and `value` of the choice;
        `win_rate` and `coefficient` of the router itself (None where infinite); `models`, highest value first; `curve`,
        the corners of the upper concave hull over cost, cheapest first: between them lie the choices of `lp`.

    Raises:
        P2LError: no candidates, an unknown model, rule or objective, a missing budget, or one that no model fits.
    """
    if not names:
        raise P2LError("there are no candidates: the costs name no models")
    columns = [scores.index(name) for name in names]
    rows, weights = columns, None
    if opponents is not None:
        rows = columns + [scores.index(name) for name in opponents]
        weights = [0.0] * len(columns) + list(opponents.values())
    every = scores.coefs[:, rows].astype(np.float64)
    known = {scores.index(name): one for name, one in (support or {}).items()}
    errors = level_errors(known, rows)
    etas = [None] * len(every) if scores.raw_eta is None else list(scores.raw_eta)
    each = [
        policies.values(objective, scores.family, own, eta, weights, errors)
        for own, eta in zip(every, etas, strict=True)
    ]
    value = np.mean(each, axis=0)[: len(columns)]
    coefs, price = every.mean(axis=0), np.atleast_2d(price).mean(axis=0)
    if rule == "paced" and multiplier is None and budget is not None:
        multiplier = policies.first_multiplier(value, price, budget) or 0.0
    choice = policies.decide(rule, value, price, budget, multiplier)
    share = choice.probabilities(len(columns))
    win = sum(win_matrix(scores.family, own, eta) for own, eta in zip(every, etas, strict=True)) / len(every)
    win_rate = policies.policy_win_rate(np.append(share, np.zeros(len(rows) - len(columns))), win, weights)
    coefficient = policies.policy_coefficient(win_rate, coefs, weights)
    return {
        "rule": rule,
        "objective": objective,
        "budget": budget,
        "multiplier": multiplier,
        "choice": {names[i]: weight for i, weight in zip(choice.models, choice.weights, strict=True)},
        "expected_cost": choice.cost,
        "value": choice.value,
        "win_rate": win_rate,
        "coefficient": coefficient if math.isfinite(coefficient) else None,
        "models": [
            {
                "model": names[i],
                "coef": round(float(coefs[i]), 6),
                "value": round(float(value[i]), 6),
                "cost": float(price[i]),
                "share": round(float(share[i]), 6),
            }
            for i in np.argsort(-value, kind="stable")
        ],
        "curve": [
            {"model": names[i], "cost": float(price[i]), "value": round(float(value[i]), 6)}
            for i in policies.frontier(value, price)
        ],
    }
