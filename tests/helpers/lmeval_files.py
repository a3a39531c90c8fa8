"""Benchmarks for tests of the harness: a YAML file with its rows beside it, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Begins a script that runs lm-eval's own command on tasks of its include path: the thousands that ship are not read.
OWN_TASKS = """
import functools
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
"""


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    """Writes a task over rows with `question` and `answer`; `config` adds keys or takes their place."""
    code = f"from datasets import Dataset\n\ndef load(**_):\n    return {{'test': Dataset.from_list({rows!r})}}\n"
    (folder / f"{name}_data.py").write_text(code)
    keys = {
        "task": name,
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "output_type": "generate_until",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **config,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in keys.items()]
    (folder / f"{name}.yaml").write_text("\n".join([*lines, f"custom_dataset: !function {name}_data.load"]) + "\n")
