"""The folders that `lm_eval run --log_samples --output_path OUT` writes, one per model, as a score matrix.

Layout (lm-eval 0.4.12 and 0.4.13): OUT/<sanitised model>/samples_<task>_<time>.jsonl beside results_<time>.json.
A line of samples is one document under one filter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow, Row, ending, read_rows
from p2l_plugins.files.tables import read_json_object
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.directions import in_results
from p2l_plugins.votes.lmeval_prompts import PromptRule, RunPrompts
from p2l_plugins.votes.scores import MatrixBuilder, ScoreMatrix
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.values import finite

_NAME_KEYS = ("peft", "delta", "pretrained", "model", "path", "engine")  # lm-eval's own order
#: When a run ended, at the end of its files' names.
_TIME = re.compile(r"_(\d{4}-\d\d-\d\d[T ][\d.:+Z-]+)$")
_NOT_METRICS = frozenset(
    "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash".split()
)


@dataclass(frozen=True)
class Samples:
    """One file of samples.

    Attributes:
        model: the model's name.
        task: the task's name.
        time: of the run, as in the file's name; comparable as text.
        path: the file.
        results: the run's results.json; empty where there is none.
    """

    model: str
    task: str
    time: str
    path: Path
    results: Mapping[str, Any] = field(repr=False)

    def of_task(self, key: str) -> Any:
        """The entry of this task in a section of results.json, None where there is none."""
        section = self.results.get(key)
        return section.get(self.task) if isinstance(section, Mapping) else None

    def lower_is_better(self, metric: str) -> bool | None:
        """Whether a lower value of a document is better; None where the run's results do not say."""
        return in_results(self.of_task("configs"), self.of_task("higher_is_better"), metric)


@dataclass(frozen=True)
class Selection:
    """What to take from the folders.

    Attributes:
        metrics: the first of these that a task has; empty: the task's only one.
        filters: likewise.
        tasks: these tasks only; empty takes all.
        higher, lower: metrics of which a higher, or a lower, value of a document is better; they come before what the
            results say.
        min_models: documents that fewer models ran are dropped; None: that not all models ran.
    """

    metrics: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    min_models: int | None = None


def find_samples(folders: Iterable[tuple[str | None, Path]], tally: Tally) -> list[Samples]:
    """The files of samples under the folders; of several runs of a model on a task only the latest.

    Args:
        folders: the name of the model, or None for the name in results.json, else the folder's; and a folder.

    Raises:
        DataError: no such folder, or no samples in it.
    """
    latest: dict[tuple[str, str], Samples] = {}
    older = 0
    for given, folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
        paths = sorted(p for p in folder.rglob("samples_*") if ending(p) == ".jsonl" and p.is_file())
        if not paths:
            raise DataError(f"{folder}: no samples_*.jsonl under it; run lm_eval with --log_samples and --output_path")
        results: dict[tuple[Path, str], Mapping[str, Any]] = {}
        for path in paths:
            task, time = _task_and_time(path)
            run = (path.parent, time)
            if run not in results:
                found = _results_file(path.parent, time)
                results[run] = {} if found is None else read_json_object(found)
            samples = Samples(given or _model_name(results[run], path.parent), task, time, path, results[run])
            known = latest.get((samples.model, task))
            if known is not None and known.path != path:
                if not (known.time and time):
                    raise DataError(
                        f"{path}: the model {samples.model!r} has samples of the task {task!r} in {known.path}, too, "
                        "and no time in the names says which are later; tell the runs apart with --model NAME=FOLDER"
                    )
                older += 1
            if known is None or samples.time >= known.time:
                latest[samples.model, task] = samples
    if older:
        tally.note(
            f"{older} older samples of the same model and task are left out; --model NAME=FOLDER tells runs apart"
        )
    return list(latest.values())


def _task_and_time(path: Path) -> tuple[str, str]:
    """The task, and the time where the name has one: `samples_TASK_TIME.jsonl`, `samples_TASK.jsonl`."""
    name = path.name.removeprefix("samples_").partition(".jsonl")[0]
    time = _TIME.search(name)
    return (name, "") if time is None else (name[: time.start()], time[1])


