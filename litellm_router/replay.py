"""Past requests decided again under other rules, from the values and costs that P2L recorded with them.

LiteLLM's loggers get a record of every decision (`spend_logs_metadata.p2l`) that holds the candidates' values and
expected costs and nothing of the prompt, so that neither prompts nor the bundle are needed here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from litellm_router.decision import decide
from litellm_router.settings import Rule
from p2l_plugins.cells import pipe_table
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.rows import read_rows
from p2l_plugins.outcomes import Array
from p2l_plugins.routing.pacing import Pacer

#: Where a decision may stand in a line of a log: in LiteLLM's own records, or alone.
_PATHS = (
    ("metadata", "spend_logs_metadata", "p2l"),
    ("spend_logs_metadata", "p2l"),
    ("standard_logging_object", "metadata", "spend_logs_metadata", "p2l"),
    ("p2l",),
    (),
)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The decisions in a log of rows, once for each request that was answered.

    Requests that P2L did not decide have none and are left out, and so are the lines of attempts that failed.

    Raises:
        DataError: no such file, a row that can't be read, or no decision in the file.
    """
    records = []
    for _, content in read_rows(path):
        found = next((r for keys in _PATHS if (r := _at(content, keys)) is not None), None)
        if found is not None and not _failed(content) and not (found.get("attempts") and "answered" not in found):
            records.append(found)
    if not records:
        raise DataError(
            f"{path}: no line holds a decision of P2L; expected spend_logs_metadata.p2l with values and costs"
        )
    return records


def _failed(content: Any) -> bool:
    """Whether a line of a log is of an attempt that failed."""
    inner = content.get("standard_logging_object") if isinstance(content, Mapping) else None
    return any(isinstance(one, Mapping) and one.get("status") == "failure" for one in (content, inner))


def _at(content: Any, keys: Sequence[str]) -> dict[str, Any] | None:
    for key in keys:
        if isinstance(content, str):  # rows of a spend log hold JSON as text
            try:
                content = json.loads(content)
            except json.JSONDecodeError:
                return None
        content = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping):
        return None
    values, costs = content.get("values"), content.get("costs")
    if not isinstance(values, Mapping) or not isinstance(costs, Mapping) or len(values) < 2:
        return None
    return dict(content) if values.keys() == costs.keys() else None


def parse_rule(text: str) -> Rule:
    """A rule from `best`, `cap:0.001`, `lp:0.001` or `paced:0.001`.

    Raises:
        ConfigError: anything else.
    """
    name, _, budget = text.partition(":")
    try:
        return Rule.model_validate({"rule": name} | ({"budget": float(budget)} if budget else {}))
    except ValueError:
        raise ConfigError(f"--rule {text} is not a rule; valid: best, cap:USD, lp:USD, paced:USD") from None


