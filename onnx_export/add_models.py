"""Several models more in a bundle, their rows fitted together; what was there stays as it is. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_export.edit import check_alias, check_new_name, judged_on, paired_gain, write_changed
from onnx_export.head import find_head, load_graph, read_states, replace_head, scale_eta
from onnx_export.joint import JointProblem, JointRows, JointTask, Known, Strength
from onnx_export.new_model import Row
from onnx_export.new_votes import moved, places, ties_in
from onnx_export.shrinkage import COMMON, DIFFER, Folds, within
from onnx_export.verify import verify
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array, Mask
from p2l_plugins.scoring.bundle import Bundle, Manifest
from p2l_plugins.similar import hint
from p2l_plugins.votes.support import support
from p2l_plugins.votes.votes import Votes, ungrounded


@dataclass(frozen=True)
class Additions:
    """The votes with new models.

    Attributes:
        votes: over the new models and the known ones that they met.
        new: how many of the models are new; they come first.
        left_out: votes without any of them, or with models that neither side knows; ties: left out of a bt bundle.
    """

    votes: Votes
    new: int
    left_out: int
    ties: int

    @property
    def frozen(self) -> Mask:
        """(M,) the known models."""
        return np.arange(len(self.votes.models)) >= self.new


def additions(votes: Votes, names: Sequence[str], manifest: Manifest) -> Additions:
    """Votes with one of `names` at least, and otherwise models of the bundle.

    Raises:
        DataError: a model without a vote that can be used.
    """
    known = [name for name in votes.models if name in manifest.models and name not in names]
    models = [*names, *known]
    index = places(votes, models)
    a, b = index[votes.a], index[votes.b]
    keep = (a >= 0) & (b >= 0) & (np.minimum(a, b) < len(names))
    ties = ties_in(votes, keep, manifest.family)
    chosen = moved(votes, models, index, keep & ~ties)
    met = np.bincount(np.concatenate([chosen.a, chosen.b]), minlength=len(models)) > 0
    for name, has in zip(names, met, strict=False):
        if not has:
            raise DataError(
                f"no vote is on {name!r} with another new model or a model of the bundle; "
                f"{hint(name, votes.models, 'the votes are on')}"
            )
    return Additions(chosen, len(names), int((~keep).sum()), int(ties.sum()))


def add_models(
    bundle: Bundle,
    votes: Votes,
    names: Sequence[str],
    output: Path,
    bundle_name: str | None = None,
    aliases: Mapping[str, str] | None = None,
    fraction: float = 0.2,
    seed: int = 0,
    ties: bool = False,
    force: bool = False,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Fits the rows of new models together and writes the bundle with them.

    Args:
        votes: read with the bundle's aliases and `aliases`; no vote with a model of the bundle is needed.
        bundle_name: name of the new bundle; None: as before.
        fraction: share of the prompts held out of the fit, to judge it on.
        ties: fit raw_eta too, which changes the ties of all models.
        force: write also what loses on held-out votes.

    Returns:
        The new bundle and the figures that its manifest lists under `training.changes`.

    Raises:
        ConfigError: a name or alias that is taken, or a fraction outside [0, 1).
        DataError: a model without votes; or the fit loses to the constant or to one leaderboard on held-out votes by
            more than a standard error, without `force`. Nothing is written then.
    """
    manifest = bundle.manifest
    for name in names:
        check_new_name(name, manifest)
    if len(set(names)) < len(names):
        raise ConfigError(f"--model names a model twice: {', '.join(names)}")
    for alias, target in (aliases or {}).items():
        check_alias(alias, target, target if target in names else names[0], manifest)
    mine = additions(votes, names, manifest)
    out = judged_on(mine.votes.prompts, fraction, seed, ", ".join(names))
    with replaced_folder(output) as folder:
        model = load_graph(bundle.folder)
        head = find_head(model, bundle.folder)
        step(f"scoring {len(mine.votes.prompts)} prompts")
        states, _, raw_eta = read_states(bundle, mine.votes.prompts, progress)
        task = JointTask.of(manifest.family, mine.votes, states, raw_eta)
        index = [manifest.models.index(name) if name in manifest.models else -1 for name in mine.votes.models]
        known = Known.of(head.weight, head.bias, np.array(index, np.int64))
        step(f"fitting {len(names)} rows to {len(task.prompt)} votes")
        rows, strength = _fit(task.select(~out), known, mine, ties, seed)
        figures: dict[str, Any] = {
            "change": "add-models",
            "models": list(names),
            "votes": len(mine.votes),
            "prompts": len(mine.votes.prompts),
            "known_opponents": list(mine.votes.models[mine.new :]),
            "left_out": mine.left_out,
            "ties": mine.ties,
            "strength": {"differ": strength.differ, "common": strength.common},
            "raw_eta": {"slope": round(rows.slope, 6), "shift": round(rows.shift, 6)} if ties else None,
            "held_out": _judged(task.select(out), mine.votes, out, rows) if out.any() else None,
        }
        _refuse(figures["held_out"], force)
        weight = np.concatenate([head.weight, rows.weight[: mine.new].astype(head.weight.dtype)])
        bias = np.concatenate([head.bias, rows.bias[: mine.new].astype(head.bias.dtype)])
        replace_head(model, head, weight, bias)
        if rows.slope != 1.0 or rows.shift:
            scale_eta(model, rows.slope, rows.shift)
        step("checking the new bundle")
        anchored = any(name not in manifest.ungrounded for name in mine.votes.models[mine.new :])
        loose = [] if anchored else [m for m in ungrounded([mine.votes], manifest.family) if m in names]
        update = {
            "name": bundle_name or manifest.name,
            "models": (*manifest.models, *names),
            "aliases": {**manifest.aliases, **(aliases or {})},
            "ungrounded": (*manifest.ungrounded, *loose),
        }
        found = support([mine.votes.select(~out)])
        new = write_changed(bundle, folder, update, figures, model, votes={name: found[name] for name in names})
        last = Row(weight[-1].astype(np.float64), float(bias[-1]))
        verify(bundle, new, np.arange(len(manifest.models)), last, (rows.slope, rows.shift))
    return Bundle.open(output), figures


