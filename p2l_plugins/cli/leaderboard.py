"""Commands on the leaderboard of a set of prompts: leaderboard, strengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from p2l_plugins.console import PROMPTS, BundleArg, JsonOption, PromptsArg, progress, stderr
from p2l_plugins.errors import ConfigError, DataError

if TYPE_CHECKING:
    from p2l_plugins.leaderboards.categories import CategoryBoards
    from p2l_plugins.leaderboards.leaderboard import Leaderboard
    from p2l_plugins.prompts import Prompt
    from p2l_plugins.scoring.scorer import P2L, Scores

ByOption = Annotated[str | None, typer.Option("--by", help="Column with a category: one leaderboard for each.")]
DiscoverOption = Annotated[
    int | None, typer.Option("--discover", help="Find so many topics in the prompts' words, in place of --by.", min=2)
]
FieldOption = Annotated[
    str, typer.Option("--prompt-field", help="Column that holds the prompt: text or a conversation.", metavar="COLUMN")
]
ClustersOption = Annotated[
    str | None,
    typer.Option("--clusters", help="Column that says which prompts belong together (a user, a conversation)."),
]
OpponentsOption = Annotated[
    str | None, typer.Option("--opponents", help="Win rates against these models only, separated by commas.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the intervals and the topics.", min=0)]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write a page in HTML here; it needs no other file.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write what would be printed here; .json: as --json.")
]


def leaderboard(
    bundle: BundleArg,
    prompts: Annotated[Path | None, PROMPTS] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            help="In place of PROMPTS: the own board of a user, from the cache ($P2L_CACHE_URL, $P2L_CACHE_SECRET).",
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="First part of the cache's keys, for --user.")] = "p2l",
    top: Annotated[int | None, typer.Option(help="Show this many models only.", min=1)] = None,
    by: ByOption = None,
    discover: DiscoverOption = None,
    clusters: ClustersOption = None,
    prompt_field: FieldOption = "prompt",
    opponents: OpponentsOption = None,
    against: Annotated[
        Path | None, typer.Option(help="Show the win rates' difference from this leaderboard, printed by --json.")
    ] = None,
    html: HtmlOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw intervals or, by category, a heat map: .png, .svg or .pdf.")
    ] = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """The aggregate leaderboard of a set of prompts, with intervals over prompts; also by category."""
    from p2l_plugins.files.figures import check_figure
    from p2l_plugins.files.tables import read_json_object

    if (prompts is None) == (user is None):
        raise ConfigError("give the prompts of the leaderboard, or --user for the own board of a user")
    if against is not None and (by or discover):
        raise ConfigError("--against compares one leaderboard; by category the reference is that of all prompts")
    if user is not None and (by or discover or clusters or opponents or prompt_field != "prompt"):
        raise ConfigError(
            "--user shows one board as it is kept: no --by, --discover, --clusters, --prompt-field or --opponents"
        )
    if plot is not None:
        check_figure(plot)
    check_paths(html, plot, output)
    reference = None if against is None else read_json_object(against)
    board: Leaderboard | CategoryBoards
    shown = top
    if prompts is None:
        board = _of_user(bundle, user or "", namespace)
        title, note = "Leaderboard of a user", f"\n\n{board.n_prompts} prompts, recent ones counting more"
    else:
        with _scored(bundle, prompts, by, discover, clusters, seed, prompt_field) as (p2l, parents, chunks):
            q = _opponents(p2l, opponents)
            board = _by_category(p2l, parents, chunks, q, seed) if by or discover else _of_all(p2l, chunks, q, seed)
        kind = f" by {by}" if by else " by topic" if discover else ""
        n = board.to_dict()["n_prompts"]
        title = f"Leaderboard{kind}: {n:,} prompts, bundle {p2l.bundle.manifest.name}"
        note, shown = ("", top or 20) if kind else (f"\n\n{n} prompts", top)
    if reference is not None:
        board = cast("Leaderboard", board).against(reference, str(against))
    if html is not None:
        write_text(html, board.to_html(title, shown))
    if plot is not None:
        board.plot(plot, title, top or 25)
    show(board.to_json() if wants_json(output, as_json) else board.to_markdown(shown) + note, output)


def _of_all(p2l: P2L, chunks: Iterator[_Chunk], opponents: dict[str, float] | None, seed: int) -> Leaderboard:
    from p2l_plugins.leaderboards.leaderboard import Leaderboard
    from p2l_plugins.leaderboards.pair_means import BLOCKS, Blocks, PairMeans

    means, blocks = PairMeans(p2l.family, len(p2l.models), BLOCKS), Blocks(BLOCKS, seed)
    for chunk in chunks:
        means.add(chunk.scores.coefs, chunk.scores.raw_eta, blocks.deal(len(chunk.scores), chunk.groups))
    board = Leaderboard.from_means(p2l.models, means, p2l.ungrounded, opponents)
    if board.intervals is None:
        stderr.print("no intervals: the prompts are a single unit", style="yellow")
    return replace(board, support=p2l.support)


def _by_category(
    p2l: P2L,
    parents: dict[str, tuple[str, ...]],
    chunks: Iterator[_Chunk],
    opponents: dict[str, float] | None,
    seed: int,
) -> CategoryBoards:
    from p2l_plugins.leaderboards.categories import CategoryMeans

    means = CategoryMeans(p2l.models, p2l.family, p2l.ungrounded, seed)
    for chunk in chunks:
        means.add(chunk.scores.coefs, chunk.scores.raw_eta, chunk.categories, chunk.groups)
    return means.boards(opponents, parents).with_support(p2l.support)


def strengths(
    bundle: BundleArg,
    prompts: PromptsArg,
    model: Annotated[str, typer.Option("--model", help="Whose strengths and weaknesses; a name or an alias.")],
    by: ByOption = None,
    discover: DiscoverOption = None,
    clusters: ClustersOption = None,
    prompt_field: FieldOption = "prompt",
    opponents: OpponentsOption = None,
    examples: Annotated[int, typer.Option(help="Prompts at either end.", min=1, max=100)] = 5,
    html: HtmlOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Where a model gains and loses most against the overall leaderboard: categories and prompts, with alternatives.

    The report quotes prompts of your file.
    """
    from p2l_plugins.leaderboards.categories import CategoryMeans
    from p2l_plugins.leaderboards.strengths import StrengthsOf

    check_paths(html, output)
    with _scored(bundle, prompts, by, discover, clusters, seed, prompt_field) as (p2l, parents, chunks):
        means = CategoryMeans(p2l.models, p2l.family, p2l.ungrounded, seed)
        found = StrengthsOf(means, p2l.index(model), examples, _opponents(p2l, opponents))
        for chunk in chunks:
            found.add(chunk.prompts, chunk.scores, chunk.categories, chunk.groups)
        report = found.report(parents)
    if html is not None:
        write_text(html, report.to_html())
    show(report.to_json() if wants_json(output, as_json) else report.to_markdown(), output)


