"""The report of an adoption as markdown and as a page in HTML. No prompt's text is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path

from onnx_export.adopt import Adoption
from onnx_export.adopt_figures import HORIZON, Policy, Tuned
from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.evaluation.figures import cost_score_figure
from p2l_plugins.evaluation.gains import Gain
from p2l_plugins.evaluation.report import number, with_error
from p2l_plugins.leaderboards.categories import MAX_CATEGORIES, CategoryBoards, CategoryMeans
from p2l_plugins.leaderboards.html import board_table, html_table, page
from p2l_plugins.leaderboards.leaderboard import Leaderboard, aggregate
from p2l_plugins.leaderboards.pair_means import BLOCKS
from p2l_plugins.leaderboards.tables import INTERACTION, by_category, interaction, markdown_table
from p2l_plugins.outcomes import Family

Table = tuple[str, list[str], list[list[str]]]

_FOLDS = "Five folds by prompt; ± is one standard error by prompt."


def verdict(found: Adoption) -> list[str]:
    """What the bundle does and why, in sentences."""
    figures, choice = found.figures, found.choice
    gain = choice.promising.gain
    lines = []
    tuned = found.tuned
    if tuned is not None and tuned.taken:
        lines.append(
            f"Routing by prompt with the fine-tuned backbone scores {_gain(tuned.gain)} more than taking the best "
            f"model, on {tuned.prompts} prompts that it was not trained on: the bundle routes with it, trained on all."
        )
    elif found.kind == "routes":
        lines.append(
            f"Routing by prompt scores {_gain(choice.chosen.gain)} more than always taking {figures.best_single} "
            "(cross-validated): the bundle routes."
        )
    else:
        shown = f"{_gain(gain)}, cross-validated" if gain.known else "too few votes compare the two to say"
        lines.append(f"Routing by prompt gains nothing yet over always taking {found.best} ({shown}).")
    if found.kind == "single":
        lines.append(
            f"The bundle always takes {found.best}: its models differ by a level only, and cheaper ones are used where "
            "a rule limits the cost."
        )
    if tuned is not None and not tuned.taken:
        lines.append(
            f"Fine-tuning the backbone is not certain to be better, so it was not taken (log loss "
            f"{tuned.log_loss:.4f} beside {tuned.frozen_log_loss:.4f} on {tuned.prompts} prompts)."
        )
    if figures.saves is not None:
        budget, share = figures.saves
        lines.append(
            f"With rule: paced and budget: {budget:.3g} (USD per request) it keeps the score of {figures.best_single} "
            f"at {share:.0%} of its cost (cross-validated)."
        )
    if found.kind != "routes":
        lines.append(_more(found))
    return lines


def _more(found: Adoption) -> str:
    more = found.figures.more
    if more == 0:
        return (
            "The gain is there, but votes on other prompts do not yet confirm it by log loss; more prompts will tell."
        )
    if not found.figures.followed:
        return (
            "These votes do not say how many more prompts would show a gain: too few of them compare two models where "
            "a choice by prompt would differ."
        )
    if more is None:
        return (
            f"By its learning curve, {HORIZON} times as many prompts of this kind would not show a gain: on them, no "
            "model is better than the best one where the bundle's backbone can tell."
        )
    return f"By its learning curve, about {more:,} more prompts with as many votes each would show a gain."


def tables(found: Adoption) -> list[Table]:
    """(title, heads, rows) of the figures."""
    figures = found.figures
    losses = [
        [f.name, with_error(f.log_loss, f.stderr, False), with_error(f.difference, f.difference_stderr)]
        for f in figures.forecasts
    ]
    routed = [_policy(p) for p in figures.policies]
    curve = [[str(p.prompts), _gain(p.gain), with_error(p.told, p.told_stderr)] for p in figures.curve]
    tried = [
        [
            f"{fit.strength.common:g}",
            "own" if fit.strength.own else "mean",
            f"{fit.strength.differ:g}" if fit.strength.differ else "level only",
            number(float(fit.loss.sum()) / found.counted_weight),
            _gain(fit.gain),
            "chosen" if fit is found.choice.chosen else "",
        ]
        for fit in found.choice.tried
    ]
    first: list[Table] = [] if found.tuned is None else [_tuned(found.tuned)]
    return [
        *first,
        ("Routed score", ["policy", "score", "over best single", "prompts it differs on"], routed),
        ("Log loss of the votes", ["forecast", "log loss", "less the marginal's"], losses),
        ("Learning curve", ["prompts fitted to", "gain in routing", "gain in log loss over levels"], curve),
        ("Strengths tried", ["common", "rows start from", "differ", "log loss", "gain in routing", ""], tried),
    ]


def _tuned(tuned: Tuned) -> Table:
    heads = ["backbone", "log loss", "less the frozen one's", "gain in routing", "over the frozen one"]
    less = with_error(-tuned.less, tuned.less_stderr)
    rows = [
        ["fine-tuned", number(tuned.log_loss), less, _gain(tuned.gain), _gain(tuned.over)],
        ["frozen", number(tuned.frozen_log_loss), "", _gain(tuned.frozen_gain), ""],
    ]
    said = f"Backbone, on {tuned.prompts} prompts of {tuned.folds} of five folds that neither was fitted to"
    return said, heads, rows


def board(found: Adoption, family: Family) -> Leaderboard:
    """The predicted leaderboard of the votes' prompts, with intervals over prompts."""
    floating = frozenset(name for name in found.floating if name in found.evidence.models)
    return aggregate(found.evidence.models, family, found.coefs, found.raw_eta, floating, blocks=BLOCKS)


