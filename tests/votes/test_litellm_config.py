"""The candidates of a proxy's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.votes.litellm_config import candidate_name, read_config_models

CONFIG = """
model_list:
  - {model_name: auto, litellm_params: {model: openai/gpt-5-mini}}
  - {model_name: auto, litellm_params: {model: openrouter/openai/gpt-5-mini}}
  - {model_name: big, litellm_params: {model: azure/ours}, model_info: {base_model: azure/gpt-5}}
  - {model_name: big, litellm_params: {model: hosted_vllm/x/llama3:8b}, model_info: {p2l_model: llama}}
  - {model_name: vectors, litellm_params: {model: openai/text-embedding-3}, model_info: {mode: embedding}}
  - {model_name: "*", litellm_params: {model: "openai/*"}}
"""


def test_models_of_a_configuration_have_the_names_without_providers(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    models = read_config_models(path)
    assert [(one.name, one.groups, len(one.deployments)) for one in models] == [
        ("gpt-5-mini", ("auto",), 2),
        ("gpt-5", ("big",), 1),
        ("llama", ("big",), 1),
    ]
    assert [one.name for one in read_config_models(path, "big")] == ["gpt-5", "llama"]
    with pytest.raises(DataError, match=r"no group 'bg' in model_list; valid: auto, big, vectors, \*$"):
        read_config_models(path, "bg")


@pytest.mark.parametrize("text", ["model_list: 3", "model_list: [a]", "model_list: []"])
def test_a_configuration_without_candidates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="model_list"):
        read_config_models(path)


def test_odd_parts_are_no_names() -> None:
    assert candidate_name({"litellm_params": "x", "model_info": None}) is None
    assert candidate_name({"litellm_params": {"model": "a/"}}) is None
