"""The bytes of a value in a shared store: small, versioned, little-endian, sealed.

    magic "P2" | version u8 | flags u8 | M u16 | raw_eta f32 | M × f32 | [unknown f32] | seal

The seal covers the key as well, so a value is valid under its own key only. Under a secret (version 2) it is a MAC of
16 bytes, keyed BLAKE2b, that nobody without the secret can make. Without one (version 1) it is a crc32, against faults
and not against people: whoever may write to the store can make it. A reader takes the version of its own secret only.

Flags: 1, raw_eta holds a number; 2, the prompt was truncated; 4, it was not; neither of both, the scorer did not say;
8, the share of unknown tokens follows the coefficients. A flag that a reader does not know makes the value unreadable
to it, so a miss. 130 models take 538 bytes, 534 without the share, and 12 more under a secret.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
import zlib

import numpy as np

from p2l_plugins.cache.entry import Entry

MAGIC = b"P2"
VERSION, KEYED_VERSION = 1, 2
HAS_ETA, TRUNCATED, WHOLE, UNKNOWN = 1, 2, 4, 8

#: Most coefficients that the field M can say.
MAX_MODELS = 0xFFFF

_HEAD = struct.Struct("<2sBBHf")
_SHARE = struct.Struct("<f")
_CRC = struct.Struct("<I")

#: Bytes of a MAC, and what sets it apart from other hashes under the same secret.
MAC_BYTES, _PERSON = 16, b"p2l cache values"


class Unreadable(Exception):
    """A value that is not a valid entry. The message is one word, for counters."""


def version_of(secret: bytes) -> int:
    """The version of values that are sealed with this secret; empty: with none."""
    return KEYED_VERSION if secret else VERSION


def encode(key: str, entry: Entry, secret: bytes = b"") -> bytes:
    """The value of an entry under its key.

    Args:
        secret: of the seal.

    Raises:
        ValueError: scores that are not finite, a share that is none, or too many models.
    """
    coefs = np.asarray(entry.coefs, "<f4")
    eta = entry.raw_eta
    if coefs.ndim != 1 or not 0 < len(coefs) <= MAX_MODELS:
        raise ValueError(f"coefs have the shape {coefs.shape}, but must be one row of 1 to {MAX_MODELS}")
    if not np.isfinite(coefs).all() or (eta is not None and not math.isfinite(eta)):
        raise ValueError("scores that are not finite numbers are not kept")
    flags = 0 if eta is None else HAS_ETA
    if entry.truncated is not None:
        flags |= TRUNCATED if entry.truncated else WHOLE
    share = b""
    if entry.unknown is not None:
        if not 0.0 <= entry.unknown <= 1.0:
            raise ValueError(f"the share of unknown tokens is {entry.unknown}, but must be between 0 and 1")
        flags |= UNKNOWN
        share = _SHARE.pack(entry.unknown)
    head = _HEAD.pack(MAGIC, version_of(secret), flags, len(coefs), eta or 0.0)
    return sealed(key, head + coefs.tobytes() + share, secret)


def decode(key: str, value: object, models: int | None = None, secret: bytes = b"") -> Entry:
    """The entry that `encode` wrote under this key and secret.

    Args:
        key: of the value.
        value: what a store gave.
        models: coefficients that the entry must have.
        secret: of the seal.

    Raises:
        Unreadable: `type`, `format`, `version`, `length`, `checksum`, `forged`, `models` or `numbers`.
    """
    body = framed(value, _HEAD, MAGIC)
    _, version, flags, count, eta = _HEAD.unpack_from(body)
    if version != version_of(secret) or flags & ~(HAS_ETA | TRUNCATED | WHOLE | UNKNOWN):
        raise Unreadable("version")
    end = _HEAD.size + 4 * count
    check_sealed(key, body, end + (_SHARE.size if flags & UNKNOWN else 0), secret)
    if models is not None and count != models:
        raise Unreadable("models")
    coefs = np.frombuffer(body, "<f4", count, _HEAD.size).astype(np.float32)
    if not np.isfinite(coefs).all() or not math.isfinite(eta):
        raise Unreadable("numbers")
    truncated = bool(flags & TRUNCATED) if flags & (TRUNCATED | WHOLE) else None
    unknown: float | None = _SHARE.unpack_from(body, end)[0] if flags & UNKNOWN else None
    if unknown is not None and not 0.0 <= unknown <= 1.0:
        raise Unreadable("numbers")
    return Entry(coefs, eta if flags & HAS_ETA else None, truncated, unknown)


def sealed(key: str, body: bytes, secret: bytes = b"") -> bytes:
    """A body with the seal of key and body behind it."""
    return body + _seal(key, body, secret)


def _seal(key: str, body: bytes | memoryview, secret: bytes) -> bytes:
    if not secret:
        return _CRC.pack(zlib.crc32(body, zlib.crc32(key.encode())))
    mac = hashlib.blake2b(key.encode() + b"\0", digest_size=MAC_BYTES, key=secret, person=_PERSON)
    mac.update(body)
    return mac.digest()


def framed(value: object, head: struct.Struct, magic: bytes) -> bytes:
    """What a store gave, where it may be of a kind: bytes, long enough for its head, that begin with its magic.

    Raises:
        Unreadable: `type` or `format`.
    """
    if not isinstance(value, bytes):
        raise Unreadable("type")
    if len(value) < head.size + _CRC.size or not value.startswith(magic):
        raise Unreadable("format")
    return value


def check_sealed(key: str, value: bytes, length: int, secret: bytes = b"") -> None:
    """Checks what `sealed` wrote: its body has so many bytes, and its seal is that of key and body.

    Raises:
        Unreadable: `length`; `checksum`, or `forged` where there is a secret.
    """
    if len(value) != length + (MAC_BYTES if secret else _CRC.size):
        raise Unreadable("length")
    if not hmac.compare_digest(value[length:], _seal(key, memoryview(value)[:length], secret)):
        raise Unreadable("forged" if secret else "checksum")
