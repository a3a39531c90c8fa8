"""A look at a changed bundle before it is kept: what it computes must be its formula, and all else as before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_export.head import Head, read_states
from onnx_export.joint import JointRows
from onnx_export.new_model import Row
from onnx_export.sample import SAMPLE
from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L

#: Largest error of the new column against its own formula, relative to the largest coefficient (1 at least).
COLUMN_LIMIT, REDUCED_COLUMN_LIMIT = 1e-5, 1e-2
#: Largest change of the other columns; ONNX Runtime gives 0 on every machine tried, but does not promise it.
UNCHANGED_LIMIT = 1e-6
PROMPTS = [turns for turns in SAMPLE if len(turns) == 1][:24]


def verify(
    old: Bundle,
    new: Bundle,
    kept: NDArray[np.int64],
    added: Row | None = None,
    line: tuple[float, float] = (1.0, 0.0),
) -> None:
    """Scores some prompts with both bundles: kept columns must not change, and the last one must be its formula.

    Args:
        line: slope and shift by which raw_eta was changed.

    Raises:
        BundleError: something else changed.
    """
    before, after = P2L(old).score_turns(PROMPTS), P2L(new).score_turns(PROMPTS)
    scale = max(1.0, float(np.abs(before.coefs).max()))
    change = float(np.abs(after.coefs[:, : len(kept)] - before.coefs[:, kept]).max())
    if before.raw_eta is not None and after.raw_eta is not None:
        change = max(change, float(np.abs(after.raw_eta - (line[0] * before.raw_eta + line[1])).max()))
    if not change <= UNCHANGED_LIMIT * scale:
        raise BundleError(f"the new graph changes coefficients of other models by {change:.3g}, so it was not written")
    if added is not None:
        expected = added.coefs(read_states(new, PROMPTS)[0])
        error = float(np.abs(after.coefs[:, -1] - expected).max())
        if not error <= _limit(new) * max(scale, float(np.abs(expected).max())):
            raise BundleError(f"the new graph computes the new model's coefficient with an error of {error:.3g}")


def verify_rows(old: Bundle, new: Bundle, head: Head, rows: JointRows, n: int) -> None:
    """Scores some prompts with the new bundle: each of its n coefficients and raw_eta must be its formula.

    Args:
        rows: on the states and raw_eta of the old bundle; `head` is that of the old one, for the precision.

    Raises:
        BundleError: one is not.
    """
    states, _, raw_eta = read_states(old, PROMPTS)
    stored = JointRows(
        np.asarray(rows.weight[:n], head.weight.dtype).astype(np.float64),
        np.asarray(rows.bias[:n], head.bias.dtype).astype(np.float64),
        rows.slope,
        rows.shift,
    )
    expected, after = stored.coefs(states), P2L(new).score_turns(PROMPTS)
    error = float(np.abs(after.coefs - expected).max())
    wanted = stored.raw_eta(raw_eta)
    if wanted is not None and after.raw_eta is not None:
        error = max(error, float(np.abs(after.raw_eta - wanted).max()))
    if not error <= _limit(new) * max(1.0, float(np.abs(expected).max())):
        raise BundleError(f"the new graph computes coefficients with an error of {error:.3g}, so it was not written")


def _limit(bundle: Bundle) -> float:
    return COLUMN_LIMIT if bundle.manifest.precision in ("fp32", "int8") else REDUCED_COLUMN_LIMIT
