"""The lm-eval task that reports the P2L leaderboard of another task's prompts and asks the evaluated model nothing.

Rows: `p2l_leaderboard`, the best models on one line; `p2l_win_rate:MODEL` for the top models; and, when the evaluated
model is one of the bundle's, `p2l_evaluated_rank` and `p2l_evaluated_win_rate`. The whole leaderboard is in
`configs.<task>.p2l` of results.json, each prompt's coefficients are in the sample log.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from tqdm import tqdm

from lmeval_task import load_p2l
from lmeval_task.settings import Settings, evaluated_model
from lmeval_task.source import load_source, prompt_of
from p2l_plugins.cache.blocking import cached
from p2l_plugins.errors import DataError, PromptError
from p2l_plugins.leaderboard import Leaderboard
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.scorer import P2L, Scores

FILTER = "p2l"
LEADERBOARD = "p2l_leaderboard"
RANK = "p2l_evaluated_rank"
WIN_RATE = "p2l_evaluated_win_rate"

_LINE = 5  # models in the one-line leaderboard
_PROBE = 64  # prompts, the same on every rank, that choose the models with a row of their own


class P2LLeaderboard(Task):  # type: ignore[misc]  # lm-eval ships no types
    """Leaderboard of the prompts of `p2l_source`.

    Attributes:
        settings: from the YAML and `--metadata`.
        p2l: the scorer.
        evaluated: column of the evaluated model, or None when the bundle does not know it.
    """

    VERSION = 1

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Loads the bundle and the source task; `Task.__init__` is left out, because it would fetch a data set.

        Raises:
            P2LError: wrong settings, an unknown source task, a damaged bundle, no prompts.
        """
        config = config or {}
        metadata = dict(config.get("metadata") or {})
        self.settings = Settings.read(config, metadata)
        # any output type but the default generate_until, for which lm-eval sets and logs generation arguments
        self._config = TaskConfig(
            task=config.get("task", LEADERBOARD),
            task_alias=config.get("task_alias"),
            output_type="loglikelihood",
            num_fewshot=0,
            metadata=metadata,
        )
        self.VERSION = metadata.get("version", self.VERSION)
        self.fewshot_rnd = None
        self.p2l = load_p2l(self.settings.p2l_bundle)
        self.evaluated = evaluated_model(self.p2l, self.settings.p2l_model, metadata)
        self._docs, self._doc_tasks = _documents(self.settings, metadata)
        if not self._docs:
            raise DataError(f"the source task {self.settings.p2l_source!r} has no documents, so there are no prompts")
        self._instances: list[Instance] = []
        self._own: list[Instance] = []
        self._turns: list[Turns] = []
        self._probe: list[Turns] = []
        self._rows: dict[str, int] = {}
        self._report: dict[str, Any] = {}

    # ---- documents

    def has_training_docs(self) -> bool:
        """No examples are drawn."""
        return False

    def has_validation_docs(self) -> bool:
        """The source task's documents are offered as test documents."""
        return False

    def has_test_docs(self) -> bool:
        """See `test_docs`."""
        return True

    def test_docs(self) -> list[Any]:
        """Documents of the source task; of several tasks in turn, so that `--limit` takes from all of them."""
        return self._docs

    def doc_to_text(self, doc: Any) -> str:
        """The document's prompt; lm-eval calls it for inspection only, so the first source task stands for all."""
        return _joined(prompt_of(self._doc_tasks[0], doc, self.settings.p2l_prompt))

    def doc_to_target(self, doc: Any) -> str:
        """There is nothing to hit."""
        return ""

    def construct_requests(self, doc: Any, ctx: str, **kwargs: Any) -> list[Instance]:
        """The evaluated model is asked nothing."""
        return []

    def override_metric(self, metric_name: str) -> None:
        """Keeps the leaderboard under `--predict_only`: it does not depend on the model's predictions."""

    # ---- scoring

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        """Reads the prompts of this rank. They become instances in `apply_filters`, after the model was asked.

        Raises:
            DataError: no prompts on this rank, or a sample that does not exist.
            PromptError: an empty prompt; the message gives its document.
        """
        count = len(self._docs)
        chosen = sorted(set(samples)) if samples else list(range(min(int(limit or count), count)))
        if chosen[-1] >= count or chosen[0] < 0:
            raise DataError(f"{self.task_name}: --samples names document {chosen[-1]}; there are 0 to {count - 1}")
        # an id is the position among the chosen documents, as in `Task.doc_iterator`
        own = list(range(rank, len(chosen), world_size))
        if not own:
            raise DataError(
                f"{self.task_name}: no prompts on rank {rank}: {len(chosen)} prompts for {world_size} ranks"
            )
        self._instances = []
        self._turns = [self._turns_of(chosen[i]) for i in own]
        self._probe = [self._turns_of(i) for i in chosen[:: -(-len(chosen) // _PROBE)]]
        self._own = [
            Instance(
                request_type="loglikelihood",
                doc=self._docs[chosen[i]],
                arguments=(_joined(turns),),
                idx=0,
                metadata=(self.task_name, i, 1),
            )
            for i, turns in zip(own, self._turns, strict=True)
        ]

    def apply_filters(self) -> list[Instance]:
        """Scores the prompts in one go, after the evaluated model has run and before lm-eval reads the results."""
        label = f"P2L scores of {self.settings.p2l_source}"
        with tqdm(total=len(self._turns), desc=label) as bar, cached(self.p2l) as scorer:
            scores = scorer.score_turns(self._turns, progress=bar.update)
            probe = scores if self._probe == self._turns else scorer.score_turns(self._probe)
        self._rows = _row_models(probe, self.settings.p2l_top)
        truncated = np.zeros(len(scores), np.bool_) if scores.truncated is None else scores.truncated
        for i, instance in enumerate(self._own):
            raw_eta = None if scores.raw_eta is None else round(float(scores.raw_eta[i]), 6)
            coefs = {model: round(float(c), 6) for model, c in zip(scores.models, scores.coefs[i], strict=True)}
            scored = {"coefs": coefs, "raw_eta": raw_eta, "truncated": bool(truncated[i])}
            instance.filtered_resps = {FILTER: scored}
        self._instances = self._own
        return self._instances

    def process_results(self, doc: Any, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Values of one prompt; the same rows on every rank."""
        scored = results[0]
        scores = _scores(self.p2l, [scored])
        coefs, rates = scores.coefs[0], scores.win_rates()[0]
        values: dict[str, Any] = {LEADERBOARD: scored}  # first: aggregating it makes the leaderboard the others read
        if self.evaluated is not None:
            values[RANK] = int((coefs > coefs[self.evaluated]).sum()) + 1
            values[WIN_RATE] = float(rates[self.evaluated])
        return values | {row: float(rates[i]) for row, i in self._rows.items()}

    # ---- results

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """Win rates are means, so that lm-eval adds their standard errors."""
        rows = dict.fromkeys([WIN_RATE, *self._rows], mean)
        return {LEADERBOARD: self._aggregate, RANK: self._evaluated_rank, **rows}

    def higher_is_better(self) -> dict[str, bool]:
        """Directions of the rows that have one."""
        return {RANK: False, WIN_RATE: True, **dict.fromkeys(self._rows, True)}

    def dump_config(self) -> dict[str, Any]:
        """The task's config, with the full leaderboard under `p2l`."""
        return {**super().dump_config(), **({"p2l": self._report} if self._report else {})}

    def _aggregate(self, items: list[dict[str, Any]]) -> str:
        """Fits the leaderboard of all ranks' prompts and gives its top on one line."""
        board = _scores(self.p2l, items).leaderboard()
        self._report = {
            "source": self.settings.p2l_source,
            "bundle": self.p2l.bundle.manifest.name,
            "fingerprint": self.p2l.fingerprint,
            "evaluated_model": None if self.evaluated is None else self.p2l.models[self.evaluated],
            "n_truncated": sum(item["truncated"] for item in items),
            **board.to_dict(),
        }
        return _line(board)

    def _evaluated_rank(self, items: list[int]) -> int:
        """Place in the aggregate leaderboard, which is not the mean place on single prompts."""
        model = self._report["evaluated_model"]
        return next(int(row["rank"]) for row in self._report["leaderboard"] if row["model"] == model)

    def _turns_of(self, index: int) -> Turns:
        try:
            return as_turns(prompt_of(self._doc_tasks[index], self._docs[index], self.settings.p2l_prompt))
        except PromptError as error:
            raise PromptError(f"{self.task_name}: document {index}: {error}") from None


def metric_name(model: str) -> str:
    """A row's name. lm-eval splits names at a comma, and W&B at a slash; a bar would break the table."""
    return "p2l_win_rate:" + re.sub(r"[,/|\s]+", "_", model)


def _documents(settings: Settings, metadata: Mapping[str, Any]) -> tuple[list[Any], list[Task]]:
    """Documents of the source, and the task of each."""
    paths = settings.p2l_include_path
    folders = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    yaml = Path(str(metadata.get("config_source", "")))
    if yaml.is_file():
        folders.insert(0, yaml.parent)
    own = {"version", "config_source"}
    given = {key: value for key, value in metadata.items() if key not in own and not key.startswith("p2l_")}
    tasks = load_source(settings.p2l_source, folders, given)
    rounds = itertools.zip_longest(*([(doc, task) for doc in task.eval_docs] for task in tasks))
    pairs = [pair for pairs in rounds for pair in pairs if pair is not None]
    return [doc for doc, _ in pairs], [task for _, task in pairs]


def _row_models(scores: Scores, top: int) -> dict[str, int]:
    """Rows of the best models of these prompts, by row name."""
    order = scores.leaderboard().order[:top]
    return dict(sorted((metric_name(scores.models[i]), i) for i in order))


def _scores(p2l: P2L, items: Sequence[Mapping[str, Any]]) -> Scores:
    """Scores of prompts from the values that lm-eval carried."""
    manifest = p2l.bundle.manifest
    coefs = np.array([[item["coefs"][model] for model in p2l.models] for item in items], np.float32)
    etas = [item["raw_eta"] for item in items]
    raw_eta = None if etas[0] is None else np.array(etas, np.float32)
    return Scores(p2l.models, coefs, raw_eta, p2l.family, manifest.aliases, frozenset(manifest.ungrounded))


def _line(board: Leaderboard) -> str:
    return " > ".join(board.models[i] for i in board.order[:_LINE])


def _joined(prompt: str | Sequence[str]) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(prompt)
