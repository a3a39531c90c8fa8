"""The `p2l` command as a process of its own."""

from __future__ import annotations

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
