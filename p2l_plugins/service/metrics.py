"""Prometheus metrics of the service, also over several processes (`PROMETHEUS_MULTIPROC_DIR`, set before this import).

No label holds anything that a client sent: paths are the interface's own, everything else is `other`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PROMPTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REQUESTS = Counter("p2l_service_requests", "Requests, by path and status", ["path", "status"])
SECONDS = Histogram("p2l_service_request_seconds", "Time of a request", ["path"], buckets=_SECONDS)
PROMPTS = Counter(
    "p2l_service_prompts",
    "Prompts, by where their scores came from: cached, joined (asked already), scored",
    ["source"],
)
REQUEST_PROMPTS = Histogram("p2l_service_request_prompts", "Prompts of a request", buckets=_PROMPTS)
RUN_PROMPTS = Histogram("p2l_service_run_prompts", "Prompts that the model scored at once", buckets=_PROMPTS)
RUN_SECONDS = Histogram("p2l_service_run_seconds", "Time that the model took for them", buckets=_SECONDS)
WAITING = Gauge(
    "p2l_service_waiting_prompts", "Different prompts that wait or are being scored", multiprocess_mode="livesum"
)
IN_FLIGHT = Gauge("p2l_service_requests_in_flight", "Requests under way", multiprocess_mode="livesum")
REFUSED = Counter(
    "p2l_service_refused_connections",
    "Connections that were ended or told 503, by why: head, idle, unread, displaced, address, full",
    ["why"],
)
SWAPS = Counter("p2l_service_bundle_swaps", "Bundles found in place of the one in use: taken, refused", ["result"])
READY = Gauge("p2l_service_ready_processes", "Processes that take requests", multiprocess_mode="livesum")


def count_prompts(what: str, n: int) -> None:
    """As `count` of `Flights`."""
    if what == "waiting":
        WAITING.set(n)
    else:
        PROMPTS.labels(what).inc(n)


def ran(prompts: int, seconds: float) -> None:
    """As `ran` of `Engine`."""
    RUN_SECONDS.observe(seconds)
    RUN_PROMPTS.observe(prompts)


def exposition() -> tuple[bytes, str]:
    """The metrics in Prometheus' text form, and its content type."""
    if FOLDER not in os.environ:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_dead_processes() -> None:
    """Drops the gauges of processes that were killed: what waited there waits no more."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    for path in Path(folder).glob("gauge_live*.db"):
        found = re.search(r"_(\d+)\.db$", path.name)
        if found is None:
            continue
        try:
            os.kill(int(found[1]), 0)  # signal 0 only asks whether the process is there
        except ProcessLookupError:
            mark_process_dead(int(found[1]))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
