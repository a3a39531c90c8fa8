"""What the Trainer trains: the P2L model with its losses, its optimiser and its starting point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from p2l_plugins.errors import ConfigError
from p2l_plugins.outcomes import Array, has_eta
from p2l_plugins.training.backbone import Backbone
from p2l_plugins.training.batches import PromptDataset, PromptSampler, VoteCollator
from p2l_plugins.training.categories import Categories
from p2l_plugins.training.config import TrainConfig
from p2l_plugins.training.losses import vote_losses
from p2l_plugins.training.marginal import align, fit_marginal
from p2l_plugins.training.model import P2LNetwork
from p2l_plugins.votes.votes import Votes


class NotANumber(Exception):
    """The loss is not a number."""

    def __init__(self) -> None:
        super().__init__("the training loss is not a number; lower the learning rates or look at the data")


class Learner(nn.Module):
    """The P2L model and the loss of a batch.

    Beside the votes, three terms use the categories of the training prompts, which inference does not need:

    - `category_prior`: ½ κ · (mean over models of (Δβ(z) − Δβ_c)² + (raw_eta(z) − raw_eta_c)²), with Δβ the
      coefficients less their mean over the file's models, and Δβ_c, raw_eta_c those of the category's leaderboard: a
      normal prior on how the models of a prompt differ and tie. One prompt's votes are noisy, and routing chooses among
      models that are close. What all models share (how hard a prompt is) stays free.
    - `unseen_prior`: the same for the models that the prompt's file lacks, towards their place on the files' common
      scale; else nothing would hold their coefficients on such prompts.
    - `category_weight`: weight of the cross-entropy of a linear classifier on the pooled state, which is thrown away.

    `consistency` κ adds ½ κ · (mean over models of (Δβ(z) − Δβ(z'))² + (raw_eta(z) − raw_eta(z'))²) for prompts that
    come with a varied form z', Δβ as above over all models: what a greeting or a typo changes is held down.

    Args:
        p2l: the model.
        categories: of the training prompts, with κ; None turns all three off.
        weight: `category_weight`.
        unseen_prior: its κ.
        consistency: its κ.
    """

    def __init__(
        self,
        p2l: P2LNetwork,
        categories: Categories | None = None,
        weight: float = 0.0,
        unseen_prior: float = 0.0,
        consistency: float = 0.0,
    ) -> None:
        super().__init__()
        self.consistency = consistency
        self.p2l = p2l
        self.weight = weight
        self.unseen_prior = unseen_prior if categories is not None and categories.unseen.any() else 0.0
        self.classifier = None
        if categories is not None and weight:
            self.classifier = nn.Linear(p2l.head.in_features, len(categories.names))
        self.has_prior = categories is not None and bool(categories.prior.any())
        if categories is not None:
            self.register_buffer("prior", torch.from_numpy(categories.prior).float(), persistent=False)
            self.register_buffer("raw_eta", torch.from_numpy(categories.raw_eta).float(), persistent=False)
            known = torch.from_numpy(categories.known).float()
            self.register_buffer("known", known, persistent=False)
            self.register_buffer("unseen", torch.from_numpy(categories.unseen).float(), persistent=False)
            table = torch.from_numpy(np.where(categories.unseen, categories.unseen_coefs, categories.coefs)).float()
            self.register_buffer("centre", _centred(table, known), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vote_prompt: Tensor,
        vote_a: Tensor,
        vote_b: Tensor,
        vote_outcome: Tensor,
        vote_weight: Tensor,
        category: Tensor,
        varied_ids: Tensor | None = None,
        varied_mask: Tensor | None = None,
        varied_rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch: one forward pass per prompt, all its votes at once.

        Args:
            input_ids, attention_mask: (N, L).
            vote_prompt: (V,) row of each vote's prompt; vote_a, vote_b, vote_outcome, vote_weight: (V,).
            category: (N,) index of each prompt's category.
            varied_ids, varied_mask: (R, L'), varied forms of the prompts in the rows `varied_rows` (R,); or None.

        Returns:
            `loss`: weighted sum over votes of −log P, per prompt; in training with the terms on categories.
        """
        state = self.p2l.pooled(input_ids, attention_mask)
        coefs, raw_eta = self.p2l.head(state)
        losses = vote_losses(
            self.p2l.family,
            coefs[vote_prompt, vote_a],
            coefs[vote_prompt, vote_b],
            vote_outcome,
            None if raw_eta is None else raw_eta[vote_prompt],
        )
        loss = (losses * vote_weight).sum() / len(input_ids)
        if self.training and self.classifier is not None:
            logits = self.classifier(state.to(self.classifier.weight.dtype)).float()
            loss = loss + self.weight * cross_entropy(logits, category)
        if self.training and (self.has_prior or self.unseen_prior):
            known = cast(Tensor, self.known)[category]
            off = (_centred(coefs.float(), known) - cast(Tensor, self.centre)[category]).square()
            distance = (off * known).sum(dim=1) / known.sum(dim=1)
            if raw_eta is not None:
                distance = distance + (raw_eta.float() - cast(Tensor, self.raw_eta)[category]).square()
            distance = distance * cast(Tensor, self.prior)[category]
            if self.unseen_prior:
                unseen = cast(Tensor, self.unseen)[category]
                distance = distance + self.unseen_prior * (off * unseen).sum(dim=1) / unseen.sum(dim=1).clamp(min=1)
            total = torch.zeros_like(distance).index_add(0, vote_prompt, vote_weight)  # as much as the prompt's votes
            loss = loss + 0.5 * (total * distance).mean()
        if self.training and self.consistency and varied_ids is not None:
            rows = cast(Tensor, varied_rows)
            other, other_eta = self.p2l.head(self.p2l.pooled(varied_ids, cast(Tensor, varied_mask)))
            off = (coefs[rows] - other).float()
            moved = (off - off.mean(dim=1, keepdim=True)).square().mean(dim=1)
            if raw_eta is not None:
                moved = moved + (raw_eta[rows] - cast(Tensor, other_eta)).float().square()
            loss = loss + 0.5 * self.consistency * moved.mean()
        return {"loss": loss}


