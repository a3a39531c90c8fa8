"""What a run of `p2l votes ask` gave, and how far its judges can be trusted: an object for JSON, and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from litellm_router.ask.known import Compared
from litellm_router.ask.run import Run
from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B, Ids, sigmoid
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.report import wilson
from p2l_plugins.votes.votes import Votes, flipped

#: Precision of the coefficients of a board around 0, so that models without a loss have a place.
_PRIOR = 0.1


def report(run: Run, human: Votes | None = None) -> dict[str, Any]:
    """All that is known of a run, as an object for JSON.

    Args:
        run: that ended.
        human: votes of people, to compare the judges with.
    """
    every = [one for i in range(len(run.questions)) for one in run.known.compared(i)]
    voted = [one for one in every if one.outcome is not None]
    scored = [run.known.scores(i) for i in range(len(run.questions))]
    made: dict[str, Any] = {
        "prompts": len(run.questions),
        "prompts_answered": sum(bool(run.known.asked(i)) for i in range(len(run.questions))),
        "calls": run.journal.calls,
        "calls_of_this_run": run.made,
        "cost_usd": run.journal.spent,
        "calls_without_a_price": run.journal.unpriced,
        "ended_by": _end(run),
        "forgotten": run.known.forgotten,
        "models": _models(run),
    }
    if run.task.mode != "pairs":
        return made | {"scores": sum(map(len, scored)), "mean_scores": _mean_scores(scored)}
    counts = Counter(OUTCOMES[one.outcome] for one in voted if one.outcome is not None)
    made |= {"votes": len(voted), "outcomes": {name: counts[name] for name in OUTCOMES}}
    made["judges"] = {judge: judge_report(judge, every, run.task.models) for judge in run.task.judges}
    made["judge_failures"] = _judge_failures(run)
    made["length"], made["board"] = length_report(voted, run.task.models)
    if human is not None:
        made["human"] = human_report(voted, [one.turns for one in run.questions], human)
    return made


def _end(run: Run) -> str:
    if run.stopped is not None:
        return run.stopped.name
    return "limit" if run.limited else "done"


def _models(run: Run) -> dict[str, dict[str, Any]]:
    """By model: answers, failures by reason, refusals, empty answers, length, cost."""
    found: dict[str, dict[str, Any]] = {}
    for model in run.task.models:
        keys = [run.known.answer_key(i, model) for i in range(len(run.questions)) if model in run.known.asked(i)]
        entries = [run.journal.entries[key] for key in keys if key in run.journal.entries]
        answers = [one for one in entries if one.kind == "answer"]
        lengths = [one.characters for one in answers if one.characters]
        found[model] = {
            "answers": len(lengths),
            "failures": dict(Counter(one.value or "" for one in entries if one.kind == "failed")),
            "refusals": sum(one.refused for one in answers),
            "empty": sum(not one.characters for one in answers),
            "mean_characters": sum(lengths) / len(lengths) if lengths else None,
            "cost_usd": sum(one.cost or 0.0 for one in answers),
        }
    return found


def _judge_failures(run: Run) -> dict[str, int]:
    """By judge: verdicts that failed and are still missing."""
    return {
        judge: sum(
            (found := run.journal.entries.get(run.known.verdict_key(i, judge, shown))) is not None
            and found.kind == "failed"
            for i in range(len(run.questions))
            for shown in permutations(run.known.asked(i), 2)
        )
        for judge in run.task.judges
    }


def _mean_scores(scored: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in scored:
        for model, score in one.items():
            found.setdefault(model, []).append(score)
    return {model: sum(scores) / len(scores) for model, scores in found.items()}


def judge_report(judge: str, every: Sequence[Compared], models: Sequence[str]) -> dict[str, Any]:
    """How one judge judged.

    Returns:
        order_agreement: share of pairs with the same verdict in both orders; position_bias: share of the verdicts for
        one side that went to the answer shown first, 0.5 being none, with its 95 % interval; longer_wins: share of its
        decisive outcomes that the longer answer won; self_preference, where the judge is a candidate: share of its
        decisive outcomes that its own answers won, and the same of the other judges on the same pairs.
    """
    both = [one.verdicts[judge] for one in every if judge in one.verdicts]
    said = Counter(verdict for pair in both for verdict in pair)
    readable = [one for one in every if judge in one.outcomes]
    agreed = sum(_agree(one.verdicts[judge]) for one in readable)
    sided = said["A"] + said["B"]
    decided = [(one, one.outcomes[judge]) for one in readable if one.outcomes[judge] < TIE]
    return {
        "pairs": len(both),
        "unreadable": said["unreadable"],
        "order_agreement": agreed / len(readable) if readable else None,
        "position_bias": said["A"] / sided if sided else None,
        "position_bias_interval": list(wilson(said["A"], sided)) if sided else None,
        "longer_wins": _longer_wins(decided),
        "self_preference": self_preference(judge, every) if judge in models else None,
    }


def _agree(verdicts: tuple[str, str]) -> bool:
    return verdicts[0] == {"A": "B", "B": "A"}.get(verdicts[1], verdicts[1])


def _longer_wins(decided: Sequence[tuple[Compared, int]]) -> float | None:
    """Share of decisive outcomes that the longer answer won; None where no lengths differ."""
    apart = [(one, outcome) for one, outcome in decided if one.characters[0] != one.characters[1]]
    won = sum((one.characters[0] > one.characters[1]) == (outcome == A) for one, outcome in apart)
    return won / len(apart) if apart else None


def self_preference(judge: str, every: Sequence[Compared]) -> dict[str, Any]:
    """How often a judge's own answers won: by itself, and by the other judges on the same pairs."""
    own = [one for one in every if judge in one.models and judge in one.outcomes]
    others = {name for one in own for name in one.outcomes if name != judge}

    def share(judges: Iterable[str], among: Sequence[Compared]) -> float | None:
        side = [
            (one.models[0] == judge, one.outcomes[name]) for one in among for name in judges if name in one.outcomes
        ]
        decided = [first == (outcome == A) for first, outcome in side if outcome < TIE]
        return sum(decided) / len(decided) if decided else None

    with_others = [one for one in own if others & one.outcomes.keys()]
    return {
        "pairs": len(own),
        "own_wins": share([judge], own),
        "own_wins_where_others_judged": share([judge], with_others) if others else None,
        "own_wins_by_others": share(sorted(others), with_others) if others else None,
    }


