"""`X_p2l`: benchmark X itself, and beside its rows how well P2L predicts the evaluated model's score on each prompt.

Rows, per metric that is a number per prompt and per filter: `p2l_auc:METRIC` and `p2l_spearman:METRIC`, each with its
standard error and, as `…_low` and `…_high`, a 95 % interval by bootstrap over prompts; and `p2l_predicted`, the mean
prediction. The prediction is P(usable) = σ(β) of a `grk` bundle, and the predicted win rate of the other families. A
figure that is not defined, as where all prompts have the same score, is "n/a".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Self

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import Task

from lmeval_task.agreement import agreement
from lmeval_task.prompts_task import NO_ERROR, NO_VALUE, read_settings, score_turns
from lmeval_task.settings import required_model
from lmeval_task.source import prompt_of
from lmeval_task.task import source_tasks
from p2l_plugins.errors import ConfigError, PromptError
from p2l_plugins.outcomes import Array, usable_probability
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.votes.directions import KEEPING, OF_LIKELIHOODS, item_is_lower_better

PREDICTED = "p2l_predicted"
AUC, SPEARMAN = "p2l_auc", "p2l_spearman"

#: Prediction, score, and whether the prompt was seen in training.
Pair = tuple[float, float, bool]
SEEN = "p2l_seen_in_training"

logger = logging.getLogger(__name__)


class P2LBenchmark(Task):  # type: ignore[misc]  # lm-eval ships no types
    """The source task with our rows added.

    An instance is the source task's own object, whose class is made a subclass of this one and of the source's: so
    whatever the harness asks of it (examples, requests, filters, metrics, unsafe code, images) is answered as before,
    in every version of the harness.

    Attributes:
        settings: from the YAML and `--metadata`.
        p2l: the scorer.
        evaluated: column of the evaluated model.
    """

    def __new__(cls, config: dict[str, Any] | None = None) -> Self:
        """Loads the source task.

        Raises:
            ConfigError: wrong settings, an unknown source task, or one that is a group or a tag.
            DataError: as `load_source`.
        """
        config = config or {}
        settings, _ = read_settings(config)
        tasks = source_tasks(settings, dict(config.get("metadata") or {}))
        if len(tasks) != 1:
            raise ConfigError(
                f"the source {settings.p2l_source!r} is {len(tasks)} tasks; p2l-lm-eval runs or adds "
                f"{settings.p2l_source}_p2l as a group of wrapped tasks"
            )
        [task] = tasks
        task.__class__ = type(f"P2L{type(task).__name__}", (cls, type(task)), {})
        return task  # type: ignore[no-any-return]

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """The source task is made already; this adds what is ours.

        Raises:
            BundleError, ConfigError: a damaged bundle, or the evaluated model is not one of its models.
        """
        config = config or {}
        metadata = dict(config.get("metadata") or {})
        self.settings, self.p2l = read_settings(config)
        self.evaluated = required_model(self.p2l, self.settings.p2l_model, metadata)
        self.set_config("task", config.get("task", f"{self.settings.p2l_source}_p2l"))
        if config.get("task_alias"):
            self.set_config("task_alias", config["task_alias"])
        self._p2l_off = False
        self._p2l_of: dict[Turns, tuple[float, bool]] = {}
        self._p2l_known = self.p2l.bundle.training_prompts
        self._p2l_some_seen = False
        self._p2l_rows: dict[str, Callable[[list[Pair]], float | str]] = {}
        self._p2l_metrics: dict[str, list[str]] = {}
        self._p2l_report: dict[str, Any] = {}

    def override_metric(self, metric_name: str) -> None:
        """Under `--predict_only` there are no scores to compare with, so our rows are left out."""
        self._p2l_off = True
        super().override_metric(metric_name)

    def apply_filters(self) -> list[Instance]:
        """Scores the prompts in one go, after the evaluated model has run."""
        result: list[Instance] = super().apply_filters()
        if not self._p2l_off:
            docs = {instance.doc_id: instance.doc for instance in self.instances}
            turns = list(dict.fromkeys(map(self._p2l_turns, docs.values())))
            scores = score_turns(self.p2l, turns, f"P2L scores of {self.task_name}")
            seen = [False] * len(turns) if self._p2l_known is None else self._p2l_known.seen(turns).tolist()
            predicted = predictions(scores, self.evaluated).tolist()
            self._p2l_of = dict(zip(turns, zip(predicted, seen, strict=True), strict=True))
            self._p2l_some_seen = self._p2l_any_seen()
            truncated = 0 if scores.truncated is None else int(scores.truncated.sum())
            self._p2l_report = {
                "kind": "benchmark",
                "source": self.settings.p2l_source,
                "bundle": self.p2l.bundle.manifest.name,
                "fingerprint": self.p2l.fingerprint,
                "evaluated_model": self.p2l.models[self.evaluated],
                "prediction": "usable" if self.p2l.family == "grk" else "win_rate",
                "n_truncated": truncated,
            }
            if any(seen):
                logger.warning(
                    "%s: the bundle was trained on %d of %d prompts; the rows …_unseen judge the others apart",
                    self.task_name,
                    sum(seen),
                    len(turns),
                )
        return result

    def _p2l_share_seen(self, items: list[Pair]) -> float:
        """Share of the documents of all ranks whose prompt was seen in training; the report has their number."""
        count = sum(item[2] for item in items)
        self._p2l_report["n_seen"] = count
        return count / len(items)

    def _p2l_any_seen(self) -> bool:
        """Whether a document of the whole task was seen in training: the rows are then the same on every rank."""
        if self._p2l_known is None:
            return False
        return bool(self._p2l_known.seen([self._p2l_turns(doc) for doc in self.eval_docs]).any())

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """The source's values, and (prediction, score) for each of our rows."""
        values: dict[str, Any] = super().process_results(doc, results)
        if self._p2l_off:
            return values
        predicted, seen = self._p2l_of[self._p2l_turns(doc)]
        own: dict[str, Pair] = {}
        for metric, value in values.items():
            score = as_number(value)
            if score is not None:
                own |= dict.fromkeys(self._rows_of(metric), (predicted, score, seen))
        if own:
            rows: dict[str, Callable[[list[Pair]], float | str]]
            rows = {PREDICTED: _mean, f"{PREDICTED}_stderr": _mean_error}
            rows |= {} if self._p2l_known is None else {SEEN: self._p2l_share_seen}
            self._p2l_rows |= rows
            own = {**dict.fromkeys(rows, (predicted, 0.0, seen)), **own}
        return {**values, **own}

    def _rows_of(self, metric: str) -> list[str]:
        if metric not in self._p2l_metrics:
            lower = self._p2l_lower(metric)
            rows = {} if lower is None else agreement_rows(metric, lower)
            if lower is not None and self._p2l_some_seen:
                rows |= agreement_rows(metric, lower, unseen=True)
            self._p2l_rows |= rows
            self._p2l_metrics[metric] = list(rows)
        return self._p2l_metrics[metric]

    def _p2l_lower(self, metric: str) -> bool | None:
        """Whether a lower score of a prompt is better; None, with a warning, where nothing says so."""
        if metric in self.settings.p2l_higher_is_better or metric in self.settings.p2l_lower_is_better:
            return metric in self.settings.p2l_lower_is_better
        function = super().aggregation().get(metric)
        lower = item_is_lower_better(metric, _aggregation_name(function), super().higher_is_better().get(metric))
        if lower is None:
            logger.warning(
                "%s: whether a higher or a lower %s of one document is better is not known, so it gets no rows; say it "
                'with --metadata \'{"p2l_higher_is_better": ["%s"]}\' or p2l_lower_is_better',
                *(self.task_name, metric, metric),
            )
        return lower

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """The source's, and ours."""
        return {**super().aggregation(), **self._p2l_rows}

    def higher_is_better(self) -> dict[str, bool]:
        """The source's, and that more agreement is better."""
        ours = [row for row in self._p2l_rows if row.startswith((AUC, SPEARMAN)) and not _is_error(row)]
        return {**super().higher_is_better(), **dict.fromkeys(ours, True)}

    def dump_config(self) -> dict[str, Any]:
        """The source's config, with which bundle predicted, and whose score, under `p2l`."""
        return {**super().dump_config(), **({"p2l": self._p2l_report} if self._p2l_report else {})}

    def _p2l_turns(self, doc: Any) -> Turns:
        try:
            return as_turns(prompt_of(self, doc, self.settings.p2l_prompt))
        except PromptError as error:
            raise PromptError(f"{self.task_name}: {error}") from None


