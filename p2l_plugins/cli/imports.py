"""The commands `p2l votes from-…`: evaluation logs → votes files and score matrices."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from p2l_plugins.cli.cache import NamespaceOption, in_cache
from p2l_plugins.console import JsonOption, ModelsOption, NotModelsOption, finite_option, progress, stderr, tell
from p2l_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from p2l_plugins.votes.cleaning import Cleaning
    from p2l_plugins.votes.scores import ScoreMatrix
    from p2l_plugins.votes.tally import Tally
    from p2l_plugins.votes.votes import Votes

Margin = Annotated[float, typer.Option(help="Scores that differ by no more are a tie.", min=0, callback=finite_option)]
Usable = Annotated[float, typer.Option(help="Two equal scores below this are 'tie (bothbad)'.", callback=finite_option)]
MatrixOption = Annotated[bool, typer.Option("--matrix", help="Write a score matrix, not votes.")]


@dataclass
class Import:
    """A run of an importer: where it writes, what it counts, how it cleans."""

    output: Path
    tally: Tally
    cleaning: Cleaning
    as_json: bool

    def check(self, matrix: bool) -> None:
        """Raises a ConfigError where a rule for votes is given for a matrix."""
        rules = self.cleaning
        if matrix and (rules.conflicts != "keep" or rules.drop_duplicates or rules.min_votes):
            raise ConfigError("--conflicts, --drop-duplicates and --min-votes are rules for votes, not for --matrix")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Shows rows as they are read."""
        with progress() as bar:
            step = bar.add_task("reading rows", total=None)
            self.tally.progress = lambda n: bar.advance(step, n)
            yield

    def finish_votes(self, votes: Votes) -> None:
        """Cleans and writes votes."""
        from p2l_plugins.votes.cleaning import clean_votes
        from p2l_plugins.votes.output import write_votes

        votes = clean_votes(votes, self.cleaning, self.tally)
        write_votes(self.output, votes, self.tally)
        self._report(votes.summary(), votes.voted_models, "{votes} votes on {prompts} prompts, {models} models")

    def finish_scores(self, scores: ScoreMatrix, source: str, matrix: bool, margin: float, usable: float) -> None:
        """Writes a matrix, or the votes that follow from it."""
        from p2l_plugins.votes.output import write_matrix
        from p2l_plugins.votes.scores import check_matrix

        check_matrix(scores, source)
        if not matrix:
            self.finish_votes(scores.votes(margin, usable, self.tally))
            return
        scores = scores.only(self.cleaning.keep_models, self.cleaning.drop_models)
        check_matrix(scores, source)
        if negated := int(scores.lower.sum()):
            self.tally.note(f"{negated} prompts, where a lower score is better, have their scores negated")
        write_matrix(self.output, scores)
        self._report(scores.summary(), scores.models, "{prompts} prompts × {models} models, {scores} scores")

    def _report(self, summary: Mapping[str, Any], models: Sequence[str], line: str) -> None:
        """The rules' table, the notes and the models' names on stderr, the summary on stdout."""
        for text in [*self.tally.lines(), f"models: {', '.join(models)}"]:
            stderr.print(text, markup=False, soft_wrap=True)
        if self.as_json:
            result = {"rows": self.tally.rows, **summary, "dropped": dict(self.tally.dropped)}
            result |= {"notes": self.tally.notes, "model_names": list(models), "output": str(self.output)}
            typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        else:
            tell(f"{line.format(**summary)} → {self.output}")


