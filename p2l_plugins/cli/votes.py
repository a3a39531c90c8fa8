"""The commands `p2l votes …`: evaluation logs → votes files and score matrices, and a check of either."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from p2l_plugins.cli.adapters import adapters_too
from p2l_plugins.cli.cache import NamespaceOption, in_cache
from p2l_plugins.console import JsonOption, ModelsOption, NotModelsOption, finite_option, progress, stderr, tell
from p2l_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from p2l_plugins.votes.cleaning import Cleaning
    from p2l_plugins.votes.scores import ScoreMatrix
    from p2l_plugins.votes.tally import OnError, Tally
    from p2l_plugins.votes.votes import Votes

app = typer.Typer(
    cls=adapters_too("p2l.commands.votes"),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make votes files and score matrices, from logs or by asking models, and check them.",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Write here: .jsonl or .parquet.")]
OnErrorOption = Annotated[
    Literal["refuse", "drop"], typer.Option(help="A row with a value that can't be used: refuse the file, or drop it.")
]
Margin = Annotated[float, typer.Option(help="Scores that differ by no more are a tie.", min=0, callback=finite_option)]
Usable = Annotated[float, typer.Option(help="Two equal scores below this are 'tie (bothbad)'.", callback=finite_option)]
MatrixOption = Annotated[bool, typer.Option("--matrix", help="Write a score matrix, not votes.")]
Duplicates = Annotated[
    bool, typer.Option("--drop-duplicates", help="Keep the first of equal votes: prompt, pair and outcome.")
]
ConflictsOption = Annotated[
    Literal["keep", "drop", "majority"], typer.Option(help="Votes on one prompt and pair with different outcomes.")
]
MinVotes = Annotated[int, typer.Option(help="Drop models with fewer votes, until all have as many.", min=0)]
DropModel = Annotated[list[str] | None, typer.Option(help="Drop this model. Repeatable.", metavar="NAME")]
KeepModel = Annotated[list[str] | None, typer.Option(help="Keep only models named so. Repeatable.", metavar="NAME")]
Language = Annotated[list[str] | None, typer.Option(help="Keep only this language. Repeatable.", metavar="NAME")]


@app.command("from-arena")
def from_arena(
    file: Annotated[Path, typer.Argument(help="Rows: .jsonl, .json, .parquet or .csv; '-' is JSONL on stdin.")],
    output: Output,
    not_anonymous: Annotated[
        Literal["keep", "drop"], typer.Option(help="Votes of people who knew the models (column 'anony' is false).")
    ] = "keep",
    on_error: OnErrorOption = "refuse",
    language: Language = None,
    keep_model: KeepModel = None,
    drop_model: DropModel = None,
    conflicts: ConflictsOption = "keep",
    drop_duplicates: Duplicates = False,
    min_votes: MinVotes = 0,
    as_json: JsonOption = False,
) -> None:
    """Arena-style rows: our own columns, LMArena's public data sets, or Kaggle's."""
    from p2l_plugins.votes.arena import COLUMNS, arena_votes

    cleaning = _cleaning(language, keep_model, drop_model, conflicts, drop_duplicates, min_votes)
    with _import(output, on_error, cleaning, as_json) as run:
        votes = arena_votes(run.tally.read(file, COLUMNS), run.tally, not_anonymous=not_anonymous)
    run.finish_votes(votes)


@app.command("from-scores")
def from_scores(
    file: Annotated[
        Path, typer.Argument(help="'prompt' and a numeric column per model, or 'prompt', 'model' and 'score'.")
    ],
    output: Output,
    matrix: MatrixOption = False,
    margin: Margin = 0.0,
    usable: Usable = 0.5,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="A lower score is better.")] = False,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    on_error: OnErrorOption = "refuse",
    keep_model: KeepModel = None,
    drop_model: DropModel = None,
    conflicts: ConflictsOption = "keep",
    drop_duplicates: Duplicates = False,
    min_votes: MinVotes = 0,
    as_json: JsonOption = False,
) -> None:
    """Scores of models on prompts (.jsonl, .json, .parquet, .csv)."""
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.scores import read_matrix

    columns = ModelColumns(tuple(models or ()), tuple(not_models or ()))
    cleaning = _cleaning(None, keep_model, drop_model, conflicts, drop_duplicates, min_votes, matrix)
    with _import(output, on_error, cleaning, as_json) as run:
        scores = read_matrix(run.tally.read(file), run.tally, lower_is_better=lower_is_better, columns=columns)
    run.finish_scores(scores, str(file), matrix, margin, usable)


@app.command("from-lm-eval")
def from_lm_eval(
    output: Output,
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
    on_error: OnErrorOption = "refuse",
    keep_model: KeepModel = None,
    drop_model: DropModel = None,
    conflicts: ConflictsOption = "keep",
    drop_duplicates: Duplicates = False,
    min_votes: MinVotes = 0,
    as_json: JsonOption = False,
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
    cleaning = _cleaning(None, keep_model, drop_model, conflicts, drop_duplicates, min_votes, matrix)
    with _import(output, on_error, cleaning, as_json) as run:
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


@app.command("from-litellm")
def from_litellm(
    file: Annotated[Path, typer.Argument(help="LiteLLM's logs as JSONL; '-' is stdin.")],
    output: Output,
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
    on_error: OnErrorOption = "refuse",
    keep_model: KeepModel = None,
    drop_model: DropModel = None,
    conflicts: ConflictsOption = "keep",
    drop_duplicates: Duplicates = False,
    min_votes: MinVotes = 0,
    as_json: JsonOption = False,
) -> None:
    """LiteLLM's logs with feedback: pairwise winners, or ratings of answers to the same prompt."""
    from p2l_plugins.votes.litellm_logs import litellm_votes, read_feedback
    from p2l_plugins.votes.tally import Tally

    cleaning = _cleaning(None, keep_model, drop_model, conflicts, drop_duplicates, min_votes)
    with _import(output, on_error, cleaning, as_json) as run:
        known = None
        if feedback is not None:
            apart = Tally(on_error)
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


@app.command("from-collected")
def from_collected(
    source: Annotated[
        str,
        typer.Argument(help="The file of 'collect.store', the address of its Redis, or 'redis' for $P2L_CACHE_URL."),
    ],
    output: Output,
    namespace: NamespaceOption = "p2l",
    on_error: OnErrorOption = "refuse",
    keep_model: KeepModel = None,
    drop_model: DropModel = None,
    conflicts: ConflictsOption = "keep",
    drop_duplicates: Duplicates = False,
    min_votes: MinVotes = 0,
    as_json: JsonOption = False,
) -> None:
    """Votes that the router collected from live traffic (p2l_settings.collect); the proxy may go on meanwhile."""
    from p2l_plugins.votes.collected import REDIS, collected_votes, file_rows, is_redis, stream_of, stream_rows

    cleaning = _cleaning(None, keep_model, drop_model, conflicts, drop_duplicates, min_votes)
    with _import(output, on_error, cleaning, as_json) as run:
        if is_redis(source):
            url = None if source == REDIS else source
            rows = in_cache(lambda client: stream_rows(client, namespace, run.tally), url, namespace, "SOURCE")
            votes = collected_votes(rows, run.tally, stream_of(namespace))
        else:
            votes = collected_votes(file_rows(Path(source), run.tally), run.tally, source)
    run.finish_votes(votes)


