"""The gate of an export: what the bundle computes against torch in float64, on ragged real text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnx_export.config import P2LExporterConfig
from onnx_export.sample import ragged_ids
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Array, Family, has_eta, win_matrix
from p2l_plugins.prompts import pad
from p2l_plugins.scoring.bundle import reach
from p2l_plugins.scoring.scorer import batch_tokens, batches
from p2l_plugins.scoring.session import check_padding
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import Head, P2LNetwork

BATCH_TOKENS = 2048
REDUCED_LIMITS = {"fp16": 0.05, "bf16": 0.05}  # largest error, in standard deviations of the coefficients
WIN_LIMIT = 0.01  # mean error of a win probability
SPEARMAN_LIMIT = 0.99  # of the prompt-specific part


class References:
    """Torch's results on the gate's prompts: float64, and float32 for its own rounding error.

    The model is never held in float64 as a whole: each layer's weights are turned into it for the time of their use.

    Attributes:
        ids: token ids of the prompts, up to the maximum length.
        exact, single: (N, M) and, with eta, (N, M + 1) results in float64 and float32.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.pad_id = checkpoint.form.pad_id
        self.family = checkpoint.model.family
        self.n_models = len(checkpoint.models)
        self.ids = ragged_ids(checkpoint.encoder, checkpoint.form.max_length)
        self.single = _run_torch(checkpoint.model, self.ids, self.pad_id)
        with _in_float64(checkpoint.model):
            self.exact = _run_torch(checkpoint.model, self.ids, self.pad_id)


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """Modules that own weights compute in float64; float32 → float64 → float32 gives back the same weights."""
    owners = [
        module
        for module in model.modules()
        if isinstance(module, Head) or next(module.parameters(recurse=False), None) is not None
    ]
    handles = [owner.register_forward_pre_hook(lambda module, _: module.double() and None) for owner in owners]
    handles += [owner.register_forward_hook(lambda module, *_: module.float() and None) for owner in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_batches(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    tokens: int,
    run: Callable[[NDArray[np.int64], NDArray[np.int64]], Array],
) -> Array:
    out: list[Array] = [np.empty(0)] * len(rows)
    for batch in batches([len(row) for row in rows], tokens):
        for i, row in zip(batch, run(*pad([rows[i] for i in batch], pad_id)), strict=True):
            out[i] = row
    return np.stack(out)


def _run_torch(model: P2LNetwork, rows: Sequence[Sequence[int]], pad_id: int) -> Array:
    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        coefs, raw_eta = model.scores(torch.from_numpy(ids), torch.from_numpy(mask))
        joined = coefs if raw_eta is None else torch.cat([coefs, raw_eta[:, None]], dim=1)
        return np.asarray(joined.double().numpy())

    with torch.inference_mode():
        return _in_batches(rows, pad_id, BATCH_TOKENS, run)


def run_onnx(session: Any, rows: Sequence[Sequence[int]], pad_id: int, tokens: int) -> Array:
    """The graph's results for token ids, (N, M) or with eta (N, M + 1), in batches of `tokens`."""

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        check_padding(ids, mask, ids.shape[1])
        parts = session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.concatenate([parts[0], *(p[:, None] for p in parts[1:])], axis=1).astype(np.float64)

    return _in_batches(rows, pad_id, tokens, run)


def check(session: Any, references: References, precision: str) -> dict[str, Any]:
    """The figures of a graph that passes the gate; see `measure` and `failure`.

    Raises:
        BundleError: the figure that fails and its limit.
    """
    figures = measure(session, references, precision)
    problem = failure(figures, precision)
    if problem is not None:
        raise BundleError(f"the export does not pass the gate: {problem}")
    return figures


def measure(session: Any, references: References, precision: str) -> dict[str, Any]:
    """Compares a graph with the references, in batches and one prompt at a time.

    Raises:
        BundleError: values that are not numbers.
    """
    tokens = batch_tokens(precision, BATCH_TOKENS)
    batched = run_onnx(session, references.ids, references.pad_id, tokens)
    single = batched.copy()
    shared = [i for i, row in enumerate(references.ids) if 2 * len(row) <= tokens]  # the others ran alone already
    if shared:
        single[shared] = run_onnx(session, [references.ids[i] for i in shared], references.pad_id, 1)
    exact = references.exact
    error = max(float(np.abs(result - exact).max()) for result in (batched, single))
    own = float(np.abs(references.single - exact).max())
    figures: dict[str, Any] = {
        "prompts": len(references.ids),
        "longest_tokens": max(len(row) for row in references.ids),
        "max_error": error,
        "torch_fp32_max_error": own,
        "batch_effect": float(np.abs(batched - single).max()),
    }
    if not np.isfinite(error):
        raise BundleError("the exported graph gives values that are not numbers")
    m = references.n_models
    figures |= reach(batched[:, :m], batched[:, m:] if has_eta(references.family) else None)
    if precision == "fp32":
        return figures
    figures["max_error_in_std"] = error / float(exact[:, :m].std())
    figures["mean_win_probability_error"] = _win_error(references.family, batched, exact, m)
    figures["prompt_specific_spearman"] = _prompt_specific_spearman(batched[:, :m], exact[:, :m])
    return figures


def failure(figures: dict[str, Any], precision: str) -> str | None:
    """The first figure beyond its limit, in a clause, or None.

    fp32 must be within `3 |torch_fp32 − fp64| + 1e-6` of float64. Reduced precision must keep win probabilities within
    0.01 on average and the prompt-specific part of the coefficients (what is left without the mean leaderboard) in the
    same order; a global rank correlation would hide its loss.
    """
    if precision == "fp32":
        declared = P2LExporterConfig
        limit = declared.FACTOR_FOR_VALIDATION * figures["torch_fp32_max_error"] + declared.ATOL_FOR_VALIDATION
        return _above(figures["max_error"], limit, "largest error against float64")
    rank = figures["prompt_specific_spearman"]
    order = f"the prompt-specific part keeps a rank correlation of {rank:.4f}, below {SPEARMAN_LIMIT}"
    largest = REDUCED_LIMITS.get(precision)
    return (
        (largest and _above(figures["max_error_in_std"], largest, "largest error in standard deviations"))
        or _above(figures["mean_win_probability_error"], WIN_LIMIT, "mean error of a win probability")
        or (None if rank >= SPEARMAN_LIMIT else order)
    )


def _above(value: float, limit: float, what: str) -> str | None:
    return None if value <= limit else f"{what} is {value:.3g}, above {limit:.3g}"


def _win_error(family: Family, got: Array, exact: Array, m: int) -> float:
    def win(rows: Array) -> Array:
        return win_matrix(family, rows[:, :m], rows[:, m] if rows.shape[1] > m else None)

    return float(np.abs(win(got) - win(exact)).mean())


def _prompt_specific_spearman(got: Array, exact: Array) -> float:
    def ranks(values: Array) -> Array:
        return np.argsort(np.argsort((values - values.mean(axis=0)).ravel(), kind="stable"), kind="stable").astype(
            float
        )

    return float(np.corrcoef(ranks(got), ranks(exact))[0, 1])