def _begun(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write here: .jsonl or .parquet.")],
    on_error: Annotated[
        Literal["refuse", "drop"],
        typer.Option(help="A row with a value that can't be used: refuse the file, or drop it."),
    ] = "refuse",
    language: Annotated[
        list[str] | None, typer.Option(help="Keep only this language. Repeatable.", metavar="NAME")
    ] = None,
    keep_model: Annotated[
        list[str] | None, typer.Option(help="Keep only models named so. Repeatable.", metavar="NAME")
    ] = None,
    drop_model: Annotated[list[str] | None, typer.Option(help="Drop this model. Repeatable.", metavar="NAME")] = None,
    conflicts: Annotated[
        Literal["keep", "drop", "majority"],
        typer.Option(help="Votes on one prompt and pair with different outcomes."),
    ] = "keep",
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep the first of equal votes: prompt, pair and outcome.")
    ] = False,
    min_votes: Annotated[int, typer.Option(help="Drop models with fewer votes, until all have as many.", min=0)] = 0,
    as_json: JsonOption = False,
) -> Import:
    """The run of the options that all importers have, after a look at the output's name."""
    from p2l_plugins.files.tables import check_ending
    from p2l_plugins.votes.cleaning import Cleaning
    from p2l_plugins.votes.output import FORMATS
    from p2l_plugins.votes.tally import Tally

    check_ending(output, FORMATS)
    languages, keep, drop = (tuple(given or ()) for given in (language, keep_model, drop_model))
    cleaning = Cleaning(languages, keep, drop, conflicts, drop_duplicates, min_votes)
    return Import(output, Tally(on_error), cleaning, as_json)


