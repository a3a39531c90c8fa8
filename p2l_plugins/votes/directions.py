"""Which way a metric of lm-eval counts on one document, which need not be the way of its aggregate.

`higher_is_better` in a task's YAML and in results.json speaks of the aggregate. The perplexity of a task is
exp(−mean), so that a document's "perplexity" is a log-likelihood, of which a higher one is better, while of the
aggregate a lower one is. Checked against lm-eval 0.4.12 and 0.4.13 (`lm_eval/api/metrics.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Aggregations that keep the direction of the items.
KEEPING = frozenset({"mean", "nanmean", "median"})
#: Aggregations of log-likelihoods.
OF_LIKELIHOODS = frozenset({"perplexity", "weighted_perplexity", "bits_per_byte"})
#: Metrics that lm-eval itself aggregates where a task names no aggregation, and whether a higher aggregate is better.
OWN = {
    **dict.fromkeys(
        ("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "likelihood"), "mean"
    ),
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}


def item_is_lower_better(metric: str, aggregation: object, higher_is_better: object) -> bool | None:
    """Whether a lower value of one document is better; None where nothing says so.

    Args:
        metric: its name.
        aggregation: the name of its aggregation; None where the task names none; anything else is one of its own.
        higher_is_better: of the aggregate, True or False; anything else is unknown.
    """
    if aggregation is None:
        aggregation = OWN.get(metric)
    if not isinstance(aggregation, str):
        return None
    if aggregation in OF_LIKELIHOODS:
        return False
    if aggregation not in KEEPING:
        return None
    if isinstance(higher_is_better, bool):
        return not higher_is_better
    return False if OWN.get(metric) == "mean" else None


def in_results(task: Any, directions: Any, metric: str) -> bool | None:
    """As `item_is_lower_better`, by what results.json says of a task; also what it does not say is not guessed.

    Args:
        task: entry of the task under `configs`.
        directions: entry of the task under `higher_is_better`.
        metric: its name.
    """
    listed = task.get("metric_list") if isinstance(task, Mapping) else None
    own = next((m for m in listed or [] if isinstance(m, Mapping) and m.get("metric") == metric), {})
    higher = directions.get(metric) if isinstance(directions, Mapping) else None
    return item_is_lower_better(metric, own.get("aggregation"), own.get("higher_is_better", higher))
