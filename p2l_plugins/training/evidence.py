"""How much the training votes know of each model, and rows of the head shrunk towards the models' peers by that.

A model's level β, in log-odds, was seen with the error s² = 4 / v of v effective votes (a share near one half has the
variance ¼ a vote). Around the mean μ of its peers, the models of the same sets, levels vary by τ², which is what their
spread has beyond their errors (DerSimonian & Laird 1986). The best guess of β is then μ + b(β − μ) with
b = τ² / (τ² + s²) (Efron & Morris 1975), and because coefficients are linear in the rows, each row is moved likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from p2l_plugins.outcomes import Array, Family, Ids
from p2l_plugins.support import Support
from p2l_plugins.training.marginal import align, fit_marginal
from p2l_plugins.votes.support import ONE_VOTE, effective_number, prompt_weights, support
from p2l_plugins.votes.votes import Votes


@dataclass(frozen=True)
class Evidence:
    """What the votes of several sets know of M models.

    Attributes:
        models: names, those with a vote.
        found: counts of each, with the standard error of its level on kinds of prompts like these: √(4 / votes +
            between² / sets).
        between: standard deviation of a model's level between sets, beyond what the sets' votes leave open.
        spread: τ, that of the models' levels around the mean of their peers.
        peers: (M, M) weight of each model in the mean of another's peers; a row sums to 1, or to 0 without peers.
    """

    models: tuple[str, ...]
    found: Mapping[str, Support]
    between: float
    spread: float
    peers: Array

    def keep(self) -> Array:
        """(M,) b of each model: the share of its distance from its peers that its votes bear out."""
        error = np.array([ONE_VOTE / self.found[name].votes for name in self.models])
        alone = self.peers.sum(axis=1) == 0
        total = self.spread**2 + error
        return np.where(alone | (total == 0), 1.0, self.spread**2 / np.where(total == 0, 1.0, total))

    def shrunk(self, models: Sequence[str], weight: Array, bias: Array) -> tuple[Array, Array]:
        """Rows (N, H) and bias (N,) of a head with these models, moved; those without votes stay."""
        at = np.array([models.index(name) for name in self.models])
        rows = np.column_stack([weight, bias]).astype(np.float64)
        mine, keep = rows[at], self.keep()[:, None]
        rows[at] = np.where(keep < 1, keep * mine + (1 - keep) * (self.peers @ mine), mine)
        return rows[:, :-1], rows[:, -1]

    def record(self, shrunk: bool) -> dict[str, Any]:
        """What a report and a manifest hold, for a head whose rows were moved, or not."""
        found = self.after() if shrunk else self.found
        return {
            "support": {name: found[name].record() for name in self.models},
            "levels": {"spread": round(self.spread, 4), "between_sets": round(self.between, 4), "shrunk": shrunk},
        }

    def after(self) -> dict[str, Support]:
        """The counts, with the standard errors of levels that `shrunk` moved."""
        return {
            name: self.found[name].with_stderr(_error(self.found[name], self.between, float(b)))
            for name, b in zip(self.models, self.keep(), strict=True)
        }


def evidence(parts: Sequence[Votes], family: Family) -> Evidence:
    """Of the training votes of each set, over the set's own models."""
    sets = [_voted(part) for part in parts if len(part)]
    counts = support(sets)
    models = tuple(sorted(counts))
    columns = [np.array([models.index(name) for name in part.models]) for part in sets]
    tables = [fit_marginal(part, family)[0] for part in sets]
    votes = [np.array([effective_number(w[w > 0]) for w in prompt_weights(part).T]) for part in sets]
    levels = align(columns, tables, [float(len(part.prompts)) for part in sets])[0]
    between = _between(columns, tables, votes)
    peers = _peers(columns, votes, len(models))
    error = np.array([ONE_VOTE / counts[name].votes for name in models])
    found = {name: one.with_stderr(_error(one, between)) for name, one in counts.items()}
    return Evidence(models, found, between, _spread(levels, peers, error), peers)


def _voted(part: Votes) -> Votes:
    """The same over the models and prompts that have a vote."""
    position = {name: i for i, name in enumerate(part.voted_models)}
    index = np.array([position.get(name, -1) for name in part.models], np.int64)
    return replace(part, models=tuple(position), a=index[part.a], b=index[part.b], scores=None).with_votes()


def _error(one: Support, between: float, b: float = 1.0) -> float:
    """Standard error of a level of which b of the distance from its peers is kept."""
    return float(np.sqrt(b * ONE_VOTE / one.votes + between**2 / one.sets))


def _between(columns: Sequence[Ids], tables: Sequence[Array], votes: Sequence[Array]) -> float:
    """Standard deviation of levels between sets, by the method of moments on β_ms ≈ α_m + d_s."""
    model, table = np.concatenate(columns), np.concatenate(tables)
    source = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
    m, rows = int(model.max()) + 1, np.arange(len(model))
    design = np.zeros((len(model), m + len(columns)))
    design[rows, model] = design[rows, m + source] = 1.0
    # the part of β that α and d do not explain, and how much of each β's own variance is in it
    residual = np.eye(len(model)) - design @ np.linalg.pinv(design)
    free = float(np.trace(residual))
    if free < 0.5:
        return 0.0
    expected = float(np.diag(residual) @ (ONE_VOTE / np.concatenate(votes)))
    return float(np.sqrt(max(0.0, (float(table @ residual @ table) - expected) / free)))


def _peers(columns: Sequence[Ids], votes: Sequence[Array], models: int) -> Array:
    """(M, M) the weight of models of the same sets, by their effective votes in these sets."""
    table = np.zeros((models, len(columns)))
    for number, (column, count) in enumerate(zip(columns, votes, strict=True)):
        table[column, number] = count
    weight = table / table.sum(axis=1, keepdims=True) @ (table / table.sum(axis=0)).T
    np.fill_diagonal(weight, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(weight / np.where(total > 0, total, 1.0))


def _spread(levels: Array, peers: Array, error: Array) -> float:
    """τ: of levels around their peers' means, beyond their errors (variances, M); little-known models count less."""
    with_peers = peers.sum(axis=1) > 0
    if not with_peers.any():
        return 0.0
    apart, share = (levels - peers @ levels)[with_peers], 1 / (1 + error[with_peers])
    return float(np.sqrt(max(0.0, float(share @ (apart**2 - error[with_peers])) / float(share.sum()))))
