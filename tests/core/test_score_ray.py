"""Bulk scoring on a local Ray cluster of two workers: the same file as without. Ray is not among the dev extras."""

import json
import sys
from functools import partial

import pytest

from p2l_plugins import P2L
from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.files.prompts import PromptFile
from p2l_plugins.scoring.on_ray import score_on_ray
from p2l_plugins.scoring.to_file import score_to_file


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"p2l-plugins\[ray\]"):
        next(score_on_ray("starter", "", iter([["x"]])))


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'p2l-plugins[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_two_workers_give_the_same_file(cluster, tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_text("".join(json.dumps(f"question {i} " + "word " * (i % 30)) + "\n" for i in range(60)))
    p2l, file, done = P2L.load(), PromptFile(source), []
    engine = partial(score_on_ray, "starter", p2l.fingerprint, workers=2)
    for name, options in (("local.jsonl", {}), ("ray.jsonl", {"engine": engine, "progress": done.append})):
        score_to_file(p2l, file, file.scan(), tmp_path / name, chunk=7, **options)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert done == [7] * 8 + [4]


def test_a_worker_with_another_bundle_stops_the_run(cluster):
    with pytest.raises(BundleError, match="another bundle"):
        list(score_on_ray("starter", "0" * 32, iter([["x"]]), workers=1))


def test_a_bad_prompt_s_error_comes_back(cluster):
    with pytest.raises(Exception, match="the prompt is empty"):
        list(score_on_ray("starter", P2L.load().fingerprint, iter([["x"], [" "]]), workers=2))