def predictions(scores: Scores, model: int) -> Array:
    """(N,) what P2L predicts of a model on each prompt: P(usable), or the win rate where the family has none."""
    if scores.family == "grk":
        return usable_probability(scores.coefs[:, model])
    predicted: Array = scores.win_rates()[:, model]
    return predicted


def as_number(value: object) -> float | None:
    """A metric's value on one prompt; None where it is not one finite number."""
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) and np.isfinite(value):
        return float(value)
    return None


def _aggregation_name(function: object) -> object:
    """The name under which lm-eval knows an aggregation; the function itself where it does not."""
    for name in (*KEEPING, *OF_LIKELIHOODS):
        try:
            if function is not None and get_aggregation(name) is function:
                return name
        except KeyError:
            continue
    return function


def agreement_rows(
    metric: str, lower_is_better: bool, unseen: bool = False
) -> dict[str, Callable[[list[Pair]], float | str]]:
    """Names of a metric's rows and how each is aggregated; a standard error stands right after its row.

    Args:
        metric: its name.
        lower_is_better: of the score of a prompt.
        unseen: count only the prompts that were not seen in training.
    """
    metric = metric.replace(",", "_").replace("/", "_")  # lm-eval splits names at a comma, and W&B at a slash

    def show(path: str, missing: str) -> Callable[[list[Pair]], float | str]:
        def aggregate(items: list[Pair]) -> float | str:
            kept = [item[:2] for item in items if not (unseen and item[2])]
            if not kept:
                return missing
            predicted, score = np.array(kept, np.float64).T
            value: float | None = attrgetter(path)(agreement(predicted, score, lower_is_better))
            return missing if value is None else value

        return aggregate

    rows = {}
    which = "_unseen" if unseen else ""
    for name, figure in ((AUC + which, "auc"), (SPEARMAN + which, "spearman")):
        rows[f"{name}:{metric}"] = show(f"{figure}.value", NO_VALUE)
        rows[f"{name}:{metric}_stderr"] = show(f"{figure}.stderr", NO_ERROR)
        rows[f"{name}:{metric}_low"] = show(f"{figure}.low", NO_VALUE)
        rows[f"{name}:{metric}_high"] = show(f"{figure}.high", NO_VALUE)
    return rows


def _is_error(row: str) -> bool:
    return row.endswith(("_stderr", "_low", "_high"))


def _mean(items: list[Pair]) -> float:
    return float(np.mean([item[0] for item in items]))


def _mean_error(items: list[Pair]) -> float | str:
    if len(items) < 2:
        return NO_ERROR
    return float(np.std([item[0] for item in items], ddof=1) / np.sqrt(len(items)))
