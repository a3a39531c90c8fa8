"""Scores prompts of many callers in batches: requests gather while the model is busy, and nobody waits for company.

A free worker takes the oldest request and the waiting ones nearest to it in length, up to a number of padded tokens.
So long prompts are never overtaken for good, and while long ones hold all workers, one batch of short ones may run
beside them: the operating system shares the processor, and a short prompt need not wait seconds for a long one.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import heapq
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from p2l_plugins.cache.entry import Bounds, Entry
from p2l_plugins.errors import BundleError, P2LError
from p2l_plugins.outcomes import Family
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.support import Support

#: Prompts of at most so many tokens are short.
SHORT_TOKENS = 256

#: Seconds that the end of the process waits for batches that run: a thread that is stopped inside ONNX Runtime aborts
#: the process.
EXIT_S = 10.0

#: Weight of the newest run in what a run of such a length takes.
NEWEST = 0.2

#: Mean deviations above its mean that a run is expected to take at most.
DEVIATIONS = 1.0

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Busy(P2LError):
    """A request that was refused at once: too many prompts wait, or the engine is closed."""


class Scorer(Protocol):
    """What scores prompts: a `P2L` in this process, or one behind HTTP. Safe to use from several threads."""

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of models, to names in `models`."""

    @property
    def support(self) -> Mapping[str, Support]:
        """How much is known of each model; one that is not in it counts as well known."""

    @property
    def family(self) -> Family:
        """The outcome model."""

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt that count."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one run; 1 where each prompt runs alone."""

    @property
    def bounds(self) -> Bounds:
        """How far from 0 the scores can be."""

    @property
    def workers(self) -> int:
        """Runs at the same time."""

    @property
    def overall(self) -> Entry | None:
        """The coefficients of everyday prompts' leaderboard, for a prompt that can't be read.

        At hand without scoring anything once the scorer is warm; None where the scorer does not say.
        """

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name.
        """

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        """Coefficients of prompts, in their order: one run, where they fit into `batch_tokens`."""

    def close(self) -> None:
        """Ends what the scorer holds open."""


@dataclasses.dataclass(eq=False)
class _Request:
    turns: Turns
    tokens: int
    future: Future[Scores]
    started: float = 0.0


class Engine:
    """Scores one prompt per request, in batches. Safe to use from several threads and event loops.

    The threads start with the first request. At the end of the process requests that wait are dropped, and batches that
    run get a few seconds to finish.

    Args:
        scorer: says how much it takes at once: `workers` batches run at the same time, and one more of short prompts
            where all of them are long.
        max_pending: prompts that wait or are being scored; more are refused.
        ran: called after each run, in its thread, with the number of prompts and the seconds.
    """

    def __init__(
        self, scorer: Scorer, max_pending: int = 64, ran: Callable[[int, float], None] = lambda prompts, seconds: None
    ) -> None:
        self._scorer = scorer
        self._workers, self._batch_tokens = scorer.workers, scorer.batch_tokens
        self._max_pending = max_pending
        self._ran = ran
        self._changed = threading.Condition()
        self._waiting: list[_Request] = []  # oldest first
        self._running: list[list[_Request]] = []
        self._pace = Pace()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, turns: Turns) -> Future[Scores]:
        """Asks for the scores of a prompt, (1, M).

        A future that is cancelled before its batch starts is dropped without being scored. It holds the scorer's
        exception where scoring failed; a prompt that fails does not fail others in its batch.

        Raises:
            Busy: too many prompts wait, or the engine is closed.
        """
        return self.submit_all([turns])[0]

    def submit_all(self, prompts: Sequence[Turns], deadline: float | None = None) -> list[Future[Scores]]:
        """As `submit`, of several prompts: all are taken, or none.

        Args:
            deadline: on the clock `time.monotonic`; what can't be expected to be ready by then is refused.
        """
        longest = self._scorer.max_length
        requests = [_Request(turns, min(estimated_tokens(turns), longest), Future()) for turns in prompts]
        with self._changed:
            if self._closed:
                raise Busy("the engine is closed")
            if self._pending() + len(requests) > self._max_pending:
                self._waiting = [waiting for waiting in self._waiting if not waiting.future.cancelled()]
                if (pending := self._pending()) + len(requests) > self._max_pending:
                    raise Busy(f"{pending} prompts wait for their scores, and no more than {self._max_pending} may")
            busy = self._running or self._waiting
            if deadline is not None and busy and self._ready_at(requests) > deadline:
                raise Busy(f"{self._pending()} prompts wait, and these could not be scored by the deadline")
            self._waiting += requests
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._work, name=f"p2l-score-{i}", daemon=True)
                    for i in range(self._workers + 1)
                ]
                for thread in self._threads:
                    thread.start()
                _engines.add(self)
            self._changed.notify_all()
        return [request.future for request in requests]

    async def score(self, turns: Turns) -> Scores:
        """As `submit`, for event loops; cancelling the task cancels the request."""
        return await asyncio.wrap_future(self.submit(turns))

    def close(self, wait_s: float = 0.0) -> bool:
        """Takes no more requests; scores those that wait for up to `wait_s` seconds, then drops them.

        Returns:
            whether all were done in time.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._closed = True
            while self._pending() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            dropped, self._waiting = self._waiting, []
            done = not dropped and not self._running
            self._changed.notify_all()
        for request in dropped:
            request.future.cancel()
        return done

    @property
    def works(self) -> bool:
        """Whether a thread is there to score, or would be started."""
        return not self._closed and (not self._threads or any(thread.is_alive() for thread in self._threads))

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _ready_at(self, requests: Sequence[_Request]) -> float:
        """When these would be scored, after all that wait, one by one: batches are quicker."""
        now = time.monotonic()
        running = [batch[0].started + self._pace.seconds(_tokens(batch)) for batch in self._running]
        free = [max(now, end) for end in running] + [now] * (self._workers - len(running))
        heapq.heapify(free)
        waiting = (one for one in self._waiting if not one.future.cancelled())
        end = now
        for one in (*waiting, *requests):
            end = free[0] + self._pace.seconds(one.tokens)
            heapq.heapreplace(free, end)
        return end

    def _pending(self) -> int:
        return len(self._waiting) + sum(map(len, self._running))

    def _work(self) -> None:
        while batch := self._take():
            outcomes = self._outcomes(batch)
            with self._changed:  # first, so that who has its scores finds the room that they left
                self._running.remove(batch)
                self._changed.notify_all()
            for request, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Scores):
                    request.future.set_result(outcome)
                else:
                    request.future.set_exception(outcome)

    def _take(self) -> list[_Request]:
        """The next batch, when there is one for a free worker; empty when the engine is closed."""
        with self._changed:
            while True:
                if batch := self._started():
                    batch[0].started = time.monotonic()
                    self._running.append(batch)
                    return batch
                if self._closed and not self._waiting:
                    return []
                self._changed.wait()

    def _started(self) -> list[_Request]:
        if len(self._running) < self._workers:
            batch = choose([request.tokens for request in self._waiting], self._batch_tokens)
        elif len(self._running) == self._workers and all(map(_is_long, self._running)):
            short = [i for i, request in enumerate(self._waiting) if request.tokens <= SHORT_TOKENS]
            batch = [short[i] for i in choose([self._waiting[i].tokens for i in short], self._batch_tokens)]
        else:
            return []
        chosen = [self._waiting[i] for i in batch]
        self._waiting = [request for request in self._waiting if request not in chosen]
        started = [request for request in chosen if request.future.set_running_or_notify_cancel()]
        return started or (self._started() if chosen else [])

    def _outcomes(self, batch: list[_Request]) -> list[Scores | Exception]:
        """Scores, or what was raised, per request; where a batch fails, each one is tried alone."""
        started = time.perf_counter()
        try:
            scores = self._scorer.score_turns([request.turns for request in batch])
            seconds = time.perf_counter() - started
            self._pace.saw(_tokens(batch), seconds)
            self._ran(len(batch), seconds)
            if len(scores) != len(batch):
                raise ValueError(f"{len(scores)} rows of scores for {len(batch)} prompts")
            return [_row(scores, i) for i in range(len(batch))]
        except BaseException as error:  # whatever a tokenizer or ONNX Runtime raises belongs to the request
            if len(batch) == 1:
                # a panic of Rust is no Exception, and who waits expects one
                return [
                    error if isinstance(error, Exception) else BundleError(f"scoring failed: {type(error).__name__}")
                ]
            return [outcome for request in batch for outcome in self._outcomes([request])]


