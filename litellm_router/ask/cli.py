"""The command `p2l votes ask`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from p2l_plugins.console import JsonOption, progress, stderr
from p2l_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from litellm_router.ask.calls import Models
    from litellm_router.ask.checks import Check
    from litellm_router.ask.plan import Mode
    from litellm_router.ask.questions import Question
    from litellm_router.ask.run import Run


def _show(which: str | None) -> None:
    if which is not None:
        typer.echo(_rubric(None, which == "grades"), nl=False)
        raise typer.Exit


def ask(
    config: Annotated[
        Path, typer.Argument(help="The proxy's config.yaml; with --endpoint there is none.", metavar="CONFIG")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write here: .jsonl or .parquet.")],
    prompts: Annotated[
        Path | None,
        typer.Argument(help="Prompts: .jsonl, .csv, .parquet with a column 'prompt', .txt.", metavar="PROMPTS"),
    ] = None,
    from_logs: Annotated[bool, typer.Option("--from-logs", help="PROMPTS are LiteLLM's logs, as JSONL.")] = False,
    sample: Annotated[
        int | None, typer.Option(help="Ask so many prompts, of as many kinds as there are.", min=1)
    ] = None,
    group: Annotated[str | None, typer.Option(help="Only the models of this group. Default: all that chat.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Compares answers: a model or group of the configuration, or PROVIDER/MODEL.")
    ] = None,
    judges: Annotated[str | None, typer.Option(help="A panel; the majority counts.", metavar="A,B,C")] = None,
    grade: Annotated[
        bool, typer.Option("--grade", help="The judge grades each answer; writes a score matrix.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(help="No judge: exact, regex, json-schema, or FILE.py.", metavar="RULE"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Column with what is right. For --check: 'reference'.", metavar="COLUMN")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="What makes an answer good, for the judge: a text file.")] = None,
    show_rubric: Annotated[
        Literal["pairs", "grades"] | None,
        typer.Option(help="Print the text that judges are given without --rubric.", is_eager=True, callback=_show),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Models that answer each prompt. Default: 3; with --check all.", min=2)
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Spend no more, over all runs.", metavar="USD", min=0)] = None,
    max_calls: Annotated[int | None, typer.Option(help="Make no more calls, over all runs.", min=0)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of an answer, at most.", min=1)] = None,
    expected_tokens: Annotated[int, typer.Option(help="Of an answer, for the estimate.", min=1)] = 500,
    concurrency: Annotated[int, typer.Option(help="Calls at the same time, at most.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds of a call, retries included.", min=0.1)] = 600.0,
    keep_answers: Annotated[
        bool, typer.Option("--keep-answers", help="Keep the answers, in OUTPUT.answers.jsonl and in the journal.")
    ] = False,
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Pay again for answers that were not kept, where one is needed.")
    ] = False,
    human: Annotated[Path | None, typer.Option(help="Votes of people, to compare the judge with.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible gateway instead of CONFIG.", metavar="URL")
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable with its key.", metavar="NAME")] = None,
    models: Annotated[str | None, typer.Option(help="Its models. Default: all it lists.", metavar="A,B,C")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, order and choices.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the first call.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask your own models, have the answers judged, and write votes.

    Each prompt is answered by -k models, chosen for what their comparison tells. A judge sees each pair in both orders;
    where they differ it is a tie. Calls are made through LiteLLM, with the keys, limits and prices of CONFIG. What is
    paid for stands in OUTPUT.journal.jsonl: the same command goes on where the last run ended.
    """
    if endpoint is not None:
        if prompts is not None:
            raise ConfigError("--endpoint takes the place of CONFIG: name PROMPTS only")
        config, prompts = Path(), config
    elif key_env is not None or models is not None:
        raise ConfigError("--key-env and --models are for --endpoint; of a configuration, --group chooses the models")
    if prompts is None:
        raise ConfigError("name the prompts: p2l votes ask CONFIG PROMPTS -o votes.parquet")
    _check_output(output, [*([] if endpoint else [config]), prompts])
    panel = _panel(judge, judges, grade, check)
    mode: Mode = "check" if check else "grades" if grade else "pairs"
    reference = "reference" if check and not check.endswith(".py") and reference is None else reference
    questions = _questions(prompts, from_logs, reference, sample, seed)
    made_check = _checked(check, questions, reference, prompts)
    people = _human(human)
    names, router = _models(config, group, panel, endpoint, key_env, models, timeout)
    if len(names) < 2:
        raise ConfigError(f"there is one model to ask, {names[0]!r}; a comparison needs two" if names else "no model")

    from litellm_router.ask.journal import Journal
    from litellm_router.ask.plan import Costs, Purse, Task
    from litellm_router.ask.run import Run

    answering = min(k or (len(names) if check else 3), len(names))
    text = "" if check else _rubric(rubric, grade)
    task = Task(tuple(names), answering, mode, panel, text, made_check[1] if made_check else "", max_tokens)
    with Journal(journal_of(output)) as journal:
        costs = Costs({name: router.price(name) for name in [*names, *panel]}, task, expected_tokens)
        if budget is not None and costs.unpriced:
            raise ConfigError(
                f"--budget needs the price of {', '.join(costs.unpriced)}: set input_cost_per_token and "
                "output_cost_per_token in CONFIG, or use --max-calls"
            )
        purse = Purse(budget, max_calls, lambda: (journal.spent, journal.calls))
        run = Run(task, questions, router, journal, costs, purse, made_check and made_check[0], ask_again, seed)
        _begin(run, output, keep_answers, budget, max_calls, yes)
        try:
            _go(run, concurrency)
        finally:
            _write(run, output, keep_answers)
        _finish(run, output, keep_answers, people, as_json)


