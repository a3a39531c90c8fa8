"""The tests of the adapter with another version of lm-eval: P2L_LMEVAL_0412 names a folder that holds it.

pip install --target FOLDER --no-deps lm-eval==0.4.12
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif("P2L_LMEVAL_0412" not in os.environ, reason="P2L_LMEVAL_0412 names no folder with lm-eval 0.4.12")
def test_the_adapter_passes_its_tests_with_lm_eval_0_4_12():
    folder = os.environ["P2L_LMEVAL_0412"]
    env = {**os.environ, "PYTHONPATH": folder}
    version = "import importlib.metadata, lm_eval; print(importlib.metadata.version('lm_eval'), lm_eval.__file__)"
    run = subprocess.run([sys.executable, "-c", version], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"0.4.12 {folder}")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/lmeval_task"], cwd=ROOT, env=env,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout
