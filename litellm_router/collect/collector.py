"""Compares a share of the answers with another model's, in the background, once they have gone out.

A comparison is three calls: another model of the group answers the same chat, and a judge sees both answers in both
orders. Nothing waits for it: what finds no room, no money or no judge is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from litellm_router import metrics
from litellm_router.abilities import lacks
from litellm_router.ask.judge import default_rubric, of_both_orders, pair_messages, read_verdict
from litellm_router.collect.sample import MOST_BYTES, Sample, sample_of, shown
from litellm_router.collect.store import Full, Store, day_of
from litellm_router.deployments import Deployment, Group, id_of
from litellm_router.prices import price_of
from litellm_router.request import Wanted
from litellm_router.settings import Collect
from p2l_plugins.outcomes import OUTCOMES
from p2l_plugins.prompts import text_bytes
from p2l_plugins.routing.explain import estimated_input_tokens
from p2l_plugins.votes.design import PairDesign

log = logging.getLogger("litellm_router")

#: Comparisons at the same time, and seconds that one call may take.
MOST_AT_ONCE, CALL_S = 2, 120.0

#: Tokens that are expected of a verdict, and of an answer whose length was not learnt.
VERDICT_TOKENS = 200

#: Groups whose comparisons are counted; models of a group beyond which it is compared by chance.
MOST_GROUPS, MOST_MODELS = 64, 64


class Collector:
    """Collects votes by one configuration.

    Attributes:
        counts: comparisons by what became of them.

    Args:
        settings: share, judge, budget.
        store: keeps votes and costs.
        lengths: expected tokens of a model's answer.
        clock: seconds since 1970.
    """

    def __init__(
        self, settings: Collect, store: Store, lengths: Callable[[str], float], clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self.counts = settings, Counter[str]()
        self._store, self._lengths, self._clock = store, lengths, clock
        self._rng = np.random.default_rng(secrets.randbits(64))
        self._designs: dict[tuple[str, ...], PairDesign] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved = 0.0
        self._said: set[str] = set()
        self._rubric = default_rubric(grade=False)

    def sample(
        self, name: str, wanted: Wanted, chat: object, request: Mapping[str, Any], group: Group
    ) -> Sample | None:
        """What is kept of a request of a group that is to be compared, for the share that is drawn; else None."""
        if self._rng.random() >= self.settings.share or (self.settings.groups and name not in self.settings.groups):
            return None
        return sample_of(wanted, chat, request, group)

    def soon(self, sample: Sample, answered: str, text: str) -> None:
        """Starts a comparison of the answer that a model gave, where there is room. Never waits, never raises."""
        if not text.strip() or text_bytes(text) > MOST_BYTES or answered not in sample.group.models:
            return
        if len(self._tasks) >= MOST_AT_ONCE:
            self._count("no_room")
            return
        # a context of its own: what LiteLLM remembers of the request must not reach these calls
        task = asyncio.get_running_loop().create_task(
            self._compared(sample, answered, text), context=contextvars.Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Ends comparisons that go on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        metrics.collected(outcome)

    async def _compared(self, sample: Sample, answered: str, text: str) -> None:
        try:
            await self._compare(sample, answered, text)
        except Full:
            self._count("full")
            self._say("full", "the store is full; import its votes with p2l votes from-collected, then move it away")
        except Exception as error:  # of the store; of no message, which could hold text of the prompt
            self._count("store")
            self._say(f"store {type(error).__name__}", f"the store fails ({type(error).__name__})")

    async def _compare(self, sample: Sample, answered: str, text: str) -> None:
        models = sample.group.models
        design = self._design(models)
        first = models.index(answered)
        tokens = estimated_input_tokens(sum(text_bytes(one["content"]) for one in sample.messages))
        others = {
            model: one
            for model in models
            if model != answered and (one := self._able(sample.deployments_of(model), tokens)) is not None
        }
        if not others:
            return
        unable = [i for i, model in enumerate(models) if model != answered and model not in others]
        pair = design.choose(2, self._rng, must=[first], without=unable)
        second = next(i for i in pair if i != first)
        deployment = others[models[second]]
        expected = self._expected(sample, deployment, models[second], tokens, text)
        if expected is None:
            self._count("no_price")
            self._say("price", "the second model or the judge has no known price, so that no budget would hold")
            return
        now = self._clock()
        if await self._store.spent(day_of(now)) + self._reserved + expected > self.settings.budget_per_day:
            self._count("budget")
            return
        self._reserved += expected
        design.begin([first, second])
        calls = _Calls(sample.router, expected / 3)
        row: dict[str, Any] = {"timestamp": now, "judge": self.settings.judge}
        became = None
        try:
            outcome = await self._outcome(calls, sample, text, id_of(deployment))
            if outcome is None:
                became = "unreadable"
            else:
                design.add(first, second, outcome)
                row |= {"prompt": list(sample.turns), "model_a": answered, "model_b": models[second]}
                row["winner"] = OUTCOMES[outcome]
                became = "vote"
        except Exception as error:  # of a provider, of any kind
            became = "failed"
            self._say(f"call {type(error).__name__}", f"a call failed ({type(error).__name__})")
        finally:
            design.end([first, second])
            try:
                if calls.cost:
                    await self._store.add(row | {"cost": calls.cost})
            finally:
                self._reserved -= expected
        if became is not None:  # and what was paid for is kept
            self._count(became)

    async def _outcome(self, calls: _Calls, sample: Sample, text: str, deployment: str) -> int | None:
        """Index into `OUTCOMES` with the answer as model a; None where the judge can't be read."""
        other = await calls.ask(deployment, sample.messages, "answer", sample.max_tokens)
        other = other[:MOST_BYTES]
        request, mark = shown(sample.messages), secrets.token_hex(4)
        verdicts = []
        for answers in ((text, other), (other, text)):
            reply = await calls.ask(self.settings.judge, pair_messages(self._rubric, request, answers, mark), "verdict")
            verdicts.append(read_verdict(reply))
        return of_both_orders(*verdicts)

    def _able(self, deployments: Sequence[Deployment], tokens: int) -> Deployment | None:
        able = [one for one in deployments if not lacks(one, (), tokens)]
        return able[int(self._rng.integers(len(able)))] if able else None

    def _expected(self, sample: Sample, deployment: Deployment, model: str, tokens: int, text: str) -> float | None:
        """USD of a comparison; None where a price is not known."""
        judges = sample.router.get_model_list(model_name=self.settings.judge) or [
            {"litellm_params": {"model": self.settings.judge}}
        ]
        prices = [price_of(one) for one in judges]
        own = price_of(deployment)
        if own is None or any(one is None for one in prices):
            return None
        length = min(self._lengths(model), sample.max_tokens or float("inf"))
        shown_tokens = tokens + estimated_input_tokens(text_bytes(text) + len(self._rubric)) + length
        dearest = max(one.cost(int(shown_tokens), VERDICT_TOKENS) for one in prices if one is not None)
        return own.cost(tokens, length) + 2 * dearest

    def _design(self, models: tuple[str, ...]) -> PairDesign:
        if models not in self._designs:
            if len(self._designs) >= MOST_GROUPS:
                self._designs.clear()
            self._designs[models] = PairDesign(len(models), explore=1.0 if len(models) > MOST_MODELS else 0.05)
        return self._designs[models]

    def _say(self, topic: str, what: str) -> None:
        """One line for each kind of trouble."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning("p2l collects no vote: %s; this is said once", what)


class _Calls:
    """Calls of one comparison, and what they cost.

    Args:
        router: that makes them.
        usual: USD that a call counts whose cost LiteLLM does not say.
    """

    def __init__(self, router: Any, usual: float) -> None:
        self.cost = 0.0
        self._router, self._usual = router, usual

    async def ask(self, model: str, messages: list[dict[str, str]], purpose: str, max_tokens: int | None = None) -> str:
        """The text of an answer."""
        options = {} if max_tokens is None else {"max_tokens": max_tokens}
        metadata = {"spend_logs_metadata": {"p2l_collect": purpose}}
        try:
            async with asyncio.timeout(CALL_S):
                response = await self._router.acompletion(model=model, messages=messages, metadata=metadata, **options)
        except TimeoutError:  # the provider may go on, and be paid for it
            self.cost += self._usual
            raise
        cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
        self.cost += float(cost) if isinstance(cost, int | float) else self._usual
        return response.choices[0].message.content or ""