def importer(*, languages: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function that imports: the options of `_begun` stand for its first argument, the run.

    Args:
        languages: rows may have a language.
    """
    shared = [one for one in _parameters(_begun) if languages or one.name != "language"]

    def command_of(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            begun = _begun(**{one.name: given.pop(one.name) for one in shared})
            begun.check(given.get("matrix", False))
            command(begun, **given)

        (output, *others), (_, *own) = shared, _parameters(command)
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (output, *own, *others)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return command_of


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


@importer(languages=True)
def from_arena(
    run: Import,
    file: Annotated[Path, typer.Argument(help="Rows: .jsonl, .json, .parquet or .csv; '-' is JSONL on stdin.")],
    not_anonymous: Annotated[
        Literal["keep", "drop"], typer.Option(help="Votes of people who knew the models (column 'anony' is false).")
    ] = "keep",
) -> None:
    """Arena-style rows: our own columns, LMArena's public data sets, or Kaggle's."""
    from p2l_plugins.votes.arena import COLUMNS, arena_votes

    with run.reading():
        votes = arena_votes(run.tally.read(file, COLUMNS), run.tally, not_anonymous=not_anonymous)
    run.finish_votes(votes)


@importer()
def from_scores(
    run: Import,
    file: Annotated[
        Path, typer.Argument(help="'prompt' and a numeric column per model, or 'prompt', 'model' and 'score'.")
    ],
    matrix: MatrixOption = False,
    margin: Margin = 0.0,
    usable: Usable = 0.5,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="A lower score is better.")] = False,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
) -> None:
    """Scores of models on prompts (.jsonl, .json, .parquet, .csv)."""
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.scores import read_matrix

    columns = ModelColumns(tuple(models or ()), tuple(not_models or ()))
    with run.reading():
        scores = read_matrix(run.tally.read(file), run.tally, lower_is_better=lower_is_better, columns=columns)
    run.finish_scores(scores, str(file), matrix, margin, usable)


@importer()
def from_lm_eval(
    run: Import,
    folders: Annotated[
        list[Path] | None, typer.Argument(help="What lm_eval wrote with --log_samples: folders of one model or more.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A folder, and the name of its model. Repeatable.", metavar="NAME=FOLDER")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric; the first of several that a task has.", metavar="NAME")
    ] = None,
    filter_: Annotated[
        list[str] | None, typer.Option("--filter", help="Filter; the first of several that a task has.", metavar="NAME")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task. Repeatable.", metavar="NAME")] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Field of the document that holds the prompt.", metavar="FIELD")
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="Jinja over the fields of the document.", metavar="TEMPLATE")
    ] = None,
    higher_is_better: Annotated[
        list[str] | None,
        typer.Option(help="A metric: a higher value of a document is better. Repeatable.", metavar="NAME"),
    ] = None,
    lower_is_better: Annotated[
        list[str] | None,
        typer.Option(help="A metric: a lower value of a document is better. Repeatable.", metavar="NAME"),
    ] = None,
    min_models: Annotated[
        int | None, typer.Option(help="Take documents that so many models ran. Default: all models.", min=1)
    ] = None,
    matrix: MatrixOption = False,
    margin: Margin = 0.0,
    usable: Usable = 0.5,
) -> None:
    """Sample logs of lm-evaluation-harness, of several models on the same tasks."""
    from p2l_plugins.votes.lmeval_logs import Selection, find_samples, lm_eval_matrix
    from p2l_plugins.votes.lmeval_prompts import PromptRule, compiled

    named: list[tuple[str | None, Path]] = [(None, folder) for folder in folders or []]
    for entry in model or []:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"--model {entry!r} is not NAME=FOLDER")
        named.append((name, Path(folder)))
    if not named:
        raise ConfigError("name at least one folder, or --model NAME=FOLDER")
    if prompt_field is not None and prompt_template is not None:
        raise ConfigError("--prompt-field and --prompt-template exclude each other")
    rule = PromptRule(prompt_field, None if prompt_template is None else compiled(prompt_template))
    higher, lower = tuple(higher_is_better or ()), tuple(lower_is_better or ())
    if both := set(higher) & set(lower):
        raise ConfigError(f"{min(both)!r} can't be both --higher-is-better and --lower-is-better")
    selection = Selection(tuple(metric or ()), tuple(filter_ or ()), tuple(task or ()), higher, lower, min_models)
    with run.reading():
        files = find_samples(named, run.tally)
        models = list(dict.fromkeys(found.model for found in files))
        if len(models) < 2:
            raise DataError(
                f"all samples are of the model {models[0]!r}; two at least are needed: add a folder, or tell runs "
                "apart with --model NAME=FOLDER"
            )
        scores = lm_eval_matrix(files, rule, selection, run.tally)
    source = ", ".join(str(folder) for _, folder in named)
    if not scores.prompts:
        raise DataError(
            f"{source}: there is no document that enough models ran; dropped: {run.tally.dropped_text()}; "
            "--min-models N asks for fewer"
        )
    run.finish_scores(scores, source, matrix, margin, usable)


@importer()
def from_litellm(
    run: Import,
    file: Annotated[Path, typer.Argument(help="LiteLLM's logs as JSONL; '-' is stdin.")],
    feedback: Annotated[
        Path | None, typer.Option(help="Feedback in a file of its own, joined by id, request_id, … or trace_id.")
    ] = None,
    name_by: Annotated[
        Literal["model", "model_group", "model_id"],
        typer.Option(help="The key that names the model of a rated answer."),
    ] = "model",
    max_score: Annotated[float, typer.Option(help="The best rating, where ratings are numbers.", min=1e-9)] = 1.0,
    margin: Margin = 0.0,
    usable: Usable = 0.5,
) -> None:
    """LiteLLM's logs with feedback: pairwise winners, or ratings of answers to the same prompt."""
    from p2l_plugins.votes.litellm_logs import litellm_votes, read_feedback
    from p2l_plugins.votes.tally import Tally

    with run.reading():
        known = None
        if feedback is not None:
            apart = Tally(run.tally.on_error)
            known = read_feedback(apart.read(feedback), apart)
            run.tally.dropped.update(apart.dropped)
        votes = litellm_votes(
            run.tally.read(file),
            run.tally,
            feedback=known,
            name_by=name_by,
            max_score=max_score,
            margin=margin,
            usable=usable,
        )
    run.finish_votes(votes)


@importer()
def from_collected(
    run: Import,
    source: Annotated[
        str,
        typer.Argument(help="The file of 'collect.store', the address of its Redis, or 'redis' for $P2L_CACHE_URL."),
    ],
    namespace: NamespaceOption = "p2l",
) -> None:
    """Votes that the router collected from live traffic (p2l_settings.collect); the proxy may go on meanwhile."""
    from p2l_plugins.votes.collected import REDIS, collected_votes, file_rows, is_redis, stream_of, stream_rows

    with run.reading():
        if is_redis(source):
            url = None if source == REDIS else source
            rows = in_cache(lambda client: stream_rows(client, namespace, run.tally), url, namespace, "SOURCE")
            votes = collected_votes(rows, run.tally, stream_of(namespace))
        else:
            votes = collected_votes(file_rows(Path(source), run.tally), run.tally, source)
    run.finish_votes(votes)


COMMANDS = (from_arena, from_scores, from_lm_eval, from_litellm, from_collected)