def _centred(coefs: Tensor, known: Tensor) -> Tensor:
    """Coefficients (N, M) less their mean over the known models (N, M)."""
    return coefs - (coefs * known).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True)


class VoteTrainer(Trainer):
    """transformers' Trainer over prompts with votes."""

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        train_dataset: PromptDataset,
        eval_dataset: PromptDataset | None,
        pad_id: int,
        times: Array | None,
        optimizers: tuple[torch.optim.Optimizer, None],
        varied_share: float = 1.0,
    ) -> None:
        self._pad_id, self._times, self._varied_share = pad_id, times, varied_share
        super().__init__(
            model=learner, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, optimizers=optimizers
        )
        self.remove_callback(ProgressCallback)
        self.add_callback(_Progress())

    def _get_train_sampler(self, train_dataset: object = None) -> PromptSampler:
        args = self.args
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        data = cast(PromptDataset, self.train_dataset)
        return PromptSampler([len(i) for i in data.ids], size, args.seed, self._times, len(data.forms))

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        self.data_collator = VoteCollator(dataset.votes, self._pad_id, self._varied_share)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of an evaluation batch, so that the mean over the batches is the loss per prompt with votes."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**self._prepare_inputs(inputs))["loss"]
        dataset = cast(PromptDataset, self.eval_dataset)
        return loss.detach() * len(dataset) / len(dataset.ids), None, None


