"""`p2l export`: checkpoint → verified bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_export.gate import References, check
from onnx_export.graph import export_plain
from onnx_export.quantise import quantise_int8
from p2l_plugins.bundle import SCORING_FILES, Bundle, Manifest, sha256
from p2l_plugins.errors import ConfigError
from p2l_plugins.files import replaced_folder
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import ENCODERS

PRECISIONS = ("fp32", "int8")


def export(
    source: str | Path,
    output: Path,
    precision: str = "fp32",
    step: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Exports a checkpoint folder or hub id (ours or published) into a new bundle folder.

    Args:
        step: called with a line at the start of each step.

    Raises:
        ConfigError: a precision that is not known or not for this backbone.
        BundleError: a bad checkpoint, or the export does not pass the gate; nothing is written then.
        DataError: the output folder already holds something.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not known; valid: {', '.join(PRECISIONS)}")
    step("loading the checkpoint")
    checkpoint = Checkpoint.load(source)
    model_type = checkpoint.model.model.config.model_type  # type: ignore[union-attr]
    if precision == "int8" and model_type not in ENCODERS:
        raise ConfigError(
            f"precision 'int8' suits encoders only; on the decoder {model_type!r} it destroys the prompt-specific part"
        )
    with replaced_folder(output) as folder:
        graph = folder / "model.onnx"
        step("exporting the graph")
        opset = export_plain(checkpoint, graph)
        if precision == "int8":
            step("quantising to int8")
            full = graph.rename(folder / "full.onnx")
            quantise_int8(full, graph)
            full.unlink()
        _write_tokenizer(checkpoint, folder)
        step("checking against torch in float64")
        references = References(checkpoint)
        figures = check(_open(graph), references, precision)
        training = checkpoint.training
        manifest = Manifest(
            name=str(training.get("config", {}).get("name") or Path(source).name),
            family=checkpoint.model.family,
            models=checkpoint.models,
            aliases=training.get("aliases", {}),
            ungrounded=tuple(training.get("ungrounded", ())),
            text=checkpoint.form,
            precision=precision,  # type: ignore[arg-type]
            route="plain",
            opset=opset,
            files={name: sha256(folder / name) for name in SCORING_FILES if (folder / name).exists()},
            training=_training_summary(Path(source)),
            gate=figures,
        )
        manifest.write(folder)
    return Bundle.open(output)


def _open(graph: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    encoder = checkpoint.encoder
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    if encoder.chat_template is not None:
        (folder / "chat_template.jinja").write_text(encoder.chat_template, encoding="utf-8")


def _training_summary(source: Path) -> dict[str, Any]:
    """What the manifest says of the training data, from the checkpoint's report where there is one."""
    report = source / "training_report.json"
    if not report.is_file():
        return {}
    content = json.loads(report.read_text(encoding="utf-8"))
    return {key: content[key] for key in ("name", "models", "data") if key in content}
