"""Names of the installed harness: the small index against lm-eval's own, and the tasks that we ship."""

from __future__ import annotations

import random

import pytest
import yaml
from lm_eval.tasks import TaskManager

from lmeval_task import TASKS_DIR
from lmeval_task.derived import benchmark_yamls, leaderboard_yamls
from lmeval_task.index import source_index
from p2l_plugins.errors import ConfigError

SHIPPED = sorted(TASKS_DIR.rglob("*.yaml"))
COMMON = """
gsm8k mmlu mmlu_pro arc_challenge arc_easy hellaswag winogrande truthfulqa_mc2 humaneval mbpp ifeval bbh
gpqa_main_zeroshot gpqa_diamond_zeroshot minerva_math piqa boolq openbookqa
""".split()


@pytest.fixture(scope="module")
def harness():
    """lm-eval's own index; building it takes seconds."""
    return TaskManager().task_index


def read(text):
    return yaml.safe_load(text.replace("!function ", ""))


def leaves(index, name):
    """Tasks that a name stands for, with their files."""
    entry = index[name]
    if entry.kind.name == "TAG":
        return {(task, index[task].yaml_path) for task in entry.tags}
    if entry.kind.name != "GROUP":
        return {(name, entry.yaml_path)}
    found = set()
    for item in entry.cfg["task"]:
        names = [item] if isinstance(item, str) else [item.get("task"), item.get("group")]
        found |= {
            leaf for member in names if isinstance(member, str) and member in index for leaf in leaves(index, member)
        }
    return found


def test_every_shipped_yaml_has_its_source_in_the_installed_harness(harness):
    sources = {}
    for path in SHIPPED:
        config = read(path.read_text(encoding="utf-8"))
        assert config["task"] == path.stem
        assert config["metadata"]["version"] == 1.0
        sources[path.stem] = config.get("p2l_source")
    without = {"p2l_leaderboard", "p2l_preference", "p2l_preference_choice"}
    assert {name for name, source in sources.items() if source is None} == without
    for name in set(sources) - without:
        assert sources[name] in harness, name
        assert name in (f"p2l_{sources[name]}", f"{sources[name]}_p2l")
        if name.endswith("_p2l"):
            assert harness[sources[name]].kind.name in ("TASK", "PY_TASK"), name
    assert {f"p2l_{name}" for name in COMMON} <= set(sources)


def test_every_family_has_a_readme_that_names_its_tasks():
    for folder in {path.parent for path in SHIPPED}:
        text = (folder / "README.md").read_text(encoding="utf-8")
        for heading in ("### Paper", "### Citation", "### Groups, Tags, and Tasks", "### Checklist", "### Changelog"):
            assert heading in text
        for path in folder.glob("*.yaml"):
            config = read(path.read_text(encoding="utf-8"))
            assert f"`{config.get('p2l_source', config['task'])}`" in text, path.name


def test_the_small_index_finds_what_lm_evals_own_finds(harness):
    known = ["mmlu", "bbh", "minerva_math", "mgsm_direct", "ai2_arc", "openllm", "truthfulqa_multilingual", "polemo2"]
    names = [name for name, entry in harness.items() if entry.kind.name in ("GROUP", "TAG")]
    for name in [*known, *random.Random(0).sample(sorted(names), 4)]:
        assert leaves(source_index(name), name) == leaves(harness, name), name


def test_a_users_folder_overrides_the_harness(tmp_path, write_task):
    write_task("minerva_math_algebra", ["math"], tmp_path / "own")
    index = source_index("minerva_math", [tmp_path / "own"])
    assert index["minerva_math_algebra"].yaml_path.parent == tmp_path / "own"
    assert index["minerva_math_geometry"].yaml_path.parent != tmp_path / "own"


def test_a_group_is_wrapped_in_its_shape_with_the_settings_that_it_makes():
    files = {name: read(text) for name, text in benchmark_yamls("openllm").items()}
    assert files["openllm_p2l.yaml"]["task"][0] == "arc_challenge_p2l"
    assert files["arc_challenge_p2l.yaml"]["p2l_overrides"] == {"fewshot_split": "train", "num_fewshot": 25}
    assert files["mmlu_astronomy_p2l.yaml"]["p2l_overrides"] == {"num_fewshot": 5}
    assert files["mmlu_astronomy_p2l.yaml"]["tag"] == "mmlu_stem_tasks_p2l"
    assert files["mmlu_p2l.yaml"]["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]
    assert set(files["mmlu_stem_p2l.yaml"]["task"]) == {"mmlu_stem_tasks_p2l"}


def test_the_leaderboard_of_a_group_is_one_task():
    assert list(leaderboard_yamls("mmlu")) == ["p2l_mmlu.yaml"]


def test_a_name_that_does_not_exist_is_refused_with_similar_ones():
    with pytest.raises(ConfigError, match="no task 'gsm9k' in lm-eval; similar: gsm8k"):
        benchmark_yamls("gsm9k")
