"""The subcommands `p2l check` and `p2l replay`: a proxy's configuration and its past requests, offline."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2l_plugins.cells import pipe_table
from p2l_plugins.console import JsonOption, stderr
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.tables import read_yaml_object

if TYPE_CHECKING:
    from litellm_router.check import Candidate


def check(
    config: Annotated[Path | None, typer.Argument(help="The proxy's config.yaml.")] = None,
    live: Annotated[str | None, typer.Option(metavar="URL", help="Also ask a running proxy.")] = None,
    key: Annotated[str | None, typer.Option(envvar="LITELLM_MASTER_KEY", help="Its key, for --live.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Group to ask, for --live; repeatable. Default: all.")] = None,
    requests: Annotated[int, typer.Option(min=1, max=100, help="Requests to each group, for --live.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Check a LiteLLM proxy's configuration for P2L; exit status 1 where something is wrong.

    Offline, unless the settings name an HTTP scorer: that is asked for its models. With --live, sends a few requests of
    some tokens to a running proxy, and says whether the model that P2L chose answers.
    """
    if config is None and live is None:
        raise typer.BadParameter("give the proxy's config.yaml, or a running proxy with --live URL")
    report: dict[str, Any] = {}
    if config is not None:
        report |= _offline(config, as_json)
    if live is not None:
        report |= _live(live, key, group, requests, as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    if report.get("problems") or any(one["problems"] for one in report.get("live", ())):
        raise typer.Exit(1)


def _live(url: str, key: str | None, groups: list[str] | None, requests: int, as_json: bool) -> dict[str, Any]:
    import httpx

    from litellm_router.live import TIMEOUT_S, checked_address, groups_of, observe

    url = checked_address(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        seen = [observe(client, name, requests) for name in groups or groups_of(client)]
    if not as_json:
        heads = ["group", "requests", "answered by the first of the ranking"]
        typer.echo(pipe_table(heads, [[one.group, str(one.requests), str(one.first)] for one in seen]))
        for one in seen:
            for sentence in one.problems:
                stderr.print(f"p2l: {url}: group {one.group!r}: {sentence}", style="red", markup=False, soft_wrap=True)
        typer.echo("\nrouting works" if not any(one.problems for one in seen) else "\nrouting does not work")
    return {"live": [asdict(one) for one in seen]}


def _offline(config: Path, as_json: bool) -> dict[str, Any]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # offline: the prices that LiteLLM ships

    content = read_yaml_object(config)  # before what takes seconds to import
    import litellm

    litellm.suppress_debug_info = True  # which it prints to stdout, for a model that it does not know
    from litellm_router.check import CALLBACK, address_problems, candidates, problems, routed_groups, unmatched
    from litellm_router.scoring import load_scorer, sentence_of
    from litellm_router.settings import KEY, P2LSettings
    from p2l_plugins.errors import P2LError, without_credentials

    settings_part = content.get("litellm_settings") or {}
    router_part = content.get("router_settings") or {}
    aliases = router_part.get("model_group_alias") if isinstance(router_part, dict) else None
    deployments = content.get("model_list") or []
    if not isinstance(settings_part, dict) or not isinstance(deployments, list):
        raise DataError(f"{config}: litellm_settings must be a mapping and model_list a list")
    deployments = [one for one in deployments if isinstance(one, dict)]
    says: list[str] = []
    callbacks = settings_part.get("callbacks")
    turned_on = CALLBACK in (callbacks if isinstance(callbacks, list) else [callbacks])
    if not turned_on:
        says.append(f"litellm_settings.callbacks does not name {CALLBACK}, so P2L is not turned on")
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    settings = None
    try:
        settings = P2LSettings.read(settings_part.get(KEY))
        says += address_problems(settings, content)
        scorer = load_scorer(settings)
        says += problems(settings, deployments, scorer, aliases)
        groups = [asdict(one) for one in routed_groups(settings, deployments, scorer, aliases)]
        rows = [_row(one) for one in candidates(deployments, scorer)]
        others = [asdict(one) | {"deployment": one.deployment.strip("'")} for one in unmatched(deployments, scorer)]
    except ConfigError as error:
        says.append(str(error))
    except P2LError as error:
        says.append(f"{settings.scored_by}: {sentence_of(error)}" if settings else sentence_of(error))
    if not turned_on:
        groups = [one | {"routed": False, "reason": "P2L is not turned on"} for one in groups]
    says = [without_credentials(sentence) for sentence in says]
    if not as_json:
        _say(config, rows, others, groups, says)
    return {"config": str(config), "candidates": rows, "unmatched": others, "groups": groups, "problems": says}


def _row(one: Candidate) -> dict[str, Any]:
    """A matched deployment, with prices in USD per million tokens."""
    return {
        "group": one.group,
        "deployment": one.deployment.strip("'"),
        "model": one.model,
        "by": one.rule,
        "votes": one.support,
        "input_price": None if one.price is None else 1e6 * one.price.input,
        "output_price": None if one.price is None else 1e6 * one.price.output,
    }


def _say(
    config: Path,
    rows: list[dict[str, Any]],
    others: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    says: list[str],
) -> None:
    """Prints what was found: matched deployments, the others, what is routed, and problems."""
    heads = ["group", "deployment", "model", "by", "votes", "USD per million tokens: input", "output"]
    cells = []
    for row in rows:
        votes = "?" if row["votes"] is None else f"{row['votes']:.0f}"
        names = [str(row[key]) for key in ("group", "deployment", "model", "by")]
        cells.append([*names, votes, _price(row["input_price"]), _price(row["output_price"])])
    typer.echo(pipe_table(heads, cells, left=(0, 1, 2, 3)))
    if others:
        cells = [[str(other[key]) for key in ("group", "deployment", "advice")] for other in others]
        typer.echo("\n" + pipe_table(["group", "deployment", "no model of the bundle"], cells, left=(0, 1, 2)))
    cells = []
    for one in groups:
        team = "" if one["team"] is None else f" of team {one['team']}"
        cells.append([f"{one['name']}{team}", "yes" if one["routed"] else "no", str(one["reason"])])
    typer.echo("\n" + pipe_table(["requests for", "routed", "why"], cells, left=(0, 1, 2)))
    for sentence in says:
        stderr.print(f"p2l: {config}: {sentence}", style="red", markup=False, soft_wrap=True)
    typer.echo(f"\n{len(says)} problems" if says else "\nno problems")


def replay(
    log: Annotated[
        Path,
        typer.Argument(help="LiteLLM's logged requests with P2L's records in them: .jsonl, .json, .csv or .parquet."),
    ],
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
