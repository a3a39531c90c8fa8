"""What the commands share: argument types and a progress bar."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from p2l_plugins.cells import plain
from p2l_plugins.errors import ConfigError


class _Plain(Console):
    """Prints texts without the control characters that names and files may hold."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`."""
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)


stderr = _Plain(stderr=True, highlight=False)

BundleArg = Annotated[str, typer.Argument(help="A bundle: its folder, a Hugging Face hub id, or 'starter'.")]
PROMPTS = typer.Argument(
    help="Prompts: .jsonl, .csv or .parquet with a column 'prompt', .txt (a line each); '-' is JSONL on stdin."
)
PromptsArg = Annotated[Path, PROMPTS]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--models", help="Score matrix: only this column is a model. Repeatable.", metavar="NAME"),
]
NotModelsOption = Annotated[
    list[str] | None,
    typer.Option("--not-models", help="Score matrix: this column is no model. Repeatable.", metavar="NAME"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def finite_option(value: float | None) -> float | None:
    """Refuses an option that is infinite or not a number, with which every comparison would go one way."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def tell(text: str, err: bool = False) -> None:
    """Prints a line for people, without the control characters that names in it may hold."""
    typer.echo(plain(text), err=err)


UsableOption = Annotated[
    float, typer.Option(help="Score matrix: lowest score of a usable answer.", callback=finite_option)
]
MarginOption = Annotated[
    float, typer.Option(help="Score matrix: largest difference that is a tie.", min=0, callback=finite_option)
]


def read_keys(variable: str | None, path: Path | None, option: str = "--api-key") -> tuple[str, ...]:
    """Keys of a variable or a file: not of the command line, which other users of the machine can read.

    Args:
        variable: of the environment, with keys between commas; path: of a file with a key in each line.
        option: what the options' names begin with, for messages.

    Raises:
        ConfigError: both, or one that holds no key.
    """
    if variable is not None and path is not None:
        raise ConfigError(f"give {option}-env or {option}-file, not both")
    if variable is not None:
        keys = [key.strip() for key in os.environ.get(variable, "").split(",")]
        source = f"{option}-env {variable}: the environment variable"
    elif path is not None:
        if not path.is_file():
            raise ConfigError(f"{option}-file {path}: there is no such file")
        keys = [key.strip() for key in path.read_text(encoding="utf-8").splitlines()]
        source = f"{option}-file {path}: the file"
    else:
        return ()
    found = tuple(key for key in keys if key)
    if not found:
        raise ConfigError(f"{source} holds no key")
    return found


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that what was begun is cleaned up."""


def end_on_sigterm() -> None:
    """Lets SIGTERM end the command as an error does: with its temporary files removed, and exit status 143."""

    own = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != own:  # of a pool, which has forked it and ends it so
            os._exit(128 + number)
        raise Terminated(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Says how to go on where the user or the system stops a long command."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        stderr.print(f"p2l: stopped; {how}", markup=False, soft_wrap=True)
        raise


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
