"""Commands that live outside the core: each is a function that typer can run, declared as an entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup


def adapters_too(group: str) -> type[TyperGroup]:
    """A group of commands, and with them those of a group of entry points, loaded only when they are called."""

    def declared() -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=group)}

    class Commands(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return sorted({*super().list_commands(ctx), *declared()})

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            entry = declared().get(cmd_name)
            if entry is None:
                return super().get_command(ctx, cmd_name)
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name=cmd_name)(entry.load())
            return typer.main.get_command(single)

    return Commands
