from __future__ import annotations

import subprocess
import sys
from argparse import Namespace

import pytest
import yaml

from lmeval_task import TASKS_DIR
from lmeval_task.cli import include_paths, main, source_of
from p2l_plugins.errors import ConfigError


@pytest.fixture
def user(tmp_path, write_task):
    return write_task("bench", ["math"], tmp_path / "user")


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


def written(folder):
    return sorted(path.stem for path in folder.iterdir())


def test_a_yaml_is_made_for_each_leaderboard_that_nobody_wrote(user, made):
    args = Namespace(tasks=["bench", "p2l_bench", "p2l_copa", "p2l_gsm8k"], include_path=str(user), config=None)
    assert include_paths(args, made) == [str(TASKS_DIR), str(made), str(user)]
    assert written(made) == ["p2l_bench", "p2l_copa"]
    text = (made / "p2l_bench.yaml").read_text().replace("!function ", "")
    assert yaml.safe_load(text) == {
        "task": "p2l_bench",
        "class": "lmeval_task.task.P2LLeaderboard",
        "p2l_source": "bench",
        "p2l_include_path": [str(user)],
        "metadata": {"version": 1.0},
    }


def test_a_yaml_is_made_for_each_benchmark_that_nobody_wrapped(user, made):
    include_paths(Namespace(tasks=["bench_p2l", "gsm8k_p2l"], include_path=str(user), config=None), made)
    assert written(made) == ["bench_p2l"]
    assert "class: !function lmeval_task.benchmark.P2LBenchmark" in (made / "bench_p2l.yaml").read_text()


def test_the_users_own_leaderboard_is_left_alone(user, made):
    (user / "mine.yaml").write_text("task: p2l_bench\n")
    include_paths(Namespace(tasks="p2l_bench", include_path=str(user)), made)
    assert written(made) == []


def test_a_users_task_with_the_name_of_a_shipped_source_gets_its_own_leaderboard(tmp_path, write_task):
    folder = write_task("gsm8k", ["math"], tmp_path / "own")
    assert source_of("p2l_gsm8k", [folder]) == source_of("gsm8k_p2l", [folder]) == "gsm8k"
    assert source_of("p2l_gsm8k", []) is None


def test_patterns_files_and_other_tasks_need_no_yaml():
    assert not any(source_of(name, []) for name in ["p2l_*", "p2l_x.yaml", "boolq", "*_p2l", "p2l_preference"])


def test_tasks_and_folders_of_a_config_file_count(user, made, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"tasks": ["p2l_bench"], "include_path": str(user)}))
    assert include_paths(Namespace(tasks=None, include_path=None, config=str(config)), made)[-1] == str(user)
    assert written(made) == ["p2l_bench"]


def test_a_leaderboard_of_an_unknown_task_is_refused(user, made):
    with pytest.raises(ConfigError, match=r"no task 'benhc' .*similar: bench"):
        include_paths(Namespace(tasks=["p2l_benhc"], include_path=str(user)), made)


def test_the_tasks_folder_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["p2l-lm-eval", "--tasks-dir"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == str(TASKS_DIR)
    module = subprocess.run(
        [sys.executable, "-m", "lmeval_task", "--tasks-dir"], capture_output=True, text=True, check=True, timeout=60
    )
    assert module.stdout.strip() == str(TASKS_DIR)
