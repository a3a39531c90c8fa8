"""What results files of lm-eval say about P2L: leaderboards per benchmark, and the overall one of all prompts.

Reading and arithmetic only; `report_pages` writes tables and pages, `report_figure` draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmeval_task.pairs import combined
from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import read_json_object
from p2l_plugins.leaderboards.intervals import student_t_quantile

_LEVEL = 0.95
_Z = 1.959963984540054  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Board:
    """The leaderboard of a benchmark's prompts.

    Attributes:
        name: the benchmark; where several files have different leaderboards of it, with the file's name.
        record: `configs.<task>.p2l` of results.json.
        scores: metric → (value, standard error or None) of the benchmark in the same file, where it was run.
    """

    name: str
    record: Mapping[str, Any]
    scores: Mapping[str, tuple[float, float | None]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Models, best first, as `Leaderboard.rows` gives them."""
        rows: list[dict[str, Any]] = self.record["leaderboard"]
        return rows

    @property
    def n_prompts(self) -> int:
        """Prompts that went in."""
        return int(self.record["n_prompts"])


@dataclass(frozen=True)
class Agreements:
    """Measured against predicted on one benchmark: `X_p2l`.

    Attributes:
        name: the benchmark.
        model: the evaluated model's name in the bundle.
        metric, filter: what was measured.
        measured: mean score.
        predicted: mean prediction.
        auc, spearman: value, low, high; None where not defined.
    """

    name: str
    model: str
    metric: str
    filter: str
    measured: float
    predicted: float | None
    auc: tuple[float | None, float | None, float | None]
    spearman: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class RunReport:
    """Everything that the pages show.

    Attributes:
        boards: leaderboards by benchmark, in the files' order.
        overall: rows of the leaderboard of all prompts; of the only benchmark where there is one.
        n_prompts: prompts of all benchmarks.
        changes: model → rank overall less rank on each benchmark: above 0 where it does better there.
        holds: model → per benchmark, whether the overall rank lies outside of the interval of the rank there.
        agreements: of `X_p2l` tasks.
        preferences: reports of the preference tasks, by task.
    """

    boards: tuple[Board, ...]
    overall: tuple[dict[str, Any], ...]
    n_prompts: int
    changes: dict[str, list[int]]
    holds: dict[str, list[bool]]
    agreements: tuple[Agreements, ...]
    preferences: dict[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "n_prompts": self.n_prompts,
            "benchmarks": [
                {"name": board.name, "n_prompts": board.n_prompts, "leaderboard": board.rows} for board in self.boards
            ],
            "overall": list(self.overall),
            "rank_changes": self.changes,
        }

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def read_report(paths: Sequence[Path]) -> RunReport:
    """The report of results files.

    Raises:
        DataError: not results of lm-eval, nothing of P2L in them, or leaderboards of different bundles.
    """
    boards: list[Board] = []
    agreements: list[Agreements] = []
    preferences: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        results = read_json_object(path)
        if not isinstance(results.get("results"), dict) or not isinstance(results.get("configs"), dict):
            raise DataError(f"{path}: not a results file of lm-eval: it has no 'results' and 'configs'")
        for task, config in results["configs"].items():
            record = config.get("p2l") if isinstance(config, dict) else None
            if not isinstance(record, dict):
                continue
            try:
                if record.get("kind") == "leaderboard":
                    _add_board(boards, Board(str(record["source"]), record, _scores(results, record["source"])), path)
                elif record.get("kind") == "benchmark":
                    agreements += _agreements(str(record["source"]), record, results["results"][task])
                elif record.get("kind") == "preference":
                    preferences[task if task not in preferences else f"{task} ({path.name})"] = record
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path}: what the task {task!r} says of P2L is incomplete ({error!r})") from None
    if not boards and not agreements and not preferences:
        raise DataError(
            f"{', '.join(map(str, paths))}: no task of P2L in it; run p2l-lm-eval with --tasks p2l_X and --output_path"
        )
    overall, total = _overall(boards, paths)
    place = {row["model"]: row["rank"] for row in overall}
    places = [{row["model"]: row for row in board.rows} for board in boards]
    return RunReport(
        boards=tuple(boards),
        overall=tuple(overall),
        n_prompts=total,
        changes={model: [rank - rows[model]["rank"] for rows in places] for model, rank in place.items()},
        holds={model: [_outside(rank, rows[model]) for rows in places] for model, rank in place.items()},
        agreements=tuple(agreements),
        preferences=preferences,
    )


def _add_board(boards: list[Board], board: Board, path: Path) -> None:
    """Adds a leaderboard, but not the same one twice; another one of the same benchmark gets its file's name."""
    if not board.rows or board.n_prompts < 1:
        raise ValueError("there are no rows")
    for other in boards:
        if other.record["fingerprint"] != board.record["fingerprint"]:
            raise DataError(
                f"{path}: the leaderboard of {board.name} is of the bundle {board.record['bundle']!r} "
                f"({board.record['fingerprint']}), that of {other.name} of {other.record['bundle']!r} "
                f"({other.record['fingerprint']}); report on bundles one by one"
            )
    same = [other for other in boards if other.record["source"] == board.record["source"]]
    if any(other.rows == board.rows and other.n_prompts == board.n_prompts for other in same):
        return
    if same:
        board = Board(f"{board.name} ({path.name})", board.record, board.scores)
    boards.append(board)


