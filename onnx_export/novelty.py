"""`p2l fit-novelty`: how far a prompt lies from the training shrinks its own part towards an overall board.

With s the pooled state (H,), d(s) its distance to the nearest of K centres of the training states in whitened
directions, and w = σ(slope · (level − d)), the bundle then gives

    coefs = board + w · (W s + b − board),

inside the graph, so that every service agrees: the head reads [w · s, w], its rows are [W, b − board] and its bias is
the board. Level and slope are fitted on files that are left out one at a time: the head is fitted to the others, and
the votes of the one left out say how far to trust it there. The board is the mean over files of the mean coefficients
that the head gives on each (every file counts as one kind of prompt, however many prompts it has). `raw_eta` stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_export.edit import write_changed
from onnx_export.head import Head, find_head, load_graph, read_states, replace_head
from onnx_export.refit import HeadTask, check_same_family, fit_head, parts_of
from p2l_plugins.errors import BundleError, DataError
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Array, Family, negative_log_likelihood
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import TrainConfig
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.split import Split
from p2l_plugins.votes.votes import Votes, merge

DIRECTIONS = 32
CENTRES = 256
ROUNDS = 15
#: Of the heads that are fitted without a file, from nothing.
BATCH, LEARNING_RATE = 256, 3e-3
#: Prompts of a file that is left out whose votes are looked at.
MOST_PROMPTS = 400
LEVELS = np.linspace(0.0, 3.0, 25)
SLOPES = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
#: Name of the values in the graph.
STATE, WEIGHT = "novelty_state", "novelty_weight"
#: Largest error of the written graph against the formula, relative to the largest coefficient (1 at least).
LIMIT = 1e-3


@dataclass(frozen=True)
class Map:
    """Distances of states to the training's.

    Attributes:
        mean: (H,); directions: (H, r), whitening; centres: (K, r).
        unit: median distance of training states to their nearest centre; distances are in this unit.
    """

    mean: Array
    directions: Array
    centres: Array
    unit: float

    @classmethod
    def of(cls, states: Array, seed: int = 0) -> Map:
        """The map of training states (P, H): principal directions, and centres by k-means."""
        mean = states.mean(axis=0)
        _, scale, axes = np.linalg.svd(states - mean, full_matrices=False)
        kept = min(DIRECTIONS, int((scale > 1e-6 * scale[0]).sum()))
        directions = axes[:kept].T / (scale[:kept] / np.sqrt(len(states)))
        points = (states - mean) @ directions
        centres = _k_means(points, min(CENTRES, max(1, len(points) // 8)), seed)
        unit = float(np.median(_nearest(points, centres)))
        return cls(mean, directions, centres, unit or 1.0)

    def distance(self, states: Array) -> Array:
        """(N,) in units."""
        nearest: Array = _nearest((states - self.mean) @ self.directions, self.centres) / self.unit
        return nearest


def _nearest(points: Array, centres: Array) -> Array:
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    nearest: Array = np.sqrt(np.maximum(squares.min(axis=1), 0.0))
    return nearest


def _k_means(points: Array, k: int, seed: int) -> Array:
    centres = points[np.random.default_rng(seed).choice(len(points), k, replace=False)]
    for _ in range(ROUNDS):
        own = np.argmin((centres**2).sum(axis=1) - 2 * points @ centres.T, axis=1)
        count = np.bincount(own, minlength=k)
        total = np.zeros_like(centres)
        np.add.at(total, own, points)
        centres = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centres)
    return centres


@dataclass(frozen=True)
class Fold:
    """A group of files that was left out, or the files that the head has seen.

    Attributes:
        votes: of some of its prompts, of models that the others know; distance: (N,).
        own, board: coefficients (N, M) and (M,); raw_eta: (N,) or None.
    """

    name: str
    family: Family
    votes: Votes
    distance: Array
    own: Array
    board: Array
    raw_eta: Array | None

    def loss(self, weight: Array) -> Array:
        """(N,) mean −log P of each prompt's votes where its own part counts `weight` (N,)."""
        votes = self.votes
        coefs = self.board + weight[:, None] * (self.own - self.board)
        eta = None if self.raw_eta is None else self.raw_eta[votes.prompt]
        a, b = coefs[votes.prompt, votes.a], coefs[votes.prompt, votes.b]
        losses = negative_log_likelihood(self.family, a, b, votes.outcome, eta)
        total = np.bincount(votes.prompt, votes.weight * losses, minlength=len(coefs))
        each: Array = total / np.maximum(np.bincount(votes.prompt, votes.weight, minlength=len(coefs)), 1e-12)
        return each


def share(distance: Array, level: float, slope: float) -> Array:
    """w (N,) of distances."""
    weight: Array = 1 / (1 + np.exp(np.clip(-slope * (level - distance), -60, 60)))
    return weight


