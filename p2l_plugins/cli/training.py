"""The command that trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from p2l_plugins.console import JsonOption, resumable, tell
from p2l_plugins.errors import ConfigError
from p2l_plugins.training.config import read_config


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; examples/starter.yaml is one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New checkpoint folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data files. Default: the configuration's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the configuration's seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUTPUT.partial, if a run was stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a P2L on votes and score matrices: CONFIG → checkpoint folder.

    Several processes: torchrun --nproc-per-node N -m p2l_plugins.cli train ..., or accelerate launch -m.
    """
    module = _training_module()
    settings = read_config(config)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    with resumable(f"{output}.partial keeps the last checkpoint; go on with the same command and --resume"):
        report = module.train(settings, data or config.parent, output, resume)
    if int(os.environ.get("RANK", "0")):
        return
    keys = (
        "name",
        "models",
        "model_names",
        "prompts",
        "votes",
        "steps",
        "epochs",
        "batch_size",
        "seconds",
        "train_loss",
        "held_out",
        "data",
    )
    summary = {key: report[key] for key in keys}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for row in summary["data"]:
        typer.echo(
            f"{row['file']}: {row['prompts']} prompts ({row['held_out_prompts']} held out), {row['votes']} votes"
        )
    tell(f"models: {', '.join(summary['model_names'])}")
    steps = f"{summary['steps']} steps of {summary['batch_size']} prompts"
    typer.echo(f"{summary['models']} models, {steps}, loss {summary['train_loss']:.4f} → {output}")
    held_out = summary["held_out"]
    if held_out:
        side = held_out["side"].replace("_", " ")
        typer.echo(
            f"{side}, {held_out['prompts']} prompts: loss {held_out['loss']:.4f}, "
            f"marginal leaderboard {held_out['marginal_loss']:.4f}"
        )


def _training_module() -> ModuleType:
    try:
        from p2l_plugins.training import train as module
    except ImportError as error:
        raise ConfigError(f"this command needs the extra 'train': pip install 'p2l-plugins[train]' ({error})") from None
    return module


def scaling(
    config: Annotated[Path, typer.Argument(help="Configuration of the trainings.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs; finished ones are not repeated.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data files. Default: the configuration's own.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Shares of the training prompts.")] = "0.0625,0.125,0.25,0.5,1",
    backbone: Annotated[
        list[str] | None, typer.Option(help="Repeat for several. Default: the configuration's.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each size.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train over a grid of data sizes, and fit the law: held-out loss = E + A·N^−α, N in votes."""
    from dataclasses import asdict

    _training_module()
    from p2l_plugins.training import scaling as module

    settings = read_config(config)
    try:
        fractions = sorted({float(size) for size in sizes.split(",")})
    except ValueError:
        fractions = [0.0]
    if not all(0 < fraction <= 1 for fraction in fractions) or len(fractions) < module.LEAST_SIZES:
        raise ConfigError(f"sizes is {sizes!r}, but must be {module.LEAST_SIZES} different shares above 0, at most 1")
    runs = module.run_grid(
        *(settings, data or config.parent, output, fractions, backbone or [settings.backbone]),
        seeds=range(settings.seed, settings.seed + seeds),
        done=lambda run: typer.echo(f"{run.backbone}, {run.votes} votes: held-out loss {run.loss:.4f}", err=True),
    )
    fitted = module.laws(runs)
    module.draw_scaling(runs, fitted, output / "scaling.png")
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(r) for r in runs], "laws": [asdict(law) for law in fitted]}, indent=2))
        return
    typer.echo(module.scaling_tables(runs, fitted) + f"\n\nfigure: {output / 'scaling.png'}")