def length_report(voted: Sequence[Compared], models: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The longer answer's wins, and the board with and without the effect of length, the best model first."""
    if not voted:
        return {"longer_wins": None, "decisive": 0, "effect": None, "effect_stderr": None}, []
    index = {name: i for i, name in enumerate(models)}
    a = np.array([index[one.models[0]] for one in voted], np.int64)
    b = np.array([index[one.models[1]] for one in voted], np.int64)
    outcome = np.array([one.outcome for one in voted], np.int64)
    apart = np.array([float(one.characters[0] - one.characters[1]) for one in voted])
    spread = float(apart.std()) or 1.0
    share = np.where(outcome == A, 1.0, np.where(outcome == B, 0.0, 0.5))
    plain, stderr, _, _ = fit_board(len(models), a, b, share, None)
    controlled, _, effect, effect_stderr = fit_board(len(models), a, b, share, np.tanh(apart / spread))
    decided = [(one, one.outcome) for one in voted if one.outcome is not None and one.outcome < TIE]
    board = [
        {"model": models[i], "coef": plain[i], "stderr": stderr[i], "length_controlled": controlled[i]}
        for i in np.argsort(-plain, kind="stable").tolist()
    ]
    length = {"longer_wins": _longer_wins(decided), "decisive": len(decided)}
    return length | {"effect": effect, "effect_stderr": effect_stderr}, board


def fit_board(
    models: int, a: Ids, b: Ids, share: Array, length: Array | None
) -> tuple[Array, Array, float | None, float | None]:
    """Bradley-Terry coefficients of votes, with an effect of length as in Dubois et al. 2024 (arXiv 2404.04475).

    The log odds that a wins are β_a − β_b + γ·length; a board for answers of one length is the βs.

    Args:
        models: M.
        a, b: (V,) sides.
        share: (V,) 1 where a won, 0 where b did, ½ for ties.
        length: (V,) difference of the lengths, −1 to 1; None leaves γ out.

    Returns:
        Coefficients (M,) of mean 0, their standard errors (M,), γ and its standard error.
    """
    rows = np.zeros((len(a), models + (length is not None)))
    at = np.arange(len(a))
    rows[at, a], rows[at, b] = 1.0, -1.0
    if length is not None:
        rows[:, models] = length
    x = np.zeros(rows.shape[1])
    precision = _PRIOR * np.eye(len(x))
    for _ in range(50):
        chance = sigmoid(rows @ x)
        hessian = (rows * (chance * (1 - chance))[:, None]).T @ rows + precision
        step = np.linalg.solve(hessian, rows.T @ (chance - share) + precision @ x)
        x = x - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    centre = np.eye(models) - 1.0 / models
    inverse = np.linalg.inv(hessian)
    stderr = np.sqrt(np.diag(centre @ inverse[:models, :models] @ centre))
    if length is None:
        return x[:models] - x[:models].mean(), stderr, None, None
    return x[:models] - x[:models].mean(), stderr, float(x[models]), float(np.sqrt(inverse[models, models]))


def human_report(voted: Sequence[Compared], prompts: Sequence[Turns], human: Votes) -> dict[str, Any]:
    """Agreement with people on the same prompts and pairs, over all their votes on them."""
    said: dict[tuple[Turns, str, str], list[int]] = {}
    for prompt, a, b, outcome in zip(human.prompt, human.a, human.b, human.outcome, strict=True):
        turns, first, second = human.prompts[prompt], human.models[a], human.models[b]
        said.setdefault((turns, first, second), []).append(int(outcome))
        said.setdefault((turns, second, first), []).append(int(flipped(np.array([outcome]))[0]))
    both = [
        (one.outcome, other)
        for one in voted
        if one.outcome is not None
        for other in said.get((prompts[one.question], *one.models), ())
    ]
    decided = [(mine, theirs) for mine, theirs in both if mine < TIE and theirs < TIE]
    same = sum(mine == theirs or {mine, theirs} == {TIE, BAD} for mine, theirs in both)
    return {
        "votes": len(both),
        "agreement": same / len(both) if both else None,
        "both_decisive": len(decided),
        "agreement_where_both_are_decisive": sum(m == t for m, t in decided) / len(decided) if decided else None,
    }


def to_markdown(made: Mapping[str, Any]) -> str:
    """The report for people."""
    rows = []
    for model, one in made["models"].items():
        length = "" if one["mean_characters"] is None else f"{one['mean_characters']:.0f}"
        counts = [one["answers"], sum(one["failures"].values()), one["refusals"], one["empty"]]
        rows.append([model, *map(str, counts), length, f"{one['cost_usd']:.4f}"])
    heads = ["model", "answers", "failures", "refusals", "empty", "characters, mean", "USD"]
    lines = [pipe_table(heads, rows)]
    lines += [
        f"\n{escaped(model)} failed: {', '.join(f'{reason} ({count})' for reason, count in one['failures'].items())}"
        for model, one in made["models"].items()
        if one["failures"]
    ]
    if any(one["failures"] for one in made["models"].values()) or any(made.get("judge_failures", {}).values()):
        lines.append("\nthe same command makes calls that failed again")
    lines += _judged(made) if "judges" in made else _scored(made)
    if made["forgotten"]:
        lines.append(
            f"\n{made['forgotten']} judgements need answers whose text was not kept: --ask-again pays for them again"
        )
    return "\n".join([*lines, "", _last_line(made)])


def _last_line(made: Mapping[str, Any]) -> str:
    unpriced = made["calls_without_a_price"]
    more = f", and {unpriced} calls without a known price" if unpriced else ""
    what = f"{made['votes']} votes" if "votes" in made else f"{made['scores']} scores"
    return (
        f"{what} on {made['prompts_answered']} of {made['prompts']} prompts; {made['calls']} calls, "
        f"{made['calls_of_this_run']} of them now; USD {made['cost_usd']:.4f}{more}"
    )


def _scored(made: Mapping[str, Any]) -> list[str]:
    ranked = sorted(made["mean_scores"].items(), key=lambda one: -one[1])
    return ["", pipe_table(["model", "mean score"], [[model, f"{score:.3f}"] for model, score in ranked])]


def _judged(made: Mapping[str, Any]) -> list[str]:
    heads = ["judge", "pairs", "unreadable", "failed"]
    heads += ["orders agree", "first shown wins", "longer wins", "own wins"]
    rows = []
    for judge, one in made["judges"].items():
        own = one["self_preference"]
        shown = "" if own is None else _percent(own["own_wins"])
        if own is not None and own["own_wins_by_others"] is not None:
            shown += f" (others: {_percent(own['own_wins_by_others'])})"
        counts = [one["pairs"], one["unreadable"], made["judge_failures"][judge]]
        shares = [one["order_agreement"], one["position_bias"], one["longer_wins"]]
        rows.append([judge, *map(str, counts), *map(_percent, shares), shown])
    lines = ["", pipe_table(heads, rows)]
    if not made["board"]:
        return lines
    rows = [
        [one["model"], f"{one['coef']:+.2f}", f"{one['stderr']:.2f}", f"{one['length_controlled']:+.2f}"]
        for one in made["board"]
    ]
    lines += ["", pipe_table(["model", "coefficient", "±", "at equal length"], rows)]
    length = made["length"]
    if length["longer_wins"] is None:
        lines.append("\nno vote is decisive, so that nothing is said of the length of answers")
    else:
        lines.append(
            f"\nthe longer answer won {_percent(length['longer_wins'])} of the decisive votes; effect of length "
            f"{length['effect']:+.2f} ± {length['effect_stderr']:.2f}"
        )
    lines.append(", ".join(f"{name} {count}" for name, count in made["outcomes"].items()))
    if "human" in made:
        human = made["human"]
        lines.append(
            f"\nagreement with people: {_percent(human['agreement'])} of {human['votes']} votes, "
            f"{_percent(human['agreement_where_both_are_decisive'])} of {human['both_decisive']} where both decide"
        )
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
