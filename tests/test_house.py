"""The floors of the house: imports between packages go down, and there are no circles between modules."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2l_plugins", "litellm_router", "lmeval_task", "onnx_export")

#: What each room stands on, from the ground up; a room may import those below its own floor.
FLOORS = [
    {"errors"},
    {"outcomes", "similar", "patterns", "templates", "support", "cells", "naming"},
    {"prompts", "console"},
    {"files"},
    {"cache", "routing"},
    {"scoring", "leaderboards", "votes"},
    {"evaluation"},
    {"training"},
    {"service"},
    {"cli"},
]

#: Rooms of one floor that may use each other, one way.
BESIDE = {("scoring", "leaderboards"), ("leaderboards", "votes")}


def modules() -> dict[str, Path]:
    """Every module by its name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path, *, lazily: bool) -> Iterator[str]:
    """Modules of ours that one imports; `lazily` counts what functions import when they are called."""
    for names, inside in imports(path):
        for name in names if lazily or not inside else ():
            known = next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), None)
            if known is not None:
                yield known


@functools.cache
def imports(path: Path) -> list[tuple[list[str], bool]]:
    """The names of each import statement, but for those of types alone, and whether it is inside a function."""
    found: list[tuple[list[str], bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.append(([alias.name for alias in node.names], inside))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(([f"{node.module}.{alias.name}" for alias in node.names], inside))
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case | ast.Module):
            inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), inside=False)
    return found


def room(module: str) -> str:
    """The room of a module of the core: the folder, or the file at the root."""
    return module.split(".")[1] if "." in module else "__init__"


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("p2l_plugins.")))
def test_imports_of_the_core_go_down(module):
    own = room(module)
    for other in imported(MODULES[module], lazily=True):
        assert other.startswith("p2l_plugins"), f"{module} imports {other}: the core knows no adapter"
        there = room(other)
        if there in (own, "__init__"):
            continue
        down = floor(there) < floor(own) or (own, there) in BESIDE
        assert down, f"{module} imports {other}, which stands above it or beside it"


@pytest.mark.parametrize("adapter", ["litellm_router", "lmeval_task", "onnx_export"])
def test_adapters_stand_on_the_core_and_not_on_each_other(adapter):
    for module, path in MODULES.items():
        if module.split(".")[0] == adapter:
            for other in imported(path, lazily=True):
                assert other.split(".")[0] in (adapter, "p2l_plugins"), f"{module} imports {other}"
                assert not other.startswith("p2l_plugins.cli"), f"{module} imports {other}: console is for that"


def test_there_are_no_circles_between_modules():
    graph = {name: set(imported(path, lazily=False)) - {name} for name, path in MODULES.items()}
    state: dict[str, str] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert state.get(name) != "open", f"a circle: {' → '.join([*above, name])}"
        if name in state:
            return
        state[name] = "open"
        for other in sorted(graph[name]):
            visit(other, (*above, name))
        state[name] = "done"

    for name in sorted(graph):
        visit(name, ())
