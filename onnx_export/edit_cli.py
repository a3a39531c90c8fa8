"""The subcommands that change a bundle: `p2l add-model`, `remove-model`, `rename-model`, `refit-head`, …"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2l_plugins.cells import pipe_table
from p2l_plugins.console import BundleArg, JsonOption, MarginOption, UsableOption, progress, tell
from p2l_plugins.errors import ConfigError

if TYPE_CHECKING:
    from p2l_plugins.scoring.bundle import Bundle

NewBundle = Annotated[Path, typer.Option("--output", "-o", help="New folder for the bundle.")]


def add_model(
    bundle: BundleArg,
    votes: Annotated[
        Path | None, typer.Option(help="Votes file or score matrix in which the new models meet others.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the new model, as in VOTES; beside --model, name of the new bundle.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A new model, as in VOTES; repeat it for several, whose rows are fitted together."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for the bundle. Default: './BUNDLE+NAME'.")
    ] = None,
    usable: UsableOption = 0.5,
    margin: MarginOption = 0.0,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            help="OTHER=MODEL: another name, in VOTES and later, of NAME or a model of the bundle; repeatable."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the prompts left out of the fit, to judge it on; 0: none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Chooses the held-out prompts, as in training.")] = 0,
    drop_ties: Annotated[bool, typer.Option("--drop-ties", help="Leave out ties (bundles of the family bt).")] = False,
    refit_ties: Annotated[
        bool, typer.Option("--refit-ties", help="With --model: fit raw_eta too; it changes the ties of all models.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --model: write also what loses to the baselines on held-out votes.")
    ] = False,
    accuracies: Annotated[
        Path | None,
        typer.Option(help="In place of VOTES: a table of category, accuracy and optionally n, with --prompts."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts with a column 'category', for --accuracies.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Add models to a bundle from votes, or one from published accuracies: new rows of the head, all else stays."""
    models = need_onnx()
    from p2l_plugins.votes.read import read_votes

    names = _new_names(name, model, votes, accuracies, prompts)
    source = open_bundle(bundle)
    aliases = aliases_of(alias or [])
    folder = output or Path(re.sub(r"[^\w.+-]+", "-", "+".join([source.manifest.name, *names])))
    called = name if model else None
    with steps() as (step, advance):
        if accuracies is not None and prompts is not None:
            from onnx_export.accuracies import add_from_accuracies, read_accuracies, read_categories

            table = read_accuracies(accuracies)
            new, figures = add_from_accuracies(
                source, table, *read_categories(prompts), names[0], folder, called, step, advance
            )
        elif votes is not None and model:
            from onnx_export.add_models import add_models

            rows = read_votes(votes, source.manifest.aliases | aliases, usable, margin)
            new, figures = add_models(
                source, rows, names, folder, called, aliases, held_out, seed, refit_ties, force, step, advance
            )
        elif votes is not None:
            rows = read_votes(votes, source.manifest.aliases | aliases, usable, margin)
            new, figures = models.add_model(
                source, rows, names[0], folder, aliases, held_out, seed, drop_ties, step, advance
            )
    lines = _added(figures) if figures["change"] == "add-model" else _added_several(figures)
    _tell(source, new, folder, figures, lines, as_json)


def remove_model(
    bundle: BundleArg,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models to remove.")],
    output: NewBundle,
    as_json: JsonOption = False,
) -> None:
    """Remove models from a bundle."""
    models = need_onnx()
    source = open_bundle(bundle)
    new = models.remove_models(source, names, output)
    _tell(source, new, output, {"removed": names}, [f"removed {', '.join(names)}"], as_json)


