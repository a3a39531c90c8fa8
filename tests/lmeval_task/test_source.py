from __future__ import annotations

from types import SimpleNamespace

import pytest

from lmeval_task.source import find_task, harness_tasks, load_source, prompt_of
from p2l_plugins.errors import ConfigError, DataError, PromptError


@pytest.mark.parametrize("name", ["gsm8k", "mmlu_abstract_algebra", "arc_challenge"])
def test_a_task_of_the_harness_is_found_by_the_name_in_its_yaml(name):
    path = find_task(name)
    assert path is not None
    assert harness_tasks() in path.parents


def test_a_later_folder_overrides_an_earlier_one_and_the_harness(tmp_path, write_task):
    for folder in ("a", "b"):
        write_task("gsm8k", ["math"], tmp_path / folder)
    assert find_task("gsm8k", [tmp_path / "a", tmp_path / "b"]) == tmp_path / "b" / "gsm8k.yaml"


@pytest.mark.parametrize("line", ["task: bench", "'task': 'bench'", '"task" : "bench"  # mine', "task: bench\r"])
def test_yaml_may_quote_the_name_or_comment_on_it(tmp_path, line):
    (tmp_path / "x.yaml").write_text(f"tag: other\n{line}\ndoc_to_text: t\n", newline="")
    assert find_task("bench", [tmp_path]) == tmp_path / "x.yaml"


def test_members_of_groups_and_longer_names_are_no_definitions(tmp_path):
    (tmp_path / "group.yaml").write_text("group: all_benches\ntask:\n  - task: bench_zz\n")
    (tmp_path / "longer.yaml").write_text("task: bench_zz_longer\n")
    assert find_task("bench_zz", [tmp_path]) is None
    assert find_task("all_benches", [tmp_path]) is None


def test_a_name_that_nobody_mentions_is_refused_with_similar_ones(tmp_path, write_task):
    write_task("pocket_bench", ["math"])
    with pytest.raises(ConfigError, match=r"no task 'poket_bench' .*similar: pocket_bench"):
        find_task("poket_bench", [tmp_path])


def test_loading_gives_the_source_task(tmp_path, write_task):
    write_task("bench", ["math one", "law two"])
    [task] = load_source("bench", [tmp_path])
    assert [task.doc_to_text(doc) for doc in task.eval_docs] == ["math one", "law two"]


@pytest.mark.filterwarnings("ignore")
def test_a_source_without_documents_is_refused_by_name(tmp_path, write_task):
    write_task("hollow", [])
    with pytest.raises(DataError, match="the source task 'hollow' has no documents, so there are no prompts"):
        load_source("hollow", [tmp_path])


def test_the_prompt_is_text_or_turns_or_choices():
    def task(text):
        return SimpleNamespace(doc_to_text=lambda doc: text, doc_to_choice=lambda doc: ["A went", "B went"])

    assert prompt_of(task("What?"), {}) == "What?"
    assert prompt_of(task(["first", "then"]), {}) == ["first", "then"]
    assert prompt_of(task(1), {}) == "A went\nB went"
    chat = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    assert prompt_of(task(chat), {}) == ("Hello",)
    with pytest.raises(PromptError, match="NoneType"):
        prompt_of(task(None), {})


def test_a_template_replaces_the_prompt_and_names_the_fields_when_it_does_not_fit():
    task = SimpleNamespace(doc_to_text=lambda doc: "other")
    assert prompt_of(task, {"q": "Why?"}, "Say: {{q}}") == "Say: Why?"
    assert prompt_of(task, {"turns": ["Hi", "Why?"]}, "turns") == ["Hi", "Why?"]  # the name of a field gives the field
    with pytest.raises(ConfigError, match="their fields: q"):
        prompt_of(task, {"q": "Why?"}, "{{question}}")