def _fit(task: JointTask, known: Known, mine: Additions, ties: bool, seed: int) -> tuple[JointRows, Strength]:
    """The rows at the strength of the lowest cross-validated log loss (common: the least within a standard error)."""
    n = len(task.features)
    if n < 4:
        strength = Strength(False, 0.0, COMMON[0])
        return JointProblem(task, known, mine.frozen, ties).solve(strength)[0], strength
    folds = Folds(task, known, np.random.default_rng(seed).permutation(n) % min(5, n // 2), None, mine.frozen, ties)

    def loss(strength: Strength) -> Array:
        coefs, raw_eta = folds.fit(strength)
        lost = task.weight * task.losses(coefs, raw_eta)[0]
        return np.bincount(task.prompt, lost, minlength=n).astype(np.float64)

    levels = {common: loss(Strength(False, 0.0, common)) for common in COMMON}
    lowest = min(levels.values(), key=lambda x: float(x.sum()))
    common = next(s for s, x in levels.items() if within(x - lowest))
    tried = {Strength(False, 0.0, common): levels[common]}
    tried |= {strength: loss(strength) for strength in (Strength(False, s, common) for s in DIFFER)}
    strength = min(tried, key=lambda s: float(tried[s].sum()))
    return JointProblem(task, known, mine.frozen, ties).solve(strength)[0], strength


def _judged(task: JointTask, votes: Votes, out: Mask, rows: JointRows) -> dict[str, Any]:
    """Log loss of held-out votes beside the constant and one leaderboard of the other votes."""
    test, rest = votes.select(out), votes.select(~out)
    plain = fit_forecasts(Parts.of(test.groups, rest.groups), rest, task.family)
    chance = plain.constant[0][task.outcome]
    if task.family == "bt-tie":
        chance = np.full(len(task.outcome), np.log(0.5))
    losses = {
        "fitted": task.losses(rows.coefs(task.features), rows.raw_eta(task.raw_eta))[0],
        "marginal": task.losses(*plain.marginal)[0],
        "constant": -chance,
    }
    by_prompt = {
        name: np.bincount(task.prompt, task.weight * x, minlength=len(task.features)).astype(np.float64)
        for name, x in losses.items()
    }
    weight = np.bincount(task.prompt, task.weight, minlength=len(task.features)).astype(np.float64)
    figures: dict[str, Any] = {
        "prompts": len(task.features),
        "votes": len(test),
        "log_loss": {name: round(float(x.sum() / weight.sum()), 6) for name, x in by_prompt.items()},
    }
    for name in ("marginal", "constant"):
        gain, error = paired_gain(by_prompt[name], by_prompt["fitted"], weight)
        figures[f"over_{name}"] = [round(gain, 6), None if error is None else round(error, 6)]
    return figures


def _refuse(held: dict[str, Any] | None, force: bool) -> None:
    for name in ("constant", "marginal") if held is not None and not force else ():
        gain, error = held[f"over_{name}"]  # type: ignore[index]
        if error is not None and gain < -error:
            raise DataError(
                f"on {held['votes']} held-out votes the new rows lose to the {name} forecast by {-gain:.4f} ± "  # type: ignore[index]
                f"{error:.4f} in log loss, so nothing was written; add votes, or write it with --force"
            )
