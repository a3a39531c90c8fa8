"""A LiteLLM proxy without LiteLLM's proprietary package, as `examples/proxy.txt` installs it."""

import os

import httpx
import yaml
from demo import ask, running_proxy, warm_up
from helpers.proxies import MODELS, PROMPT, config_of, deployment

#: In place of the package: what an import finds where it is not installed.
ABSENT = "raise ModuleNotFoundError(\"No module named 'litellm_enterprise'\", name='litellm_enterprise')\n"


def test_the_proxy_routes_without_the_proprietary_package(tmp_path, ranking):
    (tmp_path / "litellm_enterprise").mkdir()
    (tmp_path / "litellm_enterprise/__init__.py").write_text(ABSENT)
    groups = [deployment("auto", model) for model in MODELS]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_of(["litellm_router.p2l_router"], groups)))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with (
        running_proxy(tmp_path / "config.yaml", env={"PYTHONPATH": path}) as proxy,
        httpx.Client(timeout=30) as client,
    ):
        warm_up(client, proxy, "auto")
        answer = ask(client, proxy, "auto", PROMPT)
        assert answer.headers["x-p2l-model"] == ranking[0]
        assert answer.json()["choices"][0]["message"]["content"] == f"answer of {ranking[0]}"
