"""A bundle with a model more, with some fewer, or with another name: always a new folder with a new fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_export.head import find_head, load_graph, read_states, replace_head
from onnx_export.new_model import Row, Task, choose_strength, fit_new_model
from onnx_export.new_votes import votes_of
from onnx_export.sample import SAMPLE
from p2l_plugins.errors import BundleError, ConfigError, DataError
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.bundle import GRAPH, PAST_VOTES, Bundle, Manifest, reach, sha256
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts
from p2l_plugins.similar import hint
from p2l_plugins.votes.votes import Votes, held_out

#: Largest error of the new column against its own formula, relative to the largest coefficient (1 at least).
COLUMN_LIMIT, REDUCED_COLUMN_LIMIT = 1e-5, 1e-2
#: Largest change of the other columns; ONNX Runtime gives 0 on every machine tried, but does not promise it.
UNCHANGED_LIMIT = 1e-6


def add_model(
    bundle: Bundle,
    votes: Votes,
    name: str,
    output: Path,
    aliases: Mapping[str, str] | None = None,
    fraction: float = 0.2,
    seed: int = 0,
    drop_ties: bool = False,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Fits the row of a new model to its votes and writes the bundle with it, everything else unchanged.

    Args:
        votes: read with the bundle's aliases and `aliases`; those that do not involve `name` are ignored.
        aliases: further names of models → names in the new bundle; they are added to the manifest.
        fraction: share of the prompts held out of the fit, by text and `seed` as in training; 0 holds out none.
        drop_ties: leave out ties, for a bundle of the family `bt`.
        step: called with a line at the start of each step.
        progress: called with the number of prompts that each run finished.

    Returns:
        The new bundle and the figures that its manifest lists under `training.changes`.

    Raises:
        ConfigError: a name or alias that is taken or empty, or a fraction outside [0, 1).
        DataError: no vote that can be used, or the output folder holds something; nothing is written then.
        BundleError: the bundle's head can't be changed.
    """
    manifest = bundle.manifest
    if not 0 <= fraction < 1:
        raise ConfigError(f"held-out is {fraction:g}, but must be at least 0 and below 1")
    check_new_name(name, manifest)
    extra = dict(aliases or {})
    for alias, target in extra.items():
        check_alias(alias, target, name, manifest)
    mine, counts = votes_of(votes, name, manifest.models, manifest.family, drop_ties)
    out = held_out(mine.prompts, fraction, seed)
    if out.all():
        raise DataError(f"all {len(out)} prompts with votes on {name!r} are held out; lower --held-out")
    with replaced_folder(output) as folder:
        model = load_graph(bundle.folder)
        head = find_head(model, bundle.folder)
        step(f"scoring {len(mine.prompts)} prompts")
        states, coefs, raw_eta = read_states(bundle, mine.prompts, progress)
        task = Task.of(manifest.family, mine, states, coefs, raw_eta)
        training = task.select(~out)
        step(f"fitting {head.weight.shape[1] + 1} numbers to {len(training.prompt)} votes")
        strength, losses = choose_strength(training, head.weight, head.bias, seed)
        rows = fit_new_model(training, head.weight, head.bias, strength)
        opponents = [manifest.models[i] for i in np.unique(mine.b)]
        figures = {
            "change": "add-model",
            "model": name,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(counts).items()},
            "opponents": len(opponents),
            "fit_votes": len(training.prompt),
            "fit_prompts": len(training.features),
            "strength": strength,
            "cross_validated_log_loss": {f"{s:g}": round(loss, 6) for s, loss in losses.items()},
            "held_out": held_out_figures(task.select(out), rows) if out.any() else None,
        }
        weight = np.concatenate([head.weight, rows[0].weight[None].astype(head.weight.dtype)])
        bias = np.append(head.bias, np.asarray(rows[0].bias, head.bias.dtype))
        replace_head(model, head, weight, bias)
        # a grounded opponent grounds the new model too: its coefficient is frozen, so every vote is against a level
        apart = manifest.family == "grk" and set(opponents) <= set(manifest.ungrounded)
        step("checking the new bundle")
        new = write_changed(
            bundle,
            folder,
            {
                "models": (*manifest.models, name),
                "aliases": manifest.aliases | extra,
                "ungrounded": (*manifest.ungrounded, name) if apart else manifest.ungrounded,
            },
            figures,
            model,
            [turns for turns, held in zip(mine.prompts, out, strict=True) if not held],
        )
        stored = Row(weight[-1].astype(np.float64), float(bias[-1]))
        verify(bundle, new, np.arange(len(manifest.models)), stored)
    return Bundle.open(output), figures


