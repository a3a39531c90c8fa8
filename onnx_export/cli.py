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
    precision: Annotated[str, typer.Option(help="fp32, or int8 (encoders).")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Export a checkpoint to a verified ONNX bundle."""
    try:
        from onnx_export.export import export as run
    except ImportError as error:
        raise ConfigError(
            f"this command needs the extra 'export': pip install 'p2l-plugins[export]' ({error})"
        ) from None
    result = run(checkpoint, bundle, precision, step=lambda line: typer.echo(f"{line} …", err=True))
    manifest = result.manifest
    if as_json:
        typer.echo(
            json.dumps({"bundle": str(bundle), "fingerprint": manifest.fingerprint, "gate": manifest.gate}, indent=2)
        )
        return
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    typer.echo(f"{bundle}: {len(manifest.models)} models, {manifest.family}, {precision}, {size:.1f} MB")
    typer.echo(f"gate passed: {', '.join(f'{key} {_shown(value)}' for key, value in manifest.gate.items())}")


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"
