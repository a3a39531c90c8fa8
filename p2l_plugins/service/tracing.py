"""Spans of requests that bring a `traceparent`, where the process has an OpenTelemetry SDK.

Neither the package nor the SDK is needed: `opentelemetry-instrument p2l serve` brings both.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Header of the W3C's recommendation "Trace Context", and the one that goes with it.
PARENT, STATE = "traceparent", "tracestate"


def is_configured() -> bool:
    """Whether spans would go anywhere."""
    try:
        from opentelemetry import trace
    except ImportError:
        return False
    provider = trace.get_tracer_provider()
    return not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)


class Traced:
    """ASGI middleware: a span under the caller's, with method, path and status; nothing of the request's content.

    Args:
        app: what the request goes on to.
        paths: of the interface; others are `other`.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        from opentelemetry import trace

        self._app, self._paths = app, paths
        self._tracer = trace.get_tracer("p2l_plugins.service")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http" or PARENT not in (headers := Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        with self._span(scope["method"], path, headers) as span:

            async def traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, traced)

    def _span(self, method: str, path: str, headers: Headers) -> Any:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: headers[name] for name in (PARENT, STATE) if name in headers}
        return self._tracer.start_as_current_span(
            f"{method} {path}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": path},
            record_exception=False,  # its message may hold what the client sent
        )
