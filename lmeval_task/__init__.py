"""The lm-eval adapter: leaderboards of a benchmark's prompts beside its score, and a P2L as a model of the harness."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2l_plugins.scoring.scorer import P2L

#: The folder of YAML tasks that `--include_path` takes.
TASKS_DIR = Path(__file__).parent / "tasks"


@cache
def load_p2l(bundle: str) -> P2L:
    """The scorer of a bundle, loaded once per process.

    Raises:
        BundleError, ConfigError: as `P2L.load`.
    """
    from p2l_plugins.scoring.scorer import P2L

    return P2L.load(bundle)
