"""The `p2l` command as a process of its own, started or forked."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys


def run(*arguments, stdin=None, status=0, timeout=280):
    """The finished process; its exit status must be `status`, and it may show no traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "p2l_plugins.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert result.returncode == status, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result


def forked(*arguments, says, preload=()):
    """A started process that runs the command; what it prints goes to the file `says`.

    It is forked from a server that has imported the modules `preload`, which some take seconds to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    process = context.Process(target=_child, args=([*map(str, arguments)], str(says)), daemon=True)
    process.start()
    return process


def _child(arguments, says):
    from p2l_plugins import cli

    file = os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.argv = ["p2l", *arguments]
    cli.main()
