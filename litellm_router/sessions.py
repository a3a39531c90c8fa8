"""Which model has a conversation: the most recently used ones, in this process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class Sessions:
    """Model of each conversation. Safe to use from several threads.

    Args:
        ttl_s: seconds without a request until a conversation is forgotten.
        most: most conversations.
        clock: seconds, never going back.
    """

    def __init__(self, ttl_s: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._most, self._clock = ttl_s, most, clock
        self._models: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, group: str, session: str) -> str | None:
        """The model that has a conversation of a model group, or None."""
        with self._lock:
            expires, model = self._models.get((group, session), (0.0, None))
            if model is not None and expires <= self._clock():
                del self._models[group, session]
                return None
            return model

    def set(self, group: str, session: str, model: str) -> None:
        """Gives a conversation to a model."""
        with self._lock:
            self._models[group, session] = (self._clock() + self._ttl_s, model)
            self._models.move_to_end((group, session))
            while len(self._models) > self._most:
                self._models.popitem(last=False)
