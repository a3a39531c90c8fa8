"""The lm-eval task that reports the P2L leaderboard of another task's prompts and asks the evaluated model nothing.

Rows: `p2l_leaderboard`, the best models on one line; `p2l_win_rate:MODEL` for the top models; and, when the evaluated
model is one of the bundle's, `p2l_evaluated_rank` and `p2l_evaluated_win_rate`. The whole leaderboard is in
`configs.<task>.p2l` of results.json, each prompt's coefficients are in the sample log.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from lmeval_task.pairs import pack
from lmeval_task.prompts_task import PromptsTask, joined, read_settings, score_turns, scores_of
from lmeval_task.settings import Settings, evaluated_model
from lmeval_task.source import load_source, prompt_of
from p2l_plugins.cells import escaped
from p2l_plugins.errors import DataError
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.scoring.scorer import Scores

LEADERBOARD = "p2l_leaderboard"
RANK = "p2l_evaluated_rank"
WIN_RATE = "p2l_evaluated_win_rate"

_LINE = 5  # models in the one-line leaderboard
_PROBE = 64  # prompts, the same on every rank, that choose the models with a row of their own


class P2LLeaderboard(PromptsTask):
    """Leaderboard of the prompts of `p2l_source`.

    Attributes:
        evaluated: column of the evaluated model, or None when the bundle does not know it.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Loads the bundle and the source task.

        Raises:
            P2LError: wrong settings, an unknown source task, a damaged bundle, no prompts.
        """
        config = {"task": LEADERBOARD, **(config or {})}
        metadata = dict(config.get("metadata") or {})
        settings, p2l = read_settings(config)
        tasks = source_tasks(settings, metadata)
        self.evaluated = evaluated_model(p2l, settings.p2l_model, metadata)
        # of several tasks in turn, so that --limit takes from all of them
        rounds = itertools.zip_longest(*([(doc, task) for doc in task.eval_docs] for task in tasks))
        pairs = [pair for pairs in rounds for pair in pairs if pair is not None]
        if not pairs:
            raise DataError(f"the source task {settings.p2l_source!r} has no documents, so there are no prompts")
        super().__init__(config, settings, p2l, [doc for doc, _ in pairs])
        self._doc_tasks: list[Task] = [task for _, task in pairs]
        self._probe: list[Turns] = []
        self._rows: dict[str, int] = {}

    def doc_to_text(self, doc: Any) -> str:
        """The document's prompt; lm-eval calls it for inspection only, so the first source task stands for all."""
        return joined(prompt_of(self._doc_tasks[0], doc, self.settings.p2l_prompt))

    def turns_of(self, index: int) -> Turns:
        """The prompt of a document."""
        return as_turns(prompt_of(self._doc_tasks[index], self._docs[index], self.settings.p2l_prompt))

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As `PromptsTask.build_all_requests`; also chooses the prompts that choose the rows."""
        super().build_all_requests(limit=limit, samples=samples, **kwargs)
        chosen = self._chosen(limit, samples)
        self._probe = [self._checked_turns(i) for i in chosen[:: -(-len(chosen) // _PROBE)]]

    def apply_filters(self) -> list[Instance]:
        """Scores the prompts, and those that choose the rows, which are the same on every rank."""
        instances = super().apply_filters()
        known = dict(zip(self._turns, instances, strict=True))
        if all(turns in known for turns in self._probe):
            probe = scores_of(self.p2l, [known[turns].filtered_resps["p2l"] for turns in self._probe])
        else:
            probe = score_turns(self.p2l, self._probe, "P2L rows")
        self._rows = _row_models(probe, self.settings.p2l_top)
        return instances

    def process_results(self, doc: Any, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Values of one prompt; the same rows on every rank."""
        scored = results[0]
        scores = scores_of(self.p2l, [scored])
        coefs, rates = scores.coefs[0], scores.win_rates()[0]
        values: dict[str, Any] = {LEADERBOARD: scored}  # first: aggregating it makes the leaderboard the others read
        if self.evaluated is not None:
            values[RANK] = int((coefs > coefs[self.evaluated]).sum()) + 1
            values[WIN_RATE] = float(rates[self.evaluated])
        return values | {row: float(rates[i]) for row, i in self._rows.items()}

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """Win rates are means, so that lm-eval adds their standard errors."""
        rows = dict.fromkeys([WIN_RATE, *self._rows], mean)
        return {LEADERBOARD: self._aggregate, RANK: self._evaluated_rank, **rows}

    def higher_is_better(self) -> dict[str, bool]:
        """Directions of the rows that have one."""
        return {RANK: False, WIN_RATE: True, **dict.fromkeys(self._rows, True)}

    def _aggregate(self, items: list[dict[str, Any]]) -> str:
        """Fits the leaderboard of all ranks' prompts and gives its top on one line."""
        items = sorted(items, key=lambda item: item["id"])  # several ranks bring them in another order
        scores = scores_of(self.p2l, items)
        board = scores.leaderboard()
        self._report = {
            "kind": "leaderboard",
            "source": self.settings.p2l_source,
            **self._identity(),
            "evaluated_model": None if self.evaluated is None else self.p2l.models[self.evaluated],
            "n_truncated": sum(item["truncated"] for item in items),
            **board.to_dict(),
            "pairs": pack(scores),
        }
        return _line(board)

    def _evaluated_rank(self, items: list[int]) -> int:
        """Place in the aggregate leaderboard, which is not the mean place on single prompts."""
        model = self._report["evaluated_model"]
        return next(int(row["rank"]) for row in self._report["leaderboard"] if row["model"] == model)


def source_tasks(settings: Settings, metadata: Mapping[str, Any]) -> list[Task]:
    """The source's tasks, found beside the YAML too.

    Args:
        settings: of the task.
        metadata: of its config; what is not ours is handed on.

    Raises:
        ConfigError, DataError: as `load_source`.
    """
    paths = settings.p2l_include_path
    folders = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    yaml = Path(str(metadata.get("config_source", "")))
    if yaml.is_file():
        folders.insert(0, yaml.parent)
    own = {"version", "config_source"}
    given = {key: value for key, value in metadata.items() if key not in own and not key.startswith("p2l_")}
    return load_source(settings.source(), folders, given, settings.p2l_overrides)


def metric_name(model: str) -> str:
    """A row's name. lm-eval splits names at a comma, and W&B at a slash; a bar would break the table."""
    return "p2l_win_rate:" + escaped(re.sub(r"[,/|\s]+", "_", model))


def _row_models(scores: Scores, top: int) -> dict[str, int]:
    """Rows of the best models of these prompts, by row name."""
    order = scores.leaderboard(intervals=False).order[:top]
    return dict(sorted((metric_name(scores.models[i]), i) for i in order))


def _line(board: Leaderboard) -> str:
    return " > ".join(escaped(board.models[i]) for i in board.order[:_LINE])
