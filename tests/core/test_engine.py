"""The engine: batches, fairness, refusals, failures, cancellation, the end of the process."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2l_plugins import P2L, PromptError
from p2l_plugins.cache.entry import WIDEST
from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.engine import SHORT_TOKENS, Busy, Engine, Pace, choose, estimated_tokens
from p2l_plugins.scoring.scorer import Scores

LONG = ("word " * 2 * SHORT_TOKENS,)


class Gate:
    """A scorer whose runs wait until they are let through; a prompt's coefficient is its length."""

    workers, batch_tokens, max_length, bounds = 2, 1, 2**31, WIDEST
    overall = None

    def __init__(self):
        self.runs = []
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.bad = set()
        self.running = self.most = 0
        self.lock = threading.Lock()

    def score_turns(self, prompts):
        with self.lock:
            self.runs.append(list(prompts))
            self.running += 1
            self.most = max(self.most, self.running)
        self.started.release()
        assert self.allowed.acquire(timeout=10)
        with self.lock:
            self.running -= 1
        if self.bad & set(prompts):
            raise PromptError("not this one")
        coefs = np.array([[len(turns[0])] for turns in prompts], np.float32)
        zeros = np.zeros(len(prompts), np.float32)
        return Scores(("m",), coefs, None, "bt", truncated=zeros > 0, unknown=zeros)

    def wait_started(self, count=1):
        for _ in range(count):
            assert self.started.acquire(timeout=10)

    def let(self, count=100):
        self.allowed.release(count)


def engine_of(gate, workers=2, batch_tokens=1, **options):
    """An engine of a scorer that takes so much at once."""
    gate.workers, gate.batch_tokens = workers, batch_tokens
    return Engine(gate, **options)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.let(1000)


def numbered(count, prefix="p"):
    return [(f"{prefix}{'x' * i}",) for i in range(count)]


def test_requests_gather_while_the_model_is_busy_and_run_together(gate):
    engine = engine_of(gate, workers=1, batch_tokens=1000)
    first = engine.submit(("first",))
    gate.wait_started()  # at once: nobody waits for company
    futures = [engine.submit(turns) for turns in numbered(5)]
    gate.let()
    assert [future.result(10).coefs[0, 0] for future in futures] == [1, 2, 3, 4, 5]
    assert first.result(10).coefs.shape == (1, 1)
    assert first.result(10).truncated.shape == (1,)
    assert first.result(10).unknown.shape == (1,)
    assert gate.runs[0] == [("first",)]
    assert sorted(gate.runs[1]) == numbered(5)
    assert len(gate.runs) == 2


def test_threads_that_score_stand_back_behind_nobody(gate):
    """With a lower priority prompts miss their deadlines, at low load, on a machine that has other work."""
    seen = []
    gate.let()
    score = gate.score_turns
    gate.score_turns = lambda prompts: (
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) or score(prompts)
    )
    engine_of(gate).submit(("a",)).result(10)
    assert seen == [os.getpriority(os.PRIO_PROCESS, 0)]


def test_one_token_per_batch_means_each_prompt_alone(gate):
    engine = engine_of(gate, workers=2, batch_tokens=1)
    gate.let()
    wait([engine.submit(turns) for turns in numbered(20)], timeout=10)
    assert all(len(run) == 1 for run in gate.runs)
    assert gate.most <= 2


def test_scores_are_those_of_the_bundle_whatever_the_batch(tiny_bundle):
    p2l = P2L.load(tiny_bundle, threads=1)
    rng = np.random.default_rng(0)
    prompts = [(" ".join(rng.choice(["fig", "code", "apple", "stack", "sum"], n)),) for n in rng.integers(1, 30, 60)]
    engine = Engine(p2l)
    scores = [future.result(30) for future in [engine.submit(turns) for turns in prompts]]
    for turns, row in zip(prompts, scores, strict=True):
        np.testing.assert_allclose(row.coefs, p2l.score_turns([turns]).coefs, atol=1e-5)
        assert row.raw_eta.shape == (1,)


