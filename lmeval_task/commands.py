"""Our own commands of `p2l-lm-eval`: `add` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lmeval_task.derived import benchmark_yamls, leaderboard_yamls, merged
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.tables import replaced_file

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _global() -> None:
    """lm-eval with P2L; all other commands are lm-eval's own."""


@app.command()
def add(
    tasks: Annotated[list[str], typer.Argument(help="Tasks, groups or tags of lm-eval or of --include-path.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the YAML files, for lm_eval --include_path.")],
    only: Annotated[
        Literal["leaderboard", "benchmark"] | None, typer.Option(help="Write p2l_TASK or TASK_p2l only.")
    ] = None,
    include_path: Annotated[
        list[Path] | None,
        typer.Option("--include-path", "--include_path", help="Folder of your own tasks. Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write the YAML files of p2l_TASK, the leaderboard of TASK's prompts, and of TASK_p2l, TASK with predictions."""
    folders = [path.absolute() for path in include_path or []]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--include-path {folder}: there is no such folder")
    files: dict[str, str] = {}
    for task in tasks:
        if only != "benchmark":
            files = merged(files, leaderboard_yamls(task, folders))
        if only != "leaderboard":
            files = merged(files, benchmark_yamls(task, folders))
    there = [name for name in files if (out / name).exists()]
    if there and not force:
        raise DataError(f"{out / there[0]}: already exists; --force replaces it")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with replaced_file(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "files": sorted(files)}, indent=2))
    else:
        typer.echo(f"{len(files)} files → {out}; lm_eval run … --include_path {out}")


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="results_*.json of one run or more.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.md, report.html and rank_changes.png.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write markdown to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of HTML to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the heat map of rank changes: .png, .svg or .pdf.")] = None,
    top: Annotated[int, typer.Option(help="Models shown of each leaderboard.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Leaderboards per benchmark and of all prompts, and where models rank otherwise; by default markdown on stdout."""
    from lmeval_task import report_pages
    from lmeval_task.report_figure import rank_change_figure
    from lmeval_task.run_report import read_report

    if figure is not None:
        from p2l_plugins.files.figures import check_figure

        check_figure(figure)
    found = read_report(results)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        markdown, html = markdown or out / "report.md", html or out / "report.html"
        if figure is None and len(found.boards) > 1:
            figure = out / "rank_changes.png"
    for path, text in ((markdown, report_pages.markdown(found, top)), (html, report_pages.html(found, top))):
        if path is not None:
            with replaced_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            typer.echo(f"→ {path}", err=True)
    if figure is not None:
        rank_change_figure(found, figure, top)
        typer.echo(f"→ {figure}", err=True)
    if as_json:
        typer.echo(found.to_json())
    elif markdown is None and html is None and figure is None:
        typer.echo(report_pages.markdown(found, top), nl=False)
