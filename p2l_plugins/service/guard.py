"""What stands before the interface: who has no key, or sends too much, is turned away before anything reads it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Seconds in which a body must have come.
BODY_S = 30.0

#: Bytes of a body that is too large which are still read and dropped, so that its sender gets to read the answer.
DROPPED_BYTES = 64 * 2**20


class _TooLarge(Exception):
    """A body beyond the limit."""


class Guard:
    """ASGI middleware: a key where one is set, a bound on the body while it is read, and on the time it takes.

    Args:
        app: what the request goes on to.
        keys: any one of them opens; none: everything is open.
        open_paths: need no key.
        max_body_bytes: most bytes of a body.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: frozenset[str], max_body_bytes: int) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 408 or 413, or passes the request on with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and scope["path"] not in self._open_paths and not self._opens(headers):
            detail = "a valid key is needed, as the header api-key or as Authorization: Bearer"
            await _refuse(401, detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body(headers, receive)
        except _TooLarge:
            detail = f"the body is larger than {self._max_body_bytes} bytes"
            await _refuse(413, detail, {"Connection": "close"})(scope, receive, send)
            return
        except TimeoutError:
            detail = f"the body did not come within {BODY_S:g} seconds"
            await _refuse(408, detail, {"Connection": "close"})(scope, receive, send)
            return
        if body is not None:  # None: the client left meanwhile
            await self._app(scope, _replayed(body, receive), send)

    def _opens(self, headers: Headers) -> bool:
        digest = _digest(given_key(headers).encode("latin-1"))
        # all are compared, and digests are of one length: the time tells neither which key nor how much of it is right
        return bool(sum([hmac.compare_digest(digest, key) for key in self._keys]))

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        declared = headers.get("content-length", "")
        too_large = declared.isdecimal() and int(declared[:20]) > self._max_body_bytes
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            too_large = too_large or size > self._max_body_bytes
            if too_large:
                parts.clear()
            else:
                parts.append(part)
            if not message.get("more_body", False) or size > DROPPED_BYTES:
                if too_large:
                    raise _TooLarge
                return b"".join(parts)


def given_key(headers: Headers) -> str:
    """The key that a request brings; empty where it brings none."""
    given = headers.get("api-key", "")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if not given and scheme.lower() == "bearer" else given


def _digest(secret: bytes) -> bytes:
    return hashlib.blake2b(secret, digest_size=32).digest()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the server says, which is that the client left."""
    pending: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _refuse(status: int, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
