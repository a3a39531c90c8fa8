"""Which votes an update uses: those among the bundle's models that are newer than what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_export.new_votes import moved, places, ties_in
from p2l_plugins.errors import DataError
from p2l_plugins.scoring.bundle import Manifest
from p2l_plugins.similar import ADD, hint, some
from p2l_plugins.votes.votes import Votes

#: Fewest prompts that cross-validation can judge by.
FEWEST = 10


@dataclass(frozen=True)
class News:
    """The votes of an update.

    Attributes:
        votes: over models of the bundle.
        unknown: votes with models that it does not have; strangers: these models.
        old: votes no newer than those that it keeps; ties: left out of a bt bundle.
    """

    votes: Votes
    unknown: int
    strangers: tuple[str, ...]
    old: int
    ties: int


def news_of(votes: Votes, manifest: Manifest, until: float) -> News:
    """The votes that an update uses, of those read with the bundle's aliases.

    Args:
        until: votes with a time up to here are left out; NaN: none.

    Raises:
        DataError: fewer than `FEWEST` prompts are left.
    """
    index = places(votes, manifest.models)
    known = (index[votes.a] >= 0) & (index[votes.b] >= 0)
    old = np.zeros_like(known) if votes.timestamp is None else known & (votes.timestamp <= until)
    ties = ties_in(votes, known & ~old, manifest.family)
    used = moved(votes, manifest.models, index, known & ~old & ~ties)
    met = np.concatenate([votes.a[~known], votes.b[~known]])
    strangers = tuple(votes.models[i] for i in np.unique(met).tolist() if index[i] < 0)
    news = News(used, int((~known).sum()), strangers, int(old.sum()), int(ties.sum()))
    if len(used.prompts) < FEWEST:
        why = [f"{news.old} are no newer than those that the bundle keeps (--again uses them)"] if news.old else []
        if news.unknown:
            names = hint(strangers[0], manifest.models, "it has", ADD)
            why += [f"{news.unknown} are with models that it does not have ({some(strangers)}); {names}"]
        why += [f"{news.ties} are ties, which the family 'bt' does not allow"] if news.ties else []
        raise DataError(
            f"{len(used)} of {len(votes)} votes can be used, on {len(used.prompts)} prompts, but {FEWEST} prompts are "
            f"needed{': ' + ', '.join(why) if why else ''}"
        )
    return news
