"""Processes forked from one that has imported what takes seconds to: LiteLLM's proxy, lm-eval, torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

#: What is imported once for all; nothing of ours, whose modules make secrets of their process.
PRELOADED = (
    "litellm.proxy.proxy_server",
    "litellm.proxy.proxy_cli",
    "redis",
    "onnxruntime",
    "transformers.trainer",
    "lm_eval.__main__",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
)


class Forked:
    """A forked process with what the tests use of `subprocess.Popen`.

    Args:
        target: a function of this module.
        arguments: that it finds in `sys.argv`.
        output: an open file that takes what it prints.
        environment: all its variables; None takes this process's.
        errors: takes what goes to stderr; None takes `output`.
        given: a file that it reads as its stdin; None gives it nothing.
        cwd: its working folder.
    """

    def __init__(self, target, arguments, output, environment=None, errors=None, given=None, cwd=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        options = {
            "arguments": [*map(str, arguments)],
            "given": str(given or os.devnull),
            "files": [str(file.name) for file in (output, errors or output)],
            "environment": dict(os.environ if environment is None else environment),
            "cwd": str(cwd or Path.cwd()),
        }
        self._process = context.Process(target=_child, args=(target,), kwargs=options, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def finished(target, *arguments, timeout=280, **options):
    """What a forked process printed, and its exit status, as of `subprocess.run`."""
    with tempfile.NamedTemporaryFile() as output, tempfile.NamedTemporaryFile() as errors:
        process = Forked(target, arguments, output, errors=errors, **options)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        said = [Path(file.name).read_text(encoding="utf-8") for file in (output, errors)]
    return subprocess.CompletedProcess(arguments, status, *said)


def _child(target, arguments, given, files, environment, cwd):
    os.dup2(os.open(given, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    for stream, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["forked", *arguments]
    target()


def command():
    """The `p2l` command."""
    from p2l_plugins import cli

    cli.main()


def proxy():
    """LiteLLM's own command."""
    import litellm

    litellm.run_server()


def lm_eval():
    """The command `p2l-lm-eval`."""
    from lmeval_task.cli import main

    sys.exit(main())


def script():
    """The code that is the first argument."""
    code = sys.argv.pop(1)
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})  # noqa: S102 - of a test
