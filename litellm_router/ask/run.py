"""The run of `p2l votes ask`: who answers which prompt is chosen as verdicts come in, calls are made, and journaled.

A prompt is a unit of work: its models answer, then their answers are judged. Calls that the journal knows are not made.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from litellm_router.ask.calls import CallFailed, Models, Reply
from litellm_router.ask.checks import Check
from litellm_router.ask.journal import Entry, Journal
from litellm_router.ask.judge import UNREADABLE, grade_messages, pair_messages, read_grade, read_verdict
from litellm_router.ask.known import Known, Missing
from litellm_router.ask.plan import Costs, Purse, Task
from litellm_router.ask.questions import Question
from p2l_plugins.errors import DataError
from p2l_plugins.votes.design import PairDesign
from p2l_plugins.votes.votes import outcome_of_scores

#: A model that fails its first calls, so many, is asked no more in this run.
FAILURES = 10

#: A judge none of whose first replies, so many, can be read ends the run.
UNREADABLE_REPLIES = 20

#: Seconds that calls in flight have left after SIGTERM.
GRACE_S = 8.0

#: Seconds between the moments at which the journal is on the disk.
_SYNC_S = 0.5


class _Stopped(Exception):
    """No call is begun any more."""


class Run:
    """Asks prompts and has the answers judged.

    Args:
        task: what is asked.
        questions: in the order in which they are asked.
        models: that can be called.
        journal: open.
        costs: that are expected.
        purse: what may be spent.
        check: of answers, where no judge is asked.
        ask_again: ask again for answers that were paid for and whose text was not kept.
        seed: of the choices.

    Attributes:
        known: what the journal says of each prompt.
        stopped: the signal that ended the run early; None where it went to its end.
        limited: whether the budget or the number of calls ended it.
        made: calls of this run.
    """

    def __init__(
        self,
        task: Task,
        questions: Sequence[Question],
        models: Models,
        journal: Journal,
        costs: Costs,
        purse: Purse,
        check: Check | None = None,
        ask_again: bool = False,
        seed: int = 0,
    ) -> None:
        self.task, self.questions, self.models, self.journal = task, questions, models, journal
        self.costs, self.purse = costs, purse
        self.known = Known(task, questions, journal, ask_again)
        self._check = check
        self._rng = np.random.default_rng(seed)
        self._learnt: set[tuple[int, str, str]] = set()
        self._index = {name: i for i, name in enumerate(task.models)}
        self.design = PairDesign(len(task.models))
        self.stopped: signal.Signals | None = None
        self.limited = False
        self.made = 0
        self._error: BaseException | None = None
        self._next_question = 0
        self._flying: set[int] = set()
        self._calls_flying = 0
        self._tries: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._unread: Counter[str] = Counter()
        self._read: set[str] = set()
        self._changed = asyncio.Event()
        self._read_journal()

    def _read_journal(self) -> None:
        """Learns from what is known: lengths of answers, who can answer, the board so far."""
        for entry in self.journal.entries.values():
            if entry.kind in ("answer", "verdict", "score") and entry.called:
                self._answered.add(entry.model)
                self.costs.learn(entry.model, entry.tokens[1], judging=entry.kind != "answer")
        for i in range(len(self.questions)):
            self._learn(i)

    def unfinished(self) -> set[str]:
        """Keys of answers that were paid for and that a verdict still needs."""
        return {
            self.known.answer_key(i, model)
            for i in range(len(self.questions))
            for _, shown in self._missing(i, self.known.plan(i)).verdicts
            if all(self.known.text(i, model) for model in shown)
            for model in shown
        }

    def _missing(self, question: int, models: Sequence[str]) -> Missing:
        return self.known.missing(question, models, self._unable)

    def _unable(self, model: str) -> bool:
        return model not in self._answered and self._tries[model] >= FAILURES

    def _learn(self, question: int) -> None:
        """Adds what is known of a prompt to the board that the choices are made by."""
        for one in self.known.compared(question):
            if one.outcome is not None:
                self._add(question, *one.models, one.outcome)
        for (a, x), (b, y) in combinations(self.known.scores(question).items(), 2):
            self._add(question, a, b, int(outcome_of_scores(x, y, 0.0, 0.5)))

    def _add(self, question: int, a: str, b: str, outcome: int) -> None:
        if (question, a, b) not in self._learnt:
            self._learnt.add((question, a, b))
            self.design.add(self._index[a], self._index[b], outcome)

    def remaining(self) -> tuple[float, int, int]:
        """What is left to do without a limit: expected USD, calls at most, prompts."""
        cost, calls, prompts = 0.0, 0, 0
        for i, question in enumerate(self.questions):
            plan = self.known.plan(i)
            if len(plan) < self.task.k:
                cost += self.costs.prompt(len(question.text))
                calls += self.task.calls
                prompts += 1
            elif (missing := self._missing(i, plan)).calls:
                cost += self._cost(i, missing, most=False)
                calls += missing.calls
                prompts += 1
        return cost, calls, prompts

    def _cost(self, question: int, missing: Missing, most: bool) -> float:
        length = len(self.questions[question].text)
        answers = sum(self.costs.answer(model, length, most) for model in missing.answers)
        return answers + sum(self.costs.judgement(judge, length, shown, most) for judge, shown in missing.verdicts)

    async def run(self, concurrency: int, step: Callable[[], object], say: Callable[[str], object]) -> None:
        """Works until all is done, a limit is reached, or a signal comes: then calls in flight are waited for.

        Args:
            concurrency: most calls at the same time.
            step: is called when a prompt is done.
            say: is told what happens on a signal.

        Raises:
            DataError: a judge, or all models but one, fail from the start; or a check that can't be made.
            OSError: the journal can't be written; what was paid for before is in it.
        """
        self._slots = asyncio.Semaphore(concurrency)
        workers = [asyncio.create_task(self._work(step)) for _ in range(concurrency)]
        syncing = asyncio.create_task(self._sync())
        with self._signals(workers, say):
            await asyncio.gather(*workers, return_exceptions=True)
        syncing.cancel()
        if self._error is not None:
            raise self._error

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_S)
            try:
                await asyncio.to_thread(self.journal.sync)
            except OSError as error:
                self._error = self._error or error
                self._notify()
                return

    @contextlib.contextmanager
    def _signals(self, workers: Sequence[asyncio.Task[None]], say: Callable[[str], object]) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def leave() -> None:
            for worker in workers:
                worker.cancel()

        def stop(name: signal.Signals) -> None:
            if self.stopped is not None:
                leave()
                return
            self.stopped = name
            self._changed.set()
            say(f"stopping: {self._calls_flying} calls in flight are waited for; Ctrl-C again leaves them")
            if name == signal.SIGTERM:
                loop.call_later(GRACE_S, leave)

        names = (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or no main thread
            for name in names:
                loop.add_signal_handler(name, stop, name)
        try:
            yield
        finally:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                for name in names:
                    loop.remove_signal_handler(name)

    async def _work(self, step: Callable[[], object]) -> None:
        try:
            while (unit := await self._next(step)) is not None:
                question, plan, cost, calls = unit
                index = [self._index[name] for name in plan]
                try:
                    await self._unit(question, plan)
                finally:
                    self._flying.discard(question)
                    self.purse.release(cost, calls)
                    self.design.end(index)
                    self._learn(question)
                    self._notify()
                step()
        except _Stopped:
            pass
        except Exception as error:
            self._error = self._error or error
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _next(self, step: Callable[[], object]) -> tuple[int, tuple[str, ...], float, int] | None:
        """The next prompt, who answers it, and what is reserved for it; None where nothing is left to begin."""
        while self._next_question < len(self.questions) and not self.limited:
            self._go_on()
            i = self._next_question
            plan = self._chosen(i)
            missing = self._missing(i, plan)
            known = self.known.plan(i) == plan
            if known and not missing.calls and (self.task.judges or not missing.answers):
                self._next_question += 1
                step()
                continue
            cost = self._cost(i, missing, most=True)
            if self.purse.reserve(cost, missing.calls):
                self._next_question += 1
                if not known:
                    self.journal.add(Entry(self.known.plan_key(i), "plan", value=self.known.candidates, models=plan))
                self.design.begin([self._index[name] for name in plan])
                self._flying.add(i)
                return i, plan, cost, missing.calls
            if not self._flying:
                self.limited = True
                break
            await self._changed.wait()
        return None

    def _chosen(self, question: int) -> tuple[str, ...]:
        """Who answers a prompt: those who are known to, and more for information."""
        plan = self.known.plan(question)
        unable = {self._index[name] for name in self.task.models if self._unable(name)}
        able = len(self.task.models) - len(unable)
        if able < 2:
            raise self._failing(f"all models but {able} fail")
        if len(plan) >= self.task.k:
            return plan
        must = [self._index[name] for name in plan]
        found = self.design.choose(self.task.k, self._rng, must=must, without=unable)
        return (*plan, *(self.task.models[i] for i in found if i not in must))

    def _failing(self, what: str) -> DataError:
        failures = self.journal.failures()
        reasons = dict.fromkeys(f"{model} ({reason})" for (model, reason), _ in failures.most_common())
        return DataError(
            f"{what}: {', '.join(list(reasons)[:5])}; what was paid for is in {self.journal.path}, and the same "
            "command goes on"
        )

    def _go_on(self) -> None:
        """Raises _Stopped where no call may be begun."""
        if self.stopped is not None or self._error is not None:
            raise _Stopped

    async def _unit(self, question: int, plan: tuple[str, ...]) -> None:
        missing = self._missing(question, plan)
        await _all(self._ask(question, model) for model in missing.answers)
        ready = [v for v in self._missing(question, plan).verdicts if all(self.known.text(question, m) for m in v[1])]
        await _all(self._judge(question, judge, shown) for judge, shown in ready)
        if self._check is not None:
            for model in plan:
                self._score(question, model)

    async def _ask(self, question: int, model: str) -> None:
        if self._unable(model):
            return
        key = self.known.answer_key(question, model)
        messages = [{"role": "user", "content": self.questions[question].text}]

        def entry(reply: Reply) -> Entry:
            return Entry(
                key,
                "answer",
                model,
                text=reply.text if reply.text.strip() else None,
                characters=len(reply.text.strip()),
                tokens=reply.tokens,
                cost=reply.cost,
                refused=reply.refused,
            )

        await self._call(key, model, messages, entry, self.task.max_tokens)

    async def _judge(self, question: int, judge: str, shown: tuple[str, ...]) -> None:
        key = self.known.verdict_key(question, judge, shown)
        one = self.questions[question]
        texts = [self.known.text(question, model) or "" for model in shown]
        reference = None if one.reference is None else str(one.reference)
        if len(shown) == 2:
            pair = texts[0], texts[1]
            messages = pair_messages(self.task.rubric, one.text, pair, key[:8], reference)
        else:
            messages = grade_messages(self.task.rubric, one.text, texts[0], key[:8], reference)

        def entry(reply: Reply) -> Entry:
            if len(shown) == 2:
                said = read_verdict(reply.text)
                self._was_read(judge, said != UNREADABLE)
                return Entry(key, "verdict", judge, value=said, tokens=reply.tokens, cost=reply.cost)
            grade = read_grade(reply.text)
            self._was_read(judge, grade is not None)
            return Entry(key, "score", judge, score=grade, tokens=reply.tokens, cost=reply.cost)

        await self._call(key, judge, messages, entry)
        if self._unable(judge):
            raise self._failing("the judge fails")
        if judge not in self._read and self._unread[judge] >= UNREADABLE_REPLIES:
            line = "Verdict: A" if len(shown) == 2 else "Grade: 7"
            raise DataError(
                f"none of the first {self._unread[judge]} replies of the judge {judge} can be read: each must end with "
                f"a line such as {line!r}; name another judge, or a --rubric that it follows; what was paid for is in "
                f"{self.journal.path}"
            )

    def _was_read(self, judge: str, readable: bool) -> None:
        if readable:
            self._read.add(judge)
        else:
            self._unread[judge] += 1

    def _score(self, question: int, model: str) -> None:
        """Checks an answer by rule; it costs nothing, but its text will be forgotten."""
        key, text = self.known.verdict_key(question, "", (model,)), self.known.text(question, model)
        if self._check is not None and text is not None and self.journal.known(key) is None:
            one = self.questions[question]
            score = self._check(text, one.reference, one.row)
            self.journal.add(Entry(key, "score", model, score=score, called=False))

    async def _call(
        self,
        key: str,
        model: str,
        messages: list[dict[str, str]],
        entry: Callable[[Reply], Entry],
        max_tokens: int | None = None,
    ) -> None:
        async with self._slots:
            self._go_on()
            self._calls_flying += 1
            try:
                reply = await self.models.ask(model, messages, max_tokens)
                made = entry(reply)
                self._answered.add(model)
                self.costs.learn(model, reply.tokens[1], judging=made.kind != "answer")
            except CallFailed as error:
                made = Entry(key, "failed", model, value=str(error))
                self._tries[model] += 1
            finally:
                self._calls_flying -= 1
            self.made += 1
            self.journal.add(made)


async def _all(calls: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Waits for all calls, and raises the first error only then: what is in flight is being paid for."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException):
            raise one
