"""The picture at the end of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2l_plugins.files.figures import new_figure, save_figure


def draw_learning_curve(report: dict[str, Any], path: Path) -> None:
    """Loss per prompt over the steps: on training batches, and on the prompts that are not trained on."""
    figure = new_figure(figsize=(7, 4.2))
    axes = figure.subplots()
    log = report["log"]
    trained = [(row["step"], row["loss"]) for row in log if "loss" in row]
    watched = [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row]
    if trained:
        axes.plot(*zip(*trained, strict=True), color="tab:blue", alpha=0.35, label="training batches")
    if watched:
        side = report["held_out"]
        name = f"{side['side'].replace('_', ' ')} (n = {side['prompts']} prompts)"
        axes.plot(*zip(*watched, strict=True), color="tab:orange", marker="o", label=name)
        axes.axhline(side["marginal_loss"], color="grey", linestyle="--", label="marginal leaderboard")
    axes.set(xlabel="step", ylabel="loss per prompt (nats)", title=report["name"])
    axes.grid(alpha=0.3)
    if trained or watched:
        axes.legend()
    save_figure(figure, path)