class _Progress(ProgressCallback):
    """The progress bar with the loss in it, on stderr; stops at a loss that is not a number."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise NotANumber
        if self.training_bar is not None and logs:
            shown = {"loss": logs.get("loss"), "held out": logs.get("eval_loss")}
            self.training_bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items() if value is not None})


def optimizer(learner: Learner, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; the heads learn faster, and biases and norms are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            head = not name.startswith("p2l.model.")
            groups.setdefault((head, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.head_learning_rate if head else config.learning_rate,
                "weight_decay": (config.head_weight_decay if head else config.weight_decay) if decayed else 0.0,
            }
            for (head, decayed), parameters in groups.items()
        ]
    )


def start_head(
    start: Backbone, sources: Sequence[Votes], models: Sequence[str], config: TrainConfig
) -> tuple[P2LNetwork, tuple[str, ...]]:
    """The model with its head at the starting point, and the names of its rows.

    Without a checkpoint, the weights are zero and the biases the marginal leaderboards of the sources. A checkpoint
    keeps its rows; a model that it does not know starts at their mean, at the level that the votes give it beside the
    models that both know.

    Raises:
        ConfigError: the checkpoint is of another family.
    """
    names, coefs, raw_eta = _marginal(sources, models, config)
    previous = start.checkpoint
    if previous is None:
        model = P2LNetwork(start.model, len(names), config.family, start.pooling, config.head_rank)
        hidden = model.head.in_features
        model.head.start(torch.zeros(len(names), hidden), torch.from_numpy(coefs).float())
        if model.head.eta_head is not None and raw_eta is not None:
            nn.init.zeros_(model.head.eta_head.weight)
            nn.init.constant_(model.head.eta_head.bias, raw_eta)
        return model, tuple(names)
    if previous.model.family != config.family:
        raise ConfigError(
            f"family is {config.family!r}, but the checkpoint {config.backbone!r} was trained with "
            f"{previous.model.family!r}; training on needs the same"
        )
    old = previous.model.head
    new = [name for name in names if name not in previous.models]
    rows = (*previous.models, *new)
    model = P2LNetwork(start.model, len(rows), config.family, start.pooling, config.head_rank)
    shared = [name for name in names if name in previous.models]
    level = old.head.bias[[previous.models.index(n) for n in shared]] if shared else old.head.bias
    offset = float(level.mean()) - float(np.mean([coefs[names.index(n)] for n in shared]) if shared else coefs.mean())
    bias = torch.tensor([coefs[names.index(name)] + offset for name in new], dtype=torch.float32)
    weight = old.head.weight.detach()
    model.head.start(
        torch.cat([weight, weight.mean(dim=0).expand(len(new), -1)]), torch.cat([old.head.bias.detach(), bias])
    )
    if has_eta(config.family):
        model.head.eta_head = old.eta_head
    return model, rows


def _marginal(
    sources: Sequence[Votes], models: Sequence[str], config: TrainConfig
) -> tuple[list[str], Array, float | None]:
    """The models, their coefficients (M,) and raw_eta: the marginal leaderboards of the sources.

    A model of several sources, and raw_eta, get the mean over their prompts; with `unseen_prior`, sources that share
    models are put on one scale by `align` first. One leaderboard fitted to all sources at once would have to explain
    every source's ties with a single raw_eta, and bend the coefficients for it.
    """
    names = list(models)
    parts = [part for part in sources if len(part)]
    fits = [fit_marginal(part, config.family) for part in parts]
    columns = [np.array([names.index(name) for name in part.models]) for part in parts]
    sizes = [float(len(part.prompts)) for part in parts]
    if config.unseen_prior:
        coefs, _ = align(columns, [beta for beta, _ in fits], sizes)
    else:
        total, count = np.zeros(len(names)), np.zeros(len(names))
        for column, (beta, _), size in zip(columns, fits, sizes, strict=True):
            total[column] += size * beta
            count[column] += size
        coefs = total / np.maximum(count, 1)
    eta = float(np.average([raw_eta or 0.0 for _, raw_eta in fits], weights=sizes))
    return names, coefs, eta if has_eta(config.family) else None
