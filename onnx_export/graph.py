"""The plain route: torch.export of the model as it is, any architecture that transformers can export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from onnx_export.builder import DTYPES, EXTERNAL_DATA_BYTES
from onnx_export.config import P2LExporterConfig
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import P2LNetwork

PLAIN_OPSET = 20  # opset 23 breaks llama for batches above one


class _Scores(nn.Module):
    """ids and mask → coefs (N, M) and, where the family has it, raw_eta (N,); NaN for rows not padded on the right."""

    def __init__(self, model: P2LNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        pooled = self.model.pooled(input_ids, attention_mask).float()
        positions = torch.arange(1, input_ids.shape[1] + 1)
        count = attention_mask.sum(dim=1)
        valid = ((attention_mask * positions).amax(dim=1) == count) & (count > 0)
        coefs, raw_eta = self.model.head(torch.where(valid[:, None], pooled, torch.nan))
        return (coefs,) if raw_eta is None else (coefs, raw_eta)


def export_plain(checkpoint: Checkpoint, path: Path, precision: str = "fp32") -> int:
    """Writes the plain graph to `path` and returns its opset.

    In fp16 and bf16 the backbone of the checkpoint itself is rounded, so that it is not held twice.
    """
    config = P2LExporterConfig(checkpoint, precision)
    checkpoint.model.model.to(DTYPES[config.float_dtype])
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Scores(checkpoint.model).eval(),
            tuple(config.generate_dummy_inputs().values()),
            dynamo=True,
            opset_version=PLAIN_OPSET,
            input_names=list(config.inputs),
            output_names=list(config.outputs),
            dynamic_shapes=config.dynamic_shapes(),
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
