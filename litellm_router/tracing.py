"""The decision as a span under that of its request, where LiteLLM traces with OpenTelemetry.

Nothing in it comes from the prompt's text: the attributes are taken from the record.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from litellm_router.record import Record

log = logging.getLogger("litellm_router")

SPAN = "p2l.decision"

#: Keys of the record that are attributes, as `p2l.model`.
ATTRIBUTES = (
    "model",
    "rule",
    "objective",
    "mode",
    "cache",
    "ms",
    "reason",
    "error",
    "fingerprint",
    "prompt_tokens",
    "client",
    "truncated",
    "unknown",
)


def trace_decision(parent: Any, group: str, record: Record, seconds: float) -> None:
    """Adds a span that ends now. Never raises.

    Args:
        parent: the request's span, or None where LiteLLM does not trace.
        group: that was asked for.
        record: of the decision, or of why there was none.
        seconds: that it took.
    """
    if parent is None:
        return
    try:
        from opentelemetry import trace

        if not parent.is_recording():
            return
        end = time.time_ns()
        span = _tracer().start_span(
            SPAN,
            context=trace.set_span_in_context(parent),
            start_time=end - round(1e9 * seconds),
            attributes={"p2l.group": group} | {f"p2l.{key}": record[key] for key in ATTRIBUTES if key in record},  # type: ignore[literal-required]
        )
        if "ranking" in record:
            span.set_attribute("p2l.ranking", record["ranking"])
        span.end(end)
    except Exception as error:  # a tracer of another kind costs the span, not the request
        log.debug("p2l: no span of the decision (%s)", type(error).__name__)


def _tracer() -> Any:
    """LiteLLM's own, whose exporter the operator chose, or that of the process."""
    from opentelemetry import trace

    proxy = sys.modules.get("litellm.proxy.proxy_server")
    tracer = getattr(getattr(proxy, "open_telemetry_logger", None), "tracer", None)
    return trace.get_tracer("litellm_router") if tracer is None else tracer