def remove_models(bundle: Bundle, names: Sequence[str], output: Path) -> Bundle:
    """Writes the bundle without some of its models, and without the aliases to them.

    Raises:
        ConfigError: a name that is not a model of the bundle, or nothing would be left.
        DataError: the output folder holds something.
        BundleError: the bundle's head can't be changed.
    """
    manifest = bundle.manifest
    for name in names:
        _check_model(name, manifest)
    keep = [i for i, name in enumerate(manifest.models) if name not in names]
    if not names or not keep:
        raise ConfigError("name at least one model, and leave at least one in the bundle")
    with replaced_folder(output) as folder:
        model = load_graph(bundle.folder)
        head = find_head(model, bundle.folder)
        replace_head(model, head, head.weight[keep], head.bias[keep])
        new = write_changed(
            bundle,
            folder,
            {
                "models": tuple(manifest.models[i] for i in keep),
                "aliases": {alias: target for alias, target in manifest.aliases.items() if target not in names},
                "ungrounded": tuple(name for name in manifest.ungrounded if name not in names),
            },
            {"change": "remove-model", "models": list(dict.fromkeys(names))},
            model,
        )
        verify(bundle, new, np.array(keep))
    return Bundle.open(output)


def rename_model(bundle: Bundle, old: str, new: str, output: Path, keep_alias: bool = True) -> Bundle:
    """Writes the bundle with another name for a model; the old one becomes an alias unless `keep_alias` is false.

    Raises:
        ConfigError: `old` is not a model of the bundle, or `new` is taken or empty.
        DataError: the output folder holds something.
    """
    manifest = bundle.manifest
    _check_model(old, manifest)
    own = {alias: target for alias, target in manifest.aliases.items() if not (alias == new and target == old)}
    check_new_name(new, manifest.model_copy(update={"aliases": own}))
    aliases = {alias: new if target == old else target for alias, target in own.items()}
    with replaced_folder(output) as folder:
        write_changed(
            bundle,
            folder,
            {
                "models": tuple(new if name == old else name for name in manifest.models),
                "aliases": aliases | ({old: new} if keep_alias else {}),
                "ungrounded": tuple(new if name == old else name for name in manifest.ungrounded),
            },
            {"change": "rename-model", "model": old, "to": new},
        )
    return Bundle.open(output)


def mark_training(bundle: Bundle, prompts: Sequence[Turns], split: Mapping[str, Any], output: Path) -> Bundle:
    """Writes the bundle with hashes of the prompts that it was trained on; its scores and fingerprint stay.

    Args:
        prompts: those that it has seen.
        split: `held_out` and `seed` of its training.

    Raises:
        DataError: the output folder holds something.
    """
    manifest = bundle.manifest
    with replaced_folder(output) as folder:
        for name in manifest.files:
            shutil.copyfile(bundle.folder / name, folder / name)
        TrainingPrompts.of(prompts).write(folder / TRAINING_PROMPTS)
        files = {**manifest.files, TRAINING_PROMPTS: sha256(folder / TRAINING_PROMPTS)}
        training = {**manifest.training, "split": dict(split)}
        manifest.model_copy(update={"files": files, "training": training}).write(folder)
    return Bundle.open(output)


