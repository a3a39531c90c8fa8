"""A model from published results alone: a table of accuracies by category, and prompts of these categories. No torch.

The row is fitted so that the mean of P(usable) = σ(β(z)) over a category's prompts meets its accuracy within the error
of its n questions, under the prior that the head's rows give: w ~ N(mean row, Σ) and a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnx_export.edit import check_new_name, write_changed
from onnx_export.head import find_head, load_graph, read_states, replace_head
from onnx_export.new_model import FINE, Row, row_prior
from onnx_export.verify import verify
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.prompts import label, read_prompts
from p2l_plugins.files.rows import missing_column, read_rows
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array, Ids, sigmoid
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.support import Support
from p2l_plugins.votes.support import level_error

#: Questions behind an accuracy whose number is not given.
QUESTIONS = 300.0
#: Standard deviation of an accuracy beside that of its questions: the prompts at hand are not those of the publication.
OTHER_PROMPTS = 0.02


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy, 0 to 1, and the number of questions behind it."""

    category: str
    accuracy: float
    n: float = QUESTIONS

    @property
    def stderr(self) -> float:
        """Of the accuracy, with half a question more on either side, so that 0 and 1 have one too."""
        p = (self.accuracy * self.n + 0.5) / (self.n + 1)
        return float(np.sqrt(p * (1 - p) / self.n + OTHER_PROMPTS**2))


def read_accuracies(path: Path) -> list[Accuracy]:
    """A table with the columns `category`, `accuracy` and optionally `n`, in any format that rows are read from.

    Raises:
        DataError: a row that is no accuracy, or a category twice.
    """
    found: dict[str, Accuracy] = {}
    for place, row in read_rows(path, need=["category"]):
        if "accuracy" not in row:
            raise missing_column(path, "accuracy", list(row))
        name = label(row["category"])
        accuracy, n = _number(row["accuracy"]), _number(row.get("n", QUESTIONS))
        if name is None or accuracy is None or not 0 <= accuracy <= 1 or n is None or n < 1:
            raise DataError(
                f"{place}: category {row['category']!r}, accuracy {row['accuracy']!r}, n {row.get('n')!r}: valid are a "
                "name, a number from 0 to 1 and a number of at least 1"
            )
        if name in found:
            raise DataError(f"{place}: the category {name!r} is there twice")
        found[name] = Accuracy(name, accuracy, n)
    if not found:
        raise DataError(f"{path}: the table is empty")
    return list(found.values())


def read_categories(path: Path) -> tuple[list[Turns], list[str | None]]:
    """Prompts and their categories.

    Raises:
        DataError: no column `category`.
    """
    prompts, columns = read_prompts(path)
    if "category" not in columns:
        raise missing_column(path, "category", ["prompt", *columns])
    return [as_turns(prompt) for prompt in prompts], [label(value) for value in columns["category"]]


