"""What a bundle keeps of the votes that its rows were fitted to, so that later votes add to them: sums, and no text.

The votes' log-likelihood is kept as a quadratic around the present rows (Laplace's approximation), beside the prior
that they were fitted under. In the coordinates of `joint`, a model's row is r_m = κ w̄ + v + u_m with its level, and a
prompt is x̂ = (x, 1). With the expected information C_p (M, M) of a prompt's votes in the models' coefficients, the
quadratic is

    g · Δ + ½ tr(A Δ S Δᵀ),    A = Σ C_p (M, M),    S = Σ tr(C_p) x̂ x̂ᵀ / Σ tr(C_p)

which takes it that all models met the same kinds of prompts (as Kronecker-factored curvature does, Martens & Grosse
2015). S is kept by its largest directions. `raw_eta` has a (2, 2) information of its own.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_export.joint import ISOTROPIC, JointRows, JointTask, Strength
from onnx_export.new_model import Prior, row_prior
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Array, has_eta, nll_gradients
from p2l_plugins.scoring.bundle import PAST_VOTES, Bundle

#: Directions of S that are kept.
MOST_DIRECTIONS = 128
#: A row of the head is the kept one where no number of it is off by more than this share of the largest.
SAME = 1e-2

_WIDE = ("means", "levels_before", "u", "v", "levels", "moments", "slope")  # kept as float32
_EXACT = ("kappa", "information", "ties", "votes", "until")
_ARRAYS = (*_WIDE, "information", "ties")
_PRIOR = ("centre", "mean", "axes", "spread")


@dataclass(frozen=True)
class Past:
    """M models, states of H numbers, R directions.

    Attributes:
        models: names.
        prior: of the rows, with the mean state that all is centred at.
        strength: of the prior.
        means: (M, H) rows that the prior is around; levels_before: (M,) their levels.
        u: (M, H) and v: (H,) in whitened coordinates, and kappa: the moves from there to the present rows.
        levels: (M,) present levels.
        information: (M, M) A; moments: (R, H + 1) F with S = FᵀF; slope: (M, H + 1) g.
        ties: (2, 2) information of slope and shift of raw_eta.
        votes: their weight.
        until: time of the newest vote, in seconds since 1970; NaN: not known.
    """

    models: tuple[str, ...]
    prior: Prior
    strength: Strength
    means: Array
    levels_before: Array
    u: Array
    v: Array
    kappa: float
    levels: Array
    information: Array
    moments: Array
    slope: Array
    ties: Array
    votes: float = 0.0
    until: float = float("nan")

    @classmethod
    def none(cls, models: Sequence[str], rows: Array, bias: Array, prior: Prior, strength: Strength) -> Past:
        """No votes yet: the prior is around rows (M, H) with bias (M,)."""
        m, h = rows.shape
        levels = rows @ prior.centre + bias
        zero = np.zeros
        return cls(
            tuple(models), prior, strength, rows, levels, zero((m, h)), zero(h), 0.0, levels,
            zero((m, m)), zero((0, h + 1)), zero((m, h + 1)), zero((2, 2)),
        )  # fmt: skip

    @property
    def rows(self) -> JointRows:
        """The present rows."""
        moves = np.stack([self.prior.weight(one) for one in self.u + self.v])
        weight = self.means + self.kappa * self.prior.mean + moves
        return JointRows(weight, self.levels - weight @ self.prior.centre)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(M,) models that votes are kept of."""
        return np.diag(self.information) > 0

    def hats(self, features: Array) -> Array:
        """x̂ at states (P, H): (P, H + 1)."""
        return np.column_stack([self.prior.whitened(features), np.ones(len(features))])

    def mean_row(self) -> Array:
        """(H,) w̄ in whitened coordinates: Σ^-½ w̄."""
        prior = self.prior
        root = 1.0 / np.sqrt(prior.isotropic)
        along = (1.0 / np.sqrt(prior.spread + prior.isotropic) - root) * (prior.axes @ prior.mean)
        return np.asarray(root * prior.mean + along @ prior.axes)

    def loosened(self, deviation: float) -> Past:
        """The same under a prior of levels with this standard deviation."""
        return replace(self, prior=replace(self.prior, level_deviation=deviation))

    def forgotten(self, share: float) -> Past:
        """The same with votes that count `share` of what they did; the prior stays."""
        return replace(
            self,
            information=share * self.information,
            slope=share * self.slope,
            ties=share * self.ties,
            votes=share * self.votes,
        )

    def of(self, models: Sequence[str], rows: Array, bias: Array) -> Past:
        """The same for models with rows (M', H) and bias (M',); of a model that has another row, no votes are kept."""
        position = {name: i for i, name in enumerate(self.models)}
        at = np.array([position.get(name, -1) for name in models], np.int64)
        now = self.rows
        apart = np.abs(now.weight[at] - rows).max(axis=1) > SAME * np.abs(rows).max()
        far = np.abs((now.weight[at] - rows) @ self.prior.centre + now.bias[at] - bias) > SAME * max(
            1.0, float(np.abs(self.levels).max())
        )
        mine = (at >= 0) & ~apart & ~far
        shared = self.kappa * self.prior.mean + self.prior.weight(self.v)
        levels = rows @ self.prior.centre + bias
        both = mine[:, None] & mine
        return replace(
            self,
            models=tuple(models),
            means=np.where(mine[:, None], self.means[at], rows - shared),
            levels_before=np.where(mine, self.levels_before[at], levels),
            u=np.where(mine[:, None], self.u[at], 0.0),
            levels=np.where(mine, self.levels[at], levels),
            information=np.where(both, self.information[np.ix_(at, at)], 0.0),
            slope=np.where(mine[:, None], self.slope[at], 0.0),
        )

    def moved(
        self, strength: Strength, u: Array, v: Array, kappa: float, levels: Array, line: tuple[float, float]
    ) -> Past:
        """The same votes seen from other rows, and from slope · raw_eta + shift."""
        delta = np.column_stack(
            [u + v - self.u - self.v + (kappa - self.kappa) * self.mean_row(), levels - self.levels]
        )
        slope = self.slope + self.information @ (delta @ self.moments.T) @ self.moments
        turn = np.array([[line[0], 0.0], [line[1], 1.0]])
        return replace(
            self, strength=strength, u=u, v=v, kappa=kappa, levels=levels, slope=slope, ties=turn.T @ self.ties @ turn
        )

    def with_votes(self, task: JointTask, line: tuple[float, float], until: float) -> Past:
        """The votes of a task more, seen from the present rows; its raw_eta is that before slope and shift."""
        beta = self.rows.coefs(task.features)
        eta = None if task.raw_eta is None else line[0] * task.raw_eta + line[1]
        aa, ab, bb, ee = curvatures(task, beta, eta)
        m = len(self.models)
        information = np.zeros((m, m))
        for i, j, part in ((task.a, task.a, aa), (task.b, task.b, bb), (task.a, task.b, ab), (task.b, task.a, ab)):
            np.add.at(information, (i, j), task.weight * part)
        hats = self.hats(task.features)
        share = np.bincount(task.prompt, task.weight * (aa + bb), minlength=len(hats))
        before = float(np.trace(self.information))
        moments = before * self.moments.T @ self.moments + (hats * share[:, None]).T @ hats
        _, in_a, in_b, _ = task.losses(beta, eta)
        slope = np.zeros((len(hats), m))
        np.add.at(slope, (task.prompt, task.a), task.weight * in_a)
        np.add.at(slope, (task.prompt, task.b), task.weight * in_b)
        ties = np.zeros((2, 2))
        if eta is not None:
            at = np.column_stack([eta, np.ones(len(eta))])[task.prompt]
            ties = (at * (task.weight * ee)[:, None]).T @ at
        return replace(
            self,
            information=self.information + information,
            moments=_factor(moments / max(before + float(share.sum()), 1e-300)),
            slope=self.slope + slope.T @ hats,
            ties=self.ties + ties,
            votes=self.votes + float(task.weight.sum()),
            until=float(np.fmax(self.until, until)),
        )

    def to_bytes(self) -> bytes:
        """The file's content."""
        s = self.strength
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name), np.float32) for name in _WIDE}
        arrays |= {name: np.asarray(getattr(self, name), np.float64) for name in _EXACT}
        arrays |= {f"prior_{name}": np.asarray(getattr(self.prior, name), np.float32) for name in _PRIOR}
        numbers = [self.prior.isotropic, self.prior.level, self.prior.level_deviation, s.own, s.differ, s.common]
        stream = io.BytesIO()
        np.savez(stream, models=np.array(self.models, np.str_), numbers=np.array(numbers, np.float64), **arrays)
        return stream.getvalue()

    @classmethod
    def read(cls, path: Path) -> Past:
        """From a file.

        Raises:
            BundleError: it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                got = {name: np.asarray(file[name]) for name in file.files}
            wide = {name: got[name].astype(np.float64) for name in (*_WIDE, *_EXACT)}
            isotropic, level, deviation, own, differ, common = got["numbers"].tolist()
            centre, mean, axes, spread = (got[f"prior_{name}"].astype(np.float64) for name in _PRIOR)
            kappa, votes, until = (float(wide.pop(name)) for name in ("kappa", "votes", "until"))
            return cls(
                models=tuple(got["models"].tolist()),
                prior=Prior(centre, mean, axes, spread, isotropic, level, deviation),
                strength=Strength(bool(own), differ, common),
                kappa=kappa,
                votes=votes,
                until=until,
                **{name: wide[name] for name in _ARRAYS},
            )
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path}: is not a file of past votes ({type(error).__name__})") from None


def past_of(bundle: Bundle, models: Sequence[str], rows: Array, bias: Array, features: Array) -> Past:
    """What a bundle keeps of its models with the rows (M, H) and bias (M,); without votes where it keeps nothing.

    Args:
        features: (P, H) states of prompts, whose mean centres what is begun.

    Raises:
        BundleError: the file is none of ours.
    """
    if PAST_VOTES in bundle.manifest.files:
        kept = Past.read(bundle.folder / PAST_VOTES)
        called = tuple(bundle.manifest.aliases.get(name, name) for name in kept.models)
        if kept.means.shape[1] == rows.shape[1]:
            return replace(kept, models=called).of(models, rows, bias)
    prior = row_prior(rows, bias, features.mean(axis=0), ISOTROPIC)
    return Past.none(models, rows, bias, prior, Strength(True, 0.0, 1.0))


def curvatures(task: JointTask, beta: Array, raw_eta: Array | None) -> tuple[Array, Array, Array, Array]:
    """Expected information of each vote: in (β_a, β_a), (β_a, β_b), (β_b, β_b) and (raw_eta, raw_eta), (V,) each."""
    p = np.exp(task.log_probabilities(beta, raw_eta))
    a, b = beta[task.prompt, task.a], beta[task.prompt, task.b]
    eta = None if raw_eta is None else raw_eta[task.prompt]
    total = np.zeros((4, len(a)))
    for outcome in range({"rk": 3, "grk": 4}.get(task.family, 2)):
        _, in_a, in_b, in_eta = nll_gradients(task.family, a, b, np.full(len(a), outcome), eta)
        total += p[:, outcome] * np.stack([in_a**2, in_a * in_b, in_b**2, in_eta**2])
    return total[0], total[1], total[2], total[3] if has_eta(task.family) else np.zeros(len(a))


def _factor(moments: Array) -> Array:
    """F (R, K) with FᵀF the largest directions of a (K, K) matrix."""
    values, vectors = np.linalg.eigh(moments)
    keep = np.flatnonzero(values > 1e-9 * max(float(values[-1]), 1e-300))[-MOST_DIRECTIONS:]
    return np.asarray(np.sqrt(values[keep])[:, None] * vectors[:, keep].T)
