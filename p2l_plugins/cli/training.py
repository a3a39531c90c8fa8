"""Commands on votes: train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from p2l_plugins.cli.common import BundleArg, JsonOption, progress
from p2l_plugins.errors import ConfigError


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; examples/starter.yaml is one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New checkpoint folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data files. Default: the configuration's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a P2L on votes and score matrices: CONFIG → checkpoint folder."""
    settings = _need_torch("train")
    report = settings.train(settings.read_config(config), data or config.parent, output)
    summary = {key: report[key] for key in ("name", "models", "steps", "seconds", "train_loss", "data")}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for row in summary["data"]:
        typer.echo(
            f"{row['file']}: {row['prompts']} prompts ({row['held_out_prompts']} held out), {row['votes']} votes"
        )
    typer.echo(f"{summary['models']} models, {summary['steps']} steps, loss {summary['train_loss']:.4f} → {output}")


def _need_torch(extra: str) -> Any:
    try:
        from p2l_plugins.training import train as module
    except ImportError as error:
        raise ConfigError(
            f"this command needs the extra '{extra}': pip install 'p2l-plugins[{extra}]' ({error})"
        ) from None
    return module


def evaluate(
    bundle: BundleArg,
    votes: Annotated[Path, typer.Argument(help="Votes file or score matrix that the model was not trained on.")],
    baseline_votes: Annotated[
        Path | None,
        typer.Option(help="Votes to fit the marginal baseline on. Default: cross-fitted on VOTES by prompt."),
    ] = None,
    usable: Annotated[float, typer.Option(help="Score matrix: lowest score of a usable answer.")] = 0.5,
    margin: Annotated[float, typer.Option(help="Score matrix: largest difference that is a tie.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Judge a bundle on held-out votes: log loss, Brier score and accuracy beside baselines, and routed score."""
    from p2l_plugins.scorer import P2L
    from p2l_plugins.training.data import read_votes
    from p2l_plugins.training.evaluation import evaluate_votes

    p2l = P2L.load(bundle)
    aliases = p2l.bundle.manifest.aliases
    held_out = read_votes(votes, aliases, usable, margin)
    baseline = None if baseline_votes is None else read_votes(baseline_votes, aliases, usable, margin)
    with progress() as bar:
        task = bar.add_task("scoring", total=len(held_out.prompts))
        scores = p2l.score_turns(held_out.prompts, progress=lambda n: bar.advance(task, n))
    report = evaluate_votes(scores, held_out, baseline)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_markdown())
