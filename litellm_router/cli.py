"""The subcommands `p2l check` and `p2l replay`: a proxy's configuration and its past requests, offline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from p2l_plugins.cli.common import JsonOption, stderr
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files import read_yaml_object


def check(
    config: Annotated[Path, typer.Argument(help="The proxy's config.yaml.")],
    as_json: JsonOption = False,
) -> None:
    """Check a LiteLLM proxy's configuration for P2L; exit status 1 where something is wrong.

    Offline, unless the settings name an HTTP scorer: that is asked for its models.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # offline: the prices that LiteLLM ships

    content = read_yaml_object(config)  # before what takes seconds to import
    from litellm_router.check import CALLBACK, candidates, problems
    from litellm_router.loading import load_scorer
    from litellm_router.scoring import sentence_of
    from litellm_router.settings import KEY, P2LSettings
    from p2l_plugins.errors import P2LError

    settings_part = content.get("litellm_settings") or {}
    deployments = content.get("model_list") or []
    if not isinstance(settings_part, dict) or not isinstance(deployments, list):
        raise DataError(f"{config}: litellm_settings must be a mapping and model_list a list")
    deployments = [one for one in deployments if isinstance(one, dict)]
    says: list[str] = []
    callbacks = settings_part.get("callbacks")
    if CALLBACK not in (callbacks if isinstance(callbacks, list) else [callbacks]):
        says.append(f"litellm_settings.callbacks does not name {CALLBACK}, so P2L is not turned on")
    rows: list[dict[str, Any]] = []
    settings = None
    try:
        settings = P2LSettings.read(settings_part.get(KEY))
        scorer = load_scorer(settings)
        says += problems(settings, deployments, scorer, scorer.family)
        rows = [
            {
                "group": one.group,
                "deployment": one.deployment.strip("'"),
                "model": one.model,
                "input_price": None if one.price is None else 1e6 * one.price.input,
                "output_price": None if one.price is None else 1e6 * one.price.output,
            }
            for one in candidates(deployments, scorer)
        ]
    except ConfigError as error:
        says.append(str(error))
    except P2LError as error:
        says.append(f"{settings.scored_by}: {sentence_of(error)}" if settings else sentence_of(error))
    if as_json:
        typer.echo(json.dumps({"config": str(config), "candidates": rows, "problems": says}, indent=2))
    else:
        typer.echo(
            "| group | deployment | model | USD per million tokens: input | output |\n|:---|:---|:---|---:|---:|"
        )
        for row in rows:
            prices = [_price(row[key]) for key in ("input_price", "output_price")]
            typer.echo(f"| {row['group']} | {row['deployment']} | {row['model']} | {' | '.join(prices)} |")
        for sentence in says:
            stderr.print(f"p2l: {config}: {sentence}", style="red", markup=False, soft_wrap=True)
        typer.echo(f"\n{len(says)} problems" if says else "\nno problems")
    if says:
        raise typer.Exit(1)


def replay(
    log: Annotated[Path, typer.Argument(help="JSONL of LiteLLM's logged requests, with P2L's records in them.")],
    rule: Annotated[
        list[str] | None,
        typer.Option(help="best, cap:USD, lp:USD or paced:USD; repeatable. Default: best and three budgets of each."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide past requests again under other rules: cost, predicted value, share of each model."""
    from litellm_router.replay import default_rules, parse_rule, read_records, replayed, to_markdown

    records = read_records(log)
    rules = [parse_rule(text) for text in rule] if rule else default_rules(records)
    result = replayed(records, rules)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else to_markdown(result))


def _price(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
