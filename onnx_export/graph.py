"""The plain route: torch.export of the model as it is, any architecture that transformers can export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from p2l_plugins.outcomes import has_eta
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import P2LModel

PLAIN_OPSET = 20  # opset 23 breaks llama for batches above one
EXTERNAL_DATA_BYTES = 1_500_000_000


class _Scores(nn.Module):
    """ids and mask → coefs (N, M) and, for families that have it, raw_eta (N,)."""

    def __init__(self, model: P2LModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        coefs, raw_eta = self.model.scores(input_ids, attention_mask)
        return (coefs,) if raw_eta is None else (coefs, raw_eta)


def export_plain(checkpoint: Checkpoint, path: Path) -> int:
    """Writes the fp32 graph to `path` and returns its opset.

    Traced with three rows of different lengths: with one row, the batch would be fixed at one.
    """
    lengths = (7, 12, 3)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(0, 100, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    batch = torch.export.Dim("batch", min=1, max=8192)
    length_dim = torch.export.Dim("length", min=2, max=max(checkpoint.form.max_length, 16))
    shape = {0: batch, 1: length_dim}
    outputs = ["coefs", "raw_eta"] if has_eta(checkpoint.model.family) else ["coefs"]
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Scores(checkpoint.model).eval(),
            (ids, mask),
            dynamo=True,
            opset_version=PLAIN_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=outputs,
            dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            verbose=False,
        )
    assert program is not None
    size = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
    return PLAIN_OPSET


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports its own steps as warnings, which mean nothing to the user."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
