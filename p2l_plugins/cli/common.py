"""What the commands share: argument types, progress, scoring with a progress bar, cost files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Array

stderr = Console(stderr=True, highlight=False)

BundleArg = Annotated[str, typer.Argument(help="A bundle: its folder, a Hugging Face hub id, or 'starter'.")]
PromptsArg = Annotated[
    Path,
    typer.Argument(help="Prompts: .jsonl, .csv or .parquet with a column 'prompt', .txt (a line each), '-' (stdin)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


class _Silent(Progress):
    """A bar that prints nothing: a disabled one would still end with an empty line."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


def progress() -> Progress:
    """A progress bar on stderr, shown on a terminal only."""
    if not stderr.is_terminal:
        return _Silent(console=stderr, disable=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True)


def score_prompts(bundle: str, prompts: list[Any]) -> Any:
    """Scores of prompts by a bundle, with a progress bar."""
    from p2l_plugins.scorer import P2L

    p2l = P2L.load(bundle)
    with progress() as bar:
        task = bar.add_task("scoring", total=len(prompts))
        return p2l.score(prompts, progress=lambda n: bar.advance(task, n))


def request_costs(table: dict[str, Any], path: Path, input_tokens: ArrayLike, output_tokens: int) -> Array:
    """USD per request of each entry of a cost file: (M,) for one prompt, (N, M) for N.

    Args:
        table: model → USD per request, or {input_price, output_price} in USD per million tokens and, where the model
            differs from `output_tokens`, the expected length of its answers as output_tokens.
        path: of the file, for messages.
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
                f"{path}: {name}: {entry!r} is not a cost; valid: a number (USD per request) or input_price and "
                "output_price (USD per million tokens; optional: output_tokens), at least 0"
            )
        per_token, fixed = (numbers[0] / 1e6, numbers[1] * numbers[2] / 1e6) if priced else (0.0, numbers[0])
        costs.append(per_token * length + fixed)
    return np.stack(costs, axis=-1)
