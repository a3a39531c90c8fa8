"""The pair probabilities of a leaderboard as text for results.json, so that leaderboards can be fitted together later.

The aggregate leaderboard of several sets of prompts is not a mean of theirs: it is fitted to the mean outcome
probabilities of every pair over all prompts. These are M² numbers, far fewer than the prompts' coefficients.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.leaderboards.pair_means import PairMeans
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.scoring.scorer import Scores


def pack(scores: Scores) -> str:
    """Mean P(a beats b) and P(both bad) of every pair over the prompts, float32, compressed, base64.

    The models are in the order of their names. 106 models take about 80 KB.
    """
    by_name = np.argsort(np.array(scores.models))
    means = PairMeans(scores.family, len(scores.models))
    means.add(scores.coefs[:, by_name], scores.raw_eta)
    off = ~np.eye(len(scores.models), dtype=bool)
    upper = np.triu(off)
    data = np.concatenate([means.win[off], means.bad[upper]]).astype("<f4").tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: str, n_models: int) -> tuple[Array, Array]:
    """(M, M) mean P(a beats b) and (M, M) mean P(both bad), models in the order of their names, diagonals 0.

    Raises:
        DataError: not what `pack` writes for so many models.
    """
    off = ~np.eye(n_models, dtype=bool)
    upper = np.triu(off)
    n_win, n_bad = int(off.sum()), int(upper.sum())
    try:
        # bounded: a text that unpacks to more than it should is refused
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 4 * (n_win + n_bad) + 1)
    except (binascii.Error, zlib.error) as error:
        raise DataError(f"the pair probabilities can't be read ({error})") from None
    known = len(data) == 4 * (n_win + n_bad)
    values = np.frombuffer(data, "<f4").astype(np.float64) if known else np.zeros(0)
    if not known or not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"the pair probabilities are not those of {n_models} models")
    win, bad = np.zeros((n_models, n_models)), np.zeros((n_models, n_models))
    win[off] = values[:n_win]
    bad[upper] = values[n_win:]
    return win, bad + bad.T


def combined(
    models: tuple[str, ...],
    family: Family,
    parts: Sequence[tuple[int, str]],
    ungrounded: frozenset[str] = frozenset(),
) -> Leaderboard:
    """The leaderboard of all prompts of several sets.

    Args:
        models: in the order of their names.
        family: outcome model.
        parts: number of prompts and packed pairs of each set.
        ungrounded: models that compare among themselves only.

    Raises:
        DataError: as `unpack`.
    """
    means = (PairMeans.of(family, n, *unpack(text, len(models))) for n, text in parts)
    return Leaderboard.from_means(models, PairMeans.merged(means), ungrounded)
