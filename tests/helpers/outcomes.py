"""Random votes of an outcome model."""

import numpy as np

from p2l_plugins.outcomes import has_eta


def votes(family, n=400, scale=2.0, seed=0):
    """Coefficients of both sides, outcomes and raw_eta, (n,) each; None for families without one."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n)) * scale
    outcome = rng.integers(0, 2 if family == "bt" else 4, n)
    raw_eta = rng.normal(size=n) + (20 if family == "rk" else 0)
    return a, b, outcome, raw_eta if has_eta(family) else None
