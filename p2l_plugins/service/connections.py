"""Connections of one process: how many there may be, of whom, and how long each may wait for what.

A connection costs memory and a file, and whoever opens many and says nothing must not keep the others out. So a head
must come in time, an idle connection ends, and so does one whose client does not read. Where all places are taken, a
new connection takes that of the one that has waited longest without having asked anything, then of an idle one, then of
one whose body still comes. Only where every other one has asked something is it told 503, and the probes never are.

At the end a connection that is idle is kept for a moment: its client may have sent a request that is still on its way.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from p2l_plugins.service import metrics

#: What is answered whoever else asks, and all that the listener for probes answers.
PROBES = frozenset(["/healthz", "/readyz", "/metrics"])

#: In so many seconds a client must have read so many bytes of what it asked for; an ended connection may take as long.
UNREAD_S, UNREAD_BYTES = 30.0, 32 * 2**10

#: Seconds at the end in which an idle connection may bring one more request. Its answer says that it is the last.
LAST_S = 1.0

#: Connections of the listener for probes.
MOST_PROBES = 64


@dataclass
class Connections:
    """Those of a process, and their bounds.

    Attributes:
        most: at the same time.
        per_address: of one client's address; an IPv6 address counts by its first 64 bits.
        head_s: seconds in which the head of a request must have come.
        probe_port: of the listener for probes; None where there is none.
        inside: the connections, in the order in which each began to wait for what it waits for.
        ending: whether the process takes no new ones.
    """

    most: int
    per_address: int
    head_s: float
    probe_port: int | None = None
    inside: dict[Connection, None] = field(default_factory=dict)
    of_address: Counter[str] = field(default_factory=Counter)
    for_probes: int = 0
    ending: bool = False

    def protocol(self) -> Callable[..., Connection]:
        """What uvicorn makes a connection with."""
        return functools.partial(Connection, connections=self)

    def enter(self, new: Connection) -> str:
        """Takes a connection in; says why it is to be told that there is no place for it: `address` or `full`.

        Those that are told so are inside, too, and the first whose places others take.
        """
        for_probes = new.for_probes
        full = self.for_probes >= MOST_PROBES if for_probes else len(self.inside) - self.for_probes >= self.most
        crowded = not for_probes and self.of_address[new.address] >= self.per_address
        why = ""
        if full or crowded:
            victim = self._victim(for_probes, new.address if crowded else None)
            if victim is None:
                why = "address" if crowded else "full"
            else:
                victim.drop("displaced")
        self.inside[new] = None
        self.of_address[new.address] += 1
        self.for_probes += for_probes
        return why

    def moved(self, one: Connection) -> None:
        """It waits for something else from now on."""
        if one in self.inside:
            del self.inside[one]
            self.inside[one] = None

    def leave(self, one: Connection) -> None:
        """It is gone, or on its way."""
        if one in self.inside:
            del self.inside[one]
            self.for_probes -= one.for_probes
            self.of_address[one.address] -= 1
            if not self.of_address[one.address]:
                del self.of_address[one.address]

    def _victim(self, for_probes: bool, address: str | None) -> Connection | None:
        def candidates() -> Iterator[Connection]:
            return (
                one
                for one in self.inside
                if one.for_probes == for_probes and (address is None or one.address == address)
            )

        wanted = (Connection.has_asked_nothing, Connection.is_idle, Connection.is_sending)
        return next((one for wants in wanted for one in candidates() if wants(one)), None)


class Connection(H11Protocol):
    """uvicorn's, within the bounds of `Connections`."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address, self.for_probes = "", False
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._waits_for_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.address = _address(self.client)
        self.for_probes = self.server is not None and self.server[1] == self._connections.probe_port
        why = self._connections.enter(self)
        if why:
            metrics.REFUSED.labels(why).inc()
            self.app = _Refusing(self.app, why)
        elif self.for_probes:
            self.app = _ProbesOnly(self.app)
        self._wait(self._connections.head_s, "head")
        self._waits_for_head = True

    def data_received(self, data: bytes) -> None:
        """What the client sends."""
        was_asked = self._asked()
        super().data_received(data)
        if self._asked() and not was_asked:
            self._stop_waiting()
            self._connections.moved(self)
        elif not self._asked() and not self._waits_for_head:  # a head begins, or the rest of a body that nobody wants
            self._wait(self._connections.head_s, "head")
            self._waits_for_head = True

    def on_response_complete(self) -> None:
        """The answer is handed over, though perhaps not read."""
        super().on_response_complete()
        self._connections.moved(self)
        if self._asked():  # the next request was there already
            return
        if self._connections.ending:
            self._last_request()
        else:
            self._wait((0.0 if self.transport.is_closing() else self.timeout_keep_alive) + UNREAD_S, "idle")

    def shutdown(self) -> None:
        """The process ends: what was asked is answered, and so is what comes at once."""
        self._connections.ending = True
        if not self._asked():
            self._last_request()

    def _last_request(self) -> None:
        if not self.conn.trailing_data[0]:  # else a head has begun, and has its own time
            self._stop_waiting()
            self._timer = self.loop.call_later(LAST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._asked() and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._look_whether_read()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._stop_waiting()
        self._connections.leave(self)

    def _look_whether_read(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() > left - UNREAD_BYTES:
                self.drop("unread")
            else:
                self._look_whether_read()

        self._unread = self.loop.call_later(UNREAD_S, look)

    def drop(self, why: str) -> None:
        """Ends it at once; what was not written by now is lost."""
        if why == "idle" and self._unread is not None:
            return  # its answer is still being read
        metrics.REFUSED.labels(why).inc()
        self._stop_waiting()
        self._connections.leave(self)
        self.transport.abort()

    def has_asked_nothing(self) -> bool:
        """Whether no request ever came."""
        return self.cycle is None

    def is_idle(self) -> bool:
        """Whether its last request is answered."""
        return not self._asked()

    def is_sending(self) -> bool:
        """Whether the body of its request still comes."""
        return self.cycle is not None and self.cycle.more_body

    def _asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float, why: str) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self.drop, why)

    def _stop_waiting(self) -> None:
        self._waits_for_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Refusing:
    """The application for a connection that has no place: the probes, and 503."""

    def __init__(self, app: ASGIApp, why: str) -> None:
        self._app, self._why = app, why

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            whose = "this address" if self._why == "address" else "all clients"
            detail = f"there are too many connections of {whose}; try again later"
            refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "1", "Connection": "close"})
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _ProbesOnly:
    """The application behind the listener for probes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            await JSONResponse({"detail": "this listener has the probes and the metrics only"}, 404)(
                scope, receive, send
            )
        else:
            await self._app(scope, receive, send)


def _address(client: tuple[str, int] | None) -> str:
    """Whom a connection counts for: an IPv4 address, or a network of 64 bits, of which one host may have all."""
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
