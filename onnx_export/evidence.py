"""How much is known of each model of a changed bundle: what was known, and the votes that the change was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2l_plugins.scoring.bundle import Manifest
from p2l_plugins.support import Support


def support_after(
    manifest: Manifest,
    models: Sequence[str],
    votes: Mapping[str, Support],
    renamed: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest's `support` after a change, JSON-ready.

    A model that the bundle had without a word on it counts as well known, and stays so.

    Args:
        manifest: before the change.
        models: after it.
        votes: what the change was fitted to, by the names after it.
        renamed: names before → after.
    """
    known = {renamed.get(name, name): one for name, one in manifest.support.items()}
    silent = {renamed.get(name, name) for name in manifest.models} - set(known)
    added = {name: known[name] + one if name in known else one for name, one in votes.items() if name not in silent}
    return {name: one.record() for name, one in (known | added).items() if name in models}
