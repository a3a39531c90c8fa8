"""What the repository's own machinery says holds: workflows, forms, notes of a release, the names in site-packages."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("p2l_plugins", "litellm_router", "lmeval_task", "onnx_export")

#: Which schema of check-jsonschema's describes which files.
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": [path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE/config.yml"],
    "dependabot": [GITHUB / "dependabot.yml"],
}


def workflow(name):
    return yaml.safe_load((GITHUB / "workflows" / name).read_text(encoding="utf-8"))


def steps(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job.get("steps", [])]


def make(*targets):
    """What make would run, or its complaint about a target that is not there."""
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def checked(schema, *paths):
    """What check-jsonschema says of files: its exit status, and the text."""
    command = pytest.importorskip("check_jsonschema").main
    done = CliRunner().invoke(command, ["--builtin-schema", f"vendor.{schema}", *map(str, paths)])
    return done.exit_code, done.output


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_the_forge_have_its_form(schema):
    status, text = checked(schema, *SCHEMAS[schema])
    assert status == 0, text


def test_a_file_of_another_form_is_refused(tmp_path):
    (tmp_path / "w.yml").write_text("on: push\njobs: {a: {runs-on: x, step: []}}\n")
    status, text = checked("github-workflows", tmp_path / "w.yml")
    assert status == 1
    assert "step" in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_that_there_are(path):
    commands = [step["run"] for step in steps(path) if step.get("run", "").startswith("make ")]
    matrix = workflow("matrix.yml")["jobs"]["matrix"]["strategy"]["matrix"]
    names = [*matrix["environment"], *(one["environment"] for one in matrix["include"])]
    for command in commands:
        for name in names if "matrix.environment" in command else [""]:
            target = command.removeprefix("make ").replace("${{ matrix.environment }}", name)
            status, text = make(target)
            assert status == 0, text
    assert make("no-such-target")[0] == 2


def test_workflows_may_do_little_and_name_actions_by_commit():
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
        for step in steps(path):
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"])
    publishing = [job for job in workflow("release.yml")["jobs"].values() if "environment" in job]
    assert [job["permissions"]["id-token"] for job in publishing] == ["write"]
    assert "secrets." not in (GITHUB / "workflows/release.yml").read_text(encoding="utf-8")


def test_workflows_run_on_every_python_of_the_project_and_on_every_environment():
    pythons = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line]
    assert workflow("tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == pythons
    matrix = workflow("matrix.yml")["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == pythons
    rooms = runpy.run_path(str(ROOT / "tests/versions/packages.py"))["ROOMS"]
    versions = {path.stem for path in (ROOT / "tests/versions").glob("[0-9]*.txt")}
    assert set(matrix["environment"]) == versions | {f"{room}-newest" for room in rooms}
    assert {one["environment"] for one in matrix["include"]} == {f"{room}-lowest" for room in rooms}
    release = workflow("release.yml")["jobs"]
    assert {Path(release[name]["uses"]).name for name in ("tests", "matrix")} == {"tests.yml", "matrix.yml"}
    assert set(release["publish"]["needs"]) == {"tests", "matrix", "build"}


def test_every_extra_that_can_be_tried_is_tried_at_its_lower_bounds():
    packages = runpy.run_path(str(ROOT / "tests/versions/packages.py"))
    extras = {extra for room in packages["ROOMS"].values() for extra in room}
    assert set(PROJECT["project"]["optional-dependencies"]) - extras == {"dev", "gpu", "ray", "litellm", "proxy"}
    listed = packages["listed"]("core", "lowest")
    pydantic = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("pydantic"))
    assert pydantic.replace(">=", "==") in listed
    assert "pydantic" in packages["listed"]("core", "newest")
    lowest = min((ROOT / "tests/versions").glob("[0-9]*.txt"), key=lambda path: [*map(int, path.stem.split("."))]).stem
    (litellm,) = PROJECT["project"]["optional-dependencies"]["litellm"]
    assert f"{litellm.partition('>=')[2]}.0" == lowest


def test_the_notes_of_a_release_are_its_entry_of_the_changelog():
    def notes(version):
        command = [sys.executable, ROOT / "docs/notes.py", version]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    version = PROJECT["project"]["version"]
    printed = notes(f"v{version}")
    assert printed.returncode == 0
    assert printed.stdout.strip() in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## " + version not in printed.stdout
    other = notes("v9.9.9")
    assert (other.returncode, other.stdout) == (1, "")
    assert version in other.stderr


def test_the_site_lists_every_page():
    pages = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def taken(names):
    """Who else brings a module of these names: other packages, and Python itself."""
    others = packages_distributions()
    found = {name: set(others.get(name, [])) - {"p2l-plugins"} for name in names}
    found |= {name: {"Python"} for name in names if name in sys.stdlib_module_names}
    return {name: who for name, who in found.items() if who}


def test_no_dependency_has_a_module_of_our_names():
    assert taken(PACKAGES) == {}
    assert set(taken(("yaml", "json", *PACKAGES))) == {"yaml", "json"}
