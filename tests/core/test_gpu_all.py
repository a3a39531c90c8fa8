"""`benchmarks/gpu_all.py` on a machine without a GPU: it goes on after a part that fails, and writes its tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_all.py"


def gpu_all(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


def test_a_part_runs_and_its_rows_become_a_table(tmp_path):
    arguments = ("--step", "correctness", "--part", "providers", "--device", "cpu", "--tiny", "--patience", "4")
    done = gpu_all(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    part = json.loads((tmp_path / "out/correctness.json").read_text())["providers"]
    assert part["failed"] is None
    assert "CPUExecutionProvider" in part["rows"][0]["providers"]
    assert "| part | card | onnxruntime | torch | cuda | providers |" in (tmp_path / "out/correctness.md").read_text()


def test_what_fails_or_takes_too_long_is_said_and_the_next_part_runs(tmp_path):
    done = gpu_all("--step", "train", "--device", "cpu", "--tiny", "--patience", "0.001", "--out", tmp_path / "out")
    assert done.returncode == 1
    parts = json.loads((tmp_path / "out/train.json").read_text())
    assert [part["failed"] for part in parts.values()] == ["stopped after 0 s"] * 3
    assert done.stderr.endswith("benchmarks/gpu_all.py: failed: train/checkpoint, train/by prompt, train/by vote\n")
    missing = gpu_all(
        *("--step", "correctness", "--part", "off by one", "--device", "cpu", "--patience", "4"),
        *("--fixture", tmp_path / "none", "--out", tmp_path / "out"),
    )
    assert missing.returncode == 1
    table = (tmp_path / "out/correctness.md").read_text()
    assert "off by one: failed: p2l_plugins.errors.BundleError: " in table
    assert str(tmp_path / "none") in table