def _overall(boards: Sequence[Board], paths: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Rows of the leaderboard of all prompts, with the interval of the win rate, and the number of prompts.

    The benchmarks' prompts are independent samples, so the win rate's variance is the weighted sum of theirs.
    """
    if not boards:
        return [], 0
    total = sum(board.n_prompts for board in boards)
    if len(boards) == 1:
        return boards[0].rows, total
    first = boards[0]
    models = tuple(sorted(row["model"] for row in first.rows))
    apart = frozenset(row["model"] for row in first.rows if not row.get("grounded", True))
    try:
        whole = combined(
            models, first.record["family"], [(b.n_prompts, b.record["pairs"]) for b in _ordered(boards, models)], apart
        )
    except (KeyError, DataError) as error:
        files = ", ".join(map(str, paths))
        raise DataError(f"{files}: the pair probabilities of a leaderboard can't be used ({error})") from None
    rows = whole.rows()
    variance = dict.fromkeys(models, 0.0)
    for board in boards:
        for row in board.rows:
            variance[row["model"]] += (_stderr(row, board.record) * board.n_prompts / total) ** 2
    for row in rows:
        low, high = _interval(row["win_rate"], math.sqrt(variance[row["model"]]))
        row |= {"win_rate_low": low, "win_rate_high": high}
    return rows, total


def _stderr(row: Mapping[str, Any], record: Mapping[str, Any]) -> float:
    """Standard error of a win rate, from its interval of ± t standard errors of its log odds; NaN without one."""
    rate, low, high = (row.get(key) for key in ("win_rate", "win_rate_low", "win_rate_high"))
    if rate is None or low is None or high is None or not 0 < low <= high < 1:
        return math.nan
    t = student_t_quantile(0.5 + _LEVEL / 2, int(record["intervals"]["units"]) - 1)
    return float(rate * (1 - rate) * (_log_odds(high) - _log_odds(low)) / (2 * t))


def _interval(rate: float | None, stderr: float) -> tuple[float | None, float | None]:
    if rate is None or not 0 < rate < 1 or not math.isfinite(stderr):
        return None, None
    spread = _Z * stderr / (rate * (1 - rate))
    low, high = (1 / (1 + math.exp(-(_log_odds(rate) + sign * spread))) for sign in (-1, 1))
    return round(low, 6), round(high, 6)


def _log_odds(rate: float) -> float:
    return math.log(rate / (1 - rate))


def _ordered(boards: Sequence[Board], models: tuple[str, ...]) -> Sequence[Board]:
    """The boards, checked to be of the same models."""
    for board in boards:
        if tuple(sorted(row["model"] for row in board.rows)) != models:
            raise DataError(f"{board.name} has other models than {boards[0].name}")
    return boards


def _outside(rank: int, row: Mapping[str, Any]) -> bool:
    low, high = row.get("rank_low"), row.get("rank_high")
    return low is not None and high is not None and not low <= rank <= high


def _scores(results: Mapping[str, Any], source: str) -> dict[str, tuple[float, float | None]]:
    """What the benchmark itself gave in the same file, by "metric, filter"."""
    found = results["results"].get(source) or results["results"].get(f"{source}_p2l") or {}
    scores = {}
    for key, value in found.items():
        metric, comma, name = key.partition(",")
        own = metric.startswith("p2l_") or metric.endswith("_stderr")
        if comma and not own and isinstance(value, int | float):
            error = found.get(f"{metric}_stderr,{name}")
            label = metric if name == "none" else f"{metric}, {name}"
            scores[label] = (float(value), float(error) if isinstance(error, int | float) else None)
    return scores


def _agreements(source: str, record: Mapping[str, Any], row: Mapping[str, Any]) -> list[Agreements]:
    def number(key: str) -> float | None:
        value = row.get(key)
        return float(value) if isinstance(value, int | float) else None

    def figure(name: str, metric: str, filter_: str) -> tuple[float | None, float | None, float | None]:
        low, high = (number(f"{name}:{metric}_{end},{filter_}") for end in ("low", "high"))
        return number(f"{name}:{metric},{filter_}"), low, high

    found = []
    for key in row:
        metric, comma, name = key.partition(",")
        measured = number(key.removeprefix("p2l_auc:"))
        error = metric.endswith("_stderr")  # lm-eval has one of the benchmark's metric, too
        if comma and key.startswith("p2l_auc:") and measured is not None and not error:
            metric = metric.removeprefix("p2l_auc:")
            found.append(
                Agreements(
                    name=source,
                    model=str(record["evaluated_model"]),
                    metric=metric,
                    filter=name,
                    measured=measured,
                    predicted=number(f"p2l_predicted,{name}"),
                    auc=figure("p2l_auc", metric, name),
                    spearman=figure("p2l_spearman", metric, name),
                )
            )
    return found
