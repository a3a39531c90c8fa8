"""Nights of `p2l update` after a first fit, beside one fit to all votes: log loss and routed score on held-out prompts.

    python benchmarks/update.py --votes ../shared/data/llmrouter_scores.parquet --bundle starter --columns 6

The models' own rows in the bundle are not used. Two votes for each prompt, of pairs by chance. Each night is also
offered as votes by chance, which must be refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from onnx_export.anchored import begun
from onnx_export.head import find_head, load_graph, read_states
from onnx_export.joint import JointProblem, JointRows, JointTask, Known, Strength
from onnx_export.update import fit
from p2l_plugins.files.rows import read_rows
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.votes.votes import VoteBuilder, Votes, merge, outcome_of_scores

STRENGTH = Strength(False, 3.0, 10.0)
TEST, FIRST, NIGHT, NIGHTS = 1000, 400, 100, 10


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=Path, required=True, help="a score matrix")
    parser.add_argument("--bundle", required=True, help="gives the states")
    parser.add_argument("--columns", type=int, default=6, help="so many of the models, the first ones")
    options = parser.parse_args()
    rows = [row for _, row in read_rows(options.votes)]
    names = [name for name, x in rows[0].items() if isinstance(x, int | float)][: options.columns]
    order = np.random.default_rng(0).permutation(len(rows))[: TEST + FIRST + NIGHT * NIGHTS]
    prompts = [as_turns(rows[i]["prompt"]) for i in order]
    scores = np.array([[rows[i][name] for name in names] for i in order], np.float64)
    Nights(Bundle.open(find_bundle(options.bundle)), names, prompts, scores).run()


class Nights:
    """The prompts with their scores (P, M) and states, and the run over them."""

    def __init__(self, bundle: Bundle, names: list[str], prompts: list[Turns], scores: Array) -> None:
        self.names, self.prompts, self.scores = names, prompts, scores
        self.family = bundle.manifest.family
        self.states, _, self.eta = read_states(bundle, prompts)
        self.at = {turns: i for i, turns in enumerate(prompts)}
        head = find_head(load_graph(bundle.folder), bundle.folder)
        self.known = Known.of(head.weight, head.bias, np.full(len(names), -1))

    def votes(self, which: range, pairs: int = 2, chance: bool = False) -> Votes:
        """Votes on some prompts."""
        draw, builder = np.random.default_rng([which.start, pairs]), VoteBuilder()
        for i in which:
            for _ in range(pairs):
                a, b = draw.choice(len(self.names), 2, replace=False)
                outcome = int(outcome_of_scores(self.scores[i, a], self.scores[i, b], 0.0, 0.5))
                outcome = int(draw.integers(4)) if chance else outcome
                builder.add(self.prompts[i], (self.names[a], self.names[b]), outcome)
        return builder.votes().renamed(self.names)

    def task(self, votes: Votes, line: tuple[float, float] = (1.0, 0.0)) -> JointTask:
        """The votes with what the bundle makes of their prompts, after slope · raw_eta + shift."""
        which = [self.at[turns] for turns in votes.prompts]
        eta = None if self.eta is None else line[0] * self.eta[which] + line[1]
        return JointTask.of(self.family, votes, self.states[which], eta)

    def judged(self, rows: JointRows, line: tuple[float, float]) -> str:
        """Log loss and routed score on the held-out prompts."""
        task = self.task(self.votes(range(TEST), 6), line)
        coefs = rows.coefs(task.features)
        loss = task.weight @ task.losses(coefs, task.raw_eta)[0] / task.weight.sum()
        best = rows.coefs(self.states[:TEST]).argmax(axis=1)
        return f"{loss:.4f} | {self.scores[np.arange(TEST), best].mean():.4f}"

    def whole(self, parts: list[Votes]) -> tuple[JointProblem, JointRows, Array]:
        """One fit to all votes."""
        problem = JointProblem(self.task(merge(parts, [None] * len(parts)).renamed(self.names)), self.known)
        return problem, *problem.solve(STRENGTH)

    def run(self) -> None:
        """Prints a row per night."""
        parts = [self.votes(range(TEST, TEST + FIRST))]
        problem, rows, theta = self.whole(parts)
        line = (rows.slope, rows.shift)
        past = begun(problem, self.names, STRENGTH, theta, line, float("nan"))
        print("| night | votes kept | log loss | routed score | votes by chance |\n|:---|---:|---:|---:|:---|")
        print(f"| first fit | {past.votes:.0f} | {self.judged(past.rows, line)} | |")
        for night in range(NIGHTS):
            start = TEST + FIRST + night * NIGHT
            objections, results = [], []
            for chance in (True, False):
                votes = self.votes(range(start, start + NIGHT), chance=chance)
                task = self.task(votes, line)
                found, result = fit(task, votes, past, past.rows.coefs(task.features))
                objections.append(found.objection(keeps=True))
                results.append((votes, task, *result))
            if objections[1] is None:
                votes, task, moved, own = results[1]
                past = moved.with_votes(task, own, float("nan"))
                line = (own[0] * line[0], own[0] * line[1] + own[1])
                parts.append(votes)
            said = "refused" if objections[0] else "taken"
            name = f"{night + 1}" + ("" if objections[1] is None else " (refused)")
            print(f"| {name} | {past.votes:.0f} | {self.judged(past.rows, line)} | {said} |", flush=True)
        _, rows, _ = self.whole(parts)
        print(f"| all at once | {past.votes:.0f} | {self.judged(rows, (rows.slope, rows.shift))} | |")


if __name__ == "__main__":
    main()
