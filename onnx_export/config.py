"""The one declaration of what an exported graph looks like, for both routes: optimum's `ExporterConfig` of a P2L model.

Inputs, outputs, dynamic axes, the ragged dummy inputs that the plain route traces with and the gate's tolerance.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils import DummyInputGenerator, NormalizedTextConfig
from torch import Tensor

from p2l_plugins.outcomes import has_eta
from p2l_plugins.training.checkpoint import Checkpoint

TASK = "prompt-to-leaderboard"
FLOATS = {"fp32": "fp32", "int8": "fp32", "fp16": "fp16", "bf16": "bf16"}


class RaggedInputs(DummyInputGenerator):  # type: ignore[misc]  # optimum has no types
    """Three right-padded rows of different lengths: with one row, a trace would fix the batch at one."""

    SUPPORTED_INPUT_NAMES = ("input_ids", "attention_mask")
    LENGTHS = (7, 12, 3)

    def __init__(self, task: str, normalized_config: NormalizedTextConfig, **_: Any) -> None:
        self.vocabulary = normalized_config.vocab_size

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Tensor:
        """The tensor (3, 12) of one input, int64."""
        mask = (torch.arange(max(self.LENGTHS)) < torch.tensor(self.LENGTHS)[:, None]).long()
        if input_name == "attention_mask":
            return mask
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, min(self.vocabulary, 100), mask.shape, generator=generator) * mask


class P2LExporterConfig(ExporterConfig):  # type: ignore[misc]
    """Inputs `input_ids`, `attention_mask` (N, L); outputs `coefs` (N, M) and, for rk and grk, `raw_eta` (N,).

    Args:
        checkpoint: what is exported.
        precision: of the weights; the heads and the outputs are fp32 in all of them.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (RaggedInputs,)
    #: Of the exact gate, on top of `FACTOR_FOR_VALIDATION` times torch's own float32 error.
    ATOL_FOR_VALIDATION = 1e-6
    FACTOR_FOR_VALIDATION = 3.0
    _TASK_TO_COMMON_OUTPUTS: ClassVar[dict[str, list[str]]] = {TASK: ["coefs"]}

    def __init__(self, checkpoint: Checkpoint, precision: str = "fp32") -> None:
        super().__init__(checkpoint.model.model.config, TASK, float_dtype=FLOATS[precision])
        self.family = checkpoint.model.family
        self.max_length = checkpoint.form.max_length

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Names → dynamic axes."""
        return {name: {0: "batch", 1: "length"} for name in RaggedInputs.SUPPORTED_INPUT_NAMES}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names → dynamic axes, in the graph's order."""
        return {name: {0: "batch"} for name in (["coefs", "raw_eta"] if has_eta(self.family) else ["coefs"])}

    @property
    def values_override(self) -> dict[str, Any]:
        """Nothing: the model is exported as the checkpoint has it."""
        return {}

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """The inputs' axes as torch.export wants them."""
        batch = torch.export.Dim("batch", min=1, max=8192)
        length = torch.export.Dim("length", min=2, max=max(self.max_length, 16))
        return {name: {0: batch, 1: length} for name in self.inputs}
