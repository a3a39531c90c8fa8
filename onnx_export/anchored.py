"""The joint fit of rows to new votes, with the votes that a bundle keeps beside them. See `past`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_export.joint import SHIFT_DEVIATION, SLOPE_DEVIATION, JointProblem, JointTask, Known, Strength
from onnx_export.past import Past
from p2l_plugins.outcomes import Array

#: Strength of what models share, for further votes on a bundle whose rows share nothing.
LEAST_COMMON = 0.1

#: Slope and shift of raw_eta.
Line = tuple[float, float]


class AnchoredProblem(JointProblem):
    """The posterior mode of the rows, given new votes and kept ones.

    Args:
        task: the new votes, over the models of `past`.
        past: what is kept of the earlier ones.

    Directions in which neither the new nor the kept prompts differ stay as they are in the present rows.
    """

    def __init__(self, task: JointTask, past: Past) -> None:
        h = past.means.shape[1]
        wide = past.moments[:, :h]
        prompts = float(np.trace(past.information)) / max(2 * len(past.models) * 0.1, 1e-300)
        known = Known(past.means, past.levels_before - past.means @ past.prior.centre, np.arange(len(past.models)))
        super().__init__(task, known, prior=past.prior, moments=prompts * wide.T @ wide)
        self.past = past
        across = past.u + past.v
        inside = across @ self.turn
        outside = across - inside @ self.turn.T
        self.means = past.means + np.stack([past.prior.weight(one) for one in outside])
        self.own = (task.features - past.prior.centre) @ self.means.T
        basis = np.column_stack([self.turn, past.mean_row()])  # the coordinates (R of T, κ)
        self._moments = past.moments[:, :h] @ basis
        self._level_moments = past.moments[:, h]
        self._slope = past.slope[:, :h] @ basis
        self._level_slope = past.slope[:, h]
        self._before = np.column_stack([inside, np.full(len(across), past.kappa)])

    def start(self, strength: Strength) -> Array:
        """theta of the present rows."""
        past, theta = self.past, np.zeros(self.size)
        u, v, _, offset, _ = self.parts(theta)
        if strength.differ:
            u += past.u @ self.turn / np.sqrt(strength.differ)
        v += past.v @ self.turn / np.sqrt(strength.common)
        theta[u.size + v.size] = past.kappa
        offset += (past.levels - past.levels_before) / self.prior.level_deviation
        return theta

    def value(self, theta: Array, strength: Strength) -> tuple[float, Array]:
        """As of `JointProblem`, with the kept votes."""
        loss, gradient = super().value(theta, strength)
        past, m, deviation = self.past, self.task.models, self.prior.level_deviation
        u, v, kappa, offset, _ = self.parts(theta)
        scale_u, scale_v = np.sqrt(strength.differ), np.sqrt(strength.common)
        row = np.column_stack([np.broadcast_to(scale_v * v, u.shape) + scale_u * u, np.full(m, kappa)]) - self._before
        level = past.levels_before + deviation * offset - past.levels
        seen = row @ self._moments.T + level[:, None] * self._level_moments  # Δ F'
        pulled = past.information @ seen
        more = float((self._slope * row).sum() + self._level_slope @ level + 0.5 * (pulled * seen).sum())
        in_row, in_level = self._slope + pulled @ self._moments, self._level_slope + pulled @ self._level_moments
        added = np.zeros_like(gradient)
        g_u, g_v, _, g_offset, g_eta = self.parts(added)
        g_u += scale_u * in_row[:, :-1]
        g_v += scale_v * in_row[:, :-1].sum(axis=0)
        added[g_u.size + g_v.size] = in_row[:, -1].sum()
        g_offset += deviation * in_level
        if self.ties:
            slope, shift = self._eta_line(theta)
            line = np.array([slope - 1.0, shift])
            turn = np.array([[SLOPE_DEVIATION, 0.0], [-self.eta * SLOPE_DEVIATION, SHIFT_DEVIATION[self.task.family]]])
            more += 0.5 * float(line @ past.ties @ line)
            g_eta += turn.T @ past.ties @ line
        return loss + self.scale * more, gradient + self.scale * added

    def _units(self, strength: Strength) -> Array:
        """As of `JointProblem`, with the kept votes' information in each number."""
        kept = np.diag(self.past.information)
        along = (self._moments**2).sum(axis=0)
        level = float((self._level_moments**2).sum())
        precision = [
            np.outer(strength.differ * kept, along[:-1]).ravel(),
            strength.common * kept.sum() * along[:-1],
            kept.sum() * along[-1:],
            kept * level * self.prior.level_deviation**2,
            np.diag(self.past.ties) * np.array([SLOPE_DEVIATION**2, 1.0]),
        ]
        return np.asarray(1.0 / np.sqrt(1.0 / super()._units(strength) ** 2 + np.concatenate(precision)))

    def present(self, strength: Strength) -> tuple[Strength, Array]:
        """The present rows as a start of `solve`."""
        return strength, self.start(strength)

    def after(self, strength: Strength, theta: Array, line: Line) -> Past:
        """The kept votes seen from a solution; `line` is its slope and shift of raw_eta."""
        return moved_to(self, self.past, strength, theta, line)


def moved_to(problem: JointProblem, past: Past, strength: Strength, theta: Array, line: Line) -> Past:
    """A past seen from a solution theta of a problem with the same prior and models."""
    u, v, kappa, offset, _ = problem.parts(theta)
    turn = problem.turn
    new_u = past.u + (np.sqrt(strength.differ) * u - past.u @ turn) @ turn.T
    new_v = past.v + turn @ (np.sqrt(strength.common) * v - past.v @ turn)
    levels = past.levels_before + problem.prior.level_deviation * offset
    return past.moved(strength, new_u, new_v, kappa, levels, line)


def begun(
    problem: JointProblem, models: Sequence[str], strength: Strength, theta: Array, line: Line, until: float
) -> Past:
    """What is kept of a first fit: all votes of its task."""
    mean = problem.prior.mean if strength.common else np.zeros_like(problem.prior.mean)
    rows = problem.means if strength.own else np.broadcast_to(mean, problem.means.shape)
    none = Past.none(models, rows, problem.level - rows @ problem.prior.centre, problem.prior, strength)
    if not strength.common:  # one leaderboard for all prompts, which further votes may leave
        theta = theta.copy()
        u, v, _, _, _ = problem.parts(theta)
        theta[u.size + v.size] = v[:] = 0.0
        strength = replace(strength, common=LEAST_COMMON)
    seen = moved_to(problem, none, replace(strength, own=True), theta, line)
    return seen.with_votes(problem.task, line, until)
