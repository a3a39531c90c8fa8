"""The command `p2l score`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from p2l_plugins.console import BundleArg, JsonOption, PromptsArg, progress, resumable
from p2l_plugins.errors import ConfigError


def score(
    bundle: BundleArg,
    prompts: PromptsArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write here: .jsonl, .csv or .parquet. Default: JSONL on stdout."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run with the same --output stopped.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: on the cluster that RAY_ADDRESS names, else on this machine's cores.")
    ] = "local",
    prompt_field: Annotated[
        str,
        typer.Option("--prompt-field", help="Column that holds the prompt: text or a conversation.", metavar="COLUMN"),
    ] = "prompt",
    workers: Annotated[int | None, typer.Option(help="Of --engine ray; default: one per core.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Score prompts: one coefficient per model and prompt. Memory stays the same for any number of prompts."""
    from p2l_plugins.files.prompts import PromptFile, local_file
    from p2l_plugins.scoring.on_ray import score_on_ray
    from p2l_plugins.scoring.scorer import P2L
    from p2l_plugins.scoring.to_file import check_output, json_lines, score_to_file

    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine is {engine!r}; valid: local, ray")
    if output is not None:
        check_output(output)
    elif resume or engine == "ray":
        raise ConfigError(f"{'--resume' if resume else '--engine ray'} needs --output")
    with local_file(prompts) as path:
        file = PromptFile(path, name=str(prompts), field=prompt_field)
        found = file.scan()
        p2l = P2L.load(bundle)
        with progress() as bar:
            task = bar.add_task("scoring", total=found.prompts)
            if output is not None:
                on_ray = partial(score_on_ray, bundle, p2l.fingerprint, workers=workers) if engine == "ray" else None
                with resumable(f"{output}.partial keeps what is done; go on with the same command and --resume"):
                    score_to_file(p2l, file, found, output, resume, lambda n: bar.advance(task, n), engine=on_ray)
            else:
                for chunk in file.chunks():
                    texts = chunk[prompt_field]
                    scores = p2l.score(texts, progress=lambda n: bar.advance(task, n))
                    for line in json_lines(texts, scores):
                        typer.echo(line)
    if output is not None:
        summary = {"prompts": found.prompts, "models": len(p2l.models), "output": str(output)}
        text = f"{found.prompts} prompts × {len(p2l.models)} models → {output}"
        typer.echo(json.dumps(summary) if as_json else text)