def held_out_figures(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """Log loss of held-out votes for the three rows of `fit_new_model`, and the gain of the first over the second.

    The gain's standard error is that of a ratio over prompts, whose votes are not independent.
    """
    loss = np.stack([task.prompt_losses(row.coefs(task.features)) for row in rows])
    weight = np.bincount(task.prompt, task.weight, minlength=len(task.features)).astype(np.float64)
    means = loss.sum(axis=1) / weight.sum()
    gain, error = paired_gain(loss[1], loss[0], weight)
    names = ("fitted", "level_only", "mean_row")
    return {
        "prompts": len(task.features),
        "votes": len(task.prompt),
        "log_loss": {name: round(float(mean), 6) for name, mean in zip(names, means, strict=True)},
        "gain": round(gain, 6),
        "gain_stderr": None if error is None else round(error, 6),
    }


def paired_gain(first: Array, second: Array, weight: Array) -> tuple[float, float | None]:
    """Σ(first − second)/Σweight over prompts (P,), and its standard error (None for a single prompt)."""
    difference, total, n = first - second, float(weight.sum()), len(weight)
    gain = float(difference.sum()) / total
    if n < 2:
        return gain, None
    residual = difference - gain * weight
    return gain, float(np.sqrt(n / (n - 1) * (residual**2).sum())) / total


def write_changed(
    bundle: Bundle,
    folder: Path,
    update: dict[str, Any],
    change: dict[str, Any],
    model: onnx.ModelProto | None = None,
    seen: Sequence[Turns] = (),
    past: bytes | None = None,
) -> Bundle:
    """The bundle's files in `folder`, with another manifest and, where given, another graph.

    Args:
        update: fields of the manifest that change.
        change: what is noted of it under `training.changes`.
        seen: prompts that the change was fitted to; they count as training prompts where the bundle has these.
        past: what is kept of the votes that it was fitted to; None: as before.
    """
    manifest = bundle.manifest
    files = dict(manifest.files)
    for name in files:
        if name == GRAPH and model is not None:
            (folder / GRAPH).write_bytes(model.SerializeToString())
            files[GRAPH] = sha256(folder / GRAPH)
        else:
            shutil.copyfile(bundle.folder / name, folder / name)
    if bundle.training_prompts is not None and len(seen):
        bundle.training_prompts.with_prompts(seen).write(folder / TRAINING_PROMPTS)
        files[TRAINING_PROMPTS] = sha256(folder / TRAINING_PROMPTS)
    if past is not None:
        (folder / PAST_VOTES).write_bytes(past)
        files[PAST_VOTES] = sha256(folder / PAST_VOTES)
    changes = [*manifest.training.get("changes", []), change]
    training = {**manifest.training, "changes": changes}
    changed = manifest.model_copy(update={**update, "files": files, "training": training})
    changed.write(folder)
    if model is not None:
        scores = P2L(Bundle.open(folder)).score_turns(_tried())
        changed.model_copy(update={"gate": manifest.gate | reach(scores.coefs, scores.raw_eta)}).write(folder)
    return Bundle.open(folder)


def _tried() -> Sequence[Turns]:
    return [turns for turns in SAMPLE if len(turns) == 1][:24]


def verify(
    old: Bundle,
    new: Bundle,
    kept: NDArray[np.int64],
    added: Row | None = None,
    line: tuple[float, float] = (1.0, 0.0),
) -> None:
    """Scores some prompts with both bundles: kept columns must not change, and the last one must be its formula.

    Args:
        line: slope and shift by which raw_eta was changed.

    Raises:
        BundleError: something else changed.
    """
    prompts = _tried()
    before, after = P2L(old).score_turns(prompts), P2L(new).score_turns(prompts)
    scale = max(1.0, float(np.abs(before.coefs).max()))
    change = float(np.abs(after.coefs[:, : len(kept)] - before.coefs[:, kept]).max())
    if before.raw_eta is not None and after.raw_eta is not None:
        change = max(change, float(np.abs(after.raw_eta - (line[0] * before.raw_eta + line[1])).max()))
    if not change <= UNCHANGED_LIMIT * scale:
        raise BundleError(f"the new graph changes coefficients of other models by {change:.3g}, so it was not written")
    if added is not None:
        limit = COLUMN_LIMIT if new.manifest.precision in ("fp32", "int8") else REDUCED_COLUMN_LIMIT
        expected = added.coefs(read_states(new, prompts)[0])
        error = float(np.abs(after.coefs[:, -1] - expected).max())
        if not error <= limit * max(scale, float(np.abs(expected).max())):
            raise BundleError(f"the new graph computes the new model's coefficient with an error of {error:.3g}")


def check_new_name(name: str, manifest: Manifest) -> None:
    """Raises a ConfigError where a name is taken or empty."""
    if not name.strip() or name != name.strip():
        raise ConfigError(f"{name!r} is not a name: it is empty or has white space around it")
    if name in manifest.models:
        raise ConfigError(f"the bundle already has a model {name!r}; remove or rename it first")
    if name in manifest.aliases:
        raise ConfigError(f"{name!r} is an alias of {manifest.aliases[name]!r} in the bundle; choose another name")


def check_alias(alias: str, target: str, name: str, manifest: Manifest) -> None:
    """Raises a ConfigError where an alias is taken, or its target is neither `name` nor a model of the bundle."""
    if target != name and target not in manifest.models:
        raise ConfigError(
            f"alias {alias}={target}: {target!r} is neither the new model nor one of the bundle; "
            f"{hint(target, manifest.models)}"
        )
    if alias == name or alias in manifest.models:
        raise ConfigError(f"alias {alias}={target}: {alias!r} is the name of a model itself")
    if manifest.aliases.get(alias, target) != target:
        raise ConfigError(f"alias {alias}={target}: the bundle has it as an alias of {manifest.aliases[alias]!r}")


def _check_model(name: str, manifest: Manifest) -> None:
    if name in manifest.aliases and name not in manifest.models:
        raise ConfigError(f"{name!r} is an alias; the model's name is {manifest.aliases[name]!r}")
    if name not in manifest.models:
        raise ConfigError(f"model {name!r} is not in the bundle; {hint(name, manifest.models, 'it has')}")