@pytest.mark.alone
def test_a_full_engine_refuses_at_once_and_has_room_again_with_the_first_result(gate):
    engine = engine_of(gate, workers=1, max_pending=3)
    futures = [engine.submit(turns) for turns in numbered(3)]
    started = time.perf_counter()
    with pytest.raises(Busy, match="3 prompts wait"):
        engine.submit(("fourth",))
    assert time.perf_counter() - started < 0.1
    gate.let(1)
    futures[0].result(10)
    fourth = engine.submit(("fourth",))
    futures[1].cancel() or futures[2].cancel()
    fifth = engine.submit(("fifth",))  # a cancelled request gives its place back
    gate.let()
    assert fourth.result(10).coefs[0, 0] == 6
    assert fifth.result(10).coefs[0, 0] == 5


def test_a_cancelled_request_is_dropped_without_being_scored(gate):
    engine = engine_of(gate, workers=1, batch_tokens=1000)
    first = engine.submit(("first",))
    gate.wait_started()
    dropped, kept = engine.submit(("dropped",)), engine.submit(("kept",))
    assert dropped.cancel()
    assert not first.cancel()  # it runs
    gate.let()
    assert kept.result(10).coefs[0, 0] == 4
    assert first.result(10).coefs[0, 0] == 5
    assert gate.runs == [[("first",)], [("kept",)]]


def test_a_bad_prompt_fails_alone(gate):
    engine = engine_of(gate, workers=1, batch_tokens=1000)
    engine.submit(("first",))
    gate.wait_started()
    gate.bad.add(("bad",))
    good, bad, other = (engine.submit((text,)) for text in ("good!", "bad", "other!!"))
    gate.let()
    assert good.result(10).coefs[0, 0] == 5
    assert other.result(10).coefs[0, 0] == 7
    with pytest.raises(PromptError, match="not this one"):
        bad.result(10)
    assert engine.submit(("after",)).result(10).coefs[0, 0] == 5


def test_a_scorer_that_loses_rows_is_an_error_and_no_mix_up(gate):
    engine = engine_of(gate, workers=1)
    gate.score_turns = lambda prompts: Scores(("m",), np.zeros((2, 1), np.float32), None, "bt")
    with pytest.raises(ValueError, match="2 rows of scores for 1 prompts"):
        engine.submit(("one",)).result(10)


def test_short_prompts_run_beside_long_ones_that_hold_all_workers(gate):
    engine = engine_of(gate, workers=2, batch_tokens=1000)
    long = [engine.submit(LONG) for _ in range(3)]
    gate.wait_started(2)
    short = [engine.submit(turns) for turns in numbered(3)]
    gate.wait_started()  # one batch of short ones, though both workers are held
    more = [engine.submit(turns) for turns in numbered(2, "q")]
    time.sleep(0.05)
    assert gate.most == 3  # and no more than one
    assert [run == [LONG] for run in gate.runs] == [True, True, False]
    gate.let()
    wait([*long, *short, *more], timeout=10)
    assert all(future.done() for future in [*long, *short, *more])
    assert gate.most == 3


def test_long_prompts_are_not_overtaken_for_good(gate):
    engine = engine_of(gate, workers=1, batch_tokens=64)
    engine.submit(("first",))
    gate.wait_started()
    long = engine.submit(LONG)
    for turns in numbered(40):
        engine.submit(turns)
    gate.let(1)
    gate.wait_started()
    assert gate.runs[1] == [LONG]  # the oldest goes first
    gate.let()
    long.result(10)


async def test_an_event_loop_goes_on_and_a_task_that_is_cancelled_cancels_its_request(gate):
    engine = engine_of(gate, workers=1)
    first = asyncio.create_task(engine.score(("first",)))
    await asyncio.to_thread(gate.wait_started)
    leaving, staying = asyncio.create_task(engine.score(("leaving",))), asyncio.create_task(engine.score(("staying",)))
    await asyncio.sleep(0.02)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.let()
    assert (await staying).coefs[0, 0] == 7
    assert (await first).coefs[0, 0] == 5
    assert [("leaving",)] not in gate.runs


