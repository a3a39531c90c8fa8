"""Commands on prompts: score, leaderboard, route."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from p2l_plugins.cli.common import BundleArg, JsonOption, PromptsArg, score_prompts
from p2l_plugins.errors import ConfigError, DataError


def score(
    bundle: BundleArg,
    prompts: PromptsArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write here: .jsonl, .csv or .parquet. Default: JSONL on stdout."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score prompts: one coefficient per model and prompt."""
    from p2l_plugins.files import read_prompts

    if output is not None and output.suffix not in (".jsonl", ".csv", ".parquet"):
        raise ConfigError(f"{output}: the ending {output.suffix!r} is not one of .jsonl, .csv, .parquet")
    texts, _ = read_prompts(prompts)
    scores = score_prompts(bundle, texts)
    raw_eta: list[float | None] = [None] * len(texts) if scores.raw_eta is None else [float(x) for x in scores.raw_eta]
    if output is None or output.suffix == ".jsonl":
        lines = (
            json.dumps(
                {"prompt": text, "coefs": dict(zip(scores.models, map(float, row), strict=True)), "raw_eta": eta},
                ensure_ascii=False,
            )
            for text, row, eta in zip(texts, scores.coefs, raw_eta, strict=True)
        )
        if output is None:
            for line in lines:
                typer.echo(line)
        else:
            output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        _write_table(output, texts, scores.models, scores.coefs, raw_eta)
    if output is not None:
        summary = {"prompts": len(texts), "models": len(scores.models), "output": str(output)}
        typer.echo(json.dumps(summary) if as_json else f"{len(texts)} prompts × {len(scores.models)} models → {output}")


def _write_table(
    path: Path, texts: list[Any], models: tuple[str, ...], coefs: Any, raw_eta: list[float | None]
) -> None:
    # a column has one type: conversations are JSON text in CSV, and make every prompt a list in Parquet
    if path.suffix == ".csv":
        texts = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in texts]
    elif not all(isinstance(text, str) for text in texts):
        texts = [[text] if isinstance(text, str) else list(text) for text in texts]
    columns: dict[str, list[Any]] = {"prompt": texts, "raw_eta": raw_eta}
    columns.update({name: [float(x) for x in coefs[:, i]] for i, name in enumerate(models)})
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: writing Parquet needs pyarrow: pip install pyarrow") from None
    pq.write_table(pa.table(columns), path)


def leaderboard(
    bundle: BundleArg,
    prompts: PromptsArg,
    top: Annotated[int | None, typer.Option(help="Show this many models only.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """The aggregate leaderboard of a set of prompts."""
    from p2l_plugins.files import read_prompts

    texts, _ = read_prompts(prompts)
    board = score_prompts(bundle, texts).leaderboard()
    typer.echo(board.to_json() if as_json else f"{board.to_markdown(top)}\n\n{board.n_prompts} prompts")


def route(
    bundle: BundleArg,
    prompt: Annotated[str, typer.Argument(help="The prompt's text; '-' reads it from stdin.")],
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
    from p2l_plugins.choice import estimated_input_tokens, explain, request_costs
    from p2l_plugins.files import read_json_object
    from p2l_plugins.prompts import text_bytes
    from p2l_plugins.scorer import P2L

    p2l = P2L.load(bundle)
    text = sys.stdin.read() if prompt == "-" else prompt
    table = read_json_object(costs)
    if not table:
        raise DataError(f"{costs}: the file names no models")
    price = request_costs(table, costs, estimated_input_tokens(text_bytes(text)), output_tokens)
    result = explain(p2l.score([text]), list(table), price, rule, budget, objective, multiplier=multiplier)
    result["fingerprint"] = p2l.fingerprint
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    typer.echo(f"| model | coefficient | {objective} | cost (USD) | share |\n|:---|---:|---:|---:|---:|")
    for row in result["models"]:
        line = f"| {row['model']} | {row['coef']:+.3f} | {row['value']:.1%} | {row['cost']:.6f} | {row['share']:.0%} |"
        typer.echo(line)
    chosen, cost = " or ".join(result["choice"]), result["expected_cost"]
    pace = "" if result["multiplier"] is None else f", multiplier {result['multiplier']:.6g} per USD"
    typer.echo(f"\n{rule}: {chosen}; expected cost {cost:.6f} USD, {objective} {result['value']:.1%}{pace}")
