"""Every error that the package raises on purpose. The message is one sentence for the user."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class P2LError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback."""


class PromptError(P2LError):
    """A prompt that holds no text, or is not a string or a list of strings."""


class EmptyPrompt(PromptError):
    """A prompt that holds no text."""


class DataError(P2LError):
    """A file of votes, scores, prompts or prices that can't be used as it is."""


class ConfigError(P2LError):
    """A wrong key or value in a configuration file or option."""


class BundleError(P2LError):
    """A bundle or checkpoint that is incomplete, changed, or made for something else."""


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem that pydantic found, in one sentence: key, value, and what is valid.

    Args:
        error: raised by `model`.
        model: its fields are the valid keys; those of nested models are found through its annotations.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner = model
        for part in first["loc"][:-1]:
            if isinstance(part, str) and part in owner.model_fields:
                owner = _model_inside(owner.model_fields[part].annotation) or owner
        return f"the key {key!r} is not known; valid keys: {', '.join(owner.model_fields)}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    value = repr(first["input"])
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{key} is {shown}: {message[0].lower()}{message[1:]}"


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `list[Source]` or `Source | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_inside(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)
