"""What stands before the arena: whose requests it takes, how many of them, and the headers of what goes out."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2l_plugins.service.guard import given_key
from p2l_plugins.service.hosts import name_and_port
from p2l_plugins.service.watch import STRICT_POLICY

_CLIENTS = 10_000  # that are remembered; who comes back later begins anew


class Door:
    """ASGI middleware: refuses other sites, and adds the headers that every answer has.

    A page of another site can send requests from a visitor's browser, and by a name of its own that leads here it could
    read the answers (DNS rebinding): so the names in `Host` and `Origin` must be the arena's own.

    Args:
        app: what the request goes on to.
        hosts: names and addresses by which browsers may call the arena, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 or 421, or passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.setdefault("Content-Security-Policy", STRICT_POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/page/") else "no-store")
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        called = name_and_port(f"//{host}")
        if called is None or called[0] not in self._hosts:
            refusal = JSONResponse({"detail": "this is not a name of the arena: --name adds one"}, 421)
            await refusal(scope, receive, with_headers)
        elif origin is not None and origin.lower().partition("//")[2] != host:
            await JSONResponse({"detail": "requests of other sites are refused"}, 403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


class Rate:
    """How often each client may do something: `burst` times at once, and `per_minute` from then on.

    Args:
        clock: seconds.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_minute / 60, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds until the client may; 0 counts it as done."""
        now = self._clock()
        left, seen = self._left.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - seen) * self._per_s)
        allowed = left >= 1
        self._left[client] = (left - allowed, now)
        while len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_s


def client_of(scope: Scope, keyed: bool) -> str:
    """Who sends a request, as a hash: the address, and the key where there are keys.

    Args:
        keyed: whether the key was checked; one that nobody checks would make as many clients as one likes.
    """
    address = (scope.get("client") or ("",))[0]
    key = given_key(Headers(scope=scope)) if keyed else ""
    return hashlib.blake2b(f"{key}\0{address}".encode(), digest_size=16).hexdigest()
