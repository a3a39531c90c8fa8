"""The command that judges a bundle on held-out votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from p2l_plugins.console import (
    BundleArg,
    JsonOption,
    MarginOption,
    ModelsOption,
    NotModelsOption,
    UsableOption,
    progress,
)
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.prompts import text_bytes
from p2l_plugins.routing.explain import estimated_input_tokens, request_costs

if TYPE_CHECKING:
    from p2l_plugins.evaluation.calibration import Bins
    from p2l_plugins.outcomes import Array, Mask
    from p2l_plugins.scoring.scorer import P2L
    from p2l_plugins.votes.votes import Votes


def evaluate(
    bundle: BundleArg,
    votes: Annotated[Path, typer.Argument(help="Votes file or score matrix that the model was not trained on.")],
    baseline_votes: Annotated[
        Path | None,
        typer.Option(help="Votes to fit the baselines on. Default: cross-fitted on VOTES in folds by prompt."),
    ] = None,
    usable: UsableOption = 0.5,
    margin: MarginOption = 0.0,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    bins: Annotated[int, typer.Option(help="Bins of the calibration error.", min=1)] = 15,
    equal_width: Annotated[bool, typer.Option("--equal-width", help="Bins of equal width, not of equal mass.")] = False,
    bin_table: Annotated[bool, typer.Option("--bin-table", help="Print P2L's bins as well.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the reliability diagram: .png, .svg or .pdf.")] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="Score matrix: judge the score against the cost among the models in this file, as in 'p2l route': "
            "JSON, model → USD per request, or {input_price, output_price[, output_tokens]}."
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="With --costs, what is maximised: win_rate (against the models in COSTS) or usable.")
    ] = "win_rate",
    output_tokens: Annotated[int, typer.Option(help="Expected length of an answer, in tokens.", min=0)] = 500,
    curve: Annotated[Path | None, typer.Option(help="Draw score against cost: .png, .svg or .pdf.")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Judge only the prompts that the bundle's training held out of VOTES.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge a bundle on held-out votes: log loss, calibration and more beside baselines, and routed score."""
    from p2l_plugins.evaluation import figures
    from p2l_plugins.evaluation.evaluate import evaluate_votes
    from p2l_plugins.files.figures import check_figure
    from p2l_plugins.routing.policies import objective_named
    from p2l_plugins.scoring.scorer import P2L
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.read import read_votes

    if curve is not None and costs is None:
        raise ConfigError("--curve needs --costs")
    for path in (figure, curve):
        if path is not None:
            check_figure(path, "train")
    p2l = P2L.load(bundle)
    aliases = p2l.bundle.manifest.aliases
    columns = ModelColumns(tuple(models or ()), tuple(not_models or ()))
    judged = read_votes(votes, aliases, usable, margin, columns)
    if held_out:
        judged = _held_out(p2l, judged, votes)
    baseline = None if baseline_votes is None else read_votes(baseline_votes, aliases, usable, margin, columns)
    price = None if costs is None else _costs(p2l, costs, judged, output_tokens)
    with progress() as bar:
        task = bar.add_task("scoring", total=len(judged.prompts))
        scores = p2l.score_turns(judged.prompts, progress=lambda n: bar.advance(task, n))
    kind: Bins = "equal-width" if equal_width else "equal-mass"
    report = evaluate_votes(
        scores, judged, baseline, bins, kind, price, objective_named(objective), seen_in_training(p2l, judged)
    )
    if figure is not None:
        title = f"Calibration of {p2l.bundle.manifest.name} on {votes.name}, {report.n_votes} votes"
        figures.reliability_diagram(report.calibration, figure, title)
    if curve is not None and report.curve is not None:
        title = f"Score against cost of {p2l.bundle.manifest.name} on {votes.name}"
        figures.cost_score_figure(report.curve, curve, title)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_markdown(bin_table))


def seen_in_training(p2l: P2L, votes: Votes) -> Mask | None:
    """(P,) which prompts the bundle was trained on; None where it does not say."""
    known = p2l.bundle.training_prompts
    return None if known is None else known.seen(votes.prompts)


def _held_out(p2l: P2L, votes: Votes, path: Path) -> Votes:
    """The side that the bundle's training held out, by its own fraction and seed."""
    from p2l_plugins.votes.votes import held_out

    split = p2l.bundle.manifest.training.get("split")
    if not isinstance(split, dict):
        raise ConfigError(
            f"the bundle {p2l.bundle.manifest.name!r} does not say how its training divided the prompts, which "
            "--held-out needs: write both sides with p2l votes split, or note the split with p2l mark-training"
        )
    fraction, seed = float(split["held_out"]), int(split["seed"])
    side = votes.select(held_out(votes.prompts, fraction, seed))
    if not len(side):
        raise DataError(f"{path}: no prompt is on the side that the training held out ({fraction:g}, seed {seed})")
    return side


def _costs(p2l: P2L, path: Path, votes: Votes, output_tokens: int) -> Array:
    """(P, M) USD per request for the bundle's models, NaN for those that the file does not name."""
    from p2l_plugins.files.tables import read_json_object

    table = read_json_object(path)
    if not table:
        raise DataError(f"{path}: the file names no models")
    if votes.scores is None:
        raise DataError("--costs needs a score matrix; this is a votes file")
    columns = [p2l.index(name) for name in table]
    if len(set(columns)) < len(columns):
        twice = next(p2l.models[i] for i in columns if columns.count(i) > 1)
        raise DataError(f"{path}: the model {twice!r} is named twice")
    tokens = np.array([estimated_input_tokens(sum(map(text_bytes, turns))) for turns in votes.prompts])
    costs = np.full((len(votes.prompts), len(p2l.models)), np.nan)
    costs[:, columns] = request_costs(table, path, tokens, output_tokens)
    return costs
