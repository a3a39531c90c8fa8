"""Every error that the package raises on purpose. The message is one sentence for the user."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, SecretStr, ValidationError

_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]*)?"

#: An address in a text: in quotes as `repr` writes them, up to the closing one or to where the text was cut; else up to
#: a space.
_ADDRESS = re.compile(
    rf"""(?P<quote>['"])(?P<quoted>{_SCHEME})://"""
    r"""(?P<inside>(?:\\.|(?!(?P=quote)|\.\.\.(?:$|\ is\ not\ |,\ but\ |:\ ))[^\\])*)(?P<cut>\.\.\.)?"""
    rf"""|(?P<bare>{_SCHEME})://(?P<rest>\S*)""",
    re.DOTALL,
)

#: What stands after `://` where it can hold neither user nor password; `PORT` is how messages write a port.
_PLAIN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.~,-]*)(:([0-9]{1,5}|PORT))?([/?][^@#]*)?[:;,.)\]}]*")


def without_credentials(text: str) -> str:
    """A text without what stands between scheme and host of the addresses in it.

    Of an address that has a user, a password or an option with one, or that can't be told to have none, the scheme
    remains: where its password is not percent-encoded, or the text was cut, nobody can say where its host begins.
    """
    return _ADDRESS.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    rest = found["inside"] if found["bare"] is None else found["rest"]
    cut = found["cut"] or rest.endswith("...")
    if _PLAIN.fullmatch(rest) and not cut and "pass" not in rest.lower():
        return found[0]
    return f"{found['quote'] or ''}{found['quoted'] or found['bare']}://…"


class P2LError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback.

    The message never holds the user or the password of an address: `without_credentials`.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_credentials(part) if isinstance(part, str) else part for part in parts))


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


class Problem(NamedTuple):
    """The first thing that pydantic found wrong.

    Attributes:
        location: keys and positions that lead to it; empty where the whole is wrong.
        kind: pydantic's name of the error: `missing`, `extra_forbidden`, …
        message: what is wrong, beginning with a small letter except where the whole is wrong.
        value: what stands there, as `repr` writes it, cut to 80 characters.
        secret: whether the value is kept as a secret.
        valid: the keys that may stand in its place.
    """

    location: tuple[int | str, ...]
    kind: str
    message: str
    value: str
    secret: bool
    valid: tuple[str, ...]

    @property
    def key(self) -> str:
        """The place, as a path of keys."""
        return ".".join(str(part) for part in self.location)


def problem_of(error: ValidationError, model: type[BaseModel]) -> Problem:
    """The first problem in an error.

    Args:
        error: raised by `model`.
        model: its fields are the valid keys; those of nested models are found through its annotations.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    owner, annotation = model, None
    for part in first["loc"]:
        valid = owner
        if isinstance(part, str) and part in owner.model_fields:
            annotation = owner.model_fields[part].annotation
            owner = _model_inside(annotation) or owner
    if not first["loc"]:
        return Problem((), first["type"], message, "", False, tuple(model.model_fields))
    value = repr(first["input"])
    return Problem(
        first["loc"],
        first["type"],
        f"{message[0].lower()}{message[1:]}",
        value if len(value) <= 80 else f"{value[:77]}...",
        SecretStr in _kinds_inside(annotation),
        tuple(valid.model_fields),
    )


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """`problem_of` in one sentence: key, value, and what is valid."""
    problem = problem_of(error, model)
    if not problem.location:
        return problem.message
    if problem.kind == "extra_forbidden":
        return f"the key {problem.key!r} is not known; valid keys: {', '.join(problem.valid)}"
    if problem.kind == "missing":
        return f"the key {problem.key!r} is missing"
    if problem.secret:
        return f"{problem.key} is not valid: {problem.message}"
    return without_credentials(f"{problem.key} is {problem.value}: {problem.message}")


def _kinds_inside(annotation: Any) -> list[Any]:
    return [annotation, *(kind for argument in get_args(annotation) for kind in _kinds_inside(argument))]


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `list[Source]` or `Source | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_inside(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)
