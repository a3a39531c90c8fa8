"""`p2l_preference`: how good a bundle is on held-out votes, beside marginal and constant, without a language model.

`p2l_preference_choice` asks the evaluated model instead: each vote is a choice between continuations of its prompt,
" a > b", " b > a", " a = b" and " a = b (both bad)", as far as the bundle's family tells them apart. `--model p2l`
answers them with the log-probabilities of its outcomes, so that both tasks give the same figures; other models'
likelihoods are normalised over the choices.

A document is a prompt with its votes. Rows: log loss, Brier score, accuracy, calibration error of `p2l`, `marginal` and
`constant`, and P2L − each; the whole report is in `configs.<task>.p2l` of results.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.filters import build_filter_ensemble

from lmeval_task.prompts_task import FILTER, NO_ERROR, NO_VALUE, PromptsTask, joined, read_settings, scores_of
from lmeval_task.settings import Settings
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.evaluate import evaluate_probabilities, evaluate_votes
from p2l_plugins.evaluation.report import Evaluation
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B, Mask
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes

SUMMARY = "p2l_preference"

_DIFFERENCES = "p2l_minus_"
_UNSEEN = "p2l_unseen_minus_"
_FIGURES = {
    "log_loss": False,
    "brier": False,
    "accuracy": True,
    "decisive_log_loss": False,
    "decisive_accuracy": True,
    "calibration_error": False,
    "decisive_calibration_error": False,
}
_FORECASTS = ("p2l", "marginal", "constant")

Pick = Callable[[Evaluation], float]


class P2LPreference(PromptsTask):
    """Quality of a bundle on held-out votes.

    Attributes:
        votes: with the bundle's models.
        baseline: votes that marginal and constant are fitted on; None: in folds of `votes` by prompt.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Reads the votes.

        Raises:
            P2LError: wrong settings, a damaged bundle, votes that can't be read or with models that it does not have.
        """
        config = {"task": SUMMARY, **(config or {})}
        settings, p2l = self.read(config)
        self.votes, self.baseline = held_out_votes(settings, p2l)
        super().__init__(config, settings, p2l, [_document(self.votes, i) for i in range(len(self.votes.prompts))])
        self._evaluation: Evaluation | None = None

    @staticmethod
    def read(config: dict[str, Any]) -> tuple[Settings, P2L]:
        """Settings, and the judged bundle."""
        return read_settings(config)

    def doc_to_text(self, doc: Any) -> str:
        """The prompt."""
        return joined(doc["prompt"])

    def turns_of(self, index: int) -> Turns:
        """The prompt of a document."""
        return self.votes.prompts[index]

    def process_results(self, doc: Any, results: list[Any]) -> dict[str, Any]:
        """The scores of one prompt; the other rows read what aggregating them leaves."""
        return self._values({**results[0], "id": doc["id"]})

    def _values(self, item: dict[str, Any]) -> dict[str, Any]:
        return {SUMMARY: item, **dict.fromkeys(_rows(), "")}

    def evaluate(self, items: Sequence[dict[str, Any]], votes: Votes, baseline: Votes | None) -> Evaluation:
        """Judges the items of all ranks, in the order of the votes' prompts."""
        return evaluate_votes(scores_of(self.p2l, items), votes, baseline, seen=self._seen(votes))

    def _seen(self, votes: Votes) -> Mask | None:
        known = self.p2l.bundle.training_prompts
        return None if known is None else known.seen(votes.prompts)

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """The first row makes the report that the others read."""
        rows = {name: self._row(pick, _missing(name)) for name, pick in _rows().items()}
        return {SUMMARY: self._aggregate, **rows}

    def higher_is_better(self) -> dict[str, bool]:
        """Directions of the rows that have one."""
        directions = {f"{name}_{figure}": up for name in _FORECASTS for figure, up in _FIGURES.items()}
        return directions | {f"{way}{name}": False for way in (_DIFFERENCES, _UNSEEN) for name in _FORECASTS[1:]}

    def _aggregate(self, items: list[dict[str, Any]]) -> str:
        items = sorted(items, key=lambda item: item["id"])
        kept = np.zeros(len(self.votes.prompts), np.bool_)
        kept[[item["id"] for item in items]] = True
        report = self._evaluation = self.evaluate(items, self.votes.select(kept), self.baseline)
        self._report = {
            "kind": "preference",
            "votes": self.settings.p2l_votes,
            "training_votes": self.settings.p2l_training_votes,
            **self._identity(),
            "family": self.p2l.family,
            "n_truncated": sum(item.get("truncated", False) for item in items),
            **report.to_dict(),
        }
        return (
            f"log loss {report.p2l.log_loss:.4f}; marginal {report.marginal.log_loss:.4f}; "
            f"constant {report.constant.log_loss:.4f}; {report.n_votes} votes"
            + (f"; {report.n_seen} of {report.n_prompts} prompts seen in training" if report.n_seen else "")
        )

    def _row(self, pick: Pick, missing: str) -> Callable[[list[Any]], float | str]:
        def aggregate(items: list[Any]) -> float | str:
            assert self._evaluation is not None  # noqa: S101  # its row comes first
            value = pick(self._evaluation)
            return value if math.isfinite(value) else missing

        return aggregate


