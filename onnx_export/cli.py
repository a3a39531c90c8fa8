"""The subcommand `p2l export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from p2l_plugins.errors import ConfigError


def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint: a folder (ours or published) or a hub id.")],
    bundle: Annotated[Path, typer.Argument(help="New folder for the bundle.")],
    precision: Annotated[
        str,
        typer.Option(help="fp32; fp16 or bf16 (for GPUs); int8 (8-bit products). All but fp32 may fail the gate."),
    ] = "fp32",
    route: Annotated[
        str, typer.Option(help="fused (ONNX Runtime's own operators), plain, or auto: fused where it passes.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where the gate runs the graph: cpu or cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Write it even if it fails the gate, with a warning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Export a checkpoint to a verified ONNX bundle."""
    try:
        from onnx_export.export import export as run
    except ImportError as error:
        raise ConfigError(
            f"this command needs the extra 'export': pip install 'p2l-plugins[export]' ({error})"
        ) from None
    result = run(
        checkpoint,
        bundle,
        precision,
        step=lambda line: typer.echo(f"{line} …", err=True),
        route=route,
        force=force,
        device=device,
    )
    manifest = result.manifest
    if as_json:
        content = {"fingerprint": manifest.fingerprint, "route": manifest.route, "gate": manifest.gate}
        typer.echo(json.dumps({"bundle": str(bundle), **content}, indent=2))
        return
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    typer.echo(
        f"{bundle}: {len(manifest.models)} models, {manifest.family}, {precision}, {manifest.route}, {size:.1f} MB"
    )
    figures = ", ".join(f"{key} {_shown(value)}" for key, value in manifest.gate.items() if key != "warning")
    verdict = "failed" if "warning" in manifest.gate else "passed"
    typer.echo(f"gate {verdict}: {figures}")
    if "warning" in manifest.gate:
        typer.echo(f"warning: {manifest.gate['warning']}", err=True)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"