def _results_file(folder: Path, time: str) -> Path | None:
    """The results of a run: of this time; without one, those of the folder where there is just one file of them."""
    if time:
        return next(iter(sorted(folder.glob(f"*_{time}.json"))), None)
    found = sorted({*folder.glob("results.json"), *folder.glob("results_*.json")})
    return found[0] if len(found) == 1 else None


def lm_eval_matrix(files: Sequence[Samples], rule: PromptRule, selection: Selection, tally: Tally) -> ScoreMatrix:
    """One row per document that enough models ran, one column per model; `category` is the task.

    Documents are matched by task, doc_id and doc_hash. Rules, in rows of samples: "other-task", "other-filter",
    "no-score", "empty-prompt", "hash-mismatch" (models saw different documents under one id), "too-few-models".

    Raises:
        DataError: a metric, filter or task that is not there or not unique; a row that can't be read.
    """
    tasks: dict[str, list[Samples]] = {}
    for file in files:
        tasks.setdefault(file.task, []).append(file)
    for name in selection.tasks:
        if name not in tasks:
            raise DataError(f"there are no samples of the task {name!r}; there are those of {', '.join(tasks)}")
    models = list(dict.fromkeys(file.model for file in files))
    least = len(models) if selection.min_models is None else selection.min_models
    builder = MatrixBuilder()
    left_out = [name for name in tasks if selection.tasks and name not in selection.tasks]
    if left_out:
        tally.note(f"tasks left out: {', '.join(left_out)}")
    for name, runs in tasks.items():
        if name in left_out:
            continue
        task = _read_task(name, runs, rule, tally)
        numbers = [metric for metric in task.metrics if metric not in task.odd]
        metric = _choose("metric", name, numbers, selection.metrics, task.odd)
        chosen = _choose("filter", name, list(task.filters), selection.filters, {})
        tally.drop("other-filter", task.filters.total() - task.filters[chosen])
        lower = _lower(name, metric, runs, selection)
        if lower:
            tally.note(f"task {name}: a lower {metric} is better")
        task.fill(builder, models, least, metric, chosen, lower, tally)
    return builder.matrix(tally)


@dataclass
class _Doc:
    """Scores of one document under all metrics and filters, per model; and the samples of each model and filter."""

    turns: Turns
    scores: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class _Task:
    """What the samples of a task hold.

    Attributes:
        docs: by doc_id and doc_hash.
        metrics, filters: how many samples have each.
        odd: metrics that are no number, and what they are.
    """

    name: str
    docs: dict[tuple[int | str, str], _Doc] = field(default_factory=dict)
    metrics: Counter[str] = field(default_factory=Counter)
    filters: Counter[str] = field(default_factory=Counter)
    odd: dict[str, str] = field(default_factory=dict)

    def read(self, row: Row, model: str, prompts: RunPrompts) -> None:
        doc_id, doc_hash = row.get("doc_id"), str(row.get("doc_hash"))
        if not isinstance(doc_id, int | str):
            raise BadRow("bad-doc-id", f"doc_id is {type(doc_id).__name__}, but must be a number or text")
        if (doc_id, doc_hash) not in self.docs:
            self.docs[doc_id, doc_hash] = _Doc(prompts.turns(row))
        scores = self.docs[doc_id, doc_hash].scores.setdefault(model, {})
        name = str(row.get("filter", "none"))
        self.filters[name] += 1
        self.docs[doc_id, doc_hash].rows[model, name] += 1
        listed = row.get("metrics")
        for metric in listed if isinstance(listed, list) else row.keys() - _NOT_METRICS:
            value = row.get(metric)
            if value is None or isinstance(value, bool | int | float):
                self.metrics[metric] += 1
                try:
                    scores[metric, name] = finite(value, metric)
                except BadRow:
                    scores[metric, name] = math.inf
            else:
                self.odd[metric] = type(value).__name__

    def fill(
        self, builder: MatrixBuilder, models: list[str], least: int, metric: str, chosen: str, lower: bool, tally: Tally
    ) -> None:
        """Adds a row for every document that enough models ran."""
        hashes = Counter(doc_id for doc_id, _ in self.docs)
        mismatched = {doc_id for doc_id, count in hashes.items() if count > 1}
        if mismatched:
            tally.note(f"task {self.name}: {len(mismatched)} documents differ between the models (doc_hash)")
        for (doc_id, _), doc in self.docs.items():
            scores = {model: found.get((metric, chosen), math.nan) for model, found in doc.scores.items()}
            ran = sum(doc.rows[model, chosen] for model in doc.scores)
            for model, score in list(scores.items()):
                if math.isinf(score):
                    place = f"task {self.name}: document {doc_id} of the model {model!r}"
                    tally.bad(
                        place, BadRow("bad-score", f"{metric} is infinite or too large, but must be a finite number")
                    )
                    del scores[model]
                    ran -= 1
            there = {model: score for model, score in scores.items() if not math.isnan(score)}
            repeated = sum(doc.rows[model, chosen] - 1 for model in doc.scores if doc.rows[model, chosen] > 1)
            if repeated:
                tally.note(f"task {self.name}: {repeated} samples repeat a document and filter; the last one counts")
                tally.drop("repeated-sample", repeated)
            tally.drop("no-score", ran - repeated - len(there))
            if len(there) < least:
                tally.drop("hash-mismatch" if doc_id in mismatched else "too-few-models", len(there))
                continue
            try:
                index = builder.row(doc.turns, self.name, lower, len(there))
            except BadRow as error:
                tally.bad(f"task {self.name}: document {doc_id}", error)
                tally.drop(error.rule, len(there) - 1)
                continue
            for model in models:
                if model in there:
                    builder.add(index, model, there[model])


