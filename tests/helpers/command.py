"""The `p2l` command, called here or as a process of its own."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
from dataclasses import dataclass

import pytest

from helpers.forking import command, finished
from p2l_plugins import cli


@dataclass(frozen=True)
class Called:
    """What a command wrote, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def called(*arguments, stdin="", status=0):
    """The command in this process, as most take less time than their imports; its exit status must be `status`."""
    given, out, err = (io.TextIOWrapper(io.BytesIO(text), encoding="utf-8") for text in (stdin.encode(), b"", b""))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["p2l", *map(str, arguments)])
        for name, stream in (("stdin", given), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, stream)
        patch.setenv("COLUMNS", "120")
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    for stream in (out, err):
        stream.flush()
    result = Called(ended.value.code or 0, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())
    assert result.returncode == status, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result


def run(*arguments, stdin="", status=0, timeout=280):
    """The finished process; its exit status must be `status`, and it may show no traceback."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as given:
        given.write(stdin)
        given.flush()
        environment = {**os.environ, "COLUMNS": "120"}
        result = finished(command, *arguments, timeout=timeout, environment=environment, given=given.name)
    assert result.returncode == status, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result
