"""Topics of prompts, found from their words: a tree of clusters, each named by the words that set it apart.

TF-IDF of words, reduced by latent semantic analysis (Deerwester et al. 1990), then divided in two, the most scattered
cluster first (bisecting k-means, Steinbach et al. 2000). The tree is learnt from a sample and then tells the topic of
any prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.outcomes import Array, Ids
from p2l_plugins.prompts import Prompt

#: Prompts that the tree is learnt from, at most.
SAMPLE = 20_000

_DIMENSIONS = 100
_NAME_WORDS = 3
_STOP_WORDS = {"did", "does", "doing", "don", "doesn", "didn", "isn", "just", "like", "want", "please"}
_ALIKE = "the prompts are too much alike to be divided into topics"


@dataclass(eq=False)
class Topic:
    """A node of the tree.

    Attributes:
        name: its distinctive words.
        rows: of the sample's prompts that belong to it.
        children: none or two.
    """

    rows: Ids
    name: str = ""
    children: list[Topic] = field(default_factory=list)
    centre: Array = field(default_factory=lambda: np.zeros(0))

    def leaves(self) -> list[Topic]:
        """The topics below that are not divided; itself, where it is not."""
        return [leaf for child in self.children for leaf in child.leaves()] or [self]

    def inner(self) -> list[Topic]:
        """The divided topics below it, from the top."""
        return [t for child in self.children if child.children for t in [child, *child.inner()]]


class Topics:
    """A tree of topics.

    Args:
        prompts: a sample.
        count: leaves; fewer where the prompts do not divide so often.
        seed: of the clustering.

    Raises:
        ConfigError: scikit-learn is missing, or count is below 2.
        DataError: the prompts are too few or too much alike.
    """

    def __init__(self, prompts: Sequence[Prompt], count: int, seed: int = 0) -> None:
        try:
            from sklearn.cluster import KMeans
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
        except ImportError:
            raise ConfigError("topics need the extra 'analysis': pip install 'p2l-plugins[analysis]'") from None
        if count < 2:
            raise ConfigError(f"{count} topics are none; at least 2")
        if len(prompts) < 2 * count:
            raise DataError(f"{len(prompts)} prompts are too few for {count} topics; at least {2 * count}")
        rare = 1 if len(prompts) < 100 else 2
        words = TfidfVectorizer(
            stop_words=sorted(ENGLISH_STOP_WORDS | _STOP_WORDS),
            sublinear_tf=True,
            min_df=rare,
            max_features=50_000,
            token_pattern=r"(?u)\b[^\W\d_]{2,}\b",  # noqa: S106 - a word of letters
        )
        try:
            weights = words.fit_transform([_text(prompt) for prompt in prompts])
        except ValueError:  # an empty vocabulary
            raise DataError("the prompts hold no words to tell topics by") from None
        if weights.shape[1] < 2:
            raise DataError(_ALIKE)
        self._words = words
        self._reduce = TruncatedSVD(max(1, min(_DIMENSIONS, *(n - 1 for n in weights.shape))), random_state=seed)
        points = _unit(self._reduce.fit_transform(weights))
        self.root = Topic(np.arange(len(prompts)))
        self._divide(points, count, lambda: KMeans(2, n_init=10, random_state=seed))
        if not self.root.children:
            raise DataError(_ALIKE)
        self._name(weights, words.get_feature_names_out())

    @property
    def leaves(self) -> list[str]:
        """Names of the topics that prompts are given."""
        return [leaf.name for leaf in self.root.leaves()]

    @property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Names of the wider topics, from the top, and the topics that each holds."""
        return {topic.name: tuple(leaf.name for leaf in topic.leaves()) for topic in self.root.inner()}

    def of(self, prompts: Sequence[Prompt]) -> list[str]:
        """The topic of each prompt: at every fork, the side whose centre is nearer."""
        points = _unit(self._reduce.transform(self._words.transform([_text(prompt) for prompt in prompts])))
        names = []
        for point in points:
            topic = self.root
            while topic.children:
                topic = min(topic.children, key=lambda child: float(((point - child.centre) ** 2).sum()))
            names.append(topic.name)
        return names

    def _divide(self, points: Array, count: int, two: Any) -> None:
        smallest = max(2, len(points) // (8 * count))
        whole = [self.root]
        while whole and len(self.root.leaves()) < count:
            topic = max(whole, key=lambda t: float(((points[t.rows] - points[t.rows].mean(axis=0)) ** 2).sum()))
            whole.remove(topic)
            if len(topic.rows) < 2 * smallest or len(np.unique(points[topic.rows], axis=0)) < 2:
                continue
            side = two().fit(points[topic.rows]).labels_
            parts = [topic.rows[side == k] for k in (0, 1)]
            if min(map(len, parts)) < smallest:
                continue
            topic.children = [Topic(rows, centre=points[rows].mean(axis=0)) for rows in parts]
            whole += topic.children

    def _name(self, weights: Any, words: NDArray[Any]) -> None:
        """Three words each: those whose mean weight inside is most above that of all other prompts."""
        taken: set[str] = set()
        total, n = np.asarray(weights.sum(axis=0)).ravel(), weights.shape[0]
        for topic in [*self.root.inner(), *self.root.leaves()]:
            inside = np.asarray(weights[topic.rows].sum(axis=0)).ravel()
            lift = inside / len(topic.rows) - (total - inside) / max(n - len(topic.rows), 1)
            best = [str(words[i]) for i in np.argsort(-lift, kind="stable")[:20] if lift[i] > 0] or ["other"]
            size = _NAME_WORDS
            while ", ".join(best[:size]) in taken and size < len(best):
                size += 1
            name = ", ".join(best[:size])
            topic.name = name if name not in taken else f"{name} ({len(taken)})"
            taken.add(topic.name)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(prompt)


def _unit(points: Array) -> Array:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit: Array = points / np.maximum(length, 1e-12)
    return unit
