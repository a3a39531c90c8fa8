"""A router with a shared cache, and a small TCP proxy that can be slow, cut answers short, and reset connections."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
import time

import numpy as np

from litellm_router import P2LSettings
from litellm_router.router import P2LRouter
from litellm_router.scoring import Scoring
from p2l_plugins.cache.entry import WIDEST
from p2l_plugins.outcomes import Family
from p2l_plugins.scoring.scorer import Scores

DEADLINE_MS = 15.0
REQUESTS = 1000
MODELS = tuple(f"model-{i}" for i in range(130))


class CountingScorer:
    """A bundle in name: its scores follow from the prompt at once, so that all time is the router's and the cache's."""

    family: Family = "grk"
    workers, batch_tokens, max_length, bounds = 2, 4096, 2048, WIDEST
    overall = None

    def __init__(self, fingerprint="f" * 32, seconds=0.0):
        self.models, self.fingerprint, self.seconds = MODELS, fingerprint, seconds
        self.prompts = []
        self.aliases, self.support = {}, {}

    def index(self, model):
        return self.models.index(model)

    def close(self):
        pass

    def score_turns(self, prompts):
        self.prompts += prompts
        time.sleep(self.seconds)
        first = [float(len(turns[0])) + float(self.fingerprint[0] == "e") for turns in prompts]
        coefs = np.linspace(0, 1, len(MODELS), dtype=np.float32) + np.array(first, np.float32)[:, None]
        return Scores(self.models, coefs, np.zeros(len(prompts), np.float32), self.family)


class Routed:
    """A router with a cache, and what its requests took."""

    def __init__(self, settings, client=None, scorer=None):
        self.scorer = scorer or CountingScorer()
        own = P2LSettings(timeout_ms=2000, cache=settings)
        self.router = P2LRouter(own, lambda _: self.scorer)
        self.scoring = Scoring(own, lambda _: self.scorer, max_pending=2000, client=client)
        self.router._state = dataclasses.replace(self.router.state(), scoring=self.scoring)
        self.ms = []
        self.failed = 0

    @property
    def counts(self):
        return self.scoring.cache.snapshot()

    async def request(self, text, deployments):
        started = time.perf_counter()
        request = {}
        ranked = await self.router.async_filter_deployments(
            "auto", deployments, [{"role": "user", "content": text}], request
        )
        self.ms.append(1e3 * (time.perf_counter() - started))
        record = request["metadata"]["spend_logs_metadata"]["p2l"]
        if "error" in record or len(ranked) != 1:  # of the deployments, each of a model of its own
            self.failed += 1
        return record

    async def close(self):
        await self.scoring.cache.aclose()
        self.scoring.close()


async def ask(routers, deployments, texts, at_once=4):
    """Asks every router for each text in turn, a few texts at once, so that all see the machine as busy as it is."""
    asked = iter(texts)

    async def client():
        for text in asked:
            for one in routers:
                await one.request(text, deployments)

    await asyncio.gather(*(client() for _ in range(at_once)))


class Proxy:
    """TCP in between. Modes: `pass`, `slow` (2 s on the way back), `half` (half of an answer, then closed), `reset`."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.mode = "pass"
        self.tasks = set()

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            await asyncio.gather(self._ask(reader, there_writer), self._answer(there_reader, writer, there_writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self.tasks.discard(task)

    async def _ask(self, reader, there_writer):
        while data := await reader.read(65536):
            there_writer.write(data)
        there_writer.close()

    async def _answer(self, there_reader, writer, there_writer):
        while data := await there_reader.read(65536):
            if self.mode == "slow":
                await asyncio.sleep(2)
            if self.mode == "half":
                writer.write(data[: len(data) // 2])
                await writer.drain()
            if self.mode == "reset":
                # closing with linger 0 sends a reset
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.mode in {"half", "reset"}:
                writer.transport.abort() if self.mode == "reset" else writer.close()
                there_writer.close()
                return
            writer.write(data)

    async def stop(self):
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
