"""The score cache: scores of prompts by a hash of their text, under the fingerprint of the bundle that gave them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from p2l_plugins.prompts import Turns, canonical_bytes
from p2l_plugins.scorer import Floats

SCHEMA = 1
NAMESPACE = "p2l"


class Entry(NamedTuple):
    """The scores of one prompt: coefs (M,) float32 and raw_eta, or None for families without it."""

    coefs: Floats
    raw_eta: float | None


def cache_key(fingerprint: str, turns: Turns, namespace: str = NAMESPACE, secret: bytes = b"") -> str:
    """`{namespace}:{schema}:{fingerprint}:{128-bit hash of the canonical turns}`; never the text itself.

    Args:
        secret: keys the hash (at most 64 bytes), so that equal prompts of different owners are unlinkable.
    """
    digest = hashlib.blake2b(canonical_bytes(turns), digest_size=16, key=secret).hexdigest()
    return f"{namespace}:{SCHEMA}:{fingerprint}:{digest}"
