"""What the tests of this folder share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plain_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_checkpoint` by the plain route."""
    from onnx_export.export import export

    output = tmp_path_factory.mktemp("export") / "plain"
    export(tiny_checkpoint, output, route="plain")
    return output