def journal_of(output: Path) -> Path:
    """Where the journal of an output stands."""
    return output.with_name(f"{output.name}.journal.jsonl")


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    from p2l_plugins.files.tables import check_ending
    from p2l_plugins.votes.output import FORMATS

    check_ending(output, FORMATS)
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name a file")
    if any(output.exists() and one.exists() and output.samefile(one) for one in inputs):
        raise ConfigError(f"-o {output} would replace what is read; name another file")


def _panel(judge: str | None, judges: str | None, grade: bool, check: str | None) -> tuple[str, ...]:
    """The judges, each once."""
    named = _names(judges) if judges else [judge] if judge else []
    if judge and judges:
        raise ConfigError("--judge and --judges exclude each other")
    if check and (named or grade):
        raise ConfigError("--check takes the place of a judge: leave out --judge, --judges and --grade")
    if not check and not named:
        raise ConfigError("name who judges: --judge MODEL, --judges A,B,C, or a rule with --check exact|regex|…")
    return tuple(dict.fromkeys(named))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{text!r} names no model")
    return names


def _rubric(path: Path | None, grade: bool) -> str:
    from litellm_router.ask.judge import default_rubric
    from p2l_plugins.files.tables import need_file

    if path is None:
        return default_rubric(grade)
    need_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise DataError(f"{path}: the rubric is empty")
    return text


def _questions(path: Path, from_logs: bool, reference: str | None, count: int | None, seed: int) -> list[Question]:
    from litellm_router.ask.questions import in_order, read_logs, read_questions, sampled
    from p2l_plugins.votes.tally import Tally

    if from_logs:
        tally = Tally()
        found = read_logs(path, tally)
        for line in tally.lines():
            stderr.print(line, markup=False, soft_wrap=True)
    else:
        found = read_questions(path, reference)
    return in_order(found if count is None else sampled(found, count, seed), seed)


def _checked(
    name: str | None, questions: Sequence[Question], column: str | None, path: Path
) -> tuple[Check, str] | None:
    from litellm_router.ask.checks import check_of, need_references

    if name is None:
        return None
    check, digest = check_of(name)
    if column is not None:
        need_references(questions, check if not name.endswith(".py") else None, column, path)
    return check, digest


def _human(path: Path | None) -> Any:
    from p2l_plugins.votes.read import read_votes

    return None if path is None else read_votes(path)