class Pace:
    """Seconds that a run takes at most, as a rule: mean and mean deviation for each power of two of its tokens.

    Both are exponential means, as in the estimate of a TCP connection's time-out (RFC 6298). Safe to use from threads.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}

    def saw(self, tokens: int, seconds: float) -> None:
        """A run ended."""
        size = tokens.bit_length()
        mean, deviation = self._seen.get(size, (seconds, 0.0))
        deviation += NEWEST * (abs(seconds - mean) - deviation)
        self._seen[size] = (mean + NEWEST * (seconds - mean), deviation)

    def seconds(self, tokens: int) -> float:
        """Of a run: 0 before any was seen; a size that was not seen takes its share of the nearest."""
        size = tokens.bit_length()
        seen = dict(self._seen)
        if not seen:
            return 0.0
        nearest = min(seen, key=lambda known: abs(known - size))
        mean, deviation = seen[nearest]
        return (mean + DEVIATIONS * deviation) * 2.0 ** (size - nearest)


def choose(tokens: Sequence[int], limit: int) -> list[int]:
    """Positions of the next batch: the first request, and those nearest to it in length, padded at most `limit`."""
    if not tokens:
        return []
    chosen, longest = [0], tokens[0]
    for i in sorted(range(1, len(tokens)), key=lambda i: abs(tokens[i] - tokens[0])):
        longest = max(longest, tokens[i])
        if (len(chosen) + 1) * longest > limit:
            break
        chosen.append(i)
    return chosen


def estimated_tokens(turns: Turns) -> int:
    """About how many tokens a prompt has, from its characters: four of English text make one."""
    return 1 + sum(len(turn) // 4 if turn.isascii() else len(turn) for turn in turns)


def _tokens(batch: Sequence[_Request]) -> int:
    return sum(request.tokens for request in batch)


def _is_long(batch: list[_Request]) -> bool:
    return max(request.tokens for request in batch) > SHORT_TOKENS


def _row(scores: Scores, i: int) -> Scores:
    row = slice(i, i + 1)
    return dataclasses.replace(
        scores,
        coefs=scores.coefs[row].copy(),
        raw_eta=None if scores.raw_eta is None else scores.raw_eta[row].copy(),
        truncated=None if scores.truncated is None else scores.truncated[row].copy(),
        unknown=None if scores.unknown is None else scores.unknown[row].copy(),
    )


@atexit.register
def _end() -> None:
    engines = list(_engines)
    deadline = time.monotonic() + EXIT_S
    for engine in engines:
        engine.close()
    for engine in engines:
        engine._join(deadline)
