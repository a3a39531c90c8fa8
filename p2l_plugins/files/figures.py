"""What all figures share: which files they may be, a canvas without a window, the same bytes for the same content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2l_plugins.errors import ConfigError
from p2l_plugins.files.tables import check_ending, replaced_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def check_figure(path: Path, extra: str = "analysis") -> None:
    """Refuses what can't be drawn.

    Args:
        path: of the figure.
        extra: of this package that brings matplotlib, for the message.

    Raises:
        ConfigError: the ending is not .png, .svg or .pdf, or matplotlib is missing.
    """
    check_ending(path, FORMATS)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(f"figures need the extra '{extra}': pip install 'p2l-plugins[{extra}]'") from None


def new_figure(**options: Any) -> Figure:
    """A figure without pyplot, so that no window system and no global state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 150, **options: Any) -> None:
    """Writes a figure, whole or not at all, without dates and random ids.

    Args:
        figure: from `new_figure`.
        path: .png, .svg or .pdf.
        dpi: of a .png.
        options: of matplotlib's `savefig`.
    """
    from matplotlib import rc_context

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with rc_context({"svg.hashsalt": "p2l"}), replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=metadata, **options)


def plain_text(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
