"""What our lm-eval command adds to the start of lm-eval's own, and the time of scoring 1,000 prompts inside a task.

    python benchmarks/lmeval.py [--runs 5] [--prompts 1000] [--bundle starter]

Start: both commands run the same task of twelve questions with the model `dummy`, in turn, each in a process of its
own; medians of the time, and of the processor's time, which other programs disturb less. The third row adds the
leaderboard's task: it loads the bundle and scores the questions. Scoring: the task's own step, which hands all prompts
to the scorer at once, beside one call per prompt. The starter is int8, so that each of its prompts runs alone either
way and what batching saves is the rest; `--bundle` names another one.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "lmeval"
COMMANDS = Path(sys.executable).parent
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
STARTS = {
    "lm_eval, pocket_quiz": ("lm_eval", "pocket_quiz"),
    "p2l-lm-eval, pocket_quiz": ("p2l-lm-eval", "pocket_quiz"),
    "p2l-lm-eval, pocket_quiz and p2l_pocket_quiz": ("p2l-lm-eval", "pocket_quiz,p2l_pocket_quiz"),
}


def start(command: str, tasks: str) -> tuple[float, float]:
    """Seconds of one run, and of the processor's time."""
    words = [str(COMMANDS / command), "run", "--model", "dummy", "--tasks", tasks, "--include_path", str(EXAMPLES)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, env=OFFLINE, check=True, capture_output=True)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(runs: int) -> None:
    """Prints the median time of each command and what ours adds."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(runs + 1):  # the first of each warms the files
        for name, words in STARTS.items():
            measured[name].append(start(*words))
    medians = {name: [statistics.median(x) for x in zip(*runs[1:], strict=True)] for name, runs in measured.items()}
    wall, cpu = next(iter(medians.values()))
    for name, (seconds, own) in medians.items():
        print(f"{name}: {seconds:.2f} s ({seconds - wall:+.2f}), processor {own:.2f} s ({own - cpu:+.2f})")


def scoring(prompts: int, bundle: str) -> None:
    """Prints the time of a task's prompts in one go, and one by one."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"})
    logging.disable(logging.WARNING)
    from lmeval_task.task import P2LLeaderboard
    from p2l_plugins.prompts import Turns

    with TemporaryDirectory() as folder:
        rows = [{"question": f"{i}. " + "Explain the theorem in simple terms. " * (1 + i % 20)} for i in range(prompts)]
        (Path(folder) / "data.py").write_text(
            f"from datasets import Dataset\n\ndef load(**_):\n    return {{'test': Dataset.from_list({rows!r})}}\n"
        )
        (Path(folder) / "many.yaml").write_text(
            "task: many\ntest_split: test\ndoc_to_text: question\ndoc_to_target: ''\noutput_type: loglikelihood\n"
            "custom_dataset: !function data.load\nmetric_list: [{metric: acc}]\n"
        )
        metadata = {"p2l_include_path": folder, "p2l_bundle": bundle}
        task = P2LLeaderboard({"task": "p2l_many", "p2l_source": "many", "metadata": metadata})
        task.build_all_requests()
        task.p2l.warm_up()
        begun = time.perf_counter()
        instances = task.apply_filters()
        together = time.perf_counter() - begun
        turns: list[Turns] = [(instance.args[0],) for instance in instances]
        begun = time.perf_counter()
        for turn in turns:
            task.p2l.score_turns([turn])
        apart = time.perf_counter() - begun
    print(f"{prompts} prompts with {bundle} in a task: {together:.2f} s in one call, {apart:.2f} s one by one")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--bundle", default="starter")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if arguments.runs:
        starts(arguments.runs)
    scoring(arguments.prompts, arguments.bundle)


if __name__ == "__main__":
    main()
