"""What is asked of whom: the calls of a prompt, what they are expected to cost, and the limits that they keep to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from litellm_router.prices import Price

Mode = Literal["pairs", "grades", "check"]

#: Characters of a token, about, and characters around a prompt and the answers that a judge is shown.
_CHARACTERS, _AROUND = 4, 900

#: Tokens of an answer and of a verdict that are expected before the first is seen.
ANSWER_TOKENS, VERDICT_TOKENS = 500, 100

#: A unit of work is begun only if its cost fits, with answers so many times longer than expected.
_MARGIN = 1.5


@dataclass(frozen=True)
class Task:
    """What a run asks.

    Attributes:
        models: candidates.
        k: of them that answer a prompt.
        mode: pairs are compared in both orders, or answers graded, or checked by rule.
        judges: that compare or grade.
        rubric: that they are given.
        check: digest of the check.
        max_tokens: of an answer.
    """

    models: tuple[str, ...]
    k: int
    mode: Mode
    judges: tuple[str, ...] = ()
    rubric: str = ""
    check: str = ""
    max_tokens: int | None = None

    @property
    def judgements(self) -> int:
        """Calls of judges for one prompt."""
        each = self.k * (self.k - 1) if self.mode == "pairs" else self.k
        return each * len(self.judges)

    @property
    def calls(self) -> int:
        """Calls for one prompt."""
        return self.k + self.judgements


@dataclass
class _Seen:
    """Tokens of the answers of a model: number, sum, most."""

    count: int = 0
    total: int = 0
    most: int = 0


class Costs:
    """Expected costs of calls, in USD, learnt from those that were made. A model without a price counts nothing.

    Args:
        prices: by model.
        task: what is asked.
        answer_tokens: expected of an answer, before the first of its model is seen.
    """

    def __init__(self, prices: Mapping[str, Price | None], task: Task, answer_tokens: int = ANSWER_TOKENS) -> None:
        self._prices, self._task, self._expected = prices, task, answer_tokens
        self._seen: dict[tuple[str, bool], _Seen] = {}

    @property
    def unpriced(self) -> list[str]:
        """Models without a price."""
        return [name for name, price in self._prices.items() if price is None]

    def learn(self, model: str, tokens: int, judging: bool) -> None:
        """Takes note of the tokens of an answer, or of a judge's reply."""
        seen = self._seen.setdefault((model, judging), _Seen())
        seen.count, seen.total, seen.most = seen.count + 1, seen.total + tokens, max(seen.most, tokens)

    def tokens(self, model: str, judging: bool, most: bool = False) -> float:
        """Of an answer or a judge's reply: those that are expected, or the most that are reckoned with."""
        seen = self._seen.get((model, judging))
        expected = VERDICT_TOKENS if judging else self._expected
        mean = seen.total / seen.count if seen else expected
        limit = None if judging else self._task.max_tokens
        if most:
            return limit or max(_MARGIN * mean, seen.most if seen else 0)
        return min(mean, limit) if limit else mean

    def answer(self, model: str, characters: int, most: bool = False) -> float:
        """Of an answer to a prompt of so many characters."""
        return self._cost(model, characters, self.tokens(model, False, most))

    def judgement(self, judge: str, characters: int, models: Sequence[str], most: bool = False) -> float:
        """Of a verdict or grade on answers of some models to a prompt of so many characters."""
        answers = sum(self.tokens(model, False, most) for model in models)
        shown = characters + len(self._task.rubric) + _AROUND
        return self._cost(judge, shown, self.tokens(judge, True, most), answers)

    def _cost(self, model: str, characters: float, output: float, more: float = 0.0) -> float:
        price = self._prices.get(model)
        return 0.0 if price is None else price.cost(int(characters / _CHARACTERS + more), output)

    def prompt(self, characters: int) -> float:
        """Of all calls for a prompt, with models that are not chosen yet: the mean of the candidates."""
        task = self._task
        answers = task.k * _mean([self.answer(model, characters) for model in task.models])
        shown = 2 if task.mode == "pairs" else 1
        tokens = _mean([self.tokens(model, False) for model in task.models])
        each = task.judgements / max(len(task.judges), 1)
        around = characters + len(task.rubric) + _AROUND
        judged = [self._cost(j, around, self.tokens(j, True), shown * tokens) for j in task.judges]
        return answers + each * sum(judged)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


@dataclass
class Purse:
    """What may be spent, counted over all runs of a journal; a unit of work is reserved whole before it begins.

    Attributes:
        budget: USD; None is no limit.
        max_calls: None is no limit.
        paid: USD and calls so far.
    """

    budget: float | None
    max_calls: int | None
    paid: Callable[[], tuple[float, int]]
    _reserved: list[tuple[float, int]] = field(default_factory=list)

    def reserve(self, cost: float, calls: int) -> bool:
        """Whether a unit fits; if so, it counts until it is released."""
        spent, made = self.paid()
        cost_all = spent + cost + sum(one[0] for one in self._reserved)
        calls_all = made + calls + sum(one[1] for one in self._reserved)
        fits = (self.budget is None or cost_all <= self.budget) and (
            self.max_calls is None or calls_all <= self.max_calls
        )
        if fits:
            self._reserved.append((cost, calls))
        return fits

    def release(self, cost: float, calls: int) -> None:
        """Ends a unit: what it paid is counted as paid."""
        self._reserved.remove((cost, calls))
