"""The wheel, built here or named by P2L_WHEEL, and installed alone in a fresh environment."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = os.environ.get("REPOSITORY_URL", "https://example.org/them/p2l-plugins")
HEAVY = ("torch", "litellm", "lm_eval", "transformers")


def run(*command, **options):
    result = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=280, check=False, **options
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if named := os.environ.get("P2L_WHEEL"):
        return Path(named).resolve()
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    environment = {**os.environ, "REPOSITORY_URL": REPOSITORY}
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, env=environment)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_packages_the_starter_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "p2l_plugins",
        "litellm_router",
        "lmeval_task",
        "onnx_export",
    }
    assert "p2l_plugins/py.typed" in names
    assert "p2l_plugins/starter/model.onnx" in names
    assert any(name.startswith("lmeval_task/tasks/") and name.endswith(".yaml") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.skipif("P2L_WHEEL" in os.environ and "REPOSITORY_URL" not in os.environ, reason="built without an address")
def test_its_addresses_are_those_of_the_repository_that_built_it(wheel):
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(metadata).decode().splitlines()
    assert f"Project-URL: Source, {REPOSITORY}" in lines
    assert f"Project-URL: Issues, {REPOSITORY}/issues" in lines


def test_it_works_alone(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)  # this environment's pip installs into it, which is faster
    python = tmp_path / "env" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
    options = {"cwd": tmp_path, "env": environment}
    run(*install, wheel, **options)
    installed = run(*pip, "list", "--format", "json", **options)
    assert not {row["name"].replace("-", "_") for row in json.loads(installed)} & {*HEAVY, "onnxruntime"}
    assert "leaderboard" in run(tmp_path / "env" / "bin" / "p2l", "--help", **options)
    missing = "import p2l_plugins as p\ntry: p.P2L.load()\nexcept p.ConfigError as e: print(e)"
    assert "pip install 'p2l-plugins[cpu]'" in run(python, "-c", missing, **options)
    run(*install, f"{wheel}[cpu]", **options)
    script = (
        "import sys; from p2l_plugins import P2L; s = P2L.load('starter').score(['Prove that 2 + 2 = 4.'])\n"
        f"print(s.leaderboard().to_markdown(top=3)); assert not set({HEAVY!r}) & set(sys.modules)"
    )
    assert run(python, "-c", script, **options).count("\n| ") == 3