@app.command("split")
def split_votes(
    file: Annotated[Path, typer.Argument(help="Votes file or score matrix.")],
    train: Annotated[Path, typer.Option(help="Write the side to train on here: .jsonl or .parquet.")],
    test: Annotated[Path, typer.Option(help="Write the held-out side here: .jsonl or .parquet.")],
    fraction: Annotated[
        float, typer.Option("--held-out", help="Fraction of the prompts that is held out.", min=0, max=1)
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the sides that `p2l train` makes: by prompt, so that one prompt's votes stand on one side."""
    from p2l_plugins.files.tables import check_ending
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.output import FORMATS, write_side
    from p2l_plugins.votes.read import read_votes
    from p2l_plugins.votes.votes import held_out

    for path in (train, test):
        check_ending(path, FORMATS)
    if train.absolute() == test.absolute():
        raise ConfigError(f"{train}: --train and --test name the same file; name two")
    votes = read_votes(file, models=ModelColumns(tuple(models or ()), tuple(not_models or ())))
    out = held_out(votes.prompts, fraction, seed)
    sides = {"train": (train, votes.select(~out)), "test": (test, votes.select(out))}
    for name, (_, side) in sides.items():
        if not len(side):
            raise DataError(f"{file}: no vote is left for --{name}: --held-out is {fraction:g} of {len(out)} prompts")
    for path, side in sides.values():
        write_side(path, side)
    result = {
        name: {"file": str(path), "prompts": len(side.prompts), "votes": len(side)}
        for name, (path, side) in sides.items()
    }
    if as_json:
        typer.echo(json.dumps({"held_out": fraction, "seed": seed, **result}, indent=2, ensure_ascii=False))
        return
    for name, row in result.items():
        tell(f"{name}: {row['prompts']} prompts, {row['votes']} votes → {row['file']}")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Votes files or score matrices; several count as one.")],
    held_out: Annotated[
        float | None, typer.Option(help="Describe the split that holds out this fraction of the prompts.", min=0, max=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    against: Annotated[Path | None, typer.Option(help="Look for the prompts of this file, too.")] = None,
    min_votes: Annotated[int, typer.Option(help="List models with fewer votes.", min=0)] = 30,
    usable: Usable = 0.5,
    margin: Margin = 0.0,
    models: ModelsOption = None,
    not_models: NotModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report on votes: outcomes, duplicates, conflicts, coverage, position bias, lengths. Writes nothing."""
    from p2l_plugins.votes import report
    from p2l_plugins.votes.columns import ModelColumns
    from p2l_plugins.votes.read import read_votes

    columns = ModelColumns(tuple(models or ()), tuple(not_models or ()))
    parts = []
    with progress() as bar:
        step = bar.add_task("reading", total=len(files))
        for file in files:
            parts.append(read_votes(file, usable=usable, margin=margin, models=columns))
            bar.advance(step)
    other = None if against is None else report.combined([read_votes(against, usable=usable, margin=margin)])
    result = {
        "files": [
            {"file": str(f), "votes": len(p), "prompts": len(p.prompts)} for f, p in zip(files, parts, strict=True)
        ],
        **report.check(report.combined(parts), min_votes=min_votes, fraction=held_out, seed=seed, against=other),
    }
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else report.to_text(result))


@app.command()
def board(
    files: Annotated[list[Path], typer.Argument(help="Votes files or score matrices; several count as one.")],
    family: Annotated[
        Literal["bt", "bt-tie", "rk", "grk"],
        typer.Option(help="Outcome model; 'grk' says how often an answer is usable, too."),
    ] = "bt-tie",
    intervals: Annotated[
        Literal["sandwich", "bootstrap", "none"], typer.Option(help="95 % intervals: over the prompts that were drawn.")
    ] = "sandwich",
    by: Annotated[
        Literal["category", "language"] | None, typer.Option(help="Also a leaderboard for each of these.")
    ] = None,
    component: Annotated[
        int | None, typer.Option(help="Of models that were never compared: this set, 1 the largest.", min=1)
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show this many models only.", min=1)] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page in HTML here; it needs no other file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw intervals or, by category, a heat map: .png, .svg or .pdf.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what would be printed here; .json: as --json.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    usable: Usable = 0.5,
    margin: Margin = 0.0,
    as_json: JsonOption = False,
) -> None:
    """The leaderboard of the votes themselves, with intervals and ranks; also by category or language."""
    from p2l_plugins.cli.leaderboard import check_paths, show, wants_json, write_text
    from p2l_plugins.files.figures import check_figure
    from p2l_plugins.leaderboards.measured import category_boards, only_connected, votes_board
    from p2l_plugins.votes.read import read_votes
    from p2l_plugins.votes.report import combined

    check_paths(html, plot, output)
    if plot is not None:
        check_figure(plot)
    source = ", ".join(map(str, files))
    read = combined([read_votes(file, usable=usable, margin=margin) for file in files])
    votes = only_connected(read, family, component, source)
    made = (
        votes_board(votes, family, intervals, seed)
        if by is None
        else category_boards(votes, by, family, intervals, seed)
    )
    record = made.to_dict()
    if lone := record.get("one_sided"):
        stderr.print(
            f"{len(lone)} models only won or only lost ({', '.join(lone[:4])}{' …' if len(lone) > 4 else ''}): a weak "
            "prior keeps their coefficients finite",
            style="yellow",
        )
    title = f"Leaderboard of {record['n_votes']:,} votes{f' by {by}' if by else ''}"
    shown = top or (20 if by else None)
    if html is not None:
        write_text(html, made.to_html(title, shown))
    if plot is not None:
        made.plot(plot, title, top or 25)
    note = f"\n\n{record['n_votes']} votes on {record['n_prompts']} prompts, outcome model {family}"
    show(made.to_json() if wants_json(output, as_json) else made.to_markdown(shown) + note, output)


@dataclass
class _Import:
    """A run of an importer: where it writes, what it counts, how it cleans."""

    output: Path
    tally: Tally
    cleaning: Cleaning
    as_json: bool

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


@contextmanager
def _import(output: Path, on_error: OnError, cleaning: Cleaning, as_json: bool) -> Iterator[_Import]:
    """Checks the output's name, and shows rows as they are read."""
    from p2l_plugins.files.tables import check_ending
    from p2l_plugins.votes.output import FORMATS
    from p2l_plugins.votes.tally import Tally

    check_ending(output, FORMATS)
    with progress() as bar:
        step = bar.add_task("reading rows", total=None)
        yield _Import(output, Tally(on_error, lambda n: bar.advance(step, n)), cleaning, as_json)


def _cleaning(
    language: list[str] | None,
    keep_model: list[str] | None,
    drop_model: list[str] | None,
    conflicts: Literal["keep", "drop", "majority"],
    drop_duplicates: bool,
    min_votes: int,
    matrix: bool = False,
) -> Cleaning:
    from p2l_plugins.votes.cleaning import Cleaning

    if matrix and (conflicts != "keep" or drop_duplicates or min_votes):
        raise ConfigError("--conflicts, --drop-duplicates and --min-votes are rules for votes, not for --matrix")
    languages, keep, drop = (tuple(given or ()) for given in (language, keep_model, drop_model))
    return Cleaning(languages, keep, drop, conflicts, drop_duplicates, min_votes)
