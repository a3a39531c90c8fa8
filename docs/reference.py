"""The reference of the settings in docs/litellm.md, made from the models: `python docs/reference.py`."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from litellm_router.settings import GroupRule, P2LSettings, Rule


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring of a model and of its bases says of each attribute."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for name, says in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
            found[name] = re.sub(r"\s+", " ", says)
    return found


def table(model: type[BaseModel]) -> str:
    """A markdown table of a model's keys, defaults and meanings."""
    says = descriptions(model)
    lines = ["| key | default | meaning |", "|:---|:---|:---|"]
    for name, field in model.model_fields.items():
        lines.append(f"| `{name}` | {_default(field.default)} | {says[name]} |")
    return "\n".join(lines)


def reference() -> str:
    """The whole reference."""
    nested = [(name, kind) for name, f in P2LSettings.model_fields.items() if (kind := _model_in(f.annotation))]
    parts = [table(P2LSettings)]
    for name, kind in nested:
        if kind is not GroupRule:
            parts.append(f"`{name}` holds:\n\n{table(kind)}")
    rule = ", ".join(f"`{name}`" for name in Rule.model_fields)
    parts.append(f"A group in `groups` may set {rule}; what it does not set, it has from above.")
    return "\n\n".join(parts)


def _default(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, BaseModel):
        return "all defaults"
    return f"{value}" if value != {} else "none"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((kind for part in get_args(annotation) if (kind := _model_in(part)) is not None), None)


if __name__ == "__main__":
    print(reference())