def fit_accuracies(
    features: ArrayLike,
    category: Ids,
    published: Sequence[Accuracy],
    rows: NDArray[np.floating],
    bias: NDArray[np.floating],
    strength: float = 1.0,
) -> Row:
    """The posterior mode of a row.

    Args:
        features: (P, H) states; category: (P,) index into `published`.
        rows, bias: (M, H), (M,) of the head.
        strength: of the prior; 0: the mean row with a level of its own.
    """
    from scipy.optimize import minimize

    states = np.asarray(features, np.float64)
    prior = row_prior(rows, bias, states.mean(axis=0))
    x, base = prior.whitened(states), (states - prior.centre) @ prior.mean
    target = np.array([a.accuracy for a in published])
    precision = np.array([1 / a.stderr**2 for a in published])
    count = np.maximum(np.bincount(category, minlength=len(published)), 1)

    def value(theta: Array) -> tuple[float, Array]:
        u, offset = theta[:-1], theta[-1]
        p = sigmoid(base + prior.level + prior.level_deviation * offset + np.sqrt(strength) * (x @ u))
        miss = np.bincount(category, p, minlength=len(published)) / count - target
        slope = (precision * miss / count)[category] * p * (1 - p)
        gradient = np.append(np.sqrt(strength) * (slope @ x) + u, prior.level_deviation * slope.sum() + offset)
        return 0.5 * float(precision @ miss**2 + theta @ theta), gradient

    options = {"maxiter": 500, "ftol": FINE, "gtol": 1e-8}
    theta = minimize(value, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
    weight = prior.mean + prior.weight(np.sqrt(strength) * theta[:-1])
    level = prior.level + prior.level_deviation * theta[-1]
    return Row(weight, float(level - weight @ prior.centre))


def add_from_accuracies(
    bundle: Bundle,
    published: Sequence[Accuracy],
    prompts: Sequence[Turns],
    categories: Sequence[str | None],
    name: str,
    output: Path,
    bundle_name: str | None = None,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Writes the bundle with a model more, whose row meets published accuracies.

    Args:
        prompts, categories: (P,); prompts of categories that the table lacks are left out.
        name: of the new model; bundle_name: of the new bundle, None: as before.

    Returns:
        The new bundle and the figures that its manifest lists under `training.changes`.

    Raises:
        ConfigError: the bundle's coefficients do not say whether an answer is usable, or the name is taken.
        DataError: a category of the table without a prompt.
    """
    manifest = bundle.manifest
    if manifest.family != "grk":
        raise ConfigError(f"accuracies need a bundle of the family grk, which knows P(usable); it is {manifest.family}")
    check_new_name(name, manifest)
    position = {a.category: i for i, a in enumerate(published)}
    kept = [i for i, category in enumerate(categories) if category in position]
    index = np.array([position[str(categories[i])] for i in kept], np.int64)
    counts = np.bincount(index, minlength=len(published))
    for accuracy, count in zip(published, counts, strict=True):
        if not count:
            names = sorted({c for c in categories if c is not None})
            raise DataError(
                f"no prompt is of the category {accuracy.category!r}; the prompts are of {', '.join(names) or 'none'}"
            )
    with replaced_folder(output) as folder:
        model = load_graph(bundle.folder)
        head = find_head(model, bundle.folder)
        step(f"scoring {len(kept)} prompts")
        states, _, _ = read_states(bundle, [prompts[i] for i in kept], progress)
        step(f"fitting {head.weight.shape[1] + 1} numbers to {len(published)} accuracies")
        row = fit_accuracies(states, index, published, head.weight, head.bias)
        fitted = np.bincount(index, sigmoid(row.coefs(states)), minlength=len(published)) / counts
        figures: dict[str, Any] = {
            "change": "add-from-accuracies",
            "model": name,
            "prompts": len(kept),
            "table": {
                a.category: {"prompts": int(c), "accuracy": a.accuracy, "n": a.n, "fitted": round(float(f), 6)}
                for a, c, f in zip(published, counts, fitted, strict=True)
            },
        }
        weight = np.concatenate([head.weight, row.weight[None].astype(head.weight.dtype)])
        bias = np.append(head.bias, np.asarray(row.bias, head.bias.dtype))
        replace_head(model, head, weight, bias)
        step("checking the new bundle")
        update = {"name": bundle_name or manifest.name, "models": (*manifest.models, name)}
        new = write_changed(bundle, folder, update, figures, model, votes={name: _support(len(kept), published)})
        verify(bundle, new, np.arange(len(manifest.models)), Row(weight[-1].astype(np.float64), float(bias[-1])))
    return Bundle.open(output), figures


def _support(prompts: int, published: Sequence[Accuracy]) -> Support:
    """What accuracies tell: each as much as so many questions of its own prompts would."""
    votes = sum(0.25 / (0.25 / a.n + OTHER_PROMPTS**2) for a in published)
    return Support(prompts, 1, len(published), votes, level_error(votes))


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if np.isfinite(number) else None
