"""What a cache keeps, under which key, and what every cache does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from p2l_plugins.outcomes import Floats
from p2l_plugins.prompts import Turns, canonical_bytes

SCHEMA = 1
NAMESPACE = "p2l"


class Entry(NamedTuple):
    """The scores of one prompt.

    Attributes:
        coefs: (M,) float32.
        raw_eta: None for families without it.
        truncated: whether the prompt was longer than the bundle's maximum; None where the scorer did not say.
        unknown: share, 0 to 1, of its tokens that stand for what the tokenizer does not know; None where the scorer did
            not say.
    """

    coefs: Floats
    raw_eta: float | None
    truncated: bool | None = None
    unknown: float | None = None


class Bounds(NamedTuple):
    """How far from 0 a scorer's numbers can be.

    Attributes:
        coefs: largest magnitude of a coefficient.
        raw_eta: largest magnitude of raw_eta.
    """

    coefs: float
    raw_eta: float

    def hold(self, entry: Entry) -> bool:
        """Whether a scorer can have given these scores."""
        eta = 0.0 if entry.raw_eta is None else abs(entry.raw_eta)
        return bool(np.abs(entry.coefs).max(initial=0.0) <= self.coefs) and eta <= self.raw_eta


#: Of a scorer that does not say: far beyond what separates certain from impossible (e¹⁰⁰⁰), for every outcome model.
WIDEST = Bounds(1000.0, 1000.0)


class ScoreCache(Protocol):
    """What every cache does. Errors of a store are misses and lost writes, never exceptions."""

    async def get_many(
        self, keys: Sequence[str], models: int | None = None, timeout_s: float | None = None
    ) -> list[Entry | None]:
        """The entry of each key, or None.

        Args:
            keys: made by `cache_key`.
            models: coefficients that an entry must have; one with another number is a miss.
            timeout_s: longest wait, where that is shorter than the cache's own deadline.
        """

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Keeps the entries; returns when they are kept or lost."""


def cache_key(fingerprint: str, turns: Turns, namespace: str = NAMESPACE, secret: bytes = b"") -> str:
    """`{namespace}:{schema}:{fingerprint}:{128-bit hash of the canonical turns}`; never the text itself.

    Args:
        secret: keys the hash (at most 64 bytes), so that equal prompts of different owners are unlinkable.
    """
    digest = hashlib.blake2b(canonical_bytes(turns), digest_size=16, key=secret).hexdigest()
    return f"{namespace}:{SCHEMA}:{fingerprint}:{digest}"