class P2LPreferenceChoice(P2LPreference):
    """The same votes as choices that the evaluated model makes; `--model p2l` makes them as `p2l_preference` does."""

    OUTPUT_TYPE = "loglikelihood"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """As `P2LPreference`. The bundle that `--model p2l` loads (`--model_args bundle=…`) says models and family."""
        super().__init__({"task": f"{SUMMARY}_choice", **(config or {})})
        self.set_config("output_type", self.OUTPUT_TYPE)
        self._filters = [build_filter_ensemble(FILTER, [["take_first", None]])]

    @staticmethod
    def read(config: dict[str, Any]) -> tuple[Settings, P2L]:
        """Settings, and the bundle of the evaluated model where it is one."""
        metadata = dict(config.get("metadata") or {})
        if isinstance(bundle := metadata.get("bundle"), str):
            metadata.setdefault("p2l_bundle", bundle)
        return read_settings({**config, "metadata": metadata})

    def fewshot_context(
        self,
        doc: Any,
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: Callable[..., str] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt as the model is sent it: a conversation of several user turns as the JSON text of its messages."""
        turns = [{"role": "user", "content": turn} for turn in doc["prompt"]]
        if apply_chat_template and chat_template is not None:
            system = [{"role": "system", "content": system_instruction}] if system_instruction else []
            return chat_template(system + turns)
        if len(turns) == 1 and not doc["prompt"][0].startswith("[{"):
            return str(doc["prompt"][0])
        return json.dumps(turns, ensure_ascii=False)

    def construct_requests(self, doc: Any, ctx: str, **kwargs: Any) -> list[Instance]:
        """A request for each possible outcome of each vote."""
        texts = [text for v in _votes_of(self.votes, doc["id"]) for text in self._choices(v)]
        metadata = kwargs["metadata"]
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, text), idx=i, metadata=metadata)
            for i, text in enumerate(texts)
        ]

    def build_all_requests(self, **kwargs: Any) -> None:
        """Requests are made in lm-eval's own way."""
        Task.build_all_requests(self, **kwargs)

    def apply_filters(self) -> list[Instance]:
        """lm-eval's own way."""
        filtered: list[Instance] = Task.apply_filters(self)
        return filtered

    def process_results(self, doc: Any, results: list[Any]) -> dict[str, Any]:
        """Log-probabilities of the outcomes of one prompt's votes."""
        likelihoods = np.array([likelihood for likelihood, _ in results], np.float64)
        likelihoods = likelihoods.reshape(len(_votes_of(self.votes, doc["id"])), -1)
        log_p = likelihoods - np.logaddexp.reduce(likelihoods, axis=1, keepdims=True)
        return self._values({"id": doc["id"], "log_p": log_p.round(9).tolist()})

    def evaluate(self, items: Sequence[dict[str, Any]], votes: Votes, baseline: Votes | None) -> Evaluation:
        """Judges the choices."""
        rows = np.concatenate([np.array(item["log_p"], np.float64) for item in items])
        log_p: Array = np.full((len(rows), len(OUTCOMES)), -np.inf)
        log_p[:, : rows.shape[1]] = rows
        return evaluate_probabilities(log_p, votes, baseline, self.p2l.family, self._seen(votes))

    def _choices(self, vote: int) -> list[str]:
        """Continuations in the order of the outcomes, as far as the family tells them apart."""
        a, b = (self.votes.models[side[vote]] for side in (self.votes.a, self.votes.b))
        texts = {A: f" {a} > {b}", B: f" {b} > {a}", TIE: f" {a} = {b}", BAD: f" {a} = {b} (both bad)"}
        count = {"grk": 4, "rk": 3}.get(self.p2l.family, 2)
        return list(texts.values())[:count]


def held_out_votes(settings: Settings, p2l: P2L) -> tuple[Votes, Votes | None]:
    """The votes that the settings name, with the bundle's models.

    Raises:
        ConfigError: p2l_votes is missing.
        DataError: as `read_votes`; or a model that the bundle does not have, with how to map its name.
    """
    if not settings.p2l_votes:
        raise ConfigError(
            'p2l_votes is missing; name held-out votes, as in --metadata \'{"p2l_votes": "votes.jsonl"}\''
        )
    held_out = _read(settings.p2l_votes, settings, p2l)
    training = settings.p2l_training_votes
    return held_out, None if training is None else _read(training, settings, p2l)


def _read(file: str, settings: Settings, p2l: P2L) -> Votes:
    names = {**p2l.bundle.manifest.aliases, **settings.p2l_names}
    votes = read_votes(Path(file), names, settings.p2l_usable, settings.p2l_margin)
    unknown = [name for name in votes.models if name not in p2l.models]
    if unknown:
        raise DataError(
            f"{file}: the bundle {p2l.bundle.manifest.name!r} does not have the models {', '.join(unknown)}; it has "
            f'{", ".join(p2l.models)}; map names with --metadata \'{{"p2l_names": {{{json.dumps(unknown[0])}: '
            f"{json.dumps(p2l.models[0])}}}}}', or drop their votes (p2l votes … --drop-model)"
        )
    voted = np.bincount(votes.prompt, minlength=len(votes.prompts)) > 0  # a matrix may hold prompts that one model ran
    return votes.renamed(p2l.models).select(voted)


def _votes_of(votes: Votes, prompt: int) -> range:
    """Positions of a prompt's votes."""
    first, last = np.searchsorted(votes.prompt, [prompt, prompt + 1])
    return range(int(first), int(last))


def _document(votes: Votes, i: int) -> dict[str, Any]:
    """What the sample log shows; a score matrix's votes, hundreds per prompt, are left out."""
    rows = [
        {
            "model_a": votes.models[votes.a[v]],
            "model_b": votes.models[votes.b[v]],
            "winner": OUTCOMES[votes.outcome[v]],
            "weight": float(votes.weight[v]),
        }
        for v in (_votes_of(votes, i) if votes.scores is None else [])
    ]
    return {"id": i, "prompt": list(votes.prompts[i]), "category": votes.groups[i], "votes": rows}


def _rows() -> dict[str, Pick]:
    """Rows and where the report has them; a standard error stands right after its row."""
    rows: dict[str, Pick] = {}
    for name in _FORECASTS:
        for key in _FIGURES:
            rows[f"{name}_{key}"] = attrgetter(f"{name}.{key}")
            if key == "log_loss":
                rows[f"{name}_{key}_stderr"] = attrgetter(f"{name}.{key}_stderr")
    rows["p2l_calibration_error_by_chance"] = lambda report: report.calibration["p2l"].expected
    for name in _FORECASTS[1:]:
        rows[f"{_DIFFERENCES}{name}"] = partial(_difference, name, "log_loss")
        rows[f"{_DIFFERENCES}{name}_stderr"] = partial(_difference, name, "log_loss_stderr")
    rows["p2l_seen_in_training"] = lambda report: math.nan if report.n_seen is None else report.n_seen
    for name in _FORECASTS[1:]:
        rows[f"{_UNSEEN}{name}"] = partial(_unseen_difference, name, "log_loss")
        rows[f"{_UNSEEN}{name}_stderr"] = partial(_unseen_difference, name, "log_loss_stderr")
    return rows


def _difference(name: str, key: str, report: Evaluation) -> float:
    return float(getattr(report.differences[name], key))


def _unseen_difference(name: str, key: str, report: Evaluation) -> float:
    """As `_difference`, of the prompts that were not seen in training."""
    if report.n_seen == 0:
        return _difference(name, key, report)
    return math.nan if report.unseen is None else _difference(name, key, report.unseen)


def _missing(row: str) -> str:
    return NO_ERROR if row.endswith("_stderr") else NO_VALUE
