"""On a small machine: a limit on memory is found out before the service is ready, and nothing has to be written."""

import contextlib
import os
import re
import subprocess
import sys
import threading

import httpx
import pytest
from helpers.serving import ROOT, until

from p2l_plugins.service.settings import ServiceSettings, processors


@contextlib.contextmanager
def started(limit, *options):
    """A service under a limit of `ulimit`, and the lines that it writes; its output is a pipe, not a file."""
    command = [sys.executable, "-m", "p2l_plugins.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        process.terminate()
        process.wait(30)
        reader.join(10)


def answers(process, lines):
    """Whether it becomes ready and scores the longest prompts."""
    until(lambda: any(": ready: " in line for line in lines) or process.poll() is not None)
    assert process.poll() is None, lines
    url = re.search(r"http://\S+", "".join(lines))[0]
    answer = httpx.post(f"{url}/v1/scores", json={"prompts": [f"{i} " + "word " * 3000 for i in range(4)]}, timeout=60)
    return answer.status_code == 200 and httpx.get(f"{url}/metrics", timeout=5).status_code == 200


def test_a_limit_on_memory_that_is_too_small_ends_it_with_a_sentence_before_it_is_ready():
    with started("-v 614400") as (process, lines):
        assert process.wait(60) == 2
    said = "".join(lines)
    assert said.startswith("p2l: ulimit -v 614400: 600 MiB of address space are too few for the bundle 'starter' and ")
    assert said.count("\n") == 1
    assert "ready" not in said


def test_a_limit_that_is_large_enough_changes_nothing():
    with started("-v 8388608") as (process, lines):
        assert answers(process, lines)


def test_a_missing_bundle_is_not_taken_for_a_lack_of_memory(tmp_path):
    with started("-v 8388608", str(tmp_path)) as (process, lines):
        assert process.wait(60) == 1
    assert "p2l.json is missing" in lines[-1]


def test_one_process_needs_no_folder_that_can_be_written_to():
    with started("-f 0", "--probe-port", "0") as (process, lines):
        assert answers(process, lines)


def test_several_processes_say_which_variable_names_a_folder_for_their_metrics():
    with started("-f 0", "--workers", "2") as (process, lines):
        assert process.wait(60) == 2
    said = "".join(lines)
    assert said.startswith("p2l: --workers 2: the metrics of several processes need a folder for temporary files (")
    assert "set TMPDIR to one that can be written to, or take --workers 1" in said


@pytest.mark.parametrize(
    ("written", "most"), [("50000 100000\n", 1), ("150000 100000\n", 2), ("max 100000\n", None), ("", None)]
)
def test_the_quota_of_a_container_bounds_the_processors(tmp_path, written, most):
    cores = processors(tmp_path / "none")
    assert cores == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text(written)
    assert processors(tmp_path / "cpu.max") == (cores if most is None else min(cores, most))
    assert ServiceSettings(threads=1024).runs() == 1
