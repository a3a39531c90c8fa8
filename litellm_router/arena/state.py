"""The battles of an arena: who answers, what was answered, and what people thought of it.

The names of a battle's models are in the process only until the vote. What goes out before it has no trace of
them: ids are random, errors are one sentence, and both answers are sent at the same ticks of a clock, whatever the
pieces in which a provider sends its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from litellm_router.arena.board import board_of
from litellm_router.arena.votes import VotesFile
from litellm_router.ask.calls import CHARACTERS, CallFailed, Models, about_tokens
from litellm_router.ask.plan import Purse
from p2l_plugins.errors import EmptyPrompt
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, B
from p2l_plugins.prompts import as_turns
from p2l_plugins.votes.design import PairDesign

log = logging.getLogger(__name__)

#: Seconds between two pieces of the answers, and for which a model whose call failed is not asked.
TICK_S, REST_S = 0.1, 60.0

#: Characters of an answer for each token that it may have; a provider that ignores the limit is cut off there.
_LONGEST = 2 * CHARACTERS

OUTCOME_OF = {"A": A, "B": B, "tie": TIE, "both bad": BAD}


class Refused(Exception):
    """A request that can't be met; the message is one sentence for the person who sent it.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What bounds an arena.

    Attributes:
        max_tokens: of an answer.
        rounds: user turns of a battle.
        streaming: battles that are answered at the same time; others wait.
        open: battles without a vote, of all people and of one.
        open_each: of one.
        open_s: seconds after which a battle without a vote is forgotten.
        budget: USD from the start of the process on; None is no limit.
    """

    max_tokens: int = 2048
    rounds: int = 3
    streaming: int = 8
    open: int = 256
    open_each: int = 8
    open_s: float = 1800.0
    budget: float | None = None


@dataclass
class Battle:
    """Two models that answer one person.

    Attributes:
        id: random.
        pair: the models of the sides A and B, as indices.
        client: who opened it.
        born: when, on the arena's clock.
        turns: of the user.
        answers: of each side to each turn but the last, or to all when `ready`.
        ready: whether both have answered and nothing goes on.
    """

    id: str
    pair: tuple[int, int]
    client: str
    born: float
    turns: list[str]
    answers: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    ready: bool = False

    def messages(self, side: int) -> list[dict[str, str]]:
        """The chat that a side is to answer."""
        chat = []
        for i, turn in enumerate(self.turns):
            chat.append({"role": "user", "content": turn})
            if i < len(self.answers[side]):
                chat.append({"role": "assistant", "content": self.answers[side][i]})
        return chat


class Arena:
    """The battles of one process, on one event loop.

    Args:
        models: two names at least.
        calls: by which they are called.
        file: of votes; those in it are counted.
        limits: of it all.
        clock: seconds.
        seed: of the choices; None for choices that nobody can know.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        calls: Models,
        file: VotesFile,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.models, self.limits = models, limits
        self._calls, self._file, self._clock = calls, file, clock
        self._rng = np.random.default_rng(seed)
        self._design = PairDesign(len(models))
        self._battles: dict[str, Battle] = {}
        self._resting: dict[int, float] = {}
        self._slots = asyncio.Semaphore(limits.streaming)
        self._writing = asyncio.Lock()
        self.spent = 0.0
        self._purse = Purse(limits.budget, None, lambda: (self.spent, 0))
        self.votes = self._counted()
        self._board: dict[str, Any] | None = None

    def _counted(self) -> int:
        """Counts the votes of the file; how many are on two of the models."""
        known = self._file.votes
        if known is None:
            return 0
        position = {name: i for i, name in enumerate(self.models)}
        side = np.array([position.get(name, -1) for name in known.models], np.int64)
        ours = known.take((side[known.a] >= 0) & (side[known.b] >= 0))
        for a, b, outcome in zip(side[ours.a], side[ours.b], ours.outcome, strict=True):
            self._design.add(a, b, outcome)
        return len(ours)

    def board(self) -> dict[str, Any]:
        """The leaderboard of the votes so far."""
        if self._board is None or self._board["votes"] != self.votes:
            self._board = board_of(self.models, self._design.wins, self.votes, self._design.prior)
        return self._board

    def open(self, client: str, prompt: str) -> Battle:
        """A new battle on a prompt, to be answered by `answers`.

        Raises:
            Refused: the prompt is empty, the budget is spent, or too many battles are open.
        """
        turn = _turn(prompt)
        self._forget_old()
        self._need_budget()
        own = [battle for battle in self._battles.values() if battle.client == client]
        for battle in own[: max(0, len(own) + 1 - self.limits.open_each)]:
            self._close(battle)
        if len(self._battles) >= self.limits.open:
            raise Refused(503, "too many comparisons wait for a vote; try again in some minutes")
        pair = self._design.next_pair(self._rng, self._tired())
        battle = Battle(secrets.token_urlsafe(16), pair, client, self._clock(), [turn])
        self._battles[battle.id] = battle
        self._design.begin(pair)
        return battle

    def follow(self, battle_id: str, prompt: str) -> Battle:
        """The battle with one more turn, to be answered by `answers`.

        Raises:
            Refused: as `open`; there is no such battle, it is being answered, or it has all its turns.
        """
        turn = _turn(prompt)
        battle = self._ready(battle_id)
        if len(battle.turns) >= self.limits.rounds:
            raise Refused(409, f"a comparison has {self.limits.rounds} turns at most; vote, and begin another one")
        self._need_budget()
        battle.turns.append(turn)
        battle.ready = False
        return battle

    async def answers(self, battle: Battle) -> AsyncIterator[dict[str, Any]]:
        """What is sent of a battle's answers, as they come.

        First `{"battle": id}`, then `{"side": "A", "text": …}` and `{"side": "A", "end": true}`, and at last
        `{"ready": true}`, or `{"failed": …}` with a sentence: then the battle is over.
        """
        yield {"battle": battle.id}
        async with self._slots:
            cost = self._most(battle)
            if not self._purse.reserve(cost, 0):
                self._close(battle)
                yield {"failed": "the arena's budget is spent", "final": True}
                return
            said: tuple[list[str], list[str]] = ([], [])
            calls = [asyncio.create_task(self._answer(battle, side, said[side].append)) for side in (0, 1)]
            try:
                async for event in _ticks(calls, said):
                    yield event
                if all(call.done() and call.result() for call in calls):
                    battle.ready = battle.id in self._battles
                    yield {"ready": True, "turns_left": self.limits.rounds - len(battle.turns)}
                else:
                    yield {"failed": "a model gave no answer, so this pair does not count"}
            finally:
                for call in calls:
                    call.cancel()
                self._purse.release(cost, 0)
                if not battle.ready:
                    self._close(battle)

    async def _answer(self, battle: Battle, side: int, say: Callable[[str], None]) -> bool:
        """Whether a model answered; what it cost is booked in any case."""
        model = battle.pair[side]
        name, messages = self.models[model], battle.messages(side)
        text, cost = "", None

        def heard(piece: str) -> None:
            nonlocal text
            text += piece
            say(piece)

        try:
            most = self.limits.max_tokens * _LONGEST
            reply = await self._calls.stream(name, messages, self.limits.max_tokens, heard, most)
            cost = reply.cost
        except CallFailed as error:
            log.warning("a call of %s failed: %s", name, error)
            self._resting[model] = self._clock() + REST_S
            return False
        finally:
            price = self._calls.price(name)
            if cost is None and price is not None:
                cost = price.cost(about_tokens(messages), len(text) // CHARACTERS)
            self.spent += cost or 0.0
        battle.answers[side].append(text)
        return True

    async def vote(self, battle_id: str, choice: str) -> dict[str, Any]:
        """Counts a vote, once; gives the names, and the board with it.

        Raises:
            Refused: there is no such battle, it is being answered, or the vote can't be stored.
        """
        battle = self._ready(battle_id)
        outcome = OUTCOME_OF[choice]
        names = [self.models[i] for i in battle.pair]
        row = {
            "prompt": battle.turns[0] if len(battle.turns) == 1 else battle.turns,
            "model_a": names[0],
            "model_b": names[1],
            "winner": OUTCOMES[outcome],
            "timestamp": round(time.time(), 3),
        }
        del self._battles[battle_id]  # before the first wait, so that a second vote finds none
        try:
            await self._store(row)
        except OSError as error:
            log.error("%s: a vote can't be written (%s)", self._file.path, error.strerror)
            self._battles[battle_id] = battle
            raise Refused(503, "the vote can't be stored; try again") from None
        self._design.end(battle.pair)
        self._design.add(*battle.pair, outcome)
        self.votes += 1
        return {"A": names[0], "B": names[1], "board": self.board()}

    async def _store(self, row: Mapping[str, Any]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._file.append, row)

    def _ready(self, battle_id: str) -> Battle:
        self._forget_old()
        battle = self._battles.get(battle_id)
        if battle is None:
            raise Refused(404, "this comparison is over: it has its vote, it failed, or it waited too long")
        if not battle.ready:
            raise Refused(409, "the answers are not complete yet")
        return battle

    def _need_budget(self) -> None:
        if self.limits.budget is not None and self.spent >= self.limits.budget:
            raise Refused(503, "the arena's budget is spent")

    def _most(self, battle: Battle) -> float:
        """USD that the answers of a round can cost."""
        total = 0.0
        for side, model in enumerate(battle.pair):
            price = self._calls.price(self.models[model])
            if price is not None:
                total += price.cost(about_tokens(battle.messages(side)), self.limits.max_tokens)
        return total

    def _tired(self) -> list[int]:
        """Models that failed a moment ago, as far as two others are left."""
        now = self._clock()
        self._resting = {model: end for model, end in self._resting.items() if end > now}
        return sorted(self._resting, key=self._resting.__getitem__, reverse=True)[: len(self.models) - 2]

    def _forget_old(self) -> None:
        born = self._clock() - self.limits.open_s
        for battle in [one for one in self._battles.values() if one.born < born]:
            self._close(battle)

    def _close(self, battle: Battle) -> None:
        """Ends a battle without a vote."""
        if self._battles.pop(battle.id, None) is not None:
            self._design.end(battle.pair)


def _turn(prompt: str) -> str:
    try:
        return as_turns(prompt)[0]
    except EmptyPrompt:
        raise Refused(422, "type a prompt first") from None


async def _ticks(calls: list[asyncio.Task[bool]], said: tuple[list[str], list[str]]) -> AsyncIterator[dict[str, Any]]:
    """What both sides said since the last tick, until both have ended or one has failed."""
    going = {"A": 0, "B": 1}
    while going:
        await asyncio.wait(calls, timeout=TICK_S)
        ended = [name for name, side in going.items() if calls[side].done()]
        for name, side in going.items():
            if text := "".join(said[side]):
                said[side].clear()
                yield {"side": name, "text": text}
        for name in ended:
            if not calls[going.pop(name)].result():
                return
            yield {"side": name, "end": True}
