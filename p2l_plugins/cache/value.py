"""The bytes of a value in a shared store: small, versioned, little-endian, with a checksum.

    magic "P2" | version u8 | flags u8 | M u16 | raw_eta f32 | M × f32 | [unknown f32] | crc32 u32

Flags: 1, raw_eta holds a number; 2, the prompt was truncated; 4, it was not; neither of both, the scorer did not say;
8, the share of unknown tokens follows the coefficients. A flag that a reader does not know makes the value unreadable
to it, so a miss. The checksum covers the key as well, so a value is valid under its own key only. 130 models take 538
bytes, and 534 without the share.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

from p2l_plugins.cache.entry import Entry

MAGIC = b"P2"
VERSION = 1
HAS_ETA, TRUNCATED, WHOLE, UNKNOWN = 1, 2, 4, 8

#: Most coefficients that the field M can say.
MAX_MODELS = 0xFFFF

_HEAD = struct.Struct("<2sBBHf")
_SHARE = struct.Struct("<f")
_CRC = struct.Struct("<I")


class Unreadable(Exception):
    """A value that is not a valid entry. The message is one word, for counters."""


def encode(key: str, entry: Entry) -> bytes:
    """The value of an entry under its key.

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
    return sealed(key, _HEAD.pack(MAGIC, VERSION, flags, len(coefs), eta or 0.0) + coefs.tobytes() + share)


def decode(key: str, value: object, models: int | None = None) -> Entry:
    """The entry that `encode` wrote under this key.

    Args:
        key: of the value.
        value: what a store gave.
        models: coefficients that the entry must have.

    Raises:
        Unreadable: `type`, `format`, `version`, `length`, `checksum`, `models` or `numbers`.
    """
    body = framed(value, _HEAD, MAGIC)
    _, version, flags, count, eta = _HEAD.unpack_from(body)
    if version != VERSION or flags & ~(HAS_ETA | TRUNCATED | WHOLE | UNKNOWN):
        raise Unreadable("version")
    end = _HEAD.size + 4 * count
    check_sealed(key, body, end + (_SHARE.size if flags & UNKNOWN else 0))
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


def sealed(key: str, body: bytes) -> bytes:
    """A body with the checksum of key and body behind it."""
    return body + _CRC.pack(zlib.crc32(body, zlib.crc32(key.encode())))


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


def check_sealed(key: str, value: bytes, length: int) -> None:
    """Checks what `sealed` wrote: its body has so many bytes, and its checksum is that of key and body.

    Raises:
        Unreadable: `length` or `checksum`.
    """
    if len(value) != length + _CRC.size:
        raise Unreadable("length")
    (crc,) = _CRC.unpack_from(value, length)
    if crc != zlib.crc32(memoryview(value)[:length], zlib.crc32(key.encode())):
        raise Unreadable("checksum")
