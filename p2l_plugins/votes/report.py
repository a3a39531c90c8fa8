"""What to know about a votes file before training on it: counts, duplicates, conflicts, coverage, bias, lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.cleaning import outcome_weights, pair_groups
from p2l_plugins.votes.votes import Index, Votes, held_out, merge

_Z = 1.959963984540054  # 95 %


def combined(parts: Sequence[Votes]) -> Votes:
    """One set of votes in which every prompt occurs once."""
    votes = parts[0] if len(parts) == 1 else merge(parts, [None] * len(parts))
    index: dict[Turns, int] = {}
    new = np.array([index.setdefault(turns, len(index)) for turns in votes.prompts], np.int64)
    if len(index) == len(votes.prompts):
        return votes
    first = np.unique(new, return_index=True)[1]
    groups = [votes.groups[i] for i in first]
    return replace(votes, prompts=list(index), groups=groups, prompt=new[votes.prompt], scores=None).by_prompt()


def check(
    votes: Votes,
    *,
    min_votes: int = 30,
    fraction: float | None = None,
    seed: int = 0,
    against: Votes | None = None,
) -> dict[str, Any]:
    """The report, as an object for JSON.

    Args:
        votes: every prompt once.
        min_votes: models with fewer votes are listed.
        fraction: of the prompts that a split holds out; None describes no split.
        seed: of that split.
        against: other votes, whose prompts are looked for here.
    """
    group, outcome = pair_groups(votes.prompt, votes.a, votes.b, votes.outcome, len(votes.models))
    counts = np.bincount(votes.outcome, minlength=len(OUTCOMES))
    per_model = np.bincount(np.concatenate([votes.a, votes.b]), minlength=len(votes.models))
    n = len(votes)
    report: dict[str, Any] = {
        "votes": n,
        "prompts": len(votes.prompts),
        "models": len(votes.models),
        "outcomes": dict(zip(OUTCOMES, counts.tolist(), strict=True)),
        "tie_share": (counts[TIE] + counts[BAD]) / n if n else 0.0,
        "duplicates": _duplicates(votes, group, outcome),
        "conflicts": _conflicts(group, outcome),
        "few_votes": {
            "below": min_votes,
            "models": {m: int(k) for m, k in zip(votes.models, per_model, strict=True) if k < min_votes},
        },
        "components": components(votes),
        **_one_sided(votes),
        "position": position(votes),
        "length": lengths(votes.prompts),
    }
    if fraction is not None:
        report["held_out"] = _split(votes, fraction, seed)
    if against is not None:
        report["against"] = {"prompts": len(against.prompts), **shared(votes.prompts, against.prompts)}
    return report


def _duplicates(votes: Votes, group: Index, outcome: Index) -> dict[str, int]:
    """Votes that repeat an earlier one: same prompt, models and outcome, the sides as they are or exchanged too."""
    same = group * len(OUTCOMES) + outcome
    sides = same * 2 + (votes.a > votes.b)
    return {
        "same_sides": len(votes) - len(np.unique(sides)),
        "either_side": len(votes) - len(np.unique(same)),
    }


def _conflicts(group: Index, outcome: Index) -> dict[str, int]:
    """Pairs of models that got different outcomes on one prompt, and the votes on them."""
    differ = (outcome_weights(group, outcome, np.ones(len(group))) > 0).sum(1) > 1
    return {"pairs": int(differ.sum()), "votes": int(differ[group].sum())}


def components(votes: Votes) -> list[list[str]]:
    """Connected components of the graph of comparisons, the largest first; coefficients compare only inside one."""
    parent = list(range(len(votes.models)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in np.unique(np.stack([votes.a, votes.b], axis=1), axis=0).tolist():
        parent[root(a)] = root(b)
    parts: dict[int, list[str]] = {}
    for i, name in enumerate(votes.models):
        parts.setdefault(root(i), []).append(name)
    return sorted(parts.values(), key=lambda part: (-len(part), part))


def _one_sided(votes: Votes) -> dict[str, list[str]]:
    """Models that never lost or never won a decisive vote: their coefficients have no finite maximum likelihood."""
    decisive = votes.decisive()
    won = np.where(votes.outcome == A, votes.a, votes.b)[decisive]
    lost = np.where(votes.outcome == A, votes.b, votes.a)[decisive]
    wins, losses = (np.bincount(side, minlength=len(votes.models)) for side in (won, lost))
    return {
        "never_lost": [m for i, m in enumerate(votes.models) if wins[i] and not losses[i]],
        "never_won": [m for i, m in enumerate(votes.models) if losses[i] and not wins[i]],
    }


def position(votes: Votes) -> dict[str, Any] | None:
    """Share of decisive votes that side a won, with its 95 % interval; None where no vote is decisive.

    None as well for votes from a score matrix, whose sides are the order of its columns.
    """
    decisive = int(votes.decisive().sum())
    if not decisive or votes.scores is not None:
        return None
    won = int((votes.outcome == A).sum())
    low, high = wilson(won, decisive)
    return {"decisive": decisive, "a_won": won, "share": won / decisive, "low": low, "high": high}


def wilson(k: float, n: float) -> tuple[float, float]:
    """95 % interval of a binomial share of k in n (Wilson 1927)."""
    p, z2 = k / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def lengths(prompts: Sequence[Turns]) -> dict[str, Any]:
    """Characters and turns per prompt."""
    characters = np.array([sum(map(len, turns)) for turns in prompts] or [0])
    turns = np.array([len(turns) for turns in prompts] or [0])
    points = np.quantile(characters, [0.0, 0.5, 0.95, 1.0])
    return {
        "characters": dict(zip(("min", "median", "p95", "max"), points.tolist(), strict=True)),
        "mean_characters": float(characters.mean()),
        "several_turns": int((turns > 1).sum()),
        "most_turns": int(turns.max()),
    }


def _split(votes: Votes, fraction: float, seed: int) -> dict[str, Any]:
    side = held_out(votes.prompts, fraction, seed)
    test, train = votes.select(side), votes.select(~side)

    def seen(part: Votes) -> set[str]:
        return {votes.models[i] for i in np.unique(np.concatenate([part.a, part.b]))}

    return {
        "fraction": fraction,
        "seed": seed,
        "train": {"prompts": len(train.prompts), "votes": len(train)},
        "test": {"prompts": len(test.prompts), "votes": len(test)},
        "models_only_in_test": sorted(seen(test) - seen(train)),
        **shared(test.prompts, train.prompts),
    }


def shared(prompts: Sequence[Turns], others: Sequence[Turns]) -> dict[str, int]:
    """How many prompts are among the others, as they are, and but for case and white space."""
    exact = set(others)
    alike = {_folded(turns) for turns in others}
    return {
        "shared_prompts": sum(turns in exact for turns in prompts),
        "shared_but_for_case_and_space": sum(_folded(turns) in alike for turns in prompts),
    }


def _folded(turns: Turns) -> tuple[str, ...]:
    return tuple(" ".join(turn.casefold().split()) for turn in turns)


def to_text(report: dict[str, Any]) -> str:
    """The report as a table and, below it, the lists of models that want a look."""
    n = max(report["votes"], 1)
    rows = [(entry["file"], f"{entry['votes']} votes, {entry['prompts']} prompts") for entry in report["files"]]
    if len(rows) > 1:
        rows.append(("all files", f"{report['votes']} votes, {report['prompts']} prompts"))
    rows.append(("models", str(report["models"])))
    rows += [(name, f"{count} ({count / n:.1%})") for name, count in report["outcomes"].items()]
    same, either = report["duplicates"]["same_sides"], report["duplicates"]["either_side"]
    rows.append(("duplicates", f"{either} ({same} with the same sides)"))
    rows.append(
        ("conflicts", f"{report['conflicts']['pairs']} pairs on a prompt, {report['conflicts']['votes']} votes")
    )
    bias = report["position"]
    if bias is not None:
        interval = f"{bias['low']:.1%} to {bias['high']:.1%}"
        rows.append(("won by side a", f"{bias['share']:.1%} ({interval}) of {bias['decisive']} decisive votes"))
    length = report["length"]
    points = ", ".join(f"{name} {value:.0f}" for name, value in length["characters"].items())
    rows.append(("characters per prompt", f"{points}, mean {length['mean_characters']:.0f}"))
    rows.append(("several turns", f"{length['several_turns']} prompts, {length['most_turns']} turns at most"))
    rows += _other_prompts(report)
    return "\n".join([pipe_table(["what", "found"], rows, left=(0, 1)), *_worth_a_look(report)])


def _other_prompts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on the split and on the other file."""
    rows = []
    for key, title in (("held_out", "shared by both sides"), ("against", "also in the other file")):
        part = report.get(key)
        if part is None:
            continue
        if key == "held_out":
            sides = (
                f"{side} {part[side]['prompts']} prompts, {part[side]['votes']} votes" for side in ("train", "test")
            )
            rows.append((f"held out {part['fraction']:g}, seed {part['seed']}", "; ".join(sides)))
        alike = part["shared_but_for_case_and_space"]
        rows.append((title, f"{part['shared_prompts']} prompts ({alike} but for case and white space)"))
    return rows


def _worth_a_look(report: dict[str, Any]) -> list[str]:
    """Lists of models, each after an empty line."""
    lines = []
    few = report["few_votes"]
    if few["models"]:
        named = ", ".join(f"{escaped(name)} ({count})" for name, count in few["models"].items())
        lines.append(f"\nfewer than {few['below']} votes: {named}")
    if len(report["components"]) > 1:
        lines.append(f"\nthe models fall into {len(report['components'])} groups that were never compared:")
        lines += [f"- {', '.join(map(escaped, part))}" for part in report["components"]]
    for key, title in (("never_lost", "never lost"), ("never_won", "never won")):
        if report[key]:
            lines.append(f"\n{title} a decisive vote: {', '.join(map(escaped, report[key]))}")
    unseen = report.get("held_out", {}).get("models_only_in_test")
    if unseen:
        lines.append(f"\nonly in held-out prompts: {', '.join(map(escaped, unseen))}")
    return lines