async def test_many_loops_and_threads_at_once(tiny_bundle):
    p2l = P2L.load(tiny_bundle, threads=1)
    engine = Engine(p2l, max_pending=10_000)
    words = ["fig", "code", "apple", "stack", "sum"]
    expected = {word: p2l.score([word]).coefs[0] for word in words}
    failures = []

    def caller(i):
        async def calls():
            rows = await asyncio.gather(*(engine.score((words[(i + j) % 5],)) for j in range(50)))
            for j, row in enumerate(rows):
                if not np.allclose(row.coefs[0], expected[words[(i + j) % 5]], atol=1e-5):
                    failures.append((i, j))

        asyncio.run(calls())

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def test_closing_finishes_what_there_is_time_for_and_drops_the_rest(gate):
    engine = engine_of(gate, workers=1)
    running, waiting = engine.submit(("running",)), engine.submit(("waiting",))
    gate.wait_started()
    assert not engine.close(wait_s=0.05)
    with pytest.raises(Busy, match="closed"):
        engine.submit(("late",))
    with pytest.raises(CancelledError):
        waiting.result(10)
    gate.let()
    assert running.result(10).coefs[0, 0] == 7

    other = engine_of(gate, workers=1)
    futures = [other.submit(turns) for turns in numbered(3)]
    assert other.close(wait_s=10)
    assert all(future.done() and not future.cancelled() for future in futures)
    assert Engine(gate).close()
    for thread in [*engine._threads, *other._threads]:
        thread.join(10)
        assert not thread.is_alive()


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.sampled_from([1, 512, 4096]))
def test_a_batch_holds_the_oldest_and_no_more_padded_tokens_than_allowed(tokens, limit):
    chosen = choose(tokens, limit)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == 1 or len(chosen) * max(tokens[i] for i in chosen) <= limit
    left = [abs(tokens[i] - tokens[0]) for i in range(len(tokens)) if i not in chosen]
    assert max(abs(tokens[i] - tokens[0]) for i in chosen) <= min(left, default=10**9)  # the nearest in length
    assert choose([], limit) == []


def test_lengths_are_estimated_from_characters():
    assert estimated_tokens(("word " * 100,)) == 126
    assert estimated_tokens(("今天天气很好", "abcd")) == 8


CODE = """
import sys, threading, time
from p2l_plugins import P2L
from p2l_plugins.scoring.engine import Engine
p2l = P2L.load(sys.argv[1], threads=1)
engine = Engine(p2l, max_pending=100_000)
futures = [engine.submit(("fig code apple " * 10,)) for _ in range(5000)]
futures[0].result(30)
print("left", sum(not future.done() for future in futures) > 0)
"""


@pytest.mark.alone
def test_a_process_ends_at_once_while_prompts_wait(tiny_bundle):
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_bundle)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "left True", "")
    assert time.perf_counter() - started < 30


def test_what_cannot_be_ready_by_its_deadline_is_refused_and_the_rest_goes_on(gate):
    engine = engine_of(gate, workers=1, batch_tokens=1)
    gate.let(1)
    slow = engine.submit(("x",))  # the first run tells how long one takes
    slow.result(10)
    for size in list(engine._pace._seen):
        engine._pace._seen[size] = (2.0, 0.0)
    now = time.monotonic()
    running = engine.submit_all([("a",)], now + 3.0)  # nothing is ahead of it
    gate.wait_started(2)
    with pytest.raises(Busy, match="could not be scored by the deadline"):
        engine.submit_all([("b",)], time.monotonic() + 2.5)
    waiting = engine.submit_all([("c",)], time.monotonic() + 6.0)
    patient = engine.submit_all([("d",)])  # without a deadline it waits
    gate.let()
    assert [one.result(10).coefs[0, 0] for one in (*running, *waiting, *patient)] == [1, 1, 1]


def test_the_pace_is_a_mean_with_its_deviation_and_an_unseen_length_takes_its_share():
    pace = Pace()
    assert pace.seconds(100) == 0.0
    pace.saw(100, 1.0)
    assert pace.seconds(100) == pytest.approx(1.0)
    assert pace.seconds(400) == pytest.approx(4.0)
    assert pace.seconds(25) == pytest.approx(0.25)
    for _ in range(100):
        pace.saw(100, 2.0)
    assert pace.seconds(100) == pytest.approx(2.0, abs=0.01)


class Panic(BaseException):
    """As Rust's, which is no Exception."""


def test_threads_survive_what_is_no_exception():
    class Panics(Gate):
        def score_turns(self, prompts):
            if ("bad",) in prompts:
                raise Panic("of a tokenizer")
            return super().score_turns(prompts)

    gate = Panics()
    gate.let()
    engine = engine_of(gate)
    for _ in range(5):  # more than there are threads
        with pytest.raises(BundleError, match="scoring failed: Panic"):
            engine.submit(("bad",)).result(10)
    assert engine.works
    assert len(engine.submit(("good",)).result(10)) == 1
    engine.close()
    assert not engine.works
