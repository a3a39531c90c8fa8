"""The prompts to ask, each once: of a file or of LiteLLM's logs; all, or a sample of as many kinds as there are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.outcomes import Array, Ids
from p2l_plugins.prompts import Turns, as_turns, canonical_bytes
from p2l_plugins.votes.litellm_logs import logged_turns
from p2l_plugins.votes.tally import Skip, Tally
from p2l_plugins.votes.values import clean_label, decoded

#: Prompts that a sample is drawn from, at most: scoring takes milliseconds each.
MOST_SCORED = 20_000

_ROUNDS = 10  # of k-means; the clusters need not be the best ones


@dataclass(frozen=True)
class Question:
    """A prompt to ask.

    Attributes:
        turns: of the user.
        category, language: carried over to the votes.
        reference: what answers are checked against, or what a judge is shown.
        row: of the file, for a check of one's own.
    """

    turns: Turns
    category: str | None = None
    language: str | None = None
    reference: Any = None
    row: Row = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        """What a model is sent, as one message: not every provider takes several of a user."""
        return "\n\n".join(self.turns)


def read_questions(path: Path, reference: str | None) -> list[Question]:
    """The prompts of a file, each once, with the column of references where one is named.

    Raises:
        DataError: as `read_prompts`, or there is no such column.
    """
    prompts, columns = read_prompts(path)
    if reference is not None and reference not in columns:
        raise DataError(f"{path}: column {reference!r} is missing; the file has {', '.join(map(repr, columns))}")
    found: dict[Turns, Question] = {}
    for i, prompt in enumerate(prompts):
        row = {name: column[i] for name, column in columns.items()}
        category, language = clean_label(row.get("category")), clean_label(row.get("language"))
        turns = as_turns(prompt)
        found.setdefault(turns, Question(turns, category, language, row.get(reference or ""), row))
    return list(found.values())


def read_logs(path: Path, tally: Tally) -> list[Question]:
    """The prompts of LiteLLM's logged chats, each once.

    Rules that drop a row: "failed-request", "not-a-chat", "has-tools", "not-text", and those of an importer of logs.

    Raises:
        DataError: a row that can't be read, unless the tally drops them, or no prompt is left.
    """
    found: dict[Turns, Question] = {}
    for place, row in tally.read(path):
        try:
            turns = _chat_of(row)
        except BadRow as error:
            tally.bad(place, error)
            continue
        if turns in found:
            tally.drop("repeated-prompt")
        found.setdefault(turns, Question(turns))
    if not found:
        raise DataError(f"{path}: the log holds no prompt to ask; dropped: {tally.dropped_text()}")
    return list(found.values())


def _chat_of(row: Row) -> Turns:
    if row.get("status") == "failure":
        raise Skip("failed-request")
    call = row.get("call_type")
    if isinstance(call, str) and call and not any(kind in call for kind in ("completion", "messages", "responses")):
        raise Skip("not-a-chat")
    parameters = decoded(row.get("model_parameters"))
    if isinstance(parameters, Mapping) and parameters.get("tools"):
        raise Skip("has-tools")
    messages = decoded(row.get("messages"))
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and "text" not in str(part.get("type", "text")):
                raise Skip("not-text")
    return logged_turns(row)


def in_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions in an order that depends on their texts and the seed: a budget cuts off a random part."""
    salt = seed.to_bytes(8, "little", signed=True)
    return sorted(
        questions, key=lambda one: hashlib.blake2b(canonical_bytes(one.turns), digest_size=8, salt=salt).digest()
    )


def sample(points: Array, count: int, rng: np.random.Generator) -> Ids:
    """Which of N prompts a sample of many kinds has: clusters by k-means++, and of each its share, at least one.

    Args:
        points: (N, D) a vector of each prompt.
        count: of the sample.
        rng: of the centres and of the draw from each cluster.

    Returns:
        Indices, in their order; all where there are no more than `count`.
    """
    n = len(points)
    if n <= count:
        return np.arange(n)
    label = clusters(points, max(1, count // 3), rng)
    members = [rng.permutation(np.flatnonzero(label == c)) for c in np.unique(label)]
    share = np.array([len(own) * count / n for own in members])
    number = np.maximum(np.floor(share), 1).astype(int)
    while number.sum() < count:  # the largest remainders; a cluster has as many as it has at most
        room = np.array([len(own) for own in members]) > number
        number[int(np.where(room, share - number, -np.inf).argmax())] += 1
    while number.sum() > count:
        number[int(np.where(number > 1, number - share, -np.inf).argmax())] -= 1
    drawn: Ids = np.sort(np.concatenate([own[:m] for own, m in zip(members, number, strict=True)]))
    return drawn


def clusters(points: Array, count: int, rng: np.random.Generator) -> Ids:
    """(N,) clusters of vectors: k-means from centres by k-means++ (Arthur & Vassilvitskii 2007)."""
    centres = points[[int(rng.integers(len(points)))]]
    near = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count and near.sum() > 0:
        new = points[int(rng.choice(len(points), p=near / near.sum()))]
        centres = np.vstack([centres, new])
        near = np.minimum(near, ((points - new) ** 2).sum(axis=1))
    for _ in range(_ROUNDS):
        label = _nearest(points, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, label, points)
        sizes = np.bincount(label, minlength=len(centres))[:, None]
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    return _nearest(points, centres)


def _nearest(points: Array, centres: Array) -> Ids:
    distance: Array = (centres**2).sum(axis=1) - 2 * points @ centres.T
    label: Ids = np.argmin(distance, axis=1).astype(np.int64)
    return label


def sampled(questions: list[Question], count: int, seed: int) -> list[Question]:
    """A sample by what the starter predicts: the coefficients of each prompt, less their mean.

    Raises:
        ConfigError: ONNX Runtime, which runs the starter, is missing.
    """
    if len(questions) <= count:
        return questions
    from p2l_plugins import P2L

    pool = in_order(questions, seed)[:MOST_SCORED]
    coefs = P2L.load().score([one.turns for one in pool]).coefs.astype(np.float64)
    coefs -= coefs.mean(axis=0)
    coefs /= np.maximum(coefs.std(axis=0), 1e-9)
    return [pool[i] for i in sample(coefs, count, np.random.default_rng(seed))]