def default_rules(records: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """`best`, and `cap`, `lp` and `paced` at the lower quartile, median and upper quartile of the candidates' costs."""
    costs = [c for record in records for c in record["costs"].values() if c is not None]
    if not costs:
        return [Rule()]
    budgets = [float(f"{b:.3g}") for b in np.quantile(costs, [0.25, 0.5, 0.75])]
    return [Rule(), *(Rule(rule=name, budget=b) for b in budgets if b > 0 for name in ("cap", "lp", "paced"))]


def replayed(records: Sequence[Mapping[str, Any]], rules: Sequence[Rule]) -> dict[str, Any]:
    """Each rule over the same requests, in their order, beside what was logged and single models.

    Costs and values are the expected ones of the records; a request whose choice has no known price adds no cost and is
    counted. Draws of `lp` are fractions of requests.
    """
    models = sorted({name for record in records for name in record["values"]})
    index = {name: i for i, name in enumerate(models)}
    values, costs = (np.full((len(records), len(models)), np.nan) for _ in range(2))
    for row, record in enumerate(records):
        for name, value in record["values"].items():
            values[row, index[name]] = value
            cost = record["costs"][name]
            costs[row, index[name]] = np.nan if cost is None else cost
    rows: dict[str, Array] = {}
    paid = [float(record["cost"]) for record in records if isinstance(record.get("cost"), int | float)]
    logged = np.zeros(values.shape)
    for row, record in enumerate(records):
        model = record.get("answered", record.get("model"))
        if model in record["values"]:
            logged[row, index[model]] = 1.0
    if logged.sum() == len(records):
        rows["as logged"] = logged
    single = int(np.nan_to_num(np.nanmean(values - np.nanmean(values, axis=1, keepdims=True), axis=0), nan=-1).argmax())
    rows[f"always {models[single]} (best single)"] = _always(values, single)
    priced = np.isfinite(costs).any(axis=0)
    if priced.any():
        cheapest = int(np.nanmean(np.where(priced, costs, np.inf), axis=0).argmin())
        rows[f"always {models[cheapest]} (cheapest)"] = _always(values, cheapest)
    for rule in rules:
        label = rule.rule if rule.budget is None else f"{rule.rule} {rule.budget:g}"
        rows[label] = _policy(rule, values, costs)
    return {
        "requests": len(records),
        "models": len(models),
        "paid": sum(paid) if paid else None,
        "rules": [_summary(label, pi, values, costs, models) for label, pi in rows.items()],
    }


def _always(values: Array, model: int) -> Array:
    """One model wherever it was a candidate, else the candidate of highest value."""
    pi = np.zeros(values.shape)
    there = np.isfinite(values[:, model])
    pi[there, model] = 1.0
    for row in np.flatnonzero(~there):
        pi[row, int(np.nanargmax(values[row]))] = 1.0
    return pi


def _policy(rule: Rule, values: Array, costs: Array) -> Array:
    pi = np.zeros(values.shape)
    pacer = Pacer(rule.budget) if rule.rule == "paced" and rule.budget is not None else None
    for row in range(len(values)):
        there = np.flatnonzero(np.isfinite(values[row]))
        v, c = values[row, there], costs[row, there]
        known = np.isfinite(c)
        if pacer is not None:
            pacer.start_from(v, c)
        names = [str(i) for i in there]
        decision = decide(names, v, c, rule, 0.0, 0.0 if pacer is None else pacer.multiplier)
        if decision.mixture:
            for i, weight in decision.mixture.items():
                pi[row, there[i]] = weight
        else:
            pi[row, there[decision.ranking[0]]] = 1.0
        if pacer is not None and known[decision.ranking[0]]:
            pacer.charge(float(c[decision.ranking[0]]))
    return pi


def _summary(label: str, pi: Array, values: Array, costs: Array, models: Sequence[str]) -> dict[str, Any]:
    unpriced = (pi > 0) & ~np.isfinite(costs)
    share = pi.mean(axis=0)
    picks = Counter({name: float(s) for name, s in zip(models, share, strict=True) if s > 0})
    return {
        "rule": label,
        "cost": float((pi * np.nan_to_num(costs)).sum()),
        "mean_cost": float((pi * np.nan_to_num(costs)).sum() / len(pi)),
        "mean_value": float((pi * np.nan_to_num(values)).sum() / len(pi)),
        "requests_without_price": int(unpriced.any(axis=1).sum()),
        "share": dict(picks.most_common()),
    }


def to_markdown(result: Mapping[str, Any], picks: int = 4) -> str:
    """The result as a table."""
    rows = []
    for row in result["rules"]:
        shares = list(row["share"].items())
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares[:picks])
        more = f", {len(shares) - picks} more" if len(shares) > picks else ""
        figures = [f"{row['cost']:.6g}", f"{row['mean_cost']:.4g}", f"{row['mean_value']:.4f}"]
        rows.append([row["rule"], *figures, shown + more])
    lines = [pipe_table(["rule", "cost, USD", "mean cost", "mean predicted value", "models"], rows, left=(0, 4))]
    lines.append(f"\n{result['requests']} requests, {result['models']} models")
    if result["paid"] is not None:
        lines.append(f"the answers cost {result['paid']:.6g} USD by LiteLLM's own account")
    without = max(row["requests_without_price"] for row in result["rules"])
    if without:
        lines.append(f"up to {without} requests went to a model without a known price, whose cost is not counted")
    return "\n".join(lines)