def _models(
    config: Path,
    group: str | None,
    panel: Sequence[str],
    endpoint: str | None,
    key_env: str | None,
    models: str | None,
    timeout: float,
) -> tuple[list[str], Models]:
    if endpoint is None:
        from p2l_plugins.votes.litellm_config import read_config_models

        read_config_models(
            config, group
        )  # what is wrong with it is said before LiteLLM, which takes seconds, is imported
    from litellm_router.ask.calls import of_config, of_endpoint

    if endpoint is None:
        return of_config(config, group, panel, timeout)
    key = os.environ.get(key_env) if key_env else None
    if key_env and not key:
        raise ConfigError(f"--key-env {key_env}: there is no such environment variable")
    return of_endpoint(endpoint, key, _names(models) if models else [], panel, timeout)


def _begin(run: Run, output: Path, keep_answers: bool, budget: float | None, max_calls: int | None, yes: bool) -> None:
    """Says what is about to happen, and asks."""
    task = run.task
    cost, calls, prompts = run.remaining()
    lines = []
    if run.journal:
        lines.append(f"{run.journal.calls} calls for USD {run.journal.spent:.4f} are in {run.journal.path}")
    if not calls:
        lines.append("nothing is left to ask")
    else:
        lines.append(f"up to {calls} calls for {prompts} prompts, {task.k} of {len(task.models)} models each")
        unpriced = run.costs.unpriced
        about = f"about USD {cost:.2f}" + (f", without {', '.join(unpriced)}: no known price" if unpriced else "")
        limits = [f"USD {budget:g}"] if budget is not None else []
        limits += [f"{max_calls} calls"] if max_calls is not None else []
        lines.append(about + (f"; limited to {' or '.join(limits)} over all runs" if limits else ""))
        lines += [f"prompts go to {name} at {', '.join(run.models.places(name))}" for name in task.models]
        lines += [
            f"prompts and answers go to the judge {one} at {', '.join(run.models.places(one))}" for one in task.judges
        ]
        lines += [f"{name} is not set" for name in run.models.missing_keys()]
        kept = "are kept there" if keep_answers else "are deleted there when all is judged"
        lines.append(f"what is paid for is written to {run.journal.path}; answers {kept}")
    for line in lines:
        stderr.print(line, markup=False, soft_wrap=True)
    if calls and not yes:
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask on; --yes makes the calls without a question")
        typer.confirm("Ask?", abort=True, err=True)


def _go(run: Run, concurrency: int) -> None:
    with progress() as bar:
        line = bar.add_task("asking", total=len(run.questions))

        def step() -> None:
            bar.update(line, advance=1, description=f"asking, USD {run.journal.spent:.4f}")

        asyncio.run(run.run(concurrency, step, lambda text: stderr.print(text, markup=False, soft_wrap=True)))


def _write(run: Run, output: Path, keep_answers: bool) -> None:
    """Writes the votes or scores that there are."""
    from litellm_router.ask.files import write_answers, write_scores, write_votes_of

    if run.task.mode == "pairs":
        write_votes_of(run.known, output)
    else:
        write_scores(run.known, output)
    if keep_answers:
        write_answers(run.known, output.with_name(f"{output.name}.answers.jsonl"))


def _finish(run: Run, output: Path, keep_answers: bool, human: Any, as_json: bool) -> None:
    from litellm_router.ask.report import report, to_markdown

    made = report(run, human) | {"output": str(output), "journal": str(run.journal.path)}
    typer.echo(json.dumps(made, indent=2, ensure_ascii=False) if as_json else f"{to_markdown(made)} → {output}")
    if run.stopped is not None:
        stderr.print(
            f"stopped: all that was paid for is in {run.journal.path}, answers too; the same command goes on",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(128 + run.stopped)
    if run.limited:
        stderr.print("the limit is reached: the same command with a higher one goes on", markup=False, soft_wrap=True)
    if not keep_answers:
        run.journal.forget_answers(run.unfinished())
