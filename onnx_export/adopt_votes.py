"""Which votes an adoption uses: those among the configuration's models and models that the bundle knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_export.new_votes import moved, places, ties_in
from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.gains import prompt_scores
from p2l_plugins.outcomes import Array, Mask
from p2l_plugins.scoring.bundle import Manifest
from p2l_plugins.similar import alias_hint, some
from p2l_plugins.votes.votes import Votes, ungrounded


@dataclass(frozen=True)
class Evidence:
    """The votes of an adoption.

    Attributes:
        votes: over the configuration's models that have votes, in its order, and then other models that the bundle
            knows, whose votes count as evidence.
        scores: (P, M) of the prompts, NaN where a model has none.
        candidates: how many of the models are the configuration's.
        index: (M,) row of each model in the bundle's head; −1: new.
        without: models of the configuration without any vote.
        left_out: models of the votes that neither the configuration nor the bundle has.
        left_out_votes: votes with these.
        ties: ties left out, because the family allows none.
    """

    votes: Votes
    scores: Array
    candidates: int
    index: NDArray[np.int64]
    without: tuple[str, ...]
    left_out: tuple[str, ...]
    left_out_votes: int
    ties: int

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the new bundle."""
        return self.votes.models[: self.candidates]

    @property
    def others(self) -> tuple[str, ...]:
        """Models that are evidence only."""
        return self.votes.models[self.candidates :]

    @property
    def routed(self) -> Mask:
        """(M,) the models of the new bundle."""
        return np.arange(len(self.votes.models)) < self.candidates

    @property
    def counted(self) -> Mask:
        """(V,) the votes that the figures are about: among the new bundle's models; all, where there are none."""
        among = self.routed[self.votes.a] & self.routed[self.votes.b]
        return among if among.any() else np.ones_like(among)

    def floating(self, manifest: Manifest) -> tuple[str, ...]:
        """Models of the new bundle whose level nothing ties to P(usable)."""
        tied = any(i >= 0 and manifest.models[i] not in manifest.ungrounded for i in self.index)
        return () if tied else tuple(name for name in ungrounded([self.votes], manifest.family) if name in self.models)


def names_in_votes(names: Sequence[str], manifest: Manifest) -> dict[str, str]:
    """Aliases of the bundle for reading votes, but for names that the configuration uses itself."""
    return {alias: target for alias, target in manifest.aliases.items() if alias not in names}


def gather(votes: Votes, names: Sequence[str], manifest: Manifest) -> Evidence:
    """Sorts votes, read with `names_in_votes`, by what they are to an adoption of the models `names`.

    Raises:
        DataError: fewer than two of the models have votes that can be used.
    """
    met = np.zeros(len(votes.models), np.bool_)
    met[votes.a] = met[votes.b] = True
    seen = {name for name, has in zip(votes.models, met, strict=True) if has}
    called = {name: name if name in seen else manifest.aliases.get(name, name) for name in names}
    mine = [name for name in names if called[name] in seen]
    if len(names) < 2:
        raise DataError(
            f"the configuration has one model, {', '.join(names)}, and there is nothing to choose; add a deployment of "
            "another model to model_list, and ask both with p2l votes ask"
        )
    if len(mine) < 2:
        strangers = sorted(seen - set(mine))
        raise DataError(
            f"{len(mine)} of the configuration's models {some(names)} have votes, but two must; the votes are on "
            f"{some(sorted(seen)) or 'nothing'}; {alias_hint(strangers, names)}, or set p2l_model"
        )
    known = {name: i for i, name in enumerate(manifest.models)}
    taken = {called[name] for name in mine}
    others = [name for name in votes.models if name in seen and name in known and name not in taken]
    order = [*(called[name] for name in mine), *others]
    place = places(votes, order)
    keep = (place[votes.a] >= 0) & (place[votes.b] >= 0)
    ties = ties_in(votes, keep, manifest.family)
    scores = None
    if votes.scores is not None:
        scores = votes.scores[:, [votes.models.index(name) for name in order]]
    left_out = tuple(name for name in votes.models if name in seen and name not in order)
    used = moved(votes, [*mine, *others], place, keep & ~ties, scores)
    have = np.zeros(len(order), np.bool_)
    have[used.a] = have[used.b] = True
    if have[: len(mine)].sum() < 2:
        raise DataError(
            "fewer than two of the configuration's models have votes that can be used: "
            f"{int((~keep).sum())} are with models that neither it nor the bundle has ({some(left_out) or 'none'}), "
            f"and {int(ties.sum())} are ties, which the family {manifest.family!r} can't use; "
            f"{alias_hint(left_out, names)}"
        )
    if not have[: len(mine)].all():  # all votes of a model were with strangers
        short = [name for name, has in zip(mine, have, strict=False) if has]
        return replace(gather(votes, short, manifest), without=tuple(name for name in names if name not in short))
    return Evidence(
        used,
        prompt_scores(used),
        len(mine),
        np.array([known.get(name, -1) for name in order], np.int64),
        tuple(name for name in names if name not in mine),
        left_out,
        int((~keep).sum()),
        int(ties.sum()),
    )