class _Chunk(NamedTuple):
    prompts: list[Prompt]
    scores: Scores
    categories: list[str | None]
    groups: list[str | None] | None


@contextmanager
def _scored(
    bundle: str, prompts: Path, by: str | None, discover: int | None, clusters: str | None, seed: int, field: str
) -> Iterator[tuple[P2L, dict[str, tuple[str, ...]], Iterator[_Chunk]]]:
    """The bundle, the tree of discovered topics, and the scored prompts chunk by chunk, with a progress bar."""
    from p2l_plugins.files.prompts import PromptFile, label, local_file
    from p2l_plugins.leaderboards.categories import MAX_CATEGORIES
    from p2l_plugins.scoring.scorer import P2L

    if by and discover:
        raise ConfigError("--by takes categories from a column, --discover finds them: choose one")
    with local_file(prompts) as path, progress() as bar:
        file = PromptFile(path, [column for column in (by, clusters) if column], str(prompts), field)
        found = file.scan(file.columns[1:], MAX_CATEGORIES)
        if by:
            values = list(found.values[by])
            if len(values) > MAX_CATEGORIES:
                raise DataError(f"{prompts}: column {by!r} holds more than {MAX_CATEGORIES} categories; merge some")
            if len(values) < 2:
                what = f"one category only, {values[0]!r}" if values else "no category"
                raise DataError(f"{prompts}: column {by!r} holds {what}; --by needs at least two")
        topics = None
        if discover:
            from p2l_plugins.leaderboards.topics import SAMPLE, Topics

            stride = -(-found.prompts // SAMPLE)
            everyone = (prompt for chunk in file.chunks() for prompt in chunk[field])
            topics = Topics(list(itertools.islice(everyone, 0, None, stride)), discover, seed)
        p2l = P2L.load(bundle)
        task = bar.add_task("scoring", total=found.prompts)

        def chunks() -> Iterator[_Chunk]:
            for chunk in file.chunks():
                texts = chunk[field]
                categories = topics.of(texts) if topics else map(label, chunk[by] if by else [None] * len(texts))
                groups = list(map(label, chunk[clusters])) if clusters else None
                scores = p2l.score(texts, progress=lambda n: bar.advance(task, n))
                yield _Chunk(texts, scores, list(categories), groups)

        yield p2l, topics.parents if topics else {}, chunks()


def _of_user(bundle: str, user: str, namespace: str) -> Leaderboard:
    from p2l_plugins.cache.value import Unreadable
    from p2l_plugins.cli.cache import in_cache, own_secret
    from p2l_plugins.leaderboards.personal import leaderboard_of
    from p2l_plugins.leaderboards.user_store import read_board, user_key
    from p2l_plugins.scoring.bundle import Bundle, find_bundle

    manifest = Bundle.open(find_bundle(bundle)).manifest
    secret = own_secret()
    key = user_key(user, secret, namespace)
    try:
        board = in_cache(
            lambda client: read_board(client, key, manifest.fingerprint, len(manifest.models), secret), None, namespace
        )
    except Unreadable as why:
        raise DataError(f"the board of this user can't be read ({why}); `p2l cache forget-user` removes it") from None
    if board is None:
        raise DataError(f"nothing is kept of this user for the bundle {manifest.name} ({manifest.fingerprint})")
    return leaderboard_of(board, manifest.family, manifest.models, manifest.ungrounded_models)


def _opponents(p2l: P2L, names: str | None) -> dict[str, float] | None:
    if names is None:
        return None
    chosen = {p2l.models[p2l.index(name.strip())]: 1.0 for name in names.split(",") if name.strip()}
    if not chosen:
        raise ConfigError(f"--opponents is {names!r}: name at least one model")
    return chosen


def check_paths(*paths: Path | None) -> None:
    """Refuses files whose folder is not there; None is no file."""
    from p2l_plugins.files.tables import need_folder

    for path in paths:
        if path is not None:
            need_folder(path)


def wants_json(output: Path | None, as_json: bool) -> bool:
    """Whether JSON is asked for, by the switch or by the ending of the output."""
    return as_json or (output is not None and output.suffix == ".json")


def show(text: str, output: Path | None) -> None:
    """Prints a text, or writes it to a file."""
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text; the file is there whole, or as it was."""
    from p2l_plugins.files.tables import replaced_file

    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
