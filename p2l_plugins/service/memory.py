"""Whether a limit on the address space (`ulimit -v`) leaves room for the service under load, tried before it starts.

Where memory runs out, Rust and C++ end the process without a word, so a process of its own tries.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import Future
from multiprocessing.connection import Connection

from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.service.settings import ServiceSettings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: Bytes that the trial leaves free: bodies and connections, threads that read files, what grows over days.
BESIDE = 192 * 2**20

#: Seconds that a trial may take; it loads the bundle and scores one longest prompt per processor.
TRIAL_S = 300.0


def check_memory(settings: ServiceSettings) -> None:
    """Tries the service under its full load in a process of its own, where the address space is limited.

    Call it before there are threads: the process is forked.

    Raises:
        ConfigError: the limit is too small.
    """
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    heard, said = multiprocessing.Pipe(duplex=False)
    trial = multiprocessing.get_context("fork").Process(target=_trial, args=(settings, limit, said), daemon=True)
    with contextlib.suppress(OSError):  # not even room for a process
        trial.start()
        trial.join(TRIAL_S)
        if trial.exitcode is None:  # it is slow, and not for want of memory
            trial.kill()
            return
        if trial.exitcode == 0:
            return
    why = f" (a trial said: {heard.recv()})" if heard.poll() else ""
    raise ConfigError(
        f"ulimit -v {limit // 1024}: {limit // 2**20} MiB of address space are too few for the bundle "
        f"{settings.bundle!r} and {settings.runs()} of the longest prompts at the same time{why}; raise the limit, "
        "or have fewer at a time by more --workers or --threads"
    )


def _trial(settings: ServiceSettings, limit: int, said: Connection) -> None:
    """Loads the bundle and uses it as hard as it can be used; ends with a status, or is ended, where that fails."""
    assert resource is not None  # noqa: S101 - for the type checker
    _silence()
    try:
        try:
            Bundle.open(find_bundle(settings.bundle))
        except P2LError:  # which the service says itself
            os._exit(0)
        resource.setrlimit(resource.RLIMIT_AS, (max(limit - settings.cache.max_bytes - BESIDE, 1), limit))
        _under_load(settings)
    except BaseException as error:  # whatever a library makes of memory that it does not get
        said.send((str(error) or type(error).__name__).partition("\n")[0][:160])
        os._exit(1)
    os._exit(0)


def _under_load(settings: ServiceSettings) -> None:
    from p2l_plugins.scoring.engine import Engine
    from p2l_plugins.service import app  # noqa: F401 - what the service itself imports has to fit, too
    from p2l_plugins.service.service import load_bundle

    p2l = load_bundle(settings)
    engine = Engine(p2l)
    longest = "word " * p2l.max_length
    scored: list[Future[Scores]] = engine.submit_all([(f"{i} {longest}",) for i in range(p2l.workers)])
    for one in (*scored, engine.submit(("short",))):
        one.result().leaderboard()


def _silence() -> None:
    """Sends both outputs nowhere, also those of libraries that write by themselves."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
