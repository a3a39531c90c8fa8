"""Runs the service: one process, or several that share a socket; ends when told to, with what it accepted done."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.service.connections import Connections
from p2l_plugins.service.memory import check_memory
from p2l_plugins.service.settings import ServiceSettings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

#: Exit status of a process that can't serve the bundle: another one could not, either.
LOAD_FAILURE = 3

#: Connections that may wait to be accepted.
BACKLOG = 2048

#: Files beside connections: the bundle, its log, metrics of all processes, the cache's connections, those on their way.
OTHER_FILES = 512

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"p2l_plugins": {"level": "INFO"}, "uvicorn.error": {"level": "WARNING"}},
}


def serve(settings: ServiceSettings, host: str, port: int, probe_port: int | None = None) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: of the service.
        host: to listen on.
        port: to listen on; 0 for a free one.
        probe_port: of another listener, which has the probes and the metrics only.

    Raises:
        ConfigError: the address can't be listened on, a limit on memory is too small, or several processes have no
            folder for temporary files.
        P2LError: the bundle can't be served.
    """
    settings = settings.model_copy(update={"host": host})
    check_memory(settings)
    metrics_folder = _metrics_folder(settings.workers)
    listening = listen(host, port)
    probes = None if probe_port is None else listen(host, probe_port)
    # before uvicorn has its handlers, and after it has restored these: the end is no failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(signal, "SIGHUP"):  # until the service heeds it: what is being loaded is the newest
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    address = listening.getsockname()
    shown = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    print(f"p2l serve: http://{shown}:{address[1]}", file=sys.stderr, flush=True)
    if probes is not None:
        print(f"p2l serve: probes at http://{shown}:{probes.getsockname()[1]}", file=sys.stderr, flush=True)
    sockets = [listening] if probes is None else [listening, probes]
    with metrics_folder as folder, contextlib.ExitStack() as open_sockets:
        for one in sockets:
            open_sockets.enter_context(one)
        if folder is None:
            _one(settings, sockets)
        else:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            _several(settings, sockets)


def _metrics_folder(workers: int) -> contextlib.AbstractContextManager[str | None]:
    """Where several processes add up their metrics, removed at the end; one process needs none.

    Raises:
        ConfigError: nothing can be written.
    """
    if workers == 1:
        return contextlib.nullcontext()
    try:
        return tempfile.TemporaryDirectory(prefix="p2l-metrics-")
    except OSError as error:
        raise ConfigError(
            f"--workers {workers}: the metrics of several processes need a folder for temporary files "
            f"({error.strerror or error}); set TMPDIR to one that can be written to, or take --workers 1"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ConfigError: it can't.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"--host {host} --port {port}: can't listen there ({reason})") from None


def _connections(settings: ServiceSettings, sockets: list[socket.socket]) -> Connections:
    """Bounds on connections that the limit on open files leaves room for, once it is as high as it may be."""
    most = settings.max_connections
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # what is infinite here may be too much there
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = max(1, files - OTHER_FILES)
        if files != resource.RLIM_INFINITY and room < most:
            log.warning("%d files may be open: %d connections at the same time, not %d", files, room, most)
            most = room
    probe_port = sockets[1].getsockname()[1] if len(sockets) > 1 else None
    return Connections(most, settings.max_per_address, settings.head_s, probe_port)


def _config(app: Any, settings: ServiceSettings, sockets: list[socket.socket]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_connections(settings, sockets).protocol(),  # type: ignore[arg-type] # which is called as the class would be
        ws="none",  # another protocol, on which nothing would look
        factory=True,
        workers=settings.workers,
        lifespan="on",
        log_config=LOGGING,
        access_log=False,  # it would log queries; `Watch` logs what it may
        proxy_headers=False,  # nothing here asks them
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type] # any number of seconds
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )


def _one_blas_thread() -> None:
    """Boards solve small systems, for which BLAS's threads wait for each other while the model has the processors.

    With all processors busy a board of three prompts took 22 s with them, and 0.9 s without.
    """
    threadpoolctl.threadpool_limits(1, user_api="blas")


