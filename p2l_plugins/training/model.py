"""The P2L model in torch: a backbone, a pooled hidden state, a linear head."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p2l_plugins.outcomes import Family, has_eta

Pooling = Literal["cls", "mean"]
ENCODERS = ("bert", "modernbert", "roberta", "xlm-roberta", "distilbert", "deberta-v2")


class Head(nn.Module):
    """Linear maps from a pooled state (N, H) to coefficients (N, M) and, for `rk` and `grk`, raw_eta (N,).

    Args:
        hidden: H; n_models: M; with_eta: whether there is a second output.
        rank: None, or r: the map to coefficients goes through r numbers, `β = B A h + b` with A (r, H) and B (M, r), so
            that models differ along r directions only. Checkpoints hold the product, in the published form.
    """

    def __init__(self, hidden: int, n_models: int, with_eta: bool, rank: int | None = None) -> None:
        super().__init__()
        self.in_features = hidden
        self.factor = None if rank is None else nn.Linear(hidden, rank, bias=False)
        self.head = nn.Linear(rank or hidden, n_models)
        self.eta_head = nn.Linear(hidden, 1) if with_eta else None

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients (N, M) and raw_eta (N,) or None."""
        state = state.to(self.head.weight.dtype)
        inner = state if self.factor is None else self.factor(state)
        return self.head(inner), None if self.eta_head is None else self.eta_head(state)[:, 0]

    def merged(self) -> Head:
        """The same map with one matrix."""
        if self.factor is None:
            return self
        full = Head(self.in_features, self.head.out_features, self.eta_head is not None)
        full.head.weight = nn.Parameter(self.head.weight.detach() @ self.factor.weight.detach())
        full.head.bias, full.eta_head = self.head.bias, self.eta_head
        return full

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Sets the map to `weight` (M, H), in the low-rank form its best approximation, and `bias` (M,)."""
        with torch.no_grad():
            self.head.bias.copy_(bias)
            if self.factor is None:
                self.head.weight.copy_(weight)
                return
            rank = self.factor.out_features
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            kept = int((s[:rank] > 0).sum())
            # a direction that the start does not use stays random on one side and zero on the other: it can learn
            self.head.weight.zero_()
            self.head.weight[:, :kept].copy_(u[:, :kept] * s[:kept].sqrt())
            self.factor.weight[:kept].copy_(s[:kept].sqrt()[:, None] * v[:kept])


class P2LNetwork(nn.Module):
    """Backbone and head.

    Args:
        backbone: a transformers model without a language-model head.
        n_models: M.
        family: outcome model of the loss.
        pooling: `cls`: the state at the CLS token, which is the last real one for decoders (the published form) and the
            first one for encoders; `mean`: the mean over real tokens (encoders).
        head_rank: see `Head`.
    """

    def __init__(
        self, backbone: nn.Module, n_models: int, family: Family, pooling: Pooling, head_rank: int | None = None
    ) -> None:
        super().__init__()
        self.model = backbone
        self.family = family
        self.pooling = pooling
        config = cast(Any, backbone.config)
        self._is_encoder = config.model_type in ENCODERS
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]  # unused, and its parameters would get no gradient
        self.head = Head(config.hidden_size, n_models, has_eta(family), head_rank)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The pooled state (N, H); inputs (N, L), padded on the right."""
        options = {} if self._is_encoder else {"use_cache": False}
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        if self.pooling == "mean":
            mask = attention_mask[..., None].to(states.dtype)
            return cast(Tensor, (states * mask).sum(dim=1) / mask.sum(dim=1))
        if self._is_encoder:
            return cast(Tensor, states[:, 0])
        # lengths come from the mask: the pad token can occur in a prompt
        last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return torch.gather(states, 1, last)[:, 0]

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients (N, M) and raw_eta (N,) or None."""
        return cast("tuple[Tensor, Tensor | None]", self.head(self.pooled(input_ids, attention_mask)))
