"""The `p2l` command. Exit status: 0 done, 1 failed, 2 bad usage. `--debug` (before the command) shows tracebacks."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from p2l_plugins.cli import cache, evaluate, leaderboard, score, serve, training, votes
from p2l_plugins.cli import route as prompts
from p2l_plugins.cli.adapters import adapters_too
from p2l_plugins.console import end_on_sigterm, stderr
from p2l_plugins.errors import ConfigError, P2LError, without_credentials

app = typer.Typer(
    cls=adapters_too("p2l.commands"),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Prompt-to-Leaderboard: train, export, score, leaderboards and routing.",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"p2l-plugins {version('p2l-plugins')}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""


for command in (
    score.score,
    leaderboard.leaderboard,
    leaderboard.strengths,
    prompts.route,
    training.train,
    training.scaling,
    evaluate.evaluate,
):
    app.command()(command)
app.command()(serve.serve)


app.add_typer(votes.app, name="votes")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Entry point of the `p2l` command."""
    end_on_sigterm()
    try:
        app(standalone_mode=True)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, P2LError | OSError)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = "standard output"
        message = str(error) if known else f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        stderr.print(f"p2l: {without_credentials(message)}", style="red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
