"""`p2l-lm-eval`: lm-eval's own command, to which our tasks and the model `p2l` are known, and two commands of our own.

`p2l_X` and `X_p2l` work for every task, group or tag X that lm-eval finds in the harness or under `--include_path`:
where nobody wrote a YAML for it, one is made for the run.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmeval_task import TASKS_DIR
from lmeval_task.index import BENCHMARK_OF, LEADERBOARD_OF, harness_tasks
from p2l_plugins.cells import plain
from p2l_plugins.errors import ConfigError, P2LError

USAGE = """\
p2l-lm-eval is lm-eval with P2L. For any task, group or tag X of --tasks:

  p2l_X   the leaderboard of X's prompts; asks the evaluated model nothing
  X_p2l   X itself, and how well P2L predicts the evaluated model's score on each prompt

  p2l-lm-eval run --model hf --model_args pretrained=... --tasks gsm8k,p2l_gsm8k
  p2l-lm-eval add TASK --out DIR       write the YAML files of p2l_TASK and TASK_p2l
  p2l-lm-eval report results.json      leaderboards, intervals and rank changes of a run as a page
  p2l-lm-eval --tasks-dir              print our task folder, for lm_eval --include_path
  p2l-lm-eval --debug ...              show the traceback of an error

p2l_preference judges a bundle on held-out votes: --metadata '{"p2l_votes": "votes.jsonl"}'.
Settings: --metadata '{"p2l_bundle": "starter", "p2l_model": "NAME", "p2l_prompt": "{{question}}", "p2l_top": 10}'
All other arguments are lm-eval's:
"""


def main() -> int:
    """Runs the command; returns its exit status: 0 done, 1 failed, 2 bad usage."""
    debug = "--debug" in sys.argv[1:]
    if debug:
        sys.argv.remove("--debug")
    arguments = sys.argv[1:]
    if arguments == ["--tasks-dir"]:
        print(TASKS_DIR)
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    own = arguments[:1] in (["add"], ["report"])
    try:
        if own:
            from lmeval_task.commands import app

            app(arguments, standalone_mode=True, prog_name="p2l-lm-eval")
        else:
            _run()
    except (P2LError, OSError) as error:
        if debug or not (own or isinstance(error, P2LError)):  # an error of the harness is its own to explain
            raise
        print(plain(f"p2l-lm-eval: {error}"), file=sys.stderr)
        return 2 if own and isinstance(error, ConfigError) else 1
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
    """Folders for lm-eval: ours, `folder` with YAMLs for `p2l_X` and `X_p2l` that nobody wrote, then the user's.

    Raises:
        ConfigError: a `p2l_X` or `X_p2l` where no task X is known.
    """
    config = _config_file(args)
    given = getattr(args, "include_path", None) or config.get("include_path") or []
    users = [Path(path).absolute() for path in ([given] if isinstance(given, str | Path) else given)]
    files: dict[str, str] = {}
    for name in _names(getattr(args, "tasks", None) or config.get("tasks") or []):
        source = source_of(name, users)
        if source is not None:  # a name that does not exist fails here, before lm-eval reads its index
            from lmeval_task.derived import benchmark_yamls, leaderboard_yamls, merged

            make = leaderboard_yamls if name.startswith(LEADERBOARD_OF) else benchmark_yamls
            files = merged(files, make(source, users))
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [str(path) for path in [TASKS_DIR, folder, *users]]


def source_of(name: str, users: Sequence[Path]) -> str | None:
    """The task X of `p2l_X` or `X_p2l`, where neither the user nor we have the right YAML for it; else None."""
    if name.endswith(".yaml") or set(name) & set("*?["):
        return None
    if name.startswith(LEADERBOARD_OF):
        source = name.removeprefix(LEADERBOARD_OF)
    elif name.endswith(BENCHMARK_OF):
        source = name.removesuffix(BENCHMARK_OF)
    else:
        return None
    from lmeval_task.source import defines_task

    if defines_task(name, [*users, harness_tasks()]):
        return None
    # our YAMLs look in lm-eval only: a user's task of the same name as one of lm-eval's needs its own
    return None if defines_task(name, [TASKS_DIR]) and not defines_task(source, users) else source


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
