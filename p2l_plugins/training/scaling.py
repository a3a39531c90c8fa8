"""Scaling law: how the held-out loss falls with the number of training votes.

The form is L(N) = E + A·N^−α (Hestness et al. 2017, Hoffmann et al. 2022): E is what no number of votes removes with
this backbone and recipe, α how fast the rest falls.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.cells import pipe_table
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.figures import new_figure, save_figure
from p2l_plugins.outcomes import Array
from p2l_plugins.training.config import TrainConfig

#: Runs of different sizes that the three numbers of the law need.
LEAST_SIZES = 3
DRAWS = 500


@dataclass(frozen=True)
class Run:
    """One training of the grid: backbone, share of the training prompts, seed; prompts, votes and held-out losses."""

    backbone: str
    fraction: float
    seed: int
    prompts: int
    votes: int
    loss: float
    marginal_loss: float
    seconds: float


@dataclass(frozen=True)
class Law:
    """L(N) = E + A·N^−α of one backbone, N in votes; each number with its 95 % interval.

    Attributes:
        e, a, alpha: the least-squares fit.
        e_interval, alpha_interval: 2.5 % and 97.5 % quantiles over resampled runs.
        residual: root mean square of loss − fit, in nats.
        n: runs.
    """

    backbone: str
    e: float
    a: float
    alpha: float
    e_interval: tuple[float, float]
    alpha_interval: tuple[float, float]
    residual: float
    n: int

    def loss(self, votes: Array) -> Array:
        """The law at numbers of votes."""
        return np.asarray(self.e + self.a * np.asarray(votes, np.float64) ** -self.alpha, np.float64)


def fit_law(backbone: str, votes: Sequence[float], losses: Sequence[float], seed: int = 0) -> Law:
    """Least squares for E ≥ 0, A ≥ 0, 0 < α ≤ 3; intervals by a residual bootstrap.

    Args:
        votes, losses: (R,) of the runs, at least three different numbers of votes.

    Raises:
        DataError: too few different sizes.
    """
    n, y = np.asarray(votes, np.float64), np.asarray(losses, np.float64)
    if len(np.unique(n)) < LEAST_SIZES:
        raise DataError(f"a scaling law needs runs of {LEAST_SIZES} different sizes at least, not {len(np.unique(n))}")
    e, a, alpha = _fit(n, y)
    fitted = e + a * n**-alpha
    # three numbers were fitted to the residuals, which makes them smaller than the noise
    residual = (y - fitted) * np.sqrt(len(y) / max(len(y) - 3, 1))
    rng = np.random.default_rng(seed)
    draws = np.array([_fit(n, fitted + rng.choice(residual, len(y))) for _ in range(DRAWS)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    rms = float(np.sqrt(np.mean((y - fitted) ** 2)))
    return Law(backbone, e, a, alpha, (low[0], high[0]), (low[2], high[2]), rms, len(y))


def _fit(n: Array, y: Array) -> tuple[float, float, float]:
    """For a given α the fit of E and A is linear: search α, solve the rest."""
    from scipy.optimize import minimize_scalar, nnls

    def solve(log_alpha: float) -> tuple[Array, float]:
        power = (n / n.max()) ** -np.exp(log_alpha)
        weights, error = nnls(np.stack([np.ones_like(n), power], axis=1), y)
        return weights, float(error)

    grid = np.linspace(np.log(0.01), np.log(3.0), 40)
    errors = [solve(x)[1] for x in grid]
    best = int(np.argmin(errors))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    log_alpha = float(minimize_scalar(lambda x: solve(x)[1], bounds=bounds, method="bounded").x)
    (e, scaled), _ = solve(log_alpha)
    alpha = float(np.exp(log_alpha))
    return float(e), float(scaled * n.max() ** alpha), alpha


def run_grid(
    config: TrainConfig,
    data_dir: Path,
    output: Path,
    fractions: Sequence[float],
    backbones: Sequence[str],
    seeds: Sequence[int],
    done: Callable[[Run], None] = lambda run: None,
) -> list[Run]:
    """Trains the grid, smallest first; finished runs are kept in `OUTPUT/runs.jsonl` and not repeated.

    Every run is judged on all held-out prompts of its seed.

    Raises:
        ConfigError: nothing is held out, or the folder holds runs of another configuration.
        DataError: as `train`.
    """
    from p2l_plugins.training.train import train

    if not config.held_out:
        raise ConfigError("scaling needs held-out prompts: set held_out")
    output.mkdir(parents=True, exist_ok=True)
    _same_configuration(config, output / "config.json")
    path = output / "runs.jsonl"
    runs = [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(run.backbone, run.fraction, run.seed) for run in runs}
    for fraction in sorted(fractions):
        for backbone in backbones:
            for seed in seeds:
                if (backbone, fraction, seed) in known:
                    continue
                changes = {"backbone": backbone, "train_fraction": fraction, "seed": seed, "evaluations": 1}
                work = output / "training"
                shutil.rmtree(work, ignore_errors=True)
                report = train(config.model_copy(update=changes), data_dir, work, resume=True)
                shutil.rmtree(work)
                held_out = report["held_out"]
                run = Run(
                    *(backbone, fraction, seed, report["prompts"], report["votes"]),
                    *(held_out["loss"], held_out["marginal_loss"], report["seconds"]),
                )
                with path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(run)) + "\n")
                runs.append(run)
                done(run)
    return runs


def _same_configuration(config: TrainConfig, path: Path) -> None:
    mine = config.model_dump(mode="json")
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != mine:
        raise ConfigError(f"{path.parent}: holds runs of another configuration; name a new folder")
    path.write_text(json.dumps(mine, indent=2), encoding="utf-8")


def laws(runs: Sequence[Run]) -> list[Law]:
    """The law of each backbone that has runs of enough sizes."""
    result = []
    for backbone in dict.fromkeys(run.backbone for run in runs):
        mine = [run for run in runs if run.backbone == backbone]
        if len({run.votes for run in mine}) >= LEAST_SIZES:
            result.append(fit_law(backbone, [run.votes for run in mine], [run.loss for run in mine]))
    return result


def scaling_tables(runs: Sequence[Run], fitted: Sequence[Law]) -> str:
    """Markdown: a row per size (mean over seeds), and a row per law."""
    heads = ["backbone", "share", "prompts", "votes", "runs", "held-out loss", "marginal", "fit", "seconds"]
    rows = []
    by_name = {law.backbone: law for law in fitted}
    for backbone, fraction in dict.fromkeys((run.backbone, run.fraction) for run in runs):
        mine = [run for run in runs if (run.backbone, run.fraction) == (backbone, fraction)]
        mean: dict[str, float] = {
            key: float(np.mean([getattr(run, key) for run in mine]))
            for key in ("prompts", "votes", "loss", "marginal_loss", "seconds")
        }
        fit = f"{float(by_name[backbone].loss(np.array(mean['votes']))):.4f}" if backbone in by_name else ""
        counts = [f"{fraction:g}", f"{mean['prompts']:.0f}", f"{mean['votes']:.0f}", str(len(mine))]
        losses = [f"{mean['loss']:.4f}", f"{mean['marginal_loss']:.4f}", fit]
        rows.append([backbone, *counts, *losses, f"{mean['seconds']:.0f}"])
    laws = [
        [
            law.backbone,
            f"{law.e:.4f} ({law.e_interval[0]:.4f} to {law.e_interval[1]:.4f})",
            f"{law.a:.4g}",
            f"{law.alpha:.3f} ({law.alpha_interval[0]:.3f} to {law.alpha_interval[1]:.3f})",
            f"{law.residual:.4f}",
            str(law.n),
        ]
        for law in fitted
    ]
    of_laws = ["backbone", "E (95 %)", "A", "α (95 %)", "residual", "runs"]
    return f"{pipe_table(heads, rows)}\n\n{pipe_table(of_laws, laws, left=(0, 1, 3))}"


def draw_scaling(runs: Sequence[Run], fitted: Sequence[Law], path: Path) -> None:
    """Held-out loss over training votes, runs as points and laws as curves."""
    figure = new_figure(figsize=(7, 4.2))
    axes: Any = figure.subplots()
    by_name = {law.backbone: law for law in fitted}
    for i, backbone in enumerate(dict.fromkeys(run.backbone for run in runs)):
        mine = [run for run in runs if run.backbone == backbone]
        colour = f"C{i}"
        axes.scatter([run.votes for run in mine], [run.loss for run in mine], color=colour, label=backbone)
        if backbone in by_name:
            law = by_name[backbone]
            votes = np.geomspace(min(run.votes for run in mine), 4 * max(run.votes for run in mine), 200)
            axes.plot(votes, law.loss(votes), color=colour, label=f"{law.e:.3f} + {law.a:.3g}·N^−{law.alpha:.3f}")
    best = min(runs, key=lambda run: run.marginal_loss)
    axes.axhline(best.marginal_loss, color="grey", linestyle="--", label="marginal leaderboard, all votes")
    axes.set(xscale="log", xlabel="training votes N", ylabel="held-out loss per prompt (nats)", title="Scaling law")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, path)
