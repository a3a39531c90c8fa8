"""The command `p2l route`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from p2l_plugins.console import BundleArg, JsonOption
from p2l_plugins.errors import DataError


def route(
    bundle: BundleArg,
    prompt: Annotated[
        str, typer.Argument(help="The prompt's text, or a conversation as a JSON list; '-' reads it from stdin.")
    ],
    costs: Annotated[
        Path,
        typer.Option(help="JSON: model → USD per request, or {input_price, output_price} in USD per million tokens."),
    ],
    rule: Annotated[
        str,
        typer.Option(help="best, cap (hard limit), lp (limit on the expected cost), paced (one multiplier for all)."),
    ] = "best",
    budget: Annotated[float | None, typer.Option(help="USD per request, for cap, lp and paced.")] = None,
    multiplier: Annotated[
        float | None,
        typer.Option(help="For paced: value per USD, as a proxy logs it; else the one with which it begins.", min=0),
    ] = None,
    objective: Annotated[str, typer.Option(help="win_rate (against the models in COSTS) or usable.")] = "win_rate",
    output_tokens: Annotated[int, typer.Option(help="Expected length of an answer, in tokens.", min=0)] = 500,
    as_json: JsonOption = False,
) -> None:
    """Route one prompt among the models in COSTS, and explain the choice."""
    from p2l_plugins.cells import pipe_table, plain
    from p2l_plugins.files.tables import read_json_object
    from p2l_plugins.prompts import as_turns, conversation_in, prompt_in, text_bytes
    from p2l_plugins.routing.explain import estimated_input_tokens, explain, request_costs
    from p2l_plugins.routing.policies import objective_named, rule_named
    from p2l_plugins.scoring.scorer import P2L

    p2l = P2L.load(bundle)
    turns = as_turns(prompt_in(conversation_in(sys.stdin.read() if prompt == "-" else prompt)))
    table = read_json_object(costs)
    if not table:
        raise DataError(f"{costs}: the file names no models")
    price = request_costs(table, costs, estimated_input_tokens(sum(map(text_bytes, turns))), output_tokens)
    result = explain(
        p2l.score_turns([turns]),
        list(table),
        price,
        rule_named(rule),
        budget,
        objective_named(objective),
        multiplier=multiplier,
        support=p2l.support,
    )
    result["fingerprint"] = p2l.fingerprint
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    rows = [
        [row["model"], f"{row['coef']:+.3f}", f"{row['value']:.1%}", f"{row['cost']:.6f}", f"{row['share']:.0%}"]
        for row in result["models"]
    ]
    typer.echo(pipe_table(["model", "coefficient", objective, "cost (USD)", "share"], rows))
    chosen, cost = " or ".join(result["choice"]), result["expected_cost"]
    pace = "" if result["multiplier"] is None else f", multiplier {result['multiplier']:.6g} per USD"
    typer.echo(f"\n{rule}: {plain(chosen)}; expected cost {cost:.6f} USD, {objective} {result['value']:.1%}{pace}")
