"""Batches of distinct prompts, each with all its votes: one forward pass per prompt, however many votes it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import pad
from p2l_plugins.votes.votes import Votes

#: Batches that are sorted by length together: similar lengths share a batch, and the order stays random.
SORTED_TOGETHER = 50


class PromptDataset(Dataset[dict[str, Any]]):
    """One item per distinct prompt: its token ids, its category and the slice of its votes.

    Args:
        votes: grouped by prompt; ids: token ids of each prompt; categories: (P,) index of each prompt's category.
        others: token ids of other forms of the prompts; item `i + k · P` is prompt i in its form k.
        varied: token ids of each prompt as other users write it, which the model is to score alike; empty: none.
        multiple: the length is filled up to a multiple of this with items without votes, so that every process of an
            evaluation gets the same number of full batches.
    """

    def __init__(
        self,
        votes: Votes,
        ids: Sequence[Sequence[int]],
        categories: NDArray[np.int64] | None = None,
        multiple: int = 1,
        others: Sequence[Sequence[Sequence[int]]] = (),
        varied: Sequence[Sequence[int]] = (),
    ) -> None:
        self.votes, self.ids, self.varied = votes, ids, varied
        self.forms = (ids, *others)
        self.length = -(-len(ids) // multiple) * multiple
        self.categories = np.zeros(len(ids), np.int64) if categories is None else categories
        self.bounds = np.searchsorted(votes.prompt, np.arange(len(votes.prompts) + 1))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= len(self.ids) * len(self.forms):
            return {"input_ids": self.ids[-1], "varied": None, "category": 0, "votes": slice(0, 0)}
        form, i = divmod(i, len(self.ids))
        return {
            "input_ids": self.forms[form][i],
            "varied": self.varied[i] if self.varied else None,
            "category": int(self.categories[i]),
            "votes": slice(int(self.bounds[i]), int(self.bounds[i + 1])),
        }


class VoteCollator:
    """Items → tensors: prompts padded on the right, and the flat list of their votes.

    Args:
        votes: of the dataset; pad_id: token that fills.
        varied_share: share of a batch's prompts that come in their varied form as well, where they have one.
    """

    def __init__(self, votes: Votes, pad_id: int, varied_share: float = 1.0) -> None:
        self.votes, self.pad_id, self.varied_share = votes, pad_id, varied_share

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of some items."""
        ids, mask = pad([item["input_ids"] for item in items], self.pad_id)
        v = self.votes
        rows = np.concatenate([np.full(i["votes"].stop - i["votes"].start, n) for n, i in enumerate(items)])
        take = np.concatenate([np.arange(i["votes"].start, i["votes"].stop) for i in items])
        return self._varied(items) | {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "vote_prompt": torch.from_numpy(rows),
            "vote_a": torch.from_numpy(v.a[take]),
            "vote_b": torch.from_numpy(v.b[take]),
            "vote_outcome": torch.from_numpy(v.outcome[take]),
            "vote_weight": torch.from_numpy(v.weight[take].astype(np.float32)),
            "category": torch.tensor([item["category"] for item in items]),
        }

    def _varied(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The varied forms of a share of the items, spread evenly, and the rows of these."""
        share = self.varied_share
        rows = [n for n, item in enumerate(items) if ceil((n + 1) * share) > ceil(n * share) and item["varied"]]
        if not rows:
            return {}
        ids, mask = pad([items[n]["varied"] for n in rows], self.pad_id)
        return {
            "varied_ids": torch.from_numpy(ids),
            "varied_mask": torch.from_numpy(mask),
            "varied_rows": torch.tensor(rows),
        }


class PromptSampler(Sampler[int]):
    """The order of the prompts; it depends on the seed and the epoch alone, so that a resumed run repeats it.

    Args:
        lengths: tokens of each prompt.
        batch_size: prompts of one optimizer step. What does not fill a last batch is left out of an epoch, other
            prompts each time, so that every step weighs the same on any number of processes.
        seed: of the order.
        times: (P,) time of each prompt; given, the order is by time, oldest first, and not shuffled.
        forms: of each prompt; epoch e takes form e modulo this.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, times: Array | None = None, forms: int = 1
    ) -> None:
        super().__init__()
        self.lengths, self.batch_size, self.seed, self.times = np.asarray(lengths), batch_size, seed, times
        self.forms = forms
        self.epoch = 0

    def __len__(self) -> int:
        n = len(self.lengths)
        return n if n < self.batch_size else n - n % self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first = (self.epoch % self.forms) * len(self.lengths)
        if self.times is not None:
            return iter((first + np.argsort(self.times, kind="stable")[: len(self)]).tolist())
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))[: len(self)]
        size = self.batch_size
        step = size * SORTED_TOGETHER
        parts = [order[start : start + step] for start in range(0, len(order), step)]
        ordered = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return iter((first + np.concatenate([batches[i] for i in rng.permutation(len(batches))])).tolist())