def _one(settings: ServiceSettings, sockets: list[socket.socket]) -> None:
    from p2l_plugins.service.app import create_app

    _one_blas_thread()
    app = create_app(settings, failed=lambda: setattr(server, "should_exit", True))
    server = _Server(_config(lambda: app, settings, sockets))
    server.run(sockets)
    failure = app.state.service.failure
    if failure is not None:
        known = isinstance(failure, P2LError | OSError)
        raise P2LError(str(failure) if known else f"{type(failure).__name__}: {failure}") from failure


class _Server(uvicorn.Server):
    """uvicorn's, which answers connections, too, that wait to be accepted when it stops to listen."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends when all that was accepted is answered."""
        loop = asyncio.get_running_loop()
        # no step of the event loop between the last one and the close of the sockets, which resets what waits there
        waiting = [one for listening in sockets or [] for one in _waiting(listening)]
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for one in waiting:
            await loop.connect_accepted_socket(self._connection, one)
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _waiting(listening: socket.socket) -> Iterator[socket.socket]:
    """Connections that a socket has and that nobody has accepted."""
    listening.setblocking(False)
    with contextlib.suppress(OSError):  # there is none
        while True:
            connection, _ = listening.accept()
            connection.setblocking(False)
            yield connection


class _Process(Process):
    """uvicorn's, with a `_Server`."""

    @property
    def server(self) -> uvicorn.Server:
        """Of the process, made in it."""
        if self._server is None:
            self._server = _Server(self.config)
        return self._server


class _Supervisor(Multiprocess):
    """uvicorn's, with three differences.

    A process is replaced when it has ended. uvicorn also kills one that does not answer a ping within 5 seconds, which
    on a busy machine are processes that start or score; and while a ping to one that was killed runs out, nothing is
    replaced. At the end the socket is closed first: else clients connect to nobody until all processes have ended.
    And SIGHUP goes on to the processes, which take another bundle without an end; uvicorn would replace them.
    """

    def init_processes(self) -> None:
        with _hangups_later():
            for _ in range(self.processes_num):
                self._add()

    def _add(self) -> None:
        process = _Process(self.config, self.sockets)
        process.start()
        self.processes.append(process)

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)

    def handle_ttin(self) -> None:
        self.processes_num += 1
        with _hangups_later():
            self._add()

    def keep_subprocess_alive(self) -> None:
        for i, process in enumerate(self.processes):
            status = process.process.exitcode
            if status is None or self.should_exit.is_set():
                continue
            if status == LOAD_FAILURE:
                self.should_exit.set()
                return
            log.warning("process %s ended with status %d; another one takes its place", process.pid, status)
            self.processes[i] = _Process(self.config, self.sockets)
            with _hangups_later():
                self.processes[i].start()

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


@contextmanager
def _hangups_later() -> Iterator[None]:
    """Processes that are started within get SIGHUP once they heed it; before that it would end them."""
    if not hasattr(signal, "SIGHUP"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _several(settings: ServiceSettings, sockets: list[socket.socket]) -> None:
    config = _config(functools.partial(_worker_app, settings), settings, sockets)
    supervisor = _Supervisor(config, sockets)
    supervisor.run()
    if any(process.exitcode == LOAD_FAILURE for process in supervisor.processes):
        raise P2LError("the processes can't serve the bundle; their log says why")


def _worker_app(settings: ServiceSettings) -> FastAPI:
    """The application of one process of several."""
    from p2l_plugins.service.app import create_app

    _one_blas_thread()
    threading.Thread(target=_end_with_parent, name="p2l-parent", daemon=True).start()
    # nothing was accepted yet, and this status tells the supervisor to start no other one
    return create_app(settings, failed=lambda: os._exit(LOAD_FAILURE))


def _end_with_parent() -> None:
    """Without it, a process whose supervisor was killed would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
