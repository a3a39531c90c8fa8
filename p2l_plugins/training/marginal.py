"""The marginal leaderboard: one coefficient vector for all prompts, fitted to votes. Baseline and starting point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.leaderboards.fit import fit
from p2l_plugins.leaderboards.votes_fit import pair_counts
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.votes.votes import Votes


def fit_marginal(votes: Votes, family: Family, ridge: float = 0.1) -> tuple[Array, float | None]:
    """Coefficients (M,) and raw_eta that maximise the votes' likelihood, with a small ridge on the coefficients."""
    start = (np.zeros(len(votes.models)), 20.0 if family == "rk" else 0.0)
    return fit(family, *pair_counts(votes), start, ridge)


def align(
    columns: Sequence[NDArray[np.int64]], tables: Sequence[Array], weights: Sequence[float]
) -> tuple[Array, NDArray[np.int64]]:
    """One scale for the leaderboards of several sources: β_ms ≈ α_m + d_s, by least squares.

    How hard a source's prompts are moves all its models by d_s; models that several sources share tie the sources
    together. Without it, a model that met easy prompts only would stand above better ones that met hard prompts.

    Args:
        columns, tables: per source, the indices of its models and their coefficients; every index occurs.
        weights: per source, its share in the common level.

    Returns:
        coefs: (M,) α_m plus the mean of d over the sources that are tied to the model's.
        component: (M,) number of the set of tied sources that the model belongs to. Nothing compares two sets.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    m, n = 1 + max(int(c.max()) for c in columns), len(columns)
    model = np.concatenate(columns)
    source = np.repeat(np.arange(n), [len(c) for c in columns])
    rows = np.arange(len(model))
    graph = coo_array((np.ones(len(model)), (model, m + source)), shape=(m + n, m + n))
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    design = np.zeros((len(model), m + n))
    design[rows, model] = design[rows, m + source] = 1.0
    solution = np.linalg.lstsq(design, np.concatenate(tables), rcond=None)[0]
    total = np.bincount(component[m:], weights, minlength=m + n)
    level = np.bincount(component[m:], weights * solution[m:], minlength=m + n)
    return solution[:m] + (level / np.maximum(total, 1e-300))[component[:m]], component[:m]
