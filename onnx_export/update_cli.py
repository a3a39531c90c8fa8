"""The command `p2l update`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnx_export.edit_cli import NewBundle, need_onnx, open_bundle, steps
from p2l_plugins.console import BundleArg, JsonOption, MarginOption, UsableOption, tell
from p2l_plugins.errors import ConfigError

if TYPE_CHECKING:
    from onnx_export.update import Update
    from onnx_export.update_votes import News


def update(
    bundle: BundleArg,
    votes: Annotated[Path, typer.Argument(help="Votes file or score matrix with new votes on models of the bundle.")],
    output: NewBundle,
    half_life_days: Annotated[
        float | None,
        typer.Option(help="Days after which the votes of before count half. Default: they count as much as new ones."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Use votes too that are no newer than the newest one of before.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write also what is worse than the present bundle.")] = False,
    usable: UsableOption = 0.5,
    margin: MarginOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Add new votes to a bundle's models, beside what it keeps of the votes before; written only if not worse."""
    need_onnx()
    from onnx_export.update import update as run
    from p2l_plugins.votes.read import read_votes

    if half_life_days is not None and not half_life_days > 0:
        raise ConfigError(f"--half-life-days is {half_life_days:g}, but must be above 0")
    source = open_bundle(bundle)
    rows = read_votes(votes, source.manifest.aliases, usable, margin)
    with steps() as (step, advance):
        new, found = run(source, rows, output, half_life_days, again, force, step, advance)
    if as_json:
        record = {"bundle": str(output), "fingerprint": new.manifest.fingerprint, **found.record()}
        news = found.news
        record |= {"unknown_votes": news.unknown, "unknown_models": list(news.strangers), "old_votes": news.old}
        record["moves"] = [asdict(move) for move in found.moves]
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    for line in _left_out(found.news, bundle, votes):
        tell(line, err=True)
    typer.echo(report(found))
    typer.echo(f"{output}: fingerprint {source.manifest.fingerprint} → {new.manifest.fingerprint}", err=True)


def report(found: Update) -> str:
    """What moved, as markdown."""
    from p2l_plugins.cells import pipe_table
    from p2l_plugins.evaluation.report import with_error

    heads = ["model", "new votes", "level", "change", "± of the level", "rank"]
    rows = [
        [
            move.model,
            str(move.votes),
            f"{move.after:.2f}",
            f"{move.after - move.before:+.2f}",
            f"{move.stderr:.2f}",
            str(move.rank_after) if move.rank_before == move.rank_after else f"{move.rank_before} → {move.rank_after}",
        ]
        for move in found.moves
    ]
    loss, gain = found.log_loss, found.gain
    lines = [
        pipe_table(heads, rows),
        "",
        f"Level and rank are those of everyday prompts. {len(found.news.votes)} new votes on "
        f"{len(found.news.votes.prompts)} prompts; {found.kept:,.0f} are kept with them.",
        f"Log loss of the new votes (cross-validated): {loss['new']:.4f}, of the bundle before {loss['present']:.4f} "
        f"(gain {with_error(*found.less)}), by guessing {loss['constant']:.4f}.",
    ]
    if gain.known:
        lines.append(f"Routed score over the bundle before: {with_error(gain.mean, gain.stderr)}.")
    return "\n".join(lines)


def _left_out(news: News, bundle: str, votes: Path) -> list[str]:
    """What was not used, and what to do about it."""
    lines = []
    if news.old:
        lines.append(f"{news.old} votes are no newer than those that the bundle keeps, and were left out")
    if news.ties:
        lines.append(f"{news.ties} ties were left out, which the family 'bt' does not allow")
    if news.unknown:
        first = news.strangers[0]
        lines.append(
            f"{news.unknown} votes are with {len(news.strangers)} models that the bundle does not have, and were left "
            f"out; add them: p2l add-model {bundle} --votes {votes} --model {first!r}"
        )
    return lines
