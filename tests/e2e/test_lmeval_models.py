"""Local models: from their logs to a routed request, by the commands of the docs; and two processes as one."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.forking import finished, script
from helpers.lmeval_files import OWN_TASKS, write_task
from helpers.topics import TOPICS
from typer.testing import CliRunner

from lmeval_task import TASKS_DIR
from lmeval_task.derived import benchmark_yamls, leaderboard_yamls
from lmeval_task.pairs import unpack

ROOT = Path(__file__).parents[2]
ANSWERS = {"sum": 0, "code": 1}  # of the choices yes and no


def model(folder: Path, says: str) -> None:
    """A random Llama of one layer with a word tokenizer, whose head leans towards one of the words yes and no."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<eos>", "yes", "no", *TOPICS, *itertools.chain(*TOPICS.values())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    with torch.no_grad():  # the first dimension of every hidden state is large, so that the head can lean on it
        llama.model.embed_tokens.weight[:, 0] = 10.0
        llama.lm_head.weight[words.index(says), 0] = 1.0
    llama.save_pretrained(folder)
    fast.save_pretrained(folder)


def quiz(folder: Path) -> None:
    """A benchmark whose answer depends on the topic."""
    folder.mkdir()
    rows = []
    for i in range(48):
        topic = ("sum", "code")[i % 2]
        words = TOPICS[topic]
        question = " ".join([topic, words[i % 4], words[(i // 4) % 4], words[(i // 16) % 4]])
        rows.append({"question": question, "choices": ["yes", "no"], "answer": ANSWERS[topic]})
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    write_task(folder, "quiz", rows, output_type="multiple_choice", doc_to_choice="choices", metric_list=[metric])


def commands() -> list[list[str]]:
    text = (ROOT / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```logs\n(.*?)^```", text, flags=re.S | re.M)
    return [shlex.split(line) for line in block.splitlines()]


#: Evaluates on as many processes as there are. lm-eval deals documents to the processes of several GPUs only, so that
#: the script says which rank this one is; all else is lm-eval's own.
RANKS = """
import json, sys
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

lm = HFLM(pretrained="models/owl", device="cpu", batch_size=8)
if hasattr(lm, "accelerator"):
    lm._rank, lm._world_size = lm.accelerator.process_index, lm.accelerator.num_processes
metadata = {"p2l_bundle": "bundle", "p2l_model": "owl", "p2l_votes": "votes.jsonl"}
manager = TaskManager(include_path=["tasks", "made", sys.argv[1]], include_defaults=False, metadata=metadata)
loaded = manager.load(["quiz", "quiz_p2l", "p2l_quiz", "p2l_preference"])
for task in loaded["tasks"].values():
    task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1)
found = evaluate(lm, loaded, limit=11, bootstrap_iters=10)
if found is not None:
    reports = {name: config.get("p2l") for name, config in found["configs"].items()}
    counts = {name: len(samples) for name, samples in found["samples"].items()}
    print(json.dumps([lm.world_size, found["results"], reports, counts], allow_nan=False))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("logs")
    for name, says in (("owl", "yes"), ("lynx", "no")):
        model(folder / "models" / name, says)
    quiz(folder / "tasks")
    (folder / "train.yaml").write_text(
        f"name: quiz\nbackbone: {tiny_backbone}\nfamily: grk\nmax_length: 32\nepochs: 6\nbatch_size: 8\n"
        "learning_rate: 1.0e-3\nhead_learning_rate: 2.0e-2\nheld_out: 0.2\nevaluations: 1\n"
        "data:\n  - {path: votes.jsonl}\n"
    )
    (folder / "costs.json").write_text('{"owl": 0.001, "lynx": 0.001}')
    return folder


@pytest.fixture(scope="module")
def outputs(folder):
    """Runs the commands of the docs; what each printed."""
    from p2l_plugins.cli import app

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    lines = commands()
    runs = [line for line in lines if line[0] == "lm_eval"]
    assert len(runs) == 2
    twice = (  # lm-eval's command, twice in one process: its imports take longer than the runs
        f"{OWN_TASKS}import json, sys\nfrom lm_eval.__main__ import cli_evaluate\n"
        "for sys.argv in json.loads(sys.argv[1]):\n    cli_evaluate()\n"
    )
    run = finished(script, twice, json.dumps(runs), cwd=folder, environment=env)
    assert run.returncode == 0, run.stderr
    printed = {}

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            if line[0] == "p2l":
                done = CliRunner().invoke(app, line[1:])
                assert done.exit_code == 0, (line, done.output, done.exception)
                printed[line[1]] = done.output
    return printed


def test_each_model_is_right_on_its_topic(outputs, folder):
    for name, topic in (("owl", "sum"), ("lynx", "code")):
        [samples] = (folder / "out" / name).rglob("samples_quiz_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        assert {row["doc"]["question"].split()[0] for row in rows if row["acc"] == 1.0} == {topic}


def test_the_prompt_goes_to_the_model_that_was_right_on_its_topic(outputs):
    assert "best: owl;" in outputs["route"]


def test_the_bundle_is_judged_on_the_prompts_that_its_training_held_out(outputs):
    assert re.match(r"\d+ prompts, \d+ votes, ", outputs["evaluate"])  # none of them was seen in training
    assert "seen in training" not in outputs["evaluate"]


def test_the_sdk_routes_requests_by_the_bundle(outputs, folder):
    import litellm
    from litellm import Router

    from litellm_router import P2LRouter, P2LRoutingStrategy, P2LSettings

    deployments = [
        {
            "model_name": "auto",
            "litellm_params": {"model": f"openai/{name}", "api_key": "none", "mock_response": f"I am {name}"},
            "model_info": {"id": name, "p2l_model": name},
        }
        for name in ("owl", "lynx")
    ]
    router, p2l = (
        Router(model_list=deployments),
        P2LRouter(P2LSettings(bundle=str(folder / "bundle"), timeout_ms=20_000)),
    )
    P2LRoutingStrategy.install(router, p2l)
    try:
        for prompt, name in (("sum apple plum fig", "owl"), ("code stack loop class", "lynx")):
            response = router.completion("auto", messages=[{"role": "user", "content": prompt}])
            assert response.choices[0].message.content == f"I am {name}"
    finally:
        litellm.callbacks = [callback for callback in litellm.callbacks if callback is not p2l]


def differences(one, two, path=""):
    """Where two results differ by more than rounding."""
    if isinstance(one, dict):
        assert list(one) == list(two), path
        return [d for key in one for d in differences(one[key], two[key], f"{path}/{key}")]
    if isinstance(one, list):
        assert len(one) == len(two), path
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    # the refits of a bootstrap stop when they move by less than 1e-4
    tolerance = 2e-3 if path.endswith(("_low", "_high", "/stderr")) and "/leaderboard/" in path else 2e-5
    close = one == pytest.approx(two, abs=tolerance) if isinstance(one, float) else one == two
    return [] if close else [(path, one, two)]


def test_two_processes_give_the_rows_of_one(outputs, folder, monkeypatch, capsys):
    (folder / "made").mkdir()
    sources = [folder / "tasks"]
    for file, text in {**benchmark_yamls("quiz", sources), **leaderboard_yamls("quiz", sources)}.items():
        (folder / "made" / file).write_text(text)
    (folder / "ranks.py").write_text(RANKS)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ranks.py", str(TASKS_DIR / "p2l_preference")])
    runpy.run_path("ranks.py")
    one = json.loads(capsys.readouterr().out.splitlines()[-1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *sys.argv],
        env=env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    two = json.loads(run.stdout.splitlines()[-1])
    assert (one[0], two[0]) == (1, 2)
    assert two[3] == {"quiz": 11, "quiz_p2l": 11, "p2l_quiz": 11, "p2l_preference": 11}
    packed = [result[2]["p2l_quiz"].pop("pairs") for result in (one, two)]
    models = one[2]["p2l_quiz"]["leaderboard"]
    for ours, theirs in zip(*(unpack(text, len(models)) for text in packed), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    for result in (one, two):  # which bin a prediction on the edge of two falls into is a matter of its last digit
        result[2]["p2l_preference"].pop("calibration")
    assert differences(one[1], two[1]) == []
    assert differences(one[2], two[2]) == []
