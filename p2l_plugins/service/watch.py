"""Counts, times and logs requests, adds the headers that every answer has, and turns what nobody caught into a 500."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2l_plugins.service import metrics

log = logging.getLogger(__name__)

#: The page and the interface load nothing from elsewhere, run nothing inline, and are framed by nobody.
STRICT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: The interactive documentation of FastAPI loads Swagger from a CDN, which the strict policy would refuse.
DOCS = ("/docs", "/redoc")


class Watch:
    """ASGI middleware around everything else.

    Args:
        app: what the request goes on to.
        paths: of the interface; others are counted as `other`.
        access_log: whether to log a line per request.
        ending: whether answers say that they are the last of their connections.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: frozenset[str],
        access_log: bool = False,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._ending = ending
        self._paths = paths
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(headers := MutableHeaders(raw=message["headers"]), path)
                if self._ending():
                    headers["Connection"] = "close"
            await send(message)

        started = time.perf_counter()
        metrics.IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            # its message may hold what the client sent: the type and the place have to do
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            log.error("%s %s failed with %s\n%s", scope["method"], path, type(error).__name__, where)
            if not status:
                await JSONResponse({"detail": "internal error"}, 500)(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            metrics.IN_FLIGHT.dec()
            metrics.REQUESTS.labels(path, str(status or 499)).inc()  # 499: the client left before an answer
            metrics.SECONDS.labels(path).observe(seconds)
            if self._access_log:
                log.info("%s %s %d %.1f ms", scope["method"], path, status or 499, 1e3 * seconds)


def _add_headers(headers: MutableHeaders, path: str) -> None:
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cache-Control", "no-cache" if path.startswith("/page/") else "no-store")
    if path not in DOCS:
        headers.setdefault("Content-Security-Policy", STRICT_POLICY)
