"""Bulk scoring on a Ray cluster: the extra `ray`.

The driver reads the prompts and writes the output; the workers score chunks, on one processor core each. Chunks come
back in order, and only so many are under way that memory stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.prompts import Prompt
from p2l_plugins.scoring.bundle import STARTER
from p2l_plugins.scoring.scorer import P2L, Scores


class _Worker:
    """Loads the bundle once, on the worker's machine."""

    def __init__(self, source: str, fingerprint: str) -> None:
        self._p2l = P2L.load(source, threads=1)
        if self._p2l.fingerprint != fingerprint:
            raise BundleError(f"{source}: a worker has another bundle under this name: {self._p2l.fingerprint}")

    def score(self, prompts: list[Prompt]) -> Scores:
        """Coefficients of a chunk."""
        return self._p2l.score(prompts)


def score_on_ray(
    source: str, fingerprint: str, chunks: Iterator[list[Prompt]], workers: int | None = None
) -> Iterator[Scores]:
    """Scores of chunks of prompts, in their order.

    Connects to the cluster that `RAY_ADDRESS` names, or starts one on this machine.

    Args:
        source: of the bundle, as every worker finds it: `starter`, a hub id, or a folder that all machines have.
        fingerprint: of the bundle; a worker that finds another one fails.
        chunks: prompts.
        workers: default: as many as the cluster has cores.

    Raises:
        ConfigError: Ray is missing.
        BundleError: a worker can't load the bundle, or finds another one.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs the extra 'ray': pip install 'p2l-plugins[ray]'") from None
    if source != STARTER and Path(source).is_dir():
        source = str(Path(source).absolute())  # workers run in another folder
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    count = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
    actors = [ray.remote(_Worker).options(num_cpus=1).remote(source, fingerprint) for _ in range(count)]
    try:
        yield from _in_order(ray, actors, chunks)
    except ray.exceptions.RayActorError as error:
        reason = str(getattr(error, "__cause__", None) or error).strip().splitlines()[-1]
        raise BundleError(f"a worker of the Ray cluster failed: {reason}") from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _in_order(ray: Any, actors: list[Any], chunks: Iterator[list[Prompt]]) -> Iterator[Scores]:
    """Two chunks per worker are under way: one that is scored, one that waits."""
    waiting: deque[Any] = deque()
    for number, chunk in enumerate(chunks):
        waiting.append(actors[number % len(actors)].score.remote(chunk))
        if len(waiting) >= 2 * len(actors):
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())
