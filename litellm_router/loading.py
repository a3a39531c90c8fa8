"""What scores for the router: a bundle in this process, or an HTTP scorer elsewhere."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from typing import Protocol

from litellm_router.settings import P2LSettings
from p2l_plugins.outcomes import Family
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.bundle import find_bundle
from p2l_plugins.scoring.scorer import P2L, Scores

#: Seconds that the end of the process waits for a bundle that is being read: a thread that is stopped inside ONNX
#: Runtime aborts the process.
EXIT_S = 10.0

#: Held while ONNX Runtime reads a bundle.
_in_runtime = threading.Lock()


class Scorer(Protocol):
    """What the router needs of `p2l_plugins.P2L`."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""

    @property
    def family(self) -> Family:
        """The outcome model."""

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias."""

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        """Coefficients of prompts."""


def load_scorer(settings: P2LSettings) -> Scorer:
    """The bundle that the settings name, ready to score, or the HTTP scorer at their endpoint.

    Raises:
        P2LError: no such bundle, a damaged one, no ONNX Runtime, or an endpoint that does not answer as it should.
    """
    if settings.endpoint is not None:
        from litellm_router.endpoint import RemoteScorer

        return RemoteScorer(settings.endpoint, settings.endpoint_secret(), settings.timeout_ms / 1e3)
    folder = find_bundle(settings.bundle)  # a download that hangs holds no lock, and so not the end of the process
    with _in_runtime:
        p2l = P2L.load(folder, threads=settings.threads)
        p2l.warm_up()
    return p2l


@atexit.register
def _end() -> None:
    _in_runtime.acquire(timeout=EXIT_S)  # and never released: no thread enters ONNX Runtime from here on
