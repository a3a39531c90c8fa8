"""Leaves a store alone while it fails: after some failures in a row it is asked by one probe at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from p2l_plugins.errors import without_credentials

log = logging.getLogger("p2l_plugins.cache")

State = Literal["closed", "open", "half-open"]

#: Seconds in which a change of state is logged once, so that a store that flips stays quiet.
QUIET_S = 60.0

#: What an operator can do, by the kind of failure.
REMEDIES = {
    "auth": "check the user name and password",
    "permission": "the ACL user lacks a right, see docs/cache.md",
    "moved": "the server is part of a cluster: write the address as redis+cluster://",
    "readonly": "the server is a replica: name the primary, or Sentinel",
    "memory": "the server is full: set maxmemory-policy allkeys-lru",
}


class Breaker:
    """Closed: all may ask. Open, after failures in a row: nobody. Half-open, after a pause: one, whose answer decides.

    Safe to use from several threads.

    Args:
        what: it guards, for the log.
        failures: in a row that open it.
        first_s: pause before the first probe; each failed probe doubles it.
        longest_s: longest pause.
        clock: seconds, never going back.
        topic: first words of a line in the log.
    """

    def __init__(
        self,
        what: str,
        failures: int = 3,
        first_s: float = 0.5,
        longest_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        topic: str = "p2l cache",
    ) -> None:
        self.state: State = "closed"
        self._what, self._topic = without_credentials(what), topic
        self._limit = failures
        self._first_s, self._longest_s = first_s, longest_s
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._pause_s = first_s
        self._probe_at = 0.0
        self._logged_at = -QUIET_S
        self._said = False
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Whether the store may be asked now; who is let through reports what came of it."""
        if self.state == "closed":
            return True
        with self._lock:
            now = self._clock()
            if now < self._probe_at:
                return False
            self.state = "half-open"
            self._probe_at = now + self._pause_s  # the next one, should this one never report
            return True

    def succeeded(self) -> None:
        """The store answered."""
        if self.state == "closed":
            self._failures = 0
            return
        with self._lock:
            if self.state != "half-open":
                return  # a late answer from before it opened: the probe decides
            self.state, self._failures, self._pause_s = "closed", 0, self._first_s
            said, self._said = self._said, False
        if said:
            log.info("%s: %s works again", self._topic, self._what)

    def failed(self, kind: str, seconds: float = 0.0) -> None:
        """The store did not answer, or refused.

        Args:
            kind: of the error.
            seconds: that it took. What began before the last failure failed with it: one stall counts once, however
                many callers it struck.
        """
        with self._lock:
            now = self._clock()
            if self.state == "open" or (self.state == "closed" and self._failures and now - seconds < self._failed_at):
                return
            self._failures += 1
            self._failed_at = now
            if self.state == "closed" and self._failures < self._limit:
                return
            probed = self.state == "half-open"
            self._pause_s = min(2 * self._pause_s, self._longest_s) if probed else self._first_s
            self.state, self._probe_at = "open", now + self._pause_s
            say = not probed and now - self._logged_at >= QUIET_S
            if say:
                self._said, self._logged_at = True, now
        if say:
            remedy = REMEDIES.get(kind)
            log.warning(
                "%s: %s is paused after %d failures in a row (%s)%s; requests go on without it",
                self._topic,
                self._what,
                self._limit,
                kind,
                f"; {remedy}" if remedy else "",
            )
