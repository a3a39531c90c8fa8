"""`p2l-lm-eval`: lm-eval's own command, to which our tasks and the model `p2l` are known.

`p2l_X` works for every task, group or tag X that lm-eval finds in the harness or under `--include_path`: where nobody
wrote a YAML for it, one is made for the run.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmeval_task import TASKS_DIR
from lmeval_task.source import defines_task, find_task, harness_tasks
from p2l_plugins.errors import P2LError

PREFIX = "p2l_"

USAGE = """\
p2l-lm-eval is lm-eval with P2L leaderboards: add p2l_X to --tasks for the leaderboard of task X's prompts.

  p2l-lm-eval run --model hf --model_args pretrained=... --tasks gsm8k,p2l_gsm8k
  p2l-lm-eval --tasks-dir      print our task folder, for lm_eval --include_path
  p2l-lm-eval --debug run ...  show the traceback of an error

Settings: --metadata '{"p2l_bundle": "starter", "p2l_model": "NAME", "p2l_prompt": "{{question}}", "p2l_top": 10}'
All other arguments are lm-eval's:
"""


def main() -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:]
    if arguments == ["--tasks-dir"]:
        print(TASKS_DIR)
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    debug = "--debug" in arguments
    if debug:
        sys.argv.remove("--debug")
    try:
        _run()
    except P2LError as error:
        if debug:
            raise
        print(f"p2l-lm-eval: {error}", file=sys.stderr)
        return 1
    return 0


def _run() -> None:
    harness_tasks()  # says in a sentence that lm-eval is missing
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    harness = HarnessCLI()
    args = harness.parse_args()
    with TemporaryDirectory(prefix="p2l-lm-eval-") as folder:
        if hasattr(args, "include_path"):
            _register_model()
            args.include_path = include_paths(args, Path(folder))
        harness.execute(args)


def include_paths(args: Namespace, folder: Path) -> list[str]:
    """Folders for lm-eval: ours, `folder` with a YAML for each `p2l_*` task that nobody wrote, then the user's.

    Raises:
        ConfigError: a `p2l_X` where no task X is known.
    """
    config = _config_file(args)
    given = getattr(args, "include_path", None) or config.get("include_path") or []
    users = [Path(path).absolute() for path in ([given] if isinstance(given, str | Path) else given)]
    for name in _names(getattr(args, "tasks", None) or config.get("tasks") or []):
        if needs_yaml(name, users):
            source = name.removeprefix(PREFIX)
            find_task(source, users)  # a name that does not exist fails here, before lm-eval reads its index
            (folder / f"{name.replace('/', '_')}.yaml").write_text(task_yaml(name, source, users), encoding="utf-8")
    return [str(path) for path in [TASKS_DIR, folder, *users]]


def needs_yaml(name: str, users: Sequence[Path]) -> bool:
    """Whether a task name asks for a leaderboard for which neither the user nor we have the right YAML."""
    if not name.startswith(PREFIX) or name.endswith(".yaml") or set(name) & set("*?[") or defines_task(name, users):
        return False
    # our YAMLs look in lm-eval only: a user's task of the same name as one of lm-eval's needs its own
    return not defines_task(name, [TASKS_DIR]) or defines_task(name.removeprefix(PREFIX), users)


def task_yaml(name: str, source: str, folders: Sequence[Path]) -> str:
    """The YAML of the leaderboard of a source task (values as JSON, which is YAML)."""
    return (
        f"task: {json.dumps(name)}\n"
        "class: !function lmeval_task.task.P2LLeaderboard\n"
        f"p2l_source: {json.dumps(source)}\n"
        f"p2l_include_path: {json.dumps([str(folder) for folder in folders])}\n"
        "metadata:\n  version: 1.0\n"
    )


def _names(tasks: str | Sequence[Any]) -> list[str]:
    parts = [tasks] if isinstance(tasks, str) else [task for task in tasks if isinstance(task, str)]
    return [name for part in parts for name in part.split(",")]


def _config_file(args: Namespace) -> dict[str, Any]:
    """What `--config` sets; the command line overrides it."""
    if not getattr(args, "config", None):
        return {}
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return dict(EvaluatorConfig.load_yaml_config(args.config))


def _register_model() -> None:
    """lm-eval up to 0.4.13 does not read the entry point `lm_eval.models`."""
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if "p2l" not in model_registry:
        model_registry.register("p2l", target="lmeval_task.model:P2LModel")