def by_label(found: Adoption, family: Family, labels: Sequence[str]) -> CategoryBoards | None:
    """Leaderboards per category or topic, by the fit of the lowest log loss; None with fewer than two."""
    distinct = {label for label in labels if label}
    if not 2 <= len(distinct) <= MAX_CATEGORIES:
        return None
    means = CategoryMeans(found.evidence.models, family, frozenset(found.floating))
    means.add(found.apart_coefs, found.apart_raw_eta, [label or None for label in labels])
    return means.boards()


def write_report(found: Adoption, family: Family, folder: Path, labels: Sequence[str], title: str) -> None:
    """Writes report.md, report.html and, with costs and matplotlib, cost.png into a folder.

    Args:
        labels: (P,) category or topic of each prompt; empty where it has none.
        title: of the report.
    """
    whole = board(found, family)
    parts = by_label(found, family, labels)
    record = whole.to_dict()
    lines = [*verdict(found), *_counts(found)]
    markdown = [f"# {escaped(title)}", *map(escaped, lines), "## Leaderboard", markdown_table(record)]
    body = [*(f"<p>{escape(line)}</p>" for line in lines)]
    body += ["<h2>Leaderboard</h2>", board_table(record, None)]
    listed = tables(found)
    if parts is not None:
        boards = parts.to_dict()
        heads = ["model", *boards["categories"]]
        rows = [[name, *(interaction(row, interval=False) for row in own)] for name, own in by_category(boards, None)]
        listed.insert(0, (f"{INTERACTION}, log-odds (* holds at FDR 5 %)", heads, rows))
    for name, heads, rows in listed:
        markdown += [f"## {escaped(name)}", pipe_table(heads, rows)]
        body += [f"<h2>{escape(name)}</h2>", html_table(heads, [[escape(cell) for cell in row] for row in rows])]
    costs = found.figures.costs
    if costs is not None:
        name = f"Score against cost of routing by prompt ({costs.n} prompts)"
        heads, rows = ["budget, USD a request", "paced: cost", "paced: score", "over best single"], []
        for p in costs.curves["paced"].points:
            rows.append(
                [f"{p.budget:.3g}", f"{p.cost:.3g}", number(p.score), with_error(p.difference, p.difference_stderr)]
            )
        markdown += [f"## {name}", pipe_table(heads, rows, left=())]
        body += [f"<h2>{escape(name)}</h2>", html_table(heads, [[escape(cell) for cell in row] for row in rows])]
        if find_spec("matplotlib") is not None:
            cost_score_figure(costs, folder / "cost.png", title)
            markdown.append("![score against cost](cost.png)")
    markdown.append(_FOLDS)
    body.append(f'<p class="soft">{escape(_FOLDS)}</p>')
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(title, "\n".join(body)), encoding="utf-8")


def _counts(found: Adoption) -> list[str]:
    """What became of the votes and the configuration's models."""
    evidence = found.evidence
    lines = [f"{len(evidence.votes):,} votes on {len(evidence.votes.prompts):,} prompts, {evidence.candidates} models."]
    if evidence.without:
        lines.append(f"Without votes, so not in the bundle: {', '.join(evidence.without)}.")
    if evidence.others:
        lines.append(f"Evidence only, known to the bundle but not in the configuration: {', '.join(evidence.others)}.")
    if evidence.left_out_votes:
        names = ", ".join(evidence.left_out)
        lines.append(f"{evidence.left_out_votes:,} votes were left out, with models that neither has: {names}.")
    if evidence.ties:
        lines.append(f"{evidence.ties:,} ties were left out: the family bt has none.")
    return lines


def summary(found: Adoption) -> list[str]:
    """The report for a terminal: verdict, counts, and the tables of routing and log loss."""
    shown = [pipe_table(heads, rows) for _, heads, rows in tables(found)[: 2 + (found.tuned is not None)]]
    return [*verdict(found), *_counts(found), *(line for table in shown for line in ("", table))]


def _policy(policy: Policy) -> list[str]:
    return [policy.name, number(policy.score), _gain(policy.gain), f"{policy.gain.differ:.0%}"]


def _gain(gain: Gain) -> str:
    if not gain.known:
        return "–"
    return with_error(gain.mean, None if math.isnan(gain.stderr) else gain.stderr)
