"""The benchmarks of inference run: what a machine without a GPU can check of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False
    )


def test_the_gpu_benchmark_says_what_is_missing_in_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("here it would run")
    result = run("gpu.py")
    assert result.returncode == 1
    assert result.stderr.startswith("benchmarks/gpu.py: needs a CUDA device, and torch sees none; ")
    assert result.stderr.count("\n") == 1


def test_the_gpu_benchmark_runs_on_the_cpu_for_a_check():
    arguments = ("--device", "cpu", "--shapes", "tiny", "--tokens", "16", "--batches", "1,4", "--seconds", "0.05")
    result = run("gpu.py", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["variant"] for row in rows] == ["torch bf16", "fused fp32"]
    assert all(row["prompts_per_s"] > 0 for row in rows)
    wrong = run("gpu.py", "--shapes", "9b")
    assert wrong.returncode == 2
    assert "shape '9b' is not known; valid: tiny, 135m, 0.5b, 1.5b, 7b" in wrong.stderr


def test_the_cpu_benchmark_compares_all_variants(tiny_checkpoint):
    arguments = ("--shapes", "1x8,2x8", "--seconds", "0.05", "--threads", "1", "--only", "torch fp32,fused,fused int8")
    result = run("inference.py", str(tiny_checkpoint), *arguments, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures["times_ms"]) == ["1x8", "2x8"]
    assert list(figures["times_ms"]["1x8"]) == ["torch fp32", "fused", "fused int8"]
    assert all(value > 0 for value in figures["peak_mb"].values())
