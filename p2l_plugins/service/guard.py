"""What stands before the interface.

Who asks under a name that is not ours, sends from a page elsewhere, has no key, or sends too much or what is no JSON,
is turned away before anything reads it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2l_plugins.service.hosts import Hosts

#: Seconds in which a body must have come.
BODY_S = 30.0

#: Bytes of a body that is too large which are still read and dropped, so that its sender gets to read the answer.
DROPPED_BYTES = 64 * 2**20

#: Needs a key that may speak for users.
FEEDBACK = "/v1/feedback"

#: What only tells whether the process lives is told under any name: load balancers have names of their own for it.
NAMELESS = ("/healthz", "/readyz")

#: Methods that change nothing.
SAFE = ("GET", "HEAD", "OPTIONS")


class _TooLarge(Exception):
    """A body beyond the limit."""


class Guard:
    """ASGI middleware: names, sites, keys, kind of body, a bound on the body while it is read, and on its time.

    Args:
        app: what the request goes on to.
        keys: any one of them opens; none: everything is open but the feedback.
        open_paths: need no key.
        max_body_bytes: most bytes of a body.
        hosts: the service's names; None where something before this looks at Host and Origin.
        feedback_keys: any one of them opens the feedback; none: the interface says that there is none.
        posts: paths that take JSON; None: all but the open ones.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[str],
        open_paths: frozenset[str],
        max_body_bytes: int,
        hosts: Hosts | None = None,
        feedback_keys: Iterable[str] = (),
        posts: frozenset[str] | None = None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._posts = posts
        self._keys = [_digest(key.encode()) for key in keys]
        self._feedback_keys = [_digest(key.encode()) for key in feedback_keys]
        self._open_paths = open_paths
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 403, 408, 413, 415 or 421, or passes the request on with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            await refusal(scope, receive, send)
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

    def _refusal(self, method: str, path: str, headers: Headers) -> JSONResponse | None:
        """The answer to a request whose head says enough."""
        site = None if self._hosts is None else _site_refusal(self._hosts, method, path, headers)
        return site or self._key_refusal(path, headers) or self._kind_refusal(method, path, headers)

    def _key_refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        given = given_key(headers)
        right = self._feedback_keys if path == FEEDBACK and self._feedback_keys else self._keys
        if not right or path in self._open_paths or _is_one_of(given, right):
            return None
        if path == FEEDBACK and self._feedback_keys and _is_one_of(given, self._keys):
            return _refuse(403, "this key may not speak for users; take one of --feedback-key-env", {})
        detail = "a valid key is needed, as the header api-key or as Authorization: Bearer"
        return _refuse(401, detail, {"WWW-Authenticate": "Bearer"})

    def _kind_refusal(self, method: str, path: str, headers: Headers) -> JSONResponse | None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        takes_json = path not in self._open_paths if self._posts is None else path in self._posts
        if method != "POST" or not takes_json or kind == "application/json":
            return None
        return _refuse(415, "the body must be JSON, with Content-Type: application/json", {})

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


def _site_refusal(hosts: Hosts, method: str, path: str, headers: Headers) -> JSONResponse | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if path not in NAMELESS and not hosts.serve(host):
        detail = "the request's Host is none of the service's names; start it with --allowed-host NAME"
        return _refuse(421, detail, {"Connection": "close"})
    if method not in SAFE and origin is not None and not hosts.trust(origin, host):
        return _refuse(403, "pages of other sites may not send requests; --allowed-host NAME allows one", {})
    return None


def given_key(headers: Headers) -> str:
    """The key that a request brings; empty where it brings none."""
    given = headers.get("api-key", "")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if not given and scheme.lower() == "bearer" else given


def _is_one_of(given: str, keys: Iterable[bytes]) -> bool:
    digest = _digest(given.encode("latin-1"))
    # all are compared, and digests are of one length: the time tells neither which key nor how much of it is right
    return bool(sum([hmac.compare_digest(digest, key) for key in keys]))


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
