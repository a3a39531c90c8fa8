"""The command `p2l adopt`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_export.edit_cli import aliases_of, need_onnx, open_bundle, steps
from p2l_plugins.console import JsonOption, MarginOption, UsableOption, tell
from p2l_plugins.errors import ConfigError
from p2l_plugins.scoring.bundle import STARTER, Bundle

if TYPE_CHECKING:
    from onnx_export.adopt import Tuning
    from onnx_export.adopt_votes import Evidence
    from p2l_plugins.outcomes import Array
    from p2l_plugins.votes.litellm_config import ConfigModel

#: Prompts from which --train trains.
FEWEST_TO_TRAIN = 500


def adopt(
    config: Annotated[Path, typer.Argument(help="A LiteLLM config.yaml: its deployments are the models.")],
    votes: Annotated[Path, typer.Argument(help="Votes file or score matrix on these models.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the bundle and its report.")],
    bundle: Annotated[
        str, typer.Option(help="Whose backbone is used: a bundle's folder, a Hugging Face hub id, or 'starter'.")
    ] = "starter",
    group: Annotated[str | None, typer.Option(help="Only the models of this group. Default: all.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle. Default: that of its folder.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="OTHER=MODEL: VOTES call MODEL of CONFIG OTHER; repeatable.")
    ] = None,
    usable: UsableOption = 0.5,
    margin: MarginOption = 0.0,
    costs: Annotated[
        Path | None,
        typer.Option(help="Prices as in 'p2l route'. Default: those in CONFIG (input_cost_per_token and output_...)."),
    ] = None,
    output_tokens: Annotated[int, typer.Option(help="Expected length of an answer, in tokens.", min=0)] = 500,
    topics: Annotated[
        int, typer.Option(help="Report strengths by so many topics, named by words of the prompts; 0: by category.")
    ] = 0,
    write_config: Annotated[
        Path | None, typer.Option(help="Write a copy of CONFIG that routes with the bundle to this file.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Fine-tune the backbone too, and take it where it is better; needs torch.")
    ] = False,
    train_folds: Annotated[
        int, typer.Option(help="How many of the five folds --train is judged by: one training each.", min=1, max=5)
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle of exactly your deployments' models from votes, and say what routing among them gains."""
    need_onnx()
    from onnx_export.adopt import Adoption
    from onnx_export.adopt import adopt as run
    from onnx_export.adopt_config import settings_of, yaml_lines
    from onnx_export.adopt_config import write_config as copy_config
    from onnx_export.adopt_report import summary, verdict, write_report
    from onnx_export.adopt_votes import gather, names_in_votes
    from p2l_plugins.files.tables import need_folder
    from p2l_plugins.votes.litellm_config import read_config_models
    from p2l_plugins.votes.read import read_votes

    if write_config is not None:
        need_folder(write_config)
    models = read_config_models(config, group)
    names = [model.name for model in models]
    source = open_bundle(bundle)
    others = aliases_of(alias or [])
    for other, model in others.items():
        if model not in names:
            raise ConfigError(f"--alias {other}={model}: {model!r} is not a model of {config}: {', '.join(names)}")
    rows = read_votes(votes, names_in_votes(names, source.manifest) | others, usable, margin)
    evidence = gather(rows, names, source.manifest)
    price = _costs(evidence, models, costs, config, output_tokens)
    family = source.manifest.family
    called = name or output.name

    def write(found: Adoption, folder: Path) -> None:
        write_report(found, family, folder, _labels(evidence, topics), f"{called}: {len(evidence.models)} models")

    with (
        steps(len(evidence.votes.prompts)) as (step, advance),
        _tuning(train, train_folds, source, bundle, evidence, output, step) as tuning,
    ):
        new, found = run(
            source, evidence, output, called, others, price, write, step=step, progress=advance, tuning=tuning
        )
    settings = settings_of(output, found.figures.saves if found.kind == "saves" else None)
    note = None if write_config is None else copy_config(config, write_config, evidence.models, settings)
    if as_json:
        record: dict[str, Any] = new.manifest.training["changes"][-1]
        shown = {"bundle": str(output), "fingerprint": new.manifest.fingerprint, "verdict": verdict(found), **record}
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for line in [*summary(found), "", f"{output}: {len(evidence.models)} models; report.md and report.html are in it"]:
        tell(line, err=True)
    if note is not None:
        typer.echo(note, err=True)
    typer.echo(yaml_lines(models, evidence.models, settings))


@contextmanager
def _tuning(
    wanted: bool,
    folds: int,
    source: Bundle,
    name: str,
    evidence: Evidence,
    output: Path,
    step: Callable[[str], None],
) -> Iterator[Tuning | None]:
    """What fine-tunes the backbone, where that is wanted and there are votes enough."""
    prompts = len(evidence.votes.prompts)
    if wanted and prompts < FEWEST_TO_TRAIN:
        step(f"not fine-tuning: votes on {prompts} prompts, where {FEWEST_TO_TRAIN} are needed")
    if not wanted or prompts < FEWEST_TO_TRAIN:
        yield None
        return
    try:
        from onnx_export.adopt_trained import FineTuning, working_folder
    except ImportError as error:
        raise ConfigError(f"--train needs the extra 'export': pip install 'p2l-plugins[export]' ({error})") from None
    backbone = name if name == STARTER else str(source.folder)
    with working_folder(output) as work:
        yield FineTuning(source, backbone, evidence, folds, Path(work), step)


def _costs(
    evidence: Evidence, models: Sequence[ConfigModel], file: Path | None, config: Path, output_tokens: int
) -> Array | None:
    """(P, C) USD per request of the new bundle's models; None where nothing has a price."""
    from onnx_export.adopt_config import config_prices, costs_of
    from p2l_plugins.files.tables import read_json_object

    table: dict[str, Any] = {**config_prices(models)} if file is None else read_json_object(file)
    if not set(table) & set(evidence.models):
        return None
    return costs_of(evidence.models, evidence.votes.prompts, table, file or config, output_tokens)


def _labels(evidence: Evidence, topics: int) -> list[str]:
    """Category or topic of each prompt."""
    if not topics:
        return evidence.votes.groups
    from p2l_plugins.leaderboards.topics import Topics

    prompts = [turns[0] if len(turns) == 1 else list(turns) for turns in evidence.votes.prompts]
    return Topics(prompts, topics).of(prompts)