def rename_model(
    bundle: BundleArg,
    old: Annotated[str, typer.Argument(help="A model of the bundle.")],
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    output: NewBundle,
    keep_alias: Annotated[
        bool,
        typer.Option("--keep-alias/--drop-alias", help="Keep OLD as an alias, so that configurations go on working."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Rename a model of a bundle; the old name stays as an alias."""
    models = need_onnx()
    source = open_bundle(bundle)
    new = models.rename_model(source, old, new_name, output, keep_alias)
    line = f"{old} is now {new_name}" + ("; the old name is an alias" if keep_alias else "")
    _tell(source, new, output, {"old": old, "new": new_name, "alias": keep_alias}, [line], as_json)


def refit_head(
    bundle: BundleArg,
    config: Annotated[Path, typer.Argument(help="YAML file of the training: data, split, priors.")],
    output: NewBundle,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. Default: that of CONFIG.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the prompts; 0 leaves the head as it is.", min=0)] = 15,
    batch_size: Annotated[int, typer.Option(help="Prompts of one step.", min=1)] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of Adam; falls linearly to 0.")] = 1e-3,
    category_prior: Annotated[
        float | None, typer.Option(help="Least weight of the prior on categories. Default: as in CONFIG.", min=0)
    ] = None,
    unseen_prior: Annotated[
        float | None,
        typer.Option(help="Weight of the prior on models that a file lacks. Default: as in CONFIG.", min=0),
    ] = None,
    shrink: Annotated[
        bool | None,
        typer.Option(
            "--shrink/--no-shrink",
            help="Move rows of little-known models towards those of their peers. Default: as in CONFIG.",
        ),
    ] = None,
    refit_ties: Annotated[
        bool, typer.Option("--refit-ties", help="Fit raw_eta too; it changes the ties of all models.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="At the end, fit how hard prompts are and how often models tie, without priors."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the head of a bundle anew to votes, on frozen states of its backbone."""
    need_onnx()
    from onnx_export.refit import refit_head as run
    from p2l_plugins.training.config import read_config

    source = open_bundle(bundle)
    settings = read_config(config)
    choices = (category_prior, unseen_prior, shrink, refit_ties, calibrate)
    with steps() as (step, advance):
        folder = data or config.parent
        new = run(source, settings, folder, output, epochs, batch_size, learning_rate, *choices, step, advance)
    change = new.manifest.training["changes"][-1]
    if as_json:
        typer.echo(json.dumps({"bundle": str(output), "fingerprint": new.manifest.fingerprint, **change}, indent=2))
        return
    if losses := change["loss"]:
        typer.echo(f"{output}: loss {losses[0]:.4f} → {losses[-1]:.4f} in {epochs} epochs")
    if losses := change["calibrated"]:
        typer.echo(f"{output}: level and ties, loss {losses[0]:.4f} → {losses[-1]:.4f}")
    typer.echo(f"fingerprint {source.manifest.fingerprint} → {new.manifest.fingerprint}")


def fit_novelty(
    bundle: BundleArg,
    config: Annotated[Path, typer.Argument(help="YAML file of the training: data, split, priors.")],
    output: NewBundle,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. Default: that of CONFIG.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the prompts, for each kind left out.", min=1)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Shrink what a bundle says of a prompt towards its overall board, the further the prompt is from the training."""
    need_onnx()
    from onnx_export.novelty import fit_novelty as run
    from p2l_plugins.training.config import read_config

    source = open_bundle(bundle)
    settings = read_config(config)
    with steps() as (step, advance):
        new = run(source, settings, data or config.parent, output, epochs, step, advance)
    change = new.manifest.training["changes"][-1]
    if as_json:
        typer.echo(json.dumps({"bundle": str(output), "fingerprint": new.manifest.fingerprint, **change}, indent=2))
        return
    typer.echo(f"level {change['level']:g}, slope {change['slope']:g}; −log P of what was left out:")
    for name, row in change["left_out"].items():
        typer.echo(
            f"  {name}: own {row['own']:.4f}, overall board {row['board']:.4f}, as shrunk {row['shrunk']:.4f} "
            f"(share {row['share']:.2f}, {row['prompts']} prompts)"
        )
    typer.echo(f"fingerprint {source.manifest.fingerprint} → {new.manifest.fingerprint}")


def mark_training(
    bundle: BundleArg,
    config: Annotated[Path, typer.Argument(help="YAML file of the training: data and split.")],
    output: NewBundle,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. Default: that of CONFIG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Note which prompts a bundle was trained on, as hashes, and how much it knows of each model."""
    edit = need_onnx()
    from p2l_plugins.training.config import read_config
    from p2l_plugins.training.evidence import evidence
    from p2l_plugins.training.split import load_sources, split

    source = open_bundle(bundle)
    settings = read_config(config)
    parts = split(settings, load_sources(settings, data or config.parent))
    listed = [(row.get("prompts"), row.get("held_out_prompts")) for row in source.manifest.training.get("data", [])]
    if listed and listed != [(total, out) for total, out, _ in parts.sizes]:
        raise ConfigError(
            f"{config}: its files hold other prompts, or divide them otherwise, than those that {bundle} was trained "
            "on; name the configuration and the files of its training"
        )
    known = evidence(parts.sources, settings.family).found
    new = edit.mark_training(
        source, parts.seen_prompts(), {"held_out": settings.held_out, "seed": settings.seed}, output, known
    )
    count = len(new.training_prompts)
    _tell(source, new, output, {"training_prompts": count}, [f"{output}: {count} training prompts noted"], as_json)


def need_onnx() -> ModuleType:
    """`onnx_export.edit`, where the extra is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import scipy.optimize  # noqa: F401

        from onnx_export import edit as models
    except ImportError as error:
        raise ConfigError(
            f"this command needs the extra 'export': pip install 'p2l-plugins[export]' ({error})"
        ) from None
    return models


@contextmanager
def steps(prompts: int | None = None) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Prints the steps of a change, and shows how many prompts each run finished; what these are told by."""
    with progress() as bar:
        task = bar.add_task("scoring", total=prompts)
        yield lambda line: typer.echo(f"{line} …", err=True), lambda n: bar.advance(task, n)


def open_bundle(bundle: str) -> Bundle:
    """The bundle of an argument."""
    from p2l_plugins.scoring.bundle import Bundle, find_bundle

    return Bundle.open(find_bundle(bundle))


def aliases_of(options: list[str]) -> dict[str, str]:
    """OTHER=MODEL → {OTHER: MODEL}; the last `=` separates."""
    pairs = {}
    for option in options:
        other, sign, model = option.rpartition("=")
        if not sign or not other or not model:
            raise ConfigError(f"--alias {option!r} must have the form OTHER=MODEL")
        pairs[other] = model
    return pairs


def _tell(
    source: Bundle, new: Bundle, folder: Path, change: Mapping[str, Any], lines: Sequence[str], as_json: bool
) -> None:
    """What a change did, as JSON or in lines, and which bundle came of it."""
    models, before, after = len(new.manifest.models), source.manifest.fingerprint, new.manifest.fingerprint
    if as_json:
        bundle = {"bundle": str(folder), "models": models, "fingerprint": after, "previous_fingerprint": before}
        typer.echo(json.dumps({**bundle, **change}, indent=2, ensure_ascii=False))
        return
    for line in (*lines, f"{folder}: {models} models", f"fingerprint {before} → {after}"):
        tell(line)


def _new_names(
    name: str | None, model: list[str] | None, votes: Path | None, accuracies: Path | None, prompts: Path | None
) -> list[str]:
    """The new models' names, after a look at which options go together."""
    names = model or ([name] if name else [])
    if not names:
        raise ConfigError("name the new model with --model NAME (repeat it for several), or with --name NAME")
    if (votes is None) == (accuracies is None):
        raise ConfigError("give either --votes FILE or --accuracies TABLE with --prompts FILE")
    if (accuracies is None) != (prompts is None):
        raise ConfigError("--accuracies TABLE and --prompts FILE belong together")
    if accuracies is not None and len(names) > 1:
        raise ConfigError(f"--accuracies adds one model, not {len(names)}: {', '.join(names)}")
    return names


def _added_several(f: dict[str, Any]) -> list[str]:
    """The report of `add-model` for several models, or from accuracies, in lines."""
    if f["change"] == "add-from-accuracies":
        head = ["category", "prompts", "published", "fitted"]
        rows = [[c, str(r["prompts"]), f"{r['accuracy']:.3f}", f"{r['fitted']:.3f}"] for c, r in f["table"].items()]
        return [pipe_table(head, rows)]
    opponents = ", ".join(f["known_opponents"]) or "none"
    lines = [f"{', '.join(f['models'])}: {f['votes']} votes on {f['prompts']} prompts; known opponents: {opponents}"]
    if f["left_out"]:
        lines.append(f"{f['left_out']} votes were left out: without a new model, or with one that nobody knows")
    held = f["held_out"]
    if held is not None:
        heads = [f"held out: {held['votes']} votes on {held['prompts']} prompts", "log loss"]
        lines.append(pipe_table(heads, [[name, f"{loss:.4f}"] for name, loss in held["log_loss"].items()]))
    return lines


def _added(figures: dict[str, Any]) -> list[str]:
    """The report of `add-model` in lines."""
    f = figures
    lines = [
        f"{f['model']}: {f['used']} votes on {f['prompts']} prompts with {f['opponents']} models; "
        f"fitted to {f['fit_votes']} of them on {f['fit_prompts']} prompts"
    ]
    if f["others"]:
        lines.append(f"{f['others']} votes without {f['model']} were ignored")
    if f["unknown"]:
        names = ", ".join(f["unknown_models"])
        lines.append(f"{f['unknown']} votes with models that the bundle does not have were left out: {names}")
    if f["ties"]:
        lines.append(f"{f['ties']} ties were left out")
    shrunk = "only the level was fitted" if f["strength"] == 0 else f"prior strength {f['strength']:g}"
    lines.append(f"{shrunk} (chosen by cross-validation)")
    held = f["held_out"]
    if held is not None:
        loss = held["log_loss"]
        error = "" if held["gain_stderr"] is None else f" ± {held['gain_stderr']:.4f}"
        lines += [
            "",
            pipe_table(
                [f"held out: {held['votes']} votes on {held['prompts']} prompts", "log loss"],
                [
                    ["fitted row", f"{loss['fitted']:.4f}"],
                    ["mean row, own level", f"{loss['level_only']:.4f}"],
                    ["mean row", f"{loss['mean_row']:.4f}"],
                ],
            ),
            "",
            f"gain over the level alone: {held['gain']:+.4f}{error}",
        ]
    return lines
