"""`p2l refit-head`: fits the head of a bundle anew to votes, on frozen states of the backbone.

The backbone was trained with few passes over the votes. With its states fixed, the head can see the votes many times in
minutes, through the same losses and priors as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnx_export.calibrate import Shift, fit_shift
from onnx_export.edit import write_changed
from onnx_export.head import find_head, load_graph, move_eta, read_states, replace_head
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.tables import replaced_folder
from p2l_plugins.outcomes import Family, has_eta
from p2l_plugins.scoring.bundle import Bundle, Manifest
from p2l_plugins.training.batches import PromptDataset, PromptSampler, VoteCollator
from p2l_plugins.training.categories import find_categories
from p2l_plugins.training.config import TrainConfig
from p2l_plugins.training.evidence import evidence
from p2l_plugins.training.learner import Learner
from p2l_plugins.training.model import P2LNetwork
from p2l_plugins.training.split import Split, load_sources, split
from p2l_plugins.votes.votes import Votes


class _Frozen(nn.Module):
    """In place of the model: the pooled state is looked up, and the head is fitted.

    Args:
        states: (P, H).
        raw_eta: (P,) of the bundle, or None; ties: whether a linear map of the state is fitted beside it.
    """

    def __init__(
        self, family: str, states: Tensor, raw_eta: Tensor | None, weight: Tensor, bias: Tensor, ties: bool
    ) -> None:
        super().__init__()
        self.family = family
        self.eta_weight, self.eta_bias = (
            nn.Parameter(torch.zeros(size), requires_grad=ties) for size in ((states.shape[1],), ())
        )
        self._states, self._raw_eta = states, raw_eta
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self._rows = torch.zeros(0, dtype=torch.int64)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of prompts, whose numbers stand in place of their tokens: (N, 1) → (N, H)."""
        self._rows = input_ids[:, 0]
        return self._states[self._rows]

    def head(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients (N, M) and raw_eta (N,) or None."""
        coefs = state @ self.weight.T + self.bias
        if self._raw_eta is None:
            return coefs, None
        return coefs, self._raw_eta[self._rows] + state @ self.eta_weight + self.eta_bias


def refit_head(
    bundle: Bundle,
    config: TrainConfig,
    data_dir: Path,
    output: Path,
    epochs: int = 15,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    category_prior: float | None = None,
    unseen_prior: float | None = None,
    shrink: bool | None = None,
    ties: bool = False,
    calibrate: bool = False,
    step: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] | None = None,
) -> Bundle:
    """Fits the head to the training part of a configuration's data and writes the bundle with it.

    Args:
        config: names data, aliases, split and priors; it must have trained the bundle, or a split like that one.
        data_dir: folder of the files that it names.
        epochs, batch_size, learning_rate: of Adam; the rate falls linearly to 0. With 0 epochs the rows stay.
        category_prior: least κ of every file, in place of the configuration's `category_prior`; None: as it is.
        unseen_prior: in place of the configuration's; None: as it is.
        shrink: whether rows are moved towards their peers' (`training.evidence`); None: as the configuration has it.
        ties: fit `raw_eta` as well, which changes the ties of all models.
        calibrate: fit the level of all models and their ties anew at the end, without the priors (`calibrate`).
        step: called with a line at the start of each step.
        progress: called with the number of prompts that each run finished.

    Raises:
        ConfigError: the configuration is of another family, `ties` or `calibrate` of one without `raw_eta`, or 0 epochs
            with what needs some.
        DataError: a model of the data that the bundle does not have, or the output folder holds something.
        BundleError: the bundle's head can't be changed.
    """
    manifest = bundle.manifest
    check_same_family(manifest, config)
    if ties and not has_eta(manifest.family):
        raise ConfigError(f"the family {manifest.family!r} has no raw_eta; leave --refit-ties out")
    if calibrate and not has_eta(manifest.family):
        raise ConfigError(f"the family {manifest.family!r} has no raw_eta; leave --calibrate out")
    if not epochs and (ties or shrink or not calibrate):
        raise ConfigError("with --epochs 0 no head is fitted: add --calibrate, and leave --refit-ties and --shrink out")
    parts = parts_of(manifest, config, data_dir)
    votes = parts.training.renamed(manifest.models)
    with replaced_folder(output) as folder:
        graph = load_graph(bundle.folder)
        head = find_head(graph, bundle.folder)
        known_by = evidence(parts.sources, config.family)
        step(f"scoring {len(votes.prompts)} prompts")
        states, _, raw_eta = read_states(bundle, votes.prompts, progress)
        own = config.category_priors
        priors = own if category_prior is None else [max(kappa, category_prior) for kappa in own]
        kappa = config.unseen_prior if unseen_prior is None else unseen_prior
        task = HeadTask(votes, parts.sources, priors, kappa, states, raw_eta, config.family, config.seed)
        if epochs:
            step(f"fitting {head.weight.size + head.bias.size} numbers to {len(votes)} votes")
            fitted = fit_head(task, head.weight, head.bias, epochs, batch_size, learning_rate, ties)
        else:
            nothing = np.zeros(head.weight.shape[1], np.float32)
            fitted = FittedHead(head.weight, head.bias, nothing, 0.0, [])
        weight, bias = fitted.weight, fitted.bias
        shrunk = bool(epochs) and (config.shrink if shrink is None else shrink)
        if shrunk:
            moved = known_by.shrunk(manifest.models, weight.astype(float), bias.astype(float))
            weight, bias = moved[0].astype(np.float32), moved[1].astype(np.float32)
        eta_weight, eta_bias = fitted.eta_weight.astype(float), fitted.eta_bias
        losses: tuple[float, ...] = ()
        if calibrate:
            step("fitting the level and the ties")
            shift = _shift(replace(task, raw_eta=task.raw_eta + states @ eta_weight + eta_bias), parts, weight, bias)
            weight, bias = (weight + shift.weight).astype(np.float32), (bias + shift.bias).astype(np.float32)
            eta_weight, eta_bias, losses = eta_weight + shift.eta_weight, eta_bias + shift.eta_bias, shift.losses
        if ties or calibrate:
            move_eta(graph, head, eta_weight, eta_bias)
        replace_head(graph, head, weight, bias)
        change: dict[str, Any] = {
            "change": "refit-head",
            "prompts": len(votes.prompts),
            "votes": len(votes),
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "category_prior": category_prior,
            "unseen_prior": kappa,
            "shrink": shrunk,
            "ties": ties,
            "calibrated": [round(loss, 6) for loss in losses],
            "loss": [round(loss, 6) for loss in fitted.losses],
        }
        record = known_by.record(shrunk) if epochs else {}
        write_changed(bundle, folder, {"quality": {}}, change, graph, parts.seen_prompts(), training=record)
    return Bundle.open(output)


def _shift(task: HeadTask, parts: Split, weight: NDArray[Any], bias: NDArray[Any]) -> Shift:
    rows = [parts.rows([number]) for number in range(len(parts.sources))]
    sources = [source.renamed(task.votes.models) for source in task.sources]
    states = task.states.astype(float)
    coefs = states @ weight.T.astype(float) + bias
    assert task.raw_eta is not None  # noqa: S101
    return fit_shift(sources, rows, states, coefs, task.raw_eta.astype(float), task.family, task.seed)


def check_same_family(manifest: Manifest, config: TrainConfig) -> None:
    """Raises a ConfigError where a bundle and a configuration are of different families."""
    if config.family != manifest.family:
        raise ConfigError(f"family is {config.family!r}, but the bundle is of the family {manifest.family!r}")


def parts_of(manifest: Manifest, config: TrainConfig, data_dir: Path) -> Split:
    """The votes of a configuration, split as in training.

    Raises:
        DataError: a model that the bundle does not have, or what is wrong with a file.
    """
    parts = split(config, load_sources(config, data_dir))
    known = set(manifest.models)
    unknown = [name for name in parts.training.models if name not in known]
    if unknown:
        raise DataError(f"model {unknown[0]!r} of the data is not in the bundle; add it with p2l add-model first")
    return parts


@dataclass(frozen=True)
class HeadTask:
    """What a head is fitted to.

    Attributes:
        votes: on P prompts, over the bundle's models; sources: the same by file, in this order.
        priors: κ of the categories of each file; unseen_prior: that of models that a file lacks.
        states: (P, H); raw_eta: (P,) or None, as the bundle gives them.
        family, seed: of the training.
    """

    votes: Votes
    sources: Sequence[Votes]
    priors: Sequence[float]
    unseen_prior: float
    states: NDArray[np.float32]
    raw_eta: NDArray[np.float32] | None
    family: Family
    seed: int


@dataclass(frozen=True)
class FittedHead:
    """A head that was fitted.

    Attributes:
        weight: (M, H); bias: (M,).
        eta_weight: (H,), and eta_bias: what `raw_eta` got beside its own; zeros where it stays.
        losses: mean of each epoch.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    eta_weight: NDArray[np.float32]
    eta_bias: float
    losses: list[float]


def fit_head(
    task: HeadTask,
    weight: NDArray[Any],
    bias: NDArray[Any],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    ties: bool = False,
) -> FittedHead:
    """A head fitted from the weight (M, H) and bias (M,) given; with `ties`, `raw_eta` too.

    Raises:
        DataError: the fit does not end in finite numbers.
    """
    votes = task.votes
    categories = find_categories(task.sources, task.priors, votes.models, task.family)
    frozen = _Frozen(
        task.family,
        torch.from_numpy(task.states),
        None if task.raw_eta is None else torch.from_numpy(task.raw_eta),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(bias.astype(np.float32)),
        ties,
    )
    learner = Learner(cast(P2LNetwork, frozen), categories, unseen_prior=task.unseen_prior).train()
    dataset = PromptDataset(votes, [[i] for i in range(len(votes.prompts))], categories.of_prompt)
    sampler = PromptSampler([1] * len(votes.prompts), batch_size, task.seed)
    with _one_thread():
        losses = _fit(learner, dataset, sampler, VoteCollator(votes, 0), epochs, learning_rate)
    found = [one.detach().numpy() for one in (frozen.weight, frozen.bias, frozen.eta_weight, frozen.eta_bias)]
    if not all(np.isfinite(part).all() for part in found):
        raise DataError("the fitted head is not of finite numbers; lower --learning-rate")
    return FittedHead(found[0], found[1], found[2], float(found[3]), losses)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's operations are small here: threads would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    learner: Learner, dataset: PromptDataset, sampler: PromptSampler, collate: VoteCollator, epochs: int, rate: float
) -> list[float]:
    """Mean training loss of each epoch."""
    size = min(sampler.batch_size, len(dataset))
    steps = epochs * (len(sampler) // size)
    optimizer = torch.optim.Adam([one for one in learner.parameters() if one.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / steps))
    means = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order, losses = list(sampler), []
        for first in range(0, len(order), size):
            loss = learner(**collate([dataset[i] for i in order[first : first + size]]))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return means
