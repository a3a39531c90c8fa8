"""Votes per second of a training step: one forward pass per distinct prompt against one per vote, at equal loss.

    python benchmarks/grouped.py --data FOLDER [--file llmrouter_scores.parquet] [--prompts 32] [--repeats 3]

Both forms take the same votes and weights through forward and backward; the loss and the gradient must agree.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from p2l_plugins.training.backbone import load_backbone
from p2l_plugins.training.batches import PromptDataset, VoteCollator
from p2l_plugins.training.checkpoint import text_encoder
from p2l_plugins.training.learner import Learner
from p2l_plugins.training.model import P2LNetwork
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes


def per_vote(votes: Votes) -> Votes:
    """The same votes, each with a prompt of its own."""
    take = votes.prompt
    return replace(
        votes,
        prompts=[votes.prompts[i] for i in take],
        groups=[votes.groups[i] for i in take],
        prompt=np.arange(len(votes)),
        scores=None,
        times=None,
    )


def step(
    learner: Learner, dataset: PromptDataset, collate: VoteCollator, rows: int, scale: float
) -> tuple[float, float]:
    """Seconds and loss of one pass over a data set, `rows` items at a time, with gradients."""
    learner.zero_grad()
    started, total = time.perf_counter(), 0.0
    for first in range(0, len(dataset), rows):
        items = [dataset[i] for i in range(first, min(first + rows, len(dataset)))]
        loss = learner(**collate(items))["loss"] * len(items) / scale
        loss.backward()
        total += loss.item()
    return time.perf_counter() - started, total


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--file", default="llmrouter_scores.parquet")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rows", type=int, default=32, help="items of one forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    votes = read_votes(options.data / options.file)
    keep = np.zeros(len(votes.prompts), np.bool_)
    keep[np.random.default_rng(0).permutation(len(keep))[: options.prompts]] = True
    votes = votes.select(keep)
    start = load_backbone(options.backbone, 256)
    encoder = text_encoder(start.tokenizer, start.form)
    torch.manual_seed(0)
    learner = Learner(P2LNetwork(start.model, len(votes.models), "grk", start.pooling)).train()
    forms = {}
    for name, form in (("one per prompt", votes), ("one per vote", per_vote(votes))):
        forms[name] = (PromptDataset(form, encoder.encode(form.prompts)), VoteCollator(form, start.form.pad_id))
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    losses, gradients = {}, {}
    for _ in range(options.repeats):
        for name, (dataset, collate) in forms.items():
            took, losses[name] = step(learner, dataset, collate, options.rows, len(votes))
            seconds[name].append(took)
            gradients[name] = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    first, second = losses.values()
    assert abs(first - second) < 1e-5 * abs(first), losses
    a, b = gradients.values()
    assert float((a - b).norm() / a.norm()) < 1e-4
    print(f"{options.file}: {len(votes.prompts)} prompts, {len(votes)} votes; {platform.machine()},")
    print(f"{torch.get_num_threads()} threads; loss {first:.6f} and {second:.6f}\n")
    print("| forward passes | seconds per pass over the votes | votes per second |\n|:---|---:|---:|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, took in medians.items():
        print(f"| {name} | {took:.2f} | {len(votes) / took:,.0f} |")
    grouped, single = medians.values()
    print(f"\nratio: {single / grouped:.1f}")


if __name__ == "__main__":
    main()
