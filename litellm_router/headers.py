"""The response headers that tell a client what P2L decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Models that `x-p2l-ranking` names: a large group would fill a reverse proxy's buffer for headers.
RANKING_LENGTH = 20


def headers_of(record: Mapping[str, Any], answered: str | None) -> dict[str, str]:
    """Headers of a decision's record.

    `x-p2l-model` is the model that answered, which is not the first of `x-p2l-ranking` where that one failed; the
    predicted value (`x-p2l-win-rate`, or `x-p2l-usable` for that objective) and the expected `x-p2l-cost` in USD are
    those of this model. A request that P2L did not decide has `x-p2l-error` with the reason instead.

    Args:
        record: as `Decision.record` and the router made it.
        answered: the bundle's name of the model that answered, or None where the answer came from an unranked
            deployment, or none came.
    """
    if "error" in record:
        return _ascii({"x-p2l-error": record["error"], "x-p2l-ms": _number(record.get("ms"), ".2f")})
    value = "x-p2l-usable" if record["objective"] == "usable" else "x-p2l-win-rate"
    return _ascii(
        {
            "x-p2l-model": answered,
            "x-p2l-cache": record["cache"],
            "x-p2l-ms": _number(record.get("ms"), ".2f"),
            "x-p2l-ranking": ",".join(record["ranking"][:RANKING_LENGTH]),
            value: _number(record["values"].get(answered), ".4f"),
            "x-p2l-cost": _number(record["costs"].get(answered), ".6g"),
            "x-p2l-error": "not_followed" if record.get("not_followed") else None,
        }
    )


def _number(value: object, form: str) -> str | None:
    return format(value, form) if isinstance(value, (int, float)) else None


def _ascii(headers: Mapping[str, object]) -> dict[str, str]:
    """Values that any HTTP server takes: printable ASCII, the rest replaced by `?`; None is left out."""
    return {
        name: "".join(c if " " <= c <= "~" else "?" for c in str(value))
        for name, value in headers.items()
        if value is not None
    }
