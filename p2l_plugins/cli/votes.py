"""The commands `p2l votes …`: importers, the split, a check and the leaderboard of votes files and score matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from p2l_plugins.cli import imports
from p2l_plugins.cli.adapters import adapters_too
from p2l_plugins.cli.imports import Margin, Usable
from p2l_plugins.console import JsonOption, ModelsOption, NotModelsOption, progress, stderr, tell
from p2l_plugins.errors import ConfigError, DataError

app = typer.Typer(
    cls=adapters_too("p2l.commands.votes"),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make votes files and score matrices, from logs or by asking models, and check them.",
)

for importer in imports.COMMANDS:
    app.command()(importer)


@app.command("split")
def split_votes(
    file: Annotated[Path, typer.Argument(help="Votes file or score matrix.")],
    train: Annotated[Path, typer.Option(help="Write the side to train on here: .jsonl or .parquet.")],
    test: Annotated[Path, typer.Option(help="Write the held-out side here: .jsonl or .parquet.")],
    fraction: Annotated[
        float, typer.Option("--held-out", help="Fraction of the prompts that is held out.", min=0, max=1)
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the sides that `p2l train` makes: by prompt, so that one prompt's votes stand on one side."""
    from p2l_plugins.files.tables import check_ending
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.output import FORMATS, write_side
    from p2l_plugins.votes.read import read_votes
    from p2l_plugins.votes.votes import held_out

    for path in (train, test):
        check_ending(path, FORMATS)
    if train.absolute() == test.absolute():
        raise ConfigError(f"{train}: --train and --test name the same file; name two")
    votes = read_votes(file, models=ModelColumns(tuple(models or ()), tuple(not_models or ())))
    out = held_out(votes.prompts, fraction, seed)
    sides = {"train": (train, votes.select(~out)), "test": (test, votes.select(out))}
    for name, (_, side) in sides.items():
        if not len(side):
            raise DataError(f"{file}: no vote is left for --{name}: --held-out is {fraction:g} of {len(out)} prompts")
    for path, side in sides.values():
        write_side(path, side)
    result = {
        name: {"file": str(path), "prompts": len(side.prompts), "votes": len(side)}
        for name, (path, side) in sides.items()
    }
    if as_json:
        typer.echo(json.dumps({"held_out": fraction, "seed": seed, **result}, indent=2, ensure_ascii=False))
        return
    for name, row in result.items():
        tell(f"{name}: {row['prompts']} prompts, {row['votes']} votes → {row['file']}")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Votes files or score matrices; several count as one.")],
    held_out: Annotated[
        float | None, typer.Option(help="Describe the split that holds out this fraction of the prompts.", min=0, max=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    against: Annotated[Path | None, typer.Option(help="Look for the prompts of this file, too.")] = None,
    min_votes: Annotated[int, typer.Option(help="List models with fewer votes.", min=0)] = 30,
    usable: Usable = 0.5,
    margin: Margin = 0.0,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report on votes: outcomes, duplicates, conflicts, coverage, position bias, lengths. Writes nothing."""
    from p2l_plugins.votes import report
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.read import read_votes

    columns = ModelColumns(tuple(models or ()), tuple(not_models or ()))
    parts = []
    with progress() as bar:
        step = bar.add_task("reading", total=len(files))
        for file in files:
            parts.append(read_votes(file, usable=usable, margin=margin, models=columns))
            bar.advance(step)
    other = None if against is None else report.combined([read_votes(against, usable=usable, margin=margin)])
    result = {
        "files": [
            {"file": str(f), "votes": len(p), "prompts": len(p.prompts)} for f, p in zip(files, parts, strict=True)
        ],
        **report.check(report.combined(parts), min_votes=min_votes, fraction=held_out, seed=seed, against=other),
    }
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else report.to_text(result))


@app.command()
def board(
    files: Annotated[list[Path], typer.Argument(help="Votes files or score matrices; several count as one.")],
    family: Annotated[
        Literal["bt", "bt-tie", "rk", "grk"],
        typer.Option(help="Outcome model; 'grk' says how often an answer is usable, too."),
    ] = "bt-tie",
    intervals: Annotated[
        Literal["sandwich", "bootstrap", "none"], typer.Option(help="95 % intervals: over the prompts that were drawn.")
    ] = "sandwich",
    by: Annotated[
        Literal["category", "language"] | None, typer.Option(help="Also a leaderboard for each of these.")
    ] = None,
    component: Annotated[
        int | None, typer.Option(help="Of models that were never compared: this set, 1 the largest.", min=1)
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show this many models only.", min=1)] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page in HTML here; it needs no other file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw intervals or, by category, a heat map: .png, .svg or .pdf.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what would be printed here; .json: as --json.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    usable: Usable = 0.5,
    margin: Margin = 0.0,
    as_json: JsonOption = False,
) -> None:
    """The leaderboard of the votes themselves, with intervals and ranks; also by category or language."""
    from p2l_plugins.cli.leaderboard import check_paths, show, wants_json, write_text
    from p2l_plugins.files.figures import check_figure
    from p2l_plugins.leaderboards.measured import category_boards, only_connected, votes_board
    from p2l_plugins.votes.read import read_votes
    from p2l_plugins.votes.report import combined

    check_paths(html, plot, output)
    if plot is not None:
        check_figure(plot)
    source = ", ".join(map(str, files))
    read = combined([read_votes(file, usable=usable, margin=margin) for file in files])
    votes = only_connected(read, family, component, source)
    made = (
        votes_board(votes, family, intervals, seed)
        if by is None
        else category_boards(votes, by, family, intervals, seed)
    )
    record = made.to_dict()
    if lone := record.get("one_sided"):
        stderr.print(
            f"{len(lone)} models only won or only lost ({', '.join(lone[:4])}{' …' if len(lone) > 4 else ''}): a weak "
            "prior keeps their coefficients finite",
            style="yellow",
        )
    title = f"Leaderboard of {record['n_votes']:,} votes{f' by {by}' if by else ''}"
    shown = top or (20 if by else None)
    if html is not None:
        write_text(html, made.to_html(title, shown))
    if plot is not None:
        made.plot(plot, title, top or 25)
    note = f"\n\n{record['n_votes']} votes on {record['n_prompts']} prompts, outcome model {family}"
    show(made.to_json() if wants_json(output, as_json) else made.to_markdown(shown) + note, output)
