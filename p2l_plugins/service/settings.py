"""What an operator can set of the service: one frozen model, which `p2l serve` fills from its options."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.prompts import Turns


class ServiceSettings(BaseModel):
    """Settings of `p2l serve`; every one has a default.

    Attributes:
        bundle: folder, hub id or `starter`.
        device: `cpu` or `cuda`.
        threads: of one run of the model.
        workers: processes, each with the bundle and a cache in its memory.
        host: what the service listens on.
        allowed_hosts: other names by which it may be asked, such as behind a proxy; `*` for any.
        keys: any one of them opens the interface; none: it is open.
        feedback_keys: any one of them may speak for users; none: there is no feedback.
        feedback_new_users: users without a board that may get one, per process and hour.
        feedback_votes: votes of one user that count, per process and hour.
        cache: of scores.
        max_pending: different prompts that wait or are being scored, per process; more are refused with 429.
        max_batch: most prompts of a request.
        max_body_bytes: most bytes of a request's body.
        max_connections: at the same time, per process.
        max_per_address: of these from one client's address.
        head_s: seconds in which the head of a request must have come.
        idle_s: seconds after an answer in which the next request must begin.
        costs: model → USD per request or prices, for requests that bring none.
        overall: prompts of the board that others are compared with.
        drain_s: seconds for which requests are still taken after the signal to stop, while `/readyz` says no.
        grace_s: longest that requests under way may then take.
        access_log: a line per request: method, path, status, time; never a body or a query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = "starter"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=1, ge=0, le=1024)
    workers: int = Field(default=1, ge=1, le=256)
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    keys: tuple[SecretStr, ...] = ()
    feedback_keys: tuple[SecretStr, ...] = ()
    feedback_new_users: int = Field(default=100, ge=1)
    feedback_votes: int = Field(default=60, ge=1)
    cache: CacheSettings = CacheSettings()
    max_pending: int = Field(default=1024, ge=1)
    max_batch: int = Field(default=256, ge=1)
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    max_connections: int = Field(default=2048, ge=1)
    max_per_address: int = Field(default=512, ge=1)
    head_s: float = Field(default=10.0, gt=0, le=3600, allow_inf_nan=False)
    idle_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    costs: dict[str, Any] | None = None
    overall: tuple[Turns, ...] = ()
    drain_s: float = Field(default=0.0, ge=0, le=3600, allow_inf_nan=False)
    grace_s: float = Field(default=60.0, ge=0, le=3600, allow_inf_nan=False)
    access_log: bool = False

    @model_validator(mode="after")
    def _a_batch_fits(self) -> ServiceSettings:
        if self.max_pending < self.max_batch:
            raise ValueError(
                f"max_pending is {self.max_pending}: must be at least max_batch ({self.max_batch}), or a full batch "
                "could never be taken"
            )
        return self

    def runs(self) -> int:
        """Runs of the model at the same time, per process: all processors are used, none twice."""
        if self.device == "cuda":
            return 2  # one runs while the next one's text becomes tokens
        return max(1, processors() // (self.workers * max(self.threads, 1)))


def processors(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: by its affinity and, in a container, by the quota of its cgroup (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # there is none, or it is `max`
        return cores
