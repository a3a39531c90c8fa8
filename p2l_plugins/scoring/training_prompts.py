"""Which prompts a bundle was trained on, as salted hashes in a file of it: no text, four bytes per prompt.

So `p2l evaluate` and the lm-eval tasks can say how many of the prompts that they judge were seen in training. The salt
is random, so that hashes of two bundles can't be compared; the fingerprint does not depend on this file, because it
changes no score. A prompt that was not seen is taken for a seen one with a probability of prompts / 2³².
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Mask
from p2l_plugins.prompts import Turns, canonical_bytes

#: Its name in checkpoints and bundles.
TRAINING_PROMPTS = "training_prompts.u32"
_MAGIC = b"P2Lseen1"
_SALT = 16


class TrainingPrompts:
    """A set of prompts by their hashes; case and white space do not count.

    Args:
        salt: 16 bytes.
        hashes: (N,) sorted.
    """

    def __init__(self, salt: bytes, hashes: NDArray[np.uint32]) -> None:
        self._salt, self._hashes = salt, hashes

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def of(cls, prompts: Iterable[Turns], salt: bytes | None = None) -> TrainingPrompts:
        """The set of these prompts, with a new salt where none is given."""
        salt = secrets.token_bytes(_SALT) if salt is None else salt
        return cls(salt, np.unique(_hashes(salt, list(prompts))))

    def with_prompts(self, prompts: Iterable[Turns]) -> TrainingPrompts:
        """The set with more prompts."""
        return TrainingPrompts(self._salt, np.union1d(self._hashes, _hashes(self._salt, list(prompts))))

    def seen(self, prompts: Sequence[Turns]) -> Mask:
        """(P,) which prompts are in the set."""
        return np.asarray(np.isin(_hashes(self._salt, prompts), self._hashes))

    def write(self, path: Path) -> None:
        """Writes the file."""
        path.write_bytes(_MAGIC + self._salt + self._hashes.astype("<u4").tobytes())

    @classmethod
    def read(cls, path: Path) -> TrainingPrompts:
        """Reads the file.

        Raises:
            BundleError: it is no such file.
        """
        data = path.read_bytes()
        start = len(_MAGIC) + _SALT
        if not data.startswith(_MAGIC) or len(data) < start or (len(data) - start) % 4:
            raise BundleError(f"{path}: is not a file of training prompts; write it again with p2l mark-training")
        return cls(data[len(_MAGIC) : start], np.frombuffer(data[start:], "<u4").astype(np.uint32))


def read_training_prompts(folder: Path) -> TrainingPrompts | None:
    """The set of a bundle or checkpoint; None where it has none.

    Raises:
        BundleError: the file is none of ours.
    """
    path = folder / TRAINING_PROMPTS
    return TrainingPrompts.read(path) if path.is_file() else None


def _hashes(salt: bytes, prompts: Sequence[Turns]) -> NDArray[np.uint32]:
    plain = (tuple(" ".join(turn.casefold().split()) for turn in turns) for turns in prompts)
    digests = b"".join(hashlib.blake2b(canonical_bytes(turns), digest_size=4, key=salt).digest() for turns in plain)
    return np.frombuffer(digests, "<u4").astype(np.uint32)
