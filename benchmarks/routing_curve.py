"""Score against cost on held-out mmlupro and zeroeval: P2L beside what a LiteLLM user would take instead.

    python benchmarks/routing_curve.py --data FOLDER [--bundle starter] [--objective usable] [--figure FILE.png]

The prompts are the fifth that the starter's recipe held out. `paced` is the router's own rule, online: one request
after the other, in random order, with the multiplier that `p2l_plugins.routing.pacing.Pacer` follows. Beside it: the LP
per request at the same budget; LiteLLM's complexity router (its heuristic classifies each prompt; its four tiers are
four of the candidates, by price); each model alone; a model at random; the oracle, which knows the scores.

The complexity router appears with every sensible mapping of its tiers: of all four-model ladders of rising price from
the cost–score frontier of the training part, those that no other beats there.

A request costs characters / 4 input tokens and, on zeroeval, the mean length of the model's answers; on mmlupro, whose
answers are not known, --output-tokens for every model. Then a stream of 5,000 requests whose mix of categories shifts
all the time: how far the mean cost ends from the budget.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import numpy as np
from numpy.typing import NDArray
from routing_report import figure, tables

from p2l_plugins.evaluation.choices import candidates
from p2l_plugins.evaluation.pacing import HindsightPacer, per_prompt_policy
from p2l_plugins.files.tables import read_json_object
from p2l_plugins.outcomes import Array
from p2l_plugins.routing import policies
from p2l_plugins.routing.explain import request_costs
from p2l_plugins.routing.pacing import Pacer
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import read_config
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out

ROOT = Path(__file__).resolve().parent.parent
SETS = ("mmlupro", "zeroeval")
TIERS = ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")
STREAM = 5000


@dataclass(frozen=True)
class Part:
    """Prompts of a data set: scores and costs (N, C) of the candidates, categories (N,), texts."""

    prompts: list[tuple[str, ...]]
    scores: Array
    costs: Array
    categories: NDArray[np.str_]


@dataclass(frozen=True)
class Task:
    """A data set: its candidates, the part that others learn from, the part that is judged, P2L's values there."""

    name: str
    models: list[str]
    train: Part
    test: Part
    values: Array


def prices_of(name: str, data: Path, aliases: dict[str, str], output_tokens: int) -> dict[str, Any]:
    """Cost table of a data set: model → prices and length of answers."""
    if name == "zeroeval":
        table = read_json_object(ROOT / "examples" / "zeroeval_prices.json")["prices"]
        lengths = read_json_object(data / "zeroeval_mean_output_tokens_est.json")
        known = {aliases.get(model, model): n for model, n in lengths.items()}
        return {model: {**entry, "output_tokens": known[model]} for model, entry in table.items() if model in known}
    import litellm

    table = {}
    for model, given in read_json_object(ROOT / "benchmarks" / "routing_prices.json")["prices"].items():
        price = given if isinstance(given, dict) else listed(litellm.model_cost[given])
        table[model] = {**price, "output_tokens": output_tokens}
    return table


def listed(entry: dict[str, Any]) -> dict[str, float]:
    """The prices of an entry of LiteLLM's price map, in USD per million tokens."""
    return {f"{side}_price": 1e6 * entry[f"{side}_cost_per_token"] for side in ("input", "output")}


