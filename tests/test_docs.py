"""What the README and the docs tell a user to do works."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from helpers.forking import command, finished, script

from litellm_router.matching import match
from litellm_router.settings import P2LSettings
from p2l_plugins import P2L

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        result = finished(script, block, cwd=ROOT)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_proxy_configurations_are_valid(page):
    starter = P2L.load()
    for block in blocks(page, "yaml"):
        config = yaml.safe_load(block)
        if "model_list" not in config:
            continue
        settings = config["litellm_settings"]
        assert settings["callbacks"] == ["litellm_router.p2l_router"]
        P2LSettings.read(settings.get("p2l_settings"))
        named = [match(deployment, starter) for deployment in config["model_list"]]
        assert len({one.model for one in named if one is not None}) >= 2


def test_the_training_configuration_is_valid(tmp_path):
    pytest.importorskip("torch")
    from p2l_plugins.training.config import TrainConfig, read_config

    (block,) = (b for b in blocks(ROOT / "docs" / "training.md", "yaml") if "backbone" in b)
    (tmp_path / "c.yaml").write_text(block)
    read_config(tmp_path / "c.yaml")
    page = (ROOT / "docs" / "training.md").read_text()
    assert not [key for key in TrainConfig.model_fields if f"`{key}`" not in page]
    read_config(ROOT / "examples" / "starter.yaml")


def test_the_settings_of_the_router_are_those_of_its_models():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))["reference"]

    page = (ROOT / "docs" / "litellm.md").read_text(encoding="utf-8")
    assert reference() in page, "docs/litellm.md: put in what python docs/reference.py prints"


@pytest.mark.parametrize(
    "line",
    [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("p2l ")],
)
def test_p2l_commands_run(line, tmp_path):
    """Blocks marked `sh` use the starter and files of the project; what they write goes to a temporary folder."""
    words = [word.replace("/tmp/", f"{tmp_path}/") for word in shlex.split(line)]  # noqa: S108
    result = finished(command, *words[1:], cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_index_lists_every_page_and_the_readme_is_short():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index + "(index.md)"]
    assert not missing
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 125


def test_the_architecture_names_what_there_is():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"[\w/]+/\w+\.py", page):
        assert (ROOT / name).is_file(), name
    rooms = re.findall(r"(\S+\.py)$", page.split("```")[3], re.M)
    assert len(set(rooms)) <= 7  # six of the walk, and the memory of the attempts
    source = "".join((ROOT / name).read_text(encoding="utf-8") for name in rooms)
    for name in (
        "async_filter_deployments",
        "read",
        "Scoring",
        "Flights",
        "Values",
        "decide",
        "Ranked",
        "next",
        "score",
    ):
        assert re.search(rf"(def|class) {name}\b", source), name


def test_the_results_show_the_starters_own_figures():
    """The tables are those of the manifest, which benchmarks/starter.py wrote."""
    readme = (ROOT / "docs" / "results.md").read_text()
    quality = P2L.load().bundle.manifest.quality["held_out"]
    assert quality
    for name, report in quality.items():
        assert f"| {name} | {report['n_prompts']} | {report['n_votes']} | {report['p2l']['log_loss']:.4f} |" in readme
        if "routed" in report:
            row = re.search(rf"^\| {re.escape(name)} \| {report['routed']['candidates']} \|.*$", readme, re.M)[0]
            shown = [float(x) for x in re.findall(r"(?<=[| ])[+-]?\d+\.\d{4}", row)]
            keys = ("random", "best_single", "p2l", "oracle", "gain", "gain_stderr")
            assert shown == pytest.approx([report["routed"][key] for key in keys], abs=1e-4)


def test_the_route_example_has_prices_for_models_of_the_starter():
    starter = P2L.load()
    for name in json.loads((ROOT / "examples" / "prices.json").read_text()):
        starter.index(name)