def choose(folds: Sequence[Fold]) -> tuple[float, float, dict[str, dict[str, float]]]:
    """Level and slope with the least mean loss over folds, each counting once, and the losses of each fold."""
    best = (np.inf, 0.0, 0.0)
    for level in LEVELS:
        for slope in SLOPES:
            loss = float(np.mean([fold.loss(share(fold.distance, level, slope)).mean() for fold in folds]))
            best = min(best, (loss, float(level), float(slope)))
    _, level, slope = best
    figures = {}
    for fold in folds:
        weight = share(fold.distance, level, slope)
        figures[fold.name] = {
            "prompts": len(fold.distance),
            "distance": round(float(np.median(fold.distance)), 4),
            "share": round(float(weight.mean()), 4),
            "board": round(float(fold.loss(np.zeros(len(weight))).mean()), 6),
            "own": round(float(fold.loss(np.ones(len(weight))).mean()), 6),
            "shrunk": round(float(fold.loss(weight).mean()), 6),
        }
    return level, slope, figures


def groups(parts: Split, names: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the sources by kind: those that share prompts belong together."""
    owner: dict[Any, int] = {}
    root = list(range(len(parts.sources)))
    for number, source in enumerate(parts.sources):
        for turns in source.prompts:
            first = owner.setdefault(turns, number)
            if root[first] != root[number]:
                old, new = root[number], root[first]
                root = [new if r == old else r for r in root]
    found: dict[str, list[int]] = {}
    for number, r in enumerate(root):
        if parts.sources[number].prompts:
            found.setdefault(names[r], []).append(number)
    return found


def fit_novelty(
    bundle: Bundle,
    config: TrainConfig,
    data_dir: Path,
    output: Path,
    epochs: int = 4,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> Bundle:
    """Writes the bundle with the shrinkage in its graph.

    Args:
        config: of the bundle's training: data, aliases, split and priors.
        data_dir: folder of the files that it names.
        epochs: of each head that is fitted without a file.
        step: called with a line at the start of each step; progress: with the number of prompts that each run finished.

    Raises:
        ConfigError: the configuration is of another family.
        DataError: fewer than three kinds of files, a model that the bundle lacks, or the output folder holds something.
        BundleError: the bundle's head can't be changed, or has the shrinkage already.
    """
    manifest = bundle.manifest
    check_same_family(manifest, config)
    parts = parts_of(manifest, config, data_dir)
    kinds = groups(parts, [source.label for source in config.data])
    if len(kinds) < 3:
        raise DataError(f"the data has {len(kinds)} kinds of prompts, but a novelty is fitted to three at least")
    with replaced_folder(output) as folder:
        graph = load_graph(bundle.folder)
        if any(tensor.name == f"{STATE}_mean" for tensor in graph.graph.initializer):
            raise BundleError(f"{bundle.folder}: its graph has the shrinkage already; take the bundle before it")
        head = find_head(graph, bundle.folder)
        step(f"scoring {len(parts.training.prompts)} prompts")
        states, coefs, raw_eta = read_states(bundle, parts.training.prompts, progress)
        fitted = _Fitted(bundle, config, parts, kinds, states.astype(float), raw_eta, epochs)
        folds = [fitted.seen(coefs.astype(float))]
        for name in kinds:
            step(f"fitting the head without {name}")
            folds.append(fitted.without(name))
        folds = [
            fold for fold in folds if len(fold.votes)
        ]  # of a kind whose models no other file has, nothing is known
        level, slope, figures = choose(folds)
        board, found = folds[0].board, fitted.map
        add_to_graph(graph, head, found, board, level, slope)
        change: dict[str, Any] = {
            "change": "fit-novelty",
            "level": level,
            "slope": slope,
            "centres": len(found.centres),
            "directions": found.directions.shape[1],
            "left_out": figures,
        }
        step("checking the new bundle")
        new = write_changed(bundle, folder, {"quality": {}}, change, graph, parts.seen_prompts())
        some = np.arange(min(64, len(states)))
        weight = share(found.distance(states[some].astype(float)), level, slope)[:, None]
        _check(new, parts, some, board + weight * (coefs[some] - board))
    return Bundle.open(output)


@dataclass(frozen=True)
class _Fitted:
    """What the folds share."""

    bundle: Bundle
    config: TrainConfig
    parts: Split
    kinds: dict[str, list[int]]
    states: Array
    raw_eta: Any
    epochs: int

    @cached_property
    def map(self) -> Map:
        """Of all training states."""
        return Map.of(self.states)

    @cached_property
    def votes(self) -> Votes:
        """All training votes, over the bundle's models."""
        return self.parts.training.renamed(self.bundle.manifest.models)

    def _board(self, coefs: Array, without: str | None = None) -> Array:
        """(M,) mean over kinds of the mean over their prompts."""
        each = [coefs[self.parts.rows(numbers)].mean(axis=0) for name, numbers in self.kinds.items() if name != without]
        board: Array = np.mean(each, axis=0)
        return board

    def seen(self, coefs: Array) -> Fold:
        """What the whole head gives on a sample of each kind."""
        rng = np.random.default_rng(1)
        rows = np.concatenate(
            [rng.permutation(self.parts.rows(numbers))[: MOST_PROMPTS // 4] for numbers in self.kinds.values()]
        )
        known = np.ones(len(self.bundle.manifest.models), np.bool_)
        distance = self.map.distance(self.states)
        return self._fold("all of them seen", np.sort(rows), coefs, self._board(coefs), distance, known)

    def without(self, name: str) -> Fold:
        """What a head gives on a kind of prompts that neither it nor the centres have seen."""
        models = self.bundle.manifest.models
        others = [n for kind, numbers in self.kinds.items() if kind != name for n in numbers]
        rows = self.parts.rows(others)
        sources = [self.parts.sources[n] for n in others]
        task = HeadTask(
            votes=merge(sources, [self.config.data[n].prompt_weight for n in others]).renamed(models),
            sources=sources,
            priors=[self.config.category_priors[n] for n in others],
            unseen_prior=self.config.unseen_prior,
            states=self.states[rows].astype(np.float32),
            raw_eta=None if self.raw_eta is None else self.raw_eta[rows],
            family=self.config.family,
            seed=self.config.seed,
        )
        task.votes.weight[:] *= len(task.votes.prompts) / task.votes.weight.sum()
        marginal, _ = fit_marginal(task.votes, task.family)
        nothing = np.zeros((len(models), self.states.shape[1]), np.float32)
        fitted = fit_head(task, nothing, marginal, self.epochs, BATCH, LEARNING_RATE)
        coefs = self.states @ fitted.weight.T.astype(float) + fitted.bias
        known = np.zeros(len(models), np.bool_)
        known[np.unique(np.concatenate([task.votes.a, task.votes.b]))] = True
        distance = Map.of(self.states[rows]).distance(self.states)
        sample = np.random.default_rng(1).permutation(self.parts.rows(self.kinds[name]))[:MOST_PROMPTS]
        return self._fold(name, np.sort(sample), coefs, self._board(coefs, name), distance, known)

    def _fold(self, name: str, rows: Any, coefs: Array, board: Array, distance: Array, known: Any) -> Fold:
        keep = np.zeros(len(self.votes.prompts), np.bool_)
        keep[rows] = True
        votes = self.votes.select(keep)
        votes = votes.take(known[votes.a] & known[votes.b])
        eta = None if self.raw_eta is None else np.asarray(self.raw_eta, float)[rows]
        return Fold(name, self.bundle.manifest.family, votes, distance[rows], coefs[rows], board, eta)


def add_to_graph(model: onnx.ModelProto, head: Head, found: Map, board: Array, level: float, slope: float) -> None:
    """Puts the shrinkage between the pooled state and the head, in place."""
    add = _Nodes(model)
    points = add(
        "MatMul", add("Sub", head.state, add.constant("mean", found.mean)), add.constant("axes", found.directions)
    )
    cross = add("MatMul", points, add.constant("centres", -2 * found.centres.T))
    squares = add("Add", cross, add.constant("squares", (found.centres**2).sum(axis=1)))
    axis = add.constant("axis", np.array([1]), np.int64)
    nearest = add("ReduceMin", squares, axis, keepdims=1)
    total = add("Add", nearest, add("ReduceSum", add("Mul", points, points), axis, keepdims=1))
    distance = add("Sqrt", add("Max", total, add.constant("zero", np.array(0.0))))
    steps = add(
        "Mul",
        add("Sub", add.constant("level", np.array(level * found.unit)), distance),
        add.constant("slope", np.array(slope / found.unit)),
    )
    weight = add("Sigmoid", steps, output=WEIGHT)
    state = add("Concat", add("Mul", head.state, weight), weight, output=STATE, axis=1)
    new = np.concatenate([head.weight, (head.bias - board)[:, None]], axis=1)
    replace_head(model, head, new, board)
    for node in model.graph.node:
        if head.weight_name in node.input:
            node.input[list(node.input).index(head.state)] = state
    add.place(head.weight_name)


class _Nodes:
    """Adds operators and constants to a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._nodes: list[onnx.NodeProto] = []

    def __call__(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"novelty_{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """A constant of the graph, by its name."""
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), f"{STATE}_{name}"))
        return f"{STATE}_{name}"

    def place(self, before: str) -> None:
        """Puts the operators before the one that reads an initializer."""
        nodes = list(self._graph.node)
        at = next(i for i, node in enumerate(nodes) if before in node.input)
        del self._graph.node[:]
        self._graph.node.extend([*nodes[:at], *self._nodes, *nodes[at:]])


def _check(new: Bundle, parts: Split, rows: Any, expected: Array) -> None:
    found = P2L(new).score_turns([parts.training.prompts[i] for i in rows]).coefs
    error = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not error <= LIMIT:
        raise BundleError(f"the new graph computes the shrunk coefficients with an error of {error:.3g}")