def read_task(name: str, options: argparse.Namespace, p2l: P2L) -> Task:
    """Reads a data set, and scores its held-out prompts."""
    config = read_config(options.recipe)
    votes = read_votes(options.data / f"{name}_correctness.parquet", config.aliases)
    table = prices_of(name, options.data, config.aliases, options.output_tokens)
    out = held_out(votes.prompts, config.held_out, config.seed)
    assert votes.scores is not None
    there = [i for i, model in enumerate(votes.models) if model in table]
    columns = [there[i] for i in candidates(votes.scores[out][:, there])]
    models = [votes.models[i] for i in columns]

    def part(rows: NDArray[np.bool_]) -> Part:
        some = votes.select(rows)
        assert some.scores is not None
        known = ~np.isnan(some.scores[:, columns]).any(axis=1)
        prompts = [prompt for prompt, keep in zip(some.prompts, known, strict=True) if keep]
        lengths = np.array([max(sum(map(len, prompt)) // 4, 1) for prompt in prompts])
        costs = request_costs({model: table[model] for model in models}, name, lengths, 0)
        return Part(prompts, some.scores[known][:, columns], costs, np.array(some.groups)[known])

    test = part(out)
    scores = p2l.score_turns(test.prompts)
    names = [p2l.index(model) for model in models]
    eta = scores.raw_eta
    values = policies.values(options.objective, p2l.family, scores.coefs[:, names], eta)
    return Task(name, models, part(~out), test, values)


def online(values: Array, costs: Array, budget: float, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    """The model of each request in an order, as the router's rule `paced` chooses; and the last multiplier."""
    pacer = Pacer(budget)
    picks = np.empty(len(order), np.int64)
    for i, row in enumerate(order):
        pacer.start_from(values[row], costs[row])
        picks[i] = policies.paced(values[row], costs[row], pacer.multiplier).models[0]
        pacer.charge(float(costs[row, picks[i]]))
    return picks, pacer.multiplier


def paced_point(task: Task, budget: float, runs: int) -> Array:
    """(N, 2) score and cost of each held-out prompt under `paced`, averaged over random orders."""
    rng = np.random.default_rng(0)
    total = np.zeros((len(task.values), 2))
    for _ in range(runs):
        order = rng.permutation(len(task.values))
        picks, _ = online(task.values, task.test.costs, budget, order)
        total[order, 0] += task.test.scores[order, picks]
        total[order, 1] += task.test.costs[order, picks]
    return total / runs


def of_policy(pi: Array, part: Part) -> Array:
    """(N, 2) expected score and cost of each prompt under a policy (N, C)."""
    return np.stack([(pi * part.scores).sum(axis=1), (pi * part.costs).sum(axis=1)], axis=1)


def of_model(part: Part, models: NDArray[np.int64]) -> Array:
    """(N, 2) score and cost of each prompt with a model per prompt."""
    rows = np.arange(len(part.scores))
    return np.stack([part.scores[rows, models], part.costs[rows, models]], axis=1)


def complexity_tiers(prompts: list[tuple[str, ...]]) -> NDArray[np.int64]:
    """The tier of each prompt, 0 to 3, by LiteLLM's complexity router as it is by default."""
    import litellm
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    deployments = [
        {"model_name": tier, "litellm_params": {"model": f"openai/{tier}", "api_key": "k"}} for tier in TIERS
    ]
    router = ComplexityRouter("auto", litellm.Router(model_list=deployments), {"tiers": {t: t for t in TIERS}})
    tiers = [router.get_model_for_tier(router.classify(prompt[-1])[0]) for prompt in prompts]
    return np.array([TIERS.index(tier) for tier in tiers])


def ladders(task: Task, tiers: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """Mappings of the four tiers to models of rising price that no other mapping beats on the training part.

    The first is the plain one: the frontier's cheapest and dearest model, and two between them, evenly.
    """
    score, cost = task.train.scores.mean(axis=0), task.train.costs.mean(axis=0)
    frontier = [int(i) for i in np.argsort(cost) if score[i] > max(score[cost < cost[i]], default=-1.0)]
    plain = tuple(frontier[round(k * (len(frontier) - 1) / 3)] for k in range(4))
    by_tier = [(task.train.scores[tiers == k].sum(axis=0), task.train.costs[tiers == k].sum(axis=0)) for k in range(4)]
    found = []
    for ladder in itertools.combinations_with_replacement(frontier, 4):
        total = [sum(by_tier[k][part][model] for k, model in enumerate(ladder)) for part in range(2)]
        found.append((float(total[1]), -float(total[0]), ladder))
    best, kept = -np.inf, []
    for _, worse, ladder in sorted(found):
        if -worse > best:
            best = -worse
            kept.append(ladder)
    return [plain, *kept]


def shifting(categories: NDArray[np.str_], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Prompts of a stream whose mix moves from the first categories to the last ones, one fading into the next."""
    kinds = np.unique(categories)
    centre = np.linspace(0, len(kinds) - 1, n)
    rows = [np.flatnonzero(categories == kind) for kind in kinds]
    weights = np.exp(-2.0 * np.abs(centre[:, None] - np.arange(len(kinds))))
    weights /= weights.sum(axis=1, keepdims=True)
    drawn = [int(rng.choice(len(kinds), p=w)) for w in weights]
    return np.array([rng.choice(rows[k]) for k in drawn])


def mean(point: Array) -> tuple[float, float]:
    """Score and cost."""
    return float(point[:, 0].mean()), float(point[:, 1].mean())


def difference(a: Array, b: Array) -> tuple[float, float]:
    """Mean paired difference of scores and its standard error."""
    d = a[:, 0] - b[:, 0]
    return float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))


def judge(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """All points and comparisons of a data set."""
    part, n = task.test, len(task.test.prompts)
    single_score, single_cost = part.scores.mean(axis=0), part.costs.mean(axis=0)
    best = int(task.train.scores.mean(axis=0).argmax())
    cheapest = int(task.train.costs.mean(axis=0).argmin())
    least = float(part.costs.min(axis=1).mean())
    dear = float(of_model(part, task.values.argmax(axis=1))[:, 1].mean())
    budgets = np.geomspace(1.15 * least, max(dear, single_cost[best]), options.points)
    oracle = HindsightPacer(np.where(part.scores == 1, 1.0, 0.0), part.costs)
    tiers_train, tiers = complexity_tiers(task.train.prompts), complexity_tiers(part.prompts)
    curve = []
    for budget in budgets:
        paced = paced_point(task, float(budget), options.runs)
        spent = mean(paced)[1]
        lp = of_policy(per_prompt_policy("lp", task.values, part.costs, spent), part)
        gain, error = difference(paced, lp)
        curve.append(
            {
                "budget": float(budget),
                "paced": mean(paced),
                "lp": mean(lp),
                "gain_over_lp": gain,
                "stderr": error,
                "oracle": mean(of_policy(oracle.policy(spent), part)),
            }
        )
    complexity = []
    for i, ladder in enumerate(ladders(task, tiers_train)):
        point = of_model(part, np.array(ladder)[tiers])
        if mean(point) in [one["point"] for one in complexity if not one["plain"]]:
            continue  # they differ in tiers that no held-out prompt has
        paced = paced_point(task, mean(point)[1], options.runs)
        gain, error = difference(paced, point)
        complexity.append(
            {
                "tiers": [task.models[m] for m in ladder],
                "plain": i == 0,
                "point": mean(point),
                "paced": mean(paced),
                "gain": gain,
                "stderr": error,
            }
        )
    return {
        "data": task.name,
        "prompts": n,
        "models": task.models,
        "tiers": dict(zip(TIERS, np.bincount(tiers, minlength=4).tolist(), strict=True)),
        "requests": STREAM,
        "singles": {m: (float(s), float(c)) for m, s, c in zip(task.models, single_score, single_cost, strict=True)},
        "best_single": task.models[best],
        "cheapest": task.models[cheapest],
        "random": (float(part.scores.mean()), float(part.costs.mean())),
        "oracle_best": float(part.scores.max(axis=1).mean()),
        "p2l_best": mean(of_model(part, task.values.argmax(axis=1))),
        "curve": curve,
        "complexity": complexity,
        "stream": [stream(task, float(b)) for b in np.geomspace(1.5 * least, 0.8 * dear, 5)],
    }


def stream(task: Task, budget: float) -> dict[str, float]:
    """The mean cost of `paced` over a shifting stream, against the budget and the LP per request at what it spent."""
    rng = np.random.default_rng(1)
    order = shifting(task.test.categories, STREAM, rng)
    picks, _ = online(task.values, task.test.costs, budget, order)
    spent = float(task.test.costs[order, picks].mean())
    score = float(task.test.scores[order, picks].mean())
    lp = of_policy(per_prompt_policy("lp", task.values, task.test.costs, spent), task.test)[order]
    return {"budget": budget, "spent": spent, "off": spent / budget - 1, "score": score, "lp": float(lp[:, 0].mean())}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--objective", default="usable", help="usable or win_rate")
    parser.add_argument("--output-tokens", type=int, default=300, help="of an answer, on mmlupro")
    parser.add_argument("--points", type=int, default=12, help="budgets of the curve")
    parser.add_argument("--runs", type=int, default=10, help="random orders of the requests, per budget")
    parser.add_argument("--figure", type=Path, help=".png, .svg or .pdf")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    p2l = P2L.load(options.bundle)
    results = [judge(read_task(name, options, p2l), options) for name in SETS]
    if options.figure is not None:
        figure(results, options.figure)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"Objective {options.objective}; mmlupro with {options.output_tokens} tokens per answer.\n")
    print("\n\n".join(map(tables, results)))


if __name__ == "__main__":
    main()
