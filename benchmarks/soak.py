"""`p2l serve` for twenty minutes with hostile and ordinary clients at once: what is lost, and what memory does.

    python benchmarks/soak.py [--minutes 20] [--workers 2] [--clients 4]

Ordinary clients ask for scores and routes with a key, one request after another; a request that is told 429 or 503
waits as long as Retry-After says and is sent again. It is lost where it gets no whole answer. Beside them, from other
addresses: half-open connections, slow and endless bodies, broken and nested JSON, hostile prompts, clients that close
while they are answered or that do not read, and wrong names, origins and keys.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
from service import start

KEY = "a key of the soak"
PRICES = Path(__file__).resolve().parents[1] / "examples" / "prices.json"
WORDS = "prove write explain compare translate solve plan summarise fix list why how what code poem law proof".split()

#: Prompts that are hard to read.
HOSTILE: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: " " * 1_000_000 + "x",
    lambda rng: rng.choice("aé汉🙂") * 200_000,
    lambda rng: "\ud800\x00\x1b[31m<cls></s><|endoftext|>" * rng.randrange(1, 500),
    lambda rng: "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(5_000)),
    lambda rng: "e" + "\u0301" * 50_000,
    lambda rng: "(((" * 50_000,
)


def head(address: str, *lines: str, path: str = "/v1/scores", key: str = KEY, host: str | None = None) -> bytes:
    """The head of a request, whose body comes with what `lines` say of it."""
    lines = (f"POST {path} HTTP/1.1", f"Host: {host or address}", f"api-key: {key}", *lines)
    return "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode()


def whole(address: str, body: bytes, *lines: str, path: str = "/v1/scores", key: str = KEY, host: str = "") -> bytes:
    """A request with its body, the last of its connection."""
    lines = (f"Content-Length: {len(body)}", "Connection: close", *lines)
    return head(address, *lines, path=path, key=key, host=host or None) + body


class Hostile:
    """Clients that do each other no good, each kind in a task of its own.

    Attributes:
        counts: what each kind was answered, by kind and status; 0 where the connection ended without an answer.
    """

    def __init__(self, address: str, until: float) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self._address, self._until = address, until
        self._rng = random.Random(7)  # noqa: S311

    async def run(self) -> None:
        """All kinds until the time is up."""
        kinds: dict[str, Callable[[], Awaitable[int]]] = {
            "half-open connection": self.half_open,
            "slow body": self.slow_body,
            "huge body": self.huge_body,
            "endless body": self.endless_body,
            "broken JSON": self.broken_json,
            "hostile prompt": self.hostile_prompt,
            "closed mid-answer": self.closed,
            "does not read": self.deaf,
            "wrong Host": lambda: self.told(whole(self._address, b"{}", host="attacker.example")),
            "wrong Origin": lambda: self.told(whole(self._address, b"{}", "Origin: http://attacker.example")),
            "wrong key": lambda: self.told(whole(self._address, b'{"prompts": ["x"]}', key=KEY[:-1] + "X")),
        }
        many = {"half-open connection": 100, "slow body": 20}
        await asyncio.gather(*(self._again(k, what) for k, what in kinds.items() for _ in range(many.get(k, 1))))

    async def _again(self, kind: str, what: Callable[[], Awaitable[int]]) -> None:
        while time.monotonic() < self._until:
            try:
                async with asyncio.timeout(120):
                    status = await what()
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                status = 0
            self.counts[kind, status] += 1
            await asyncio.sleep(self._rng.uniform(0.2, 1.0))

    @contextlib.asynccontextmanager
    async def connected(self):  # type: ignore[no-untyped-def] # of two streams
        """A connection from one of 50 addresses."""
        host, port = self._address.rsplit(":", 1)
        source = (f"127.0.1.{self._rng.randrange(1, 51)}", 0)
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=source)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def told(self, request: bytes) -> int:
        """The status of the answer to a request, read to its end."""
        async with self.connected() as (reader, writer):
            writer.write(request)
            status = await _status(reader)
            await reader.read()
            return status

    async def half_open(self) -> int:
        """Says a part of a head, or nothing, until it is ended."""
        async with self.connected() as (reader, writer):
            writer.write(head(self._address)[: self._rng.randrange(60)])
            return await _status(reader)

    async def slow_body(self) -> int:
        """A byte a second."""
        async with self.connected() as (reader, writer):
            writer.write(head(self._address, "Content-Length: 9000"))
            answer = _answer(reader)
            while not answer.done():
                writer.write(b" ")
                await asyncio.wait({answer}, timeout=1)
            return answer.result()

    async def huge_body(self) -> int:
        """More than a body may have."""
        return await self.told(whole(self._address, b" " * 8 * 2**20))

    async def endless_body(self) -> int:
        """In chunks, until somebody says no."""
        async with self.connected() as (reader, writer):
            writer.write(head(self._address, "Transfer-Encoding: chunked"))
            answer = _answer(reader)
            while not answer.done():
                writer.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                await writer.drain()
                await asyncio.wait({answer}, timeout=0.01)
            return answer.result()

    async def broken_json(self) -> int:
        """No JSON, the wrong one, or one that is nested without end."""
        body = self._rng.choice(
            [b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompts": 1}', b'{"prompts": [[{"role": 1}]]}', b"NaN", b""]
        )
        return await self.told(whole(self._address, body, path=self._rng.choice(["/v1/scores", "/v1/route"])))

    async def hostile_prompt(self) -> int:
        """Text that is hard to read, with a valid key."""
        prompt = self._rng.choice(HOSTILE)(self._rng)
        return await self.told(whole(self._address, json.dumps({"prompts": [prompt]}).encode()))

    async def closed(self) -> int:
        """Leaves while it is answered."""
        async with self.connected() as (_, writer):
            prompts = [f"closed {self._rng.getrandbits(60)}" for _ in range(32)]
            writer.write(whole(self._address, json.dumps({"prompts": prompts}).encode()))
            await asyncio.sleep(self._rng.uniform(0, 0.2))
            return 0

    async def deaf(self) -> int:
        """Asks, and reads nothing for a while."""
        async with self.connected() as (_, writer):
            one = json.dumps({"prompts": [f"deaf {i}" for i in range(64)]}).encode()
            for _ in range(8):
                writer.write(head(self._address, f"Content-Length: {len(one)}") + one)
            await asyncio.sleep(45)
            return 0


def _answer(reader: asyncio.StreamReader) -> asyncio.Future[int]:
    """The status of an answer that may come while something is sent; its end by force is no news."""
    answer = asyncio.ensure_future(_status(reader))
    answer.add_done_callback(lambda one: one.cancelled() or one.exception())
    return answer


async def _status(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    return int(line.split()[1]) if line else 0


async def ordinary(url: str, seed: int, until: float, counts: Counter[str], ms: list[float]) -> None:
    """Asks until the time is up."""
    rng = random.Random(seed)  # noqa: S311
    async with httpx.AsyncClient(base_url=url, headers={"api-key": KEY}, timeout=60) as session:
        while time.monotonic() < until:
            repeated = rng.randrange(500) if rng.random() < 0.8 else rng.getrandbits(60)
            text = " ".join(random.Random(repeated).choices(WORDS, k=20)) + f" {repeated}"  # noqa: S311
            path, body = rng.choice(
                [("/v1/scores", {"prompts": [text]}), ("/v1/route", {"prompts": [text], "rule": "best"})]
            )
            started = time.perf_counter()
            for _ in range(30):
                try:
                    answer = await session.post(path, json=body)
                except httpx.HTTPError as error:
                    counts[f"lost: {type(error).__name__}"] += 1
                    break
                if answer.status_code not in (429, 503):
                    fine = answer.status_code == 200 and answer.json()
                    counts["answered" if fine else f"lost: status {answer.status_code}"] += 1
                    break
                counts[f"told {answer.status_code}, sent again"] += 1
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
            else:
                counts["lost: told to come again 30 times"] += 1
            ms.append(1e3 * (time.perf_counter() - started))
            await asyncio.sleep(rng.uniform(0.1, 0.5))


async def memory(pid: int, until: float, mib: list[float]) -> None:
    """Resident memory of a process and its children, once a second."""
    process = psutil.Process(pid)
    while time.monotonic() < until:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            mib.append(sum(one.memory_info().rss for one in family) / 2**20)
        await asyncio.sleep(1)


async def soak(options: argparse.Namespace, pid: int, url: str) -> bool:
    """Runs all clients and prints what came of it; whether no ordinary request was lost and no worker was replaced."""
    counts: Counter[str] = Counter()
    ms: list[float] = []
    mib: list[float] = []
    until = time.monotonic() + 60 * options.minutes
    workers = {one.pid for one in psutil.Process(pid).children(recursive=True)}
    hostile = Hostile(url.removeprefix("http://"), until)
    clients = [ordinary(url, seed, until, counts, ms) for seed in range(options.clients)]
    await asyncio.gather(memory(pid, until, mib), hostile.run(), *clients)
    replaced = workers - {one.pid for one in psutil.Process(pid).children(recursive=True)}
    lost = sum(n for key, n in counts.items() if key.startswith("lost"))
    print(
        f"{options.minutes:g} min, {options.workers} workers, {options.clients} ordinary clients, "
        f"{os.cpu_count()} cores"
    )
    print(f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[1]:.1f}")
    print(f"ordinary requests: {dict(counts)}")
    print(f"ms: median {np.median(ms):.0f}, 99% {np.percentile(ms, 99):.0f}, longest {max(ms):.0f}")
    places = {"start": 0, "quarter": len(mib) // 4, "half": len(mib) // 2, "end": -1}
    print("MiB: " + ", ".join(f"{mib[at]:.0f} at {name}" for name, at in places.items()) + f", {max(mib):.0f} at most")
    print(f"workers that ended: {len(replaced)}\n\n| hostile | number | answered with |\n|:---|---:|:---|")
    for kind in dict.fromkeys(kind for kind, _ in hostile.counts):
        of_kind = {status: n for (one, status), n in sorted(hostile.counts.items()) if one == kind}
        said = ", ".join(f"{status or 'nothing'}: {n}" for status, n in of_kind.items())
        print(f"| {kind} | {sum(of_kind.values())} | {said} |")
    failed = sum(n for (_, status), n in hostile.counts.items() if status == 500)
    return not lost and not replaced and not failed


def main() -> None:
    """Starts the service, soaks it, stops it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4, help="ordinary ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder), "starter", options.workers, "--costs", str(PRICES), key=KEY)
        try:
            fine = asyncio.run(soak(options, process.pid, url))
        finally:
            process.terminate()
            status = process.wait(90)
        errors = [line for line in Path(folder, "log").read_text(errors="replace").splitlines() if "Traceback" in line]
    print(f"\nexit status of the service: {status}; tracebacks in its log: {len(errors)}")
    sys.exit(0 if fine and status == 0 and not errors else 1)


if __name__ == "__main__":
    main()
