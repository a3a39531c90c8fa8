"""What the commands share: argument types and a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

stderr = Console(stderr=True, highlight=False)

BundleArg = Annotated[str, typer.Argument(help="A bundle: its folder, a Hugging Face hub id, or 'starter'.")]
PROMPTS = typer.Argument(
    help="Prompts: .jsonl, .csv or .parquet with a column 'prompt', .txt (a line each), '-' (stdin)."
)
PromptsArg = Annotated[Path, PROMPTS]
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