def _read_task(name: str, runs: list[Samples], rule: PromptRule, tally: Tally) -> _Task:
    task = _Task(name)
    # runs that show the bare question come first: a document's prompt is taken from the first run that has it
    readers = {run.path: RunPrompts(rule, name, run.results, tally) for run in runs}
    for run in sorted(runs, key=lambda run: readers[run.path].dressed(_first_row(run.path))):
        prompts = readers[run.path]
        for place, row in tally.read(run.path):
            try:
                task.read(row, run.model, prompts)
            except BadRow as error:
                tally.bad(place, error)
    return task


def _first_row(path: Path) -> Row:
    """The first row that can be read; an empty one where there is none."""
    return next((row for _, row in read_rows(path, lambda place, error: None)), {})


def _lower(task: str, metric: str, runs: Sequence[Samples], selection: Selection) -> bool:
    """Whether a lower value of a document is better: the user's word, else that of lm-eval and of the results."""
    if metric in selection.higher or metric in selection.lower:
        return metric in selection.lower
    said = {run.lower_is_better(metric) for run in runs} - {None}
    if len(said) == 1:
        return bool(said.pop())
    why = (
        "the runs' results differ in it"
        if said
        else "its aggregate is not one that says so, or results.json is missing"
    )
    raise DataError(
        f"task {task!r}: whether a higher or a lower {metric} of one document is better is not known ({why}); say it "
        f"with --higher-is-better {metric} or --lower-is-better {metric}"
    )


def _choose(kind: str, task: str, there: list[str], wanted: tuple[str, ...], odd: Mapping[str, str]) -> str:
    """The one metric or filter of a task."""
    for name in wanted:
        if name in there:
            return name
    listed = ", ".join(there) or "none"
    if wanted:
        kinds = "".join(f"; {name} is a {odd[name]} per document, not a number" for name in wanted if name in odd)
        raise DataError(f"task {task!r}: no {kind} {' or '.join(map(repr, wanted))}; there are: {listed}{kinds}")
    if not there:
        raise DataError(f"task {task!r}: no metric is a number per document; name the tasks to read with --task")
    if len(there) > 1:
        raise DataError(f"task {task!r} has several {kind}s: {listed}; choose with --{kind}")
    return there[0]


def _model_name(results: Mapping[str, Any], folder: Path) -> str:
    name = results.get("model_name")
    if isinstance(name, str) and name:
        return name
    config = results.get("config")
    arguments = config.get("model_args") if isinstance(config, Mapping) else None
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    if isinstance(arguments, Mapping):
        for key in _NAME_KEYS:
            if arguments.get(key):
                return str(arguments[key])
    return folder.name
