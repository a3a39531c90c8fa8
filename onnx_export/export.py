"""`p2l export`: checkpoint → verified bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_export.fused import export_fused, unsupported
from onnx_export.gate import References, failure, measure
from onnx_export.graph import export_plain
from onnx_export.quantise import quantise_int8
from p2l_plugins.errors import BundleError, ConfigError, P2LError
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.scoring.bundle import BUNDLE_FILES, Bundle, Manifest, sha256
from p2l_plugins.scoring.session import DEVICES, open_graph, require_device
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import ENCODERS

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ROUTES = ("auto", "fused", "plain")


def export(
    source: str | Path,
    output: Path,
    precision: str = "fp32",
    step: Callable[[str], None] = lambda message: None,
    *,
    route: str = "auto",
    force: bool = False,
    device: str = "cpu",
) -> Bundle:
    """Exports a checkpoint folder or hub id (ours or published) into a new bundle folder.

    Args:
        precision: `fp32`; `fp16` or `bf16`, with fp32 heads; `int8`, 8-bit products.
        step: called with a line at the start of each step.
        route: `fused`, `plain`, or `auto`: fused where it covers the architecture and passes the gate, else plain.
        force: write a bundle that passes the gate by no route, with a warning in its manifest.
        device: where the gate runs the graph: `cpu` or `cuda`.

    Raises:
        ConfigError: a precision, route or device that is not known or not for this backbone.
        BundleError: a bad checkpoint, or the export does not pass the gate; nothing is written then.
        DataError: the output folder already holds something.
    """
    for value, valid, what in (
        (precision, PRECISIONS, "precision"),
        (route, ROUTES, "route"),
        (device, DEVICES, "device"),
    ):
        if value not in valid:
            raise ConfigError(f"{what} {value!r} is not known; valid: {', '.join(valid)}")
    if precision == "bf16" and device == "cpu":
        raise ConfigError(
            "precision 'bf16' needs a GPU, because ONNX Runtime has no bfloat16 products on the CPU; "
            "export it where CUDA is, with --device cuda"
        )
    require_device(device)
    step("loading the checkpoint")
    checkpoint = Checkpoint.load(source)
    routes = _routes(checkpoint, precision, route)
    with replaced_folder(output) as folder:
        step("computing the references in float64")
        references = References(checkpoint)
        for i, chosen in enumerate(routes):
            try:
                last = i == len(routes) - 1
                forced = force and last
                opset, figures = _attempt(checkpoint, folder, precision, chosen, references, forced, device, step)
                break
            except BundleError as error:
                if last:
                    raise
                step(f"the fused route is not used: {error}")
        _write_tokenizer(checkpoint, folder)
        training = checkpoint.training
        seen = Path(source) / TRAINING_PROMPTS
        if seen.is_file():
            shutil.copyfile(seen, folder / TRAINING_PROMPTS)
        manifest = Manifest(
            name=str(training.get("config", {}).get("name") or Path(source).name),
            family=checkpoint.model.family,
            models=checkpoint.models,
            aliases=training.get("aliases", {}),
            ungrounded=tuple(training.get("ungrounded", ())),
            text=checkpoint.form,
            precision=precision,  # type: ignore[arg-type]
            route=chosen,  # type: ignore[arg-type]
            opset=opset,
            files={name: sha256(folder / name) for name in BUNDLE_FILES if (folder / name).exists()},
            training=_training_summary(Path(source)),
            gate=figures,
        )
        manifest.write(folder)
    return Bundle.open(output)


def _routes(checkpoint: Checkpoint, precision: str, route: str) -> tuple[str, ...]:
    """The routes to try, in order."""
    reason = unsupported(checkpoint)
    if route == "fused" and reason is not None:
        raise ConfigError(f"route 'fused' does not cover {reason}; choose --route plain")
    fused = ("fused",) if reason is None and route != "plain" else ()
    model_type = checkpoint.model.model.config.model_type  # type: ignore[union-attr]
    per_run = "its activations would share one scale per run, which destroys the prompt-specific part of a decoder"
    if precision == "int8" and model_type not in ENCODERS:
        if not fused:
            raise ConfigError(f"precision 'int8' on the plain route suits encoders only, not {model_type!r}: {per_run}")
        return fused
    return fused if route == "fused" else (*fused, "plain")


def _attempt(
    checkpoint: Checkpoint,
    folder: Path,
    precision: str,
    route: str,
    references: References,
    force: bool,
    device: str,
    step: Callable[[str], None],
) -> tuple[int, dict[str, Any]]:
    """Writes the graph by one route and takes it through the gate: its opset and figures."""
    graph = folder / "model.onnx"
    step(f"exporting the graph ({route}, {precision})")
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink(missing_ok=True)
    if route == "fused":
        opset = export_fused(checkpoint, graph, precision)
    elif precision == "int8":
        full = folder / "full.onnx"
        opset = export_plain(checkpoint, full)
        quantise_int8(full, graph)
        full.unlink()
    else:
        opset = export_plain(checkpoint, graph, precision)
    step("checking against torch in float64")
    session = _open(graph, precision, device)
    try:
        figures = measure(session, references, precision)
    except P2LError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BundleError(f"ONNX Runtime can't run this {precision} graph: {_first(error)}") from None
    problem = failure(figures, precision)
    if problem is not None and not force:
        raise BundleError(f"the export does not pass the gate: {problem}; choose --precision fp32, or --force")
    if problem is not None:
        figures["warning"] = f"written with --force although {problem}"
        step(f"warning: {problem}; written with --force")
    return opset, figures


def _open(graph: Path, precision: str, device: str) -> Any:
    try:
        return open_graph(graph, device)
    except ConfigError:
        raise
    except BundleError as error:
        raise BundleError(str(error).replace(str(graph), graph.name)) from None
    except Exception as error:
        raise BundleError(f"ONNX Runtime can't run this {precision} graph on {device!r} ({_first(error)})") from None


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    encoder = checkpoint.encoder
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    if encoder.chat_template is not None:
        (folder / "chat_template.jinja").write_text(encoder.chat_template, encoding="utf-8")


def _training_summary(source: Path) -> dict[str, Any]:
    """What the manifest says of the training data, from the checkpoint's report where there is one."""
    report = source / "training_report.json"
    if not report.is_file():
        return {}
    content = json.loads(report.read_text(encoding="utf-8"))
    return {key: content[key] for key in ("name", "models", "split", "data", "support", "levels") if key in content}
