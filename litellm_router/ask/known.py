"""What the journal of `p2l votes ask` knows of each prompt: who answers it, who answered, what the judges said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from litellm_router.ask.journal import Entry, Journal, key_of
from litellm_router.ask.judge import majority, of_both_orders
from litellm_router.ask.plan import Task
from litellm_router.ask.questions import Question


@dataclass(frozen=True, slots=True)
class Missing:
    """The calls that a prompt still needs.

    Attributes:
        answers: models that are to answer.
        verdicts: judge, and the models whose answers it is shown: two in this order, or one to grade.
    """

    answers: tuple[str, ...]
    verdicts: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self.answers) + len(self.verdicts)


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers to a prompt, compared.

    Attributes:
        question: index of the prompt.
        models: of the two answers, in the order of the vote.
        verdicts: by judge: what it said of (a, b) and of (b, a).
        outcomes: by judge, where both verdicts could be read.
        outcome: of all judges; None where none has one.
        characters: of the answers.
    """

    question: int
    models: tuple[str, str]
    verdicts: dict[str, tuple[str, str]]
    outcomes: dict[str, int]
    outcome: int | None
    characters: tuple[int, int]


class Known:
    """A journal, read for prompts, which have their index here.

    Args:
        task: what is asked.
        questions: in the order in which they are asked.
        journal: open.
        ask_again: ask again for answers that were paid for and whose text was not kept.

    Attributes:
        candidates: stands for the models of the task in plans.
    """

    def __init__(self, task: Task, questions: Sequence[Question], journal: Journal, ask_again: bool = False) -> None:
        self.task, self.questions, self.journal = task, questions, journal
        self.candidates = key_of(*sorted(task.models))
        self._ask_again = ask_again
        self._hash = [key_of(*one.turns) for one in questions]
        self._rubric = hashlib.sha256(task.rubric.encode()).hexdigest()

    def plan(self, question: int) -> tuple[str, ...]:
        """The models that answer a prompt, as far as they are chosen among these candidates."""
        entry = self.journal.known(self.plan_key(question))
        return () if entry is None or entry.value != self.candidates else entry.models[: self.task.k]

    def plans(self, question: int) -> list[tuple[str, ...]]:
        """All plans of a prompt, oldest first, of other candidates and other runs too, without who is none any more."""
        made = self.journal.plans.get(self.plan_key(question), ())
        return [tuple(name for name in one.models if name in self.task.models) for one in made]

    def asked(self, question: int) -> list[str]:
        """The models that were to answer a prompt."""
        return list(dict.fromkeys(name for plan in self.plans(question) for name in plan))

    def plan_key(self, question: int) -> str:
        """Of a plan in the journal."""
        return key_of("plan", self._hash[question], self.task.mode)

    def answer_key(self, question: int, model: str) -> str:
        """Of an answer in the journal."""
        return key_of("answer", self._hash[question], model, str(self.task.max_tokens))

    def verdict_key(self, question: int, judge: str, shown: Sequence[str]) -> str:
        """Of a verdict, grade or check in the journal."""
        reference = repr(self.questions[question].reference)
        settings = (self._rubric, self.task.check, reference, str(self.task.max_tokens))
        return key_of("verdict", self._hash[question], judge, *settings, *shown)

    def answer(self, question: int, model: str) -> Entry | None:
        """What a model answered; None where it did not."""
        return self.journal.known(self.answer_key(question, model))

    def missing(self, question: int, models: Sequence[str], unable: Callable[[str], bool]) -> Missing:
        """The calls that a prompt still needs, if these models answer it; a check of an answer is none.

        Args:
            unable: whether a model is not asked any more.
        """
        wanted = [
            (judge, shown)
            for judge in self.task.judges or ("",)
            for shown in self._shown(models)
            if all(self._may_answer(question, model, unable) for model in shown)
            and self.journal.known(self.verdict_key(question, judge, shown)) is None
        ]
        asked = dict.fromkeys(model for _, shown in wanted for model in shown)
        answers = [m for m in asked if (found := self.answer(question, m)) is None or found.text is None]
        return Missing(tuple(answers), tuple(wanted) if self.task.judges else ())

    def _shown(self, models: Sequence[str]) -> Iterator[tuple[str, ...]]:
        if self.task.mode != "pairs":
            yield from ((model,) for model in models)
            return
        for a, b in combinations(models, 2):
            yield a, b
            yield b, a

    def _may_answer(self, question: int, model: str, unable: Callable[[str], bool]) -> bool:
        found = self.answer(question, model)
        if found is None:
            return not unable(model)
        return found.characters > 0 and (found.text is not None or self._ask_again)

    def compared(self, question: int) -> list[Compared]:
        """The comparisons of a prompt, of which at least one judge has said something."""
        found = []
        pairs = {frozenset(pair): pair for plan in self.plans(question)[::-1] for pair in combinations(plan, 2)}
        for a, b in pairs.values() if self.task.mode == "pairs" else ():
            verdicts: dict[str, tuple[str, str]] = {}
            outcomes: dict[str, int] = {}
            for judge in self.task.judges:
                both = [self.journal.known(self.verdict_key(question, judge, s)) for s in ((a, b), (b, a))]
                first, second = (None if one is None else one.value for one in both)
                if first is not None and second is not None:
                    verdicts[judge] = first, second
                    outcome = of_both_orders(first, second)
                    outcomes |= {} if outcome is None else {judge: outcome}
            if verdicts:
                sides = [self.answer(question, model) for model in (a, b)]
                length = [0 if one is None else one.characters for one in sides]
                outcome = majority(list(outcomes.values())) if outcomes else None
                found.append(Compared(question, (a, b), verdicts, outcomes, outcome, (length[0], length[1])))
        return found

    def scores(self, question: int) -> dict[str, float]:
        """By model, the score of its answer: the mean of the judges' grades, or of the check."""
        found = {}
        for model in self.asked(question) if self.task.mode != "pairs" else ():
            entries = [
                self.journal.known(self.verdict_key(question, judge, (model,))) for judge in self.task.judges or ("",)
            ]
            grades = [one.score for one in entries if one is not None and one.score is not None]
            if grades:
                found[model] = sum(grades) / len(grades)
        return found

    @property
    def forgotten(self) -> int:
        """Judgements that can't be made, because the text of an answer was not kept."""
        return sum(
            self.journal.known(self.verdict_key(i, judge, shown)) is None
            and any((found := self.answer(i, m)) is not None and found.characters > 0 and not found.text for m in shown)
            for i in range(len(self.questions))
            for judge in self.task.judges or ("",)
            for shown in self._shown(self.plan(i))
        )

    def text(self, question: int, model: str) -> str | None:
        """Of an answer, where there is one and it is kept."""
        found = self.answer(question, model)
        return None if found is None else found.text
