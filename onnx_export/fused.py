"""The fused route: which checkpoints it covers, and their graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_export import decoder, encoder
from onnx_export.builder import FUSED_OPSET, GraphBuilder
from onnx_export.config import P2LExporterConfig
from p2l_plugins.training.checkpoint import Checkpoint

ARCHITECTURES = {kind: module for module in (decoder, encoder) for kind in module.TYPES}


def unsupported(checkpoint: Checkpoint) -> str | None:
    """What keeps this checkpoint from the fused route, in a few words, or None."""
    config: Any = checkpoint.model.model.config
    module = ARCHITECTURES.get(config.model_type)
    if module is None:
        return f"the architecture {config.model_type!r}"
    reason: str | None = module.unsupported(checkpoint)
    return reason


def export_fused(checkpoint: Checkpoint, path: Path, precision: str = "fp32") -> int:
    """Writes the fused graph to `path` and returns its opset. Large weights go beside it, to `model.onnx.data`."""
    config: Any = checkpoint.model.model.config
    module = ARCHITECTURES[config.model_type]
    graph = GraphBuilder(P2LExporterConfig(checkpoint, precision), precision, module.INT8_TERMS)
    module.build(graph, checkpoint)
    graph.save(path)
    return FUSED_OPSET
