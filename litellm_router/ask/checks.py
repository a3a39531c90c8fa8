"""Answers checked against a reference by rule, without a judge: a score from 0 to 1 each."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from litellm_router.ask.questions import Question
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.tables import need_file

#: A check of an answer, its reference and the row of the prompt.
Check = Callable[[str, Any, dict[str, Any]], float]

_RULES = ("exact", "regex", "json-schema")
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)


def check_of(name: str) -> tuple[Check, str]:
    """A check by its name or of a Python file, and a digest of it.

    A Python file defines `check(answer, reference, row)`, which gives true or false, or a number from 0 to 1.

    Raises:
        ConfigError: no such check, or jsonschema is missing.
        DataError: no such file.
    """
    if name.endswith(".py"):
        path = Path(name)
        need_file(path)
        return _of_file(path), hashlib.sha256(path.read_bytes()).hexdigest()
    if name not in _RULES:
        raise ConfigError(f"--check is {name!r}; valid: {', '.join(_RULES)}, or a Python file FILE.py with check(…)")
    if name == "json-schema":
        try:
            import jsonschema  # noqa: F401
        except ImportError:
            raise ConfigError("--check json-schema needs jsonschema: pip install jsonschema") from None
    return {"exact": _exact, "regex": _regex, "json-schema": _json_schema}[name], name


def need_references(questions: Sequence[Question], check: Check | None, column: str, path: Path) -> None:
    """Looks at all references before any answer is paid for.

    Args:
        check: by a rule; None for one of the user's own.

    Raises:
        DataError: a prompt without a reference, or with one that is no pattern or schema.
    """
    for one in questions:
        if one.reference is None or one.reference == "":
            missing = sum(each.reference in (None, "") for each in questions)
            raise DataError(
                f"{path}: {missing} prompts have no {column!r} to check answers against; name the "
                "column with --reference COLUMN"
            )
        if check is not None:
            try:
                check("", one.reference, one.row)
            except DataError as error:
                raise DataError(f"{path}: column {column!r}: {error}") from None


def _exact(answer: str, reference: Any, row: dict[str, Any]) -> float:
    """Equal but for case, white space, and a full stop at the end."""
    return float(_folded(answer) == _folded(str(reference)))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _regex(answer: str, reference: Any, row: dict[str, Any]) -> float:
    """The pattern occurs in the answer."""
    try:
        return float(re.search(str(reference), answer, re.MULTILINE) is not None)
    except re.error as error:
        raise DataError(f"the reference of a prompt is no regular expression ({error})") from None


def _json_schema(answer: str, reference: Any, row: dict[str, Any]) -> float:
    """The answer is JSON, in a code fence or not, that fits the schema."""
    import jsonschema

    try:
        schema = json.loads(reference) if isinstance(reference, str) else reference
        validator = jsonschema.validators.validator_for(schema)
        validator.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as error:
        raise DataError(f"the reference of a prompt is no JSON schema ({type(error).__name__})") from None
    fenced = _FENCE.match(answer.strip())
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return 0.0
    return float(validator(schema).is_valid(value))


def _of_file(path: Path) -> Check:
    try:
        found = runpy.run_path(str(path)).get("check")
    except Exception as error:  # of the user's own code
        raise ConfigError(f"{path}: does not run ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise ConfigError(f"{path}: defines no function check(answer, reference, row)")

    def run(answer: str, reference: Any, row: dict[str, Any]) -> float:
        try:
            score = float(found(answer, reference, row))
        except Exception as error:  # of the user's own code; its text may hold the answer
            raise DataError(f"{path}: check(…) raised {type(error).__name__}") from None
        if not 0 <= score <= 1:
            raise DataError(f"{path}: check(…) gave {score:g}; valid: true, false, or a number from 0 to 1")
        return score

    return run
