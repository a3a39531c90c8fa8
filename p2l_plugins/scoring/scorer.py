"""The noun of the package: `P2L` scores prompts with a bundle's ONNX model; `Scores` are the coefficients it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.cache.entry import Bounds, Entry
from p2l_plugins.errors import PromptError
from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.leaderboards.intervals import opponent_weights
from p2l_plugins.leaderboards.leaderboard import Leaderboard, aggregate, mean_win_rates
from p2l_plugins.leaderboards.pair_means import BLOCKS
from p2l_plugins.outcomes import Array, Family, Floats, Ids, has_eta
from p2l_plugins.prompts import Prompt, TextEncoder, Turns, as_turns, pad
from p2l_plugins.scoring.bundle import Bundle, find_bundle, resolve_model
from p2l_plugins.scoring.session import Session
from p2l_plugins.support import Support

#: Padded tokens in one run of the model: bounds its memory, and keeps short prompts from waiting for long ones.
BATCH_TOKENS = 4096

#: Prompts of many kinds, one a line: what a bundle says of them is its overall leaderboard.
EVERYDAY = Path(__file__).with_name("everyday.txt")


@dataclass(frozen=True)
class Scores:
    """Coefficients of N prompts.

    Attributes:
        models: (M) names in the order of the coefficients.
        coefs: (N, M) float32.
        raw_eta: (N,) float32, or None for families without it.
        family: outcome model.
        aliases: other names of models.
        ungrounded: models that compare among themselves only.
        truncated: (N,) whether each prompt was longer than the bundle's maximum and so cut; None where the scores were
            not made from prompts.
        unknown: (N,) float32, share of each prompt's tokens that stand for what the tokenizer does not know, 0 to 1;
            None where it is not known of every prompt.
        support: how much is known of each model; one that is not in it counts as well known.
    """

    models: tuple[str, ...]
    coefs: Floats
    raw_eta: Floats | None
    family: Family
    aliases: dict[str, str] = field(default_factory=dict, repr=False)
    ungrounded: frozenset[str] = field(default=frozenset(), repr=False)
    truncated: NDArray[np.bool_] | None = field(default=None, repr=False)
    unknown: Floats | None = field(default=None, repr=False)
    support: Mapping[str, Support] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.coefs)

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name.
        """
        return resolve_model(model, self.models, self.aliases)

    def select(self, rows: NDArray[np.bool_]) -> Scores:
        """The scores of the prompts where `rows` (N,) is true."""
        return replace(
            self,
            coefs=self.coefs[rows],
            raw_eta=None if self.raw_eta is None else self.raw_eta[rows],
            truncated=None if self.truncated is None else self.truncated[rows],
            unknown=None if self.unknown is None else self.unknown[rows],
        )

    def win_rates(self) -> Array:
        """(N, M) mean P(beats another model) on each prompt, as in `Leaderboard.win_rate`; ties are not wins."""
        weights = opponent_weights(self.models, self.ungrounded)
        return mean_win_rates(self.family, self.coefs, self.raw_eta, weights)

    def leaderboard(
        self,
        intervals: bool = True,
        groups: Sequence[object] | None = None,
        opponents: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Leaderboard:
        """The aggregate leaderboard of these prompts.

        Args:
            intervals: over prompts, by a bootstrap: it takes a fraction of a second, the rest milliseconds.
            groups: (N,) what each prompt belongs to, where prompts come in groups that are alike.
            opponents: model → weight in the win rate; default: all other comparable models alike.
            seed: of the bootstrap.

        Raises:
            BundleError: an opponent's name is unknown.
        """
        q = None if opponents is None else {self.models[self.index(name)]: w for name, w in opponents.items()}
        blocks = BLOCKS if intervals else 0
        board = aggregate(self.models, self.family, self.coefs, self.raw_eta, self.ungrounded, q, groups, blocks, seed)
        return replace(board, support=self.support)


class P2L:
    """A loaded bundle that scores prompts. Safe to call from several threads.

    Attributes:
        bundle: folder and manifest.
        workers: runs at the same time that an `Engine` makes of it.
    """

    def __init__(
        self, bundle: Bundle, device: str = "cpu", threads: int = 0, cuda_graphs: bool = False, workers: int = 2
    ) -> None:
        """
        Args:
            bundle: a checked bundle.
            device: `cpu` or `cuda`; never another one than was asked for.
            threads: threads of one run; 0 lets ONNX Runtime choose.
            cuda_graphs: record the kernels of small batches, for small models on `cuda`.
            workers: runs at the same time, for an `Engine`.

        Raises:
            ConfigError: ONNX Runtime is missing, or the device is not available.
            BundleError: ONNX Runtime can't run the model, or it has other inputs or outputs than the manifest says.
        """
        self.bundle = bundle
        self.workers = workers
        self._session = Session(bundle, device, threads, cuda_graphs)
        self._encoder = TextEncoder.from_folder(bundle.folder, bundle.manifest.text)

    @classmethod
    def load(
        cls,
        source: str | Path = "starter",
        device: str = "cpu",
        threads: int = 0,
        cuda_graphs: bool = False,
        workers: int = 2,
    ) -> P2L:
        """Loads a bundle: a folder, a Hugging Face hub id, or `starter`, the one that ships with the package.

        Raises:
            BundleError: no bundle there, or one that is damaged.
            ConfigError: as `P2L`.
        """
        folder = find_bundle(source).resolve()  # all files of one bundle, also where the source is a link that moves
        return cls(Bundle.open(folder), device, threads, cuda_graphs, workers)

    @property
    def models(self) -> tuple[str, ...]:
        """Model names in the order of the coefficients."""
        return self.bundle.manifest.models

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of models, to names in `models`."""
        return self.bundle.manifest.aliases

    @cached_property
    def support(self) -> dict[str, Support]:
        """How much is known of each model; one that is not in it counts as well known."""
        return self.bundle.manifest.support

    @property
    def family(self) -> Family:
        """The outcome model."""
        return self.bundle.manifest.family

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""
        return self.bundle.manifest.fingerprint

    @property
    def ungrounded(self) -> frozenset[str]:
        """Models that compare among themselves only."""
        return self.bundle.manifest.ungrounded_models

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt; a longer one is cut."""
        return self.bundle.manifest.text.max_length

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one run; 1 where each prompt runs alone."""
        return 1 if self.bundle.runs_alone else BATCH_TOKENS

    @cached_property
    def bounds(self) -> Bounds:
        """How far from 0 the scores can be."""
        return self.bundle.manifest.bounds

    @cached_property
    def overall(self) -> Entry:
        """Coefficients and raw_eta of the leaderboard of 32 everyday prompts, for a prompt that can't be read.

        Scores them at the first use, which `warm_up` is.
        """
        prompts, _ = read_prompts(EVERYDAY)
        board = self.score(prompts).leaderboard(intervals=False)
        return Entry(board.coefs.astype(np.float32), board.raw_eta)

    def warm_up(self) -> None:
        """Scores the prompts of `overall`, so that the first request does not pay for what is done once."""
        _ = self.overall

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name; the message lists the known ones.
        """
        return resolve_model(model, self.models, self.bundle.manifest.aliases)

    def score(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Scores:
        """Coefficients of prompts, in their order.

        Args:
            prompts: strings, or lists of user turns. A prompt longer than the bundle's maximum is cut.
            progress: called with the number of prompts that each run finished.

        Raises:
            PromptError: an empty prompt or one that is not text; the message gives its position.
        """
        if isinstance(prompts, str):
            raise PromptError("score takes a list of prompts; for one prompt write score([prompt])")
        turns = []
        for i, prompt in enumerate(prompts):
            try:
                turns.append(as_turns(prompt))
            except PromptError as error:
                raise PromptError(f"prompt {i + 1}: {error}") from None
        return self.score_turns(turns, progress)

    def score_turns(self, prompts: Sequence[Turns], progress: Callable[[int], None] | None = None) -> Scores:
        """As `score`, for turns that `as_turns` or `user_turns` made."""
        manifest = self.bundle.manifest
        coefs = np.empty((len(prompts), len(manifest.models)), np.float32)
        raw_eta = np.empty(len(prompts), np.float32) if has_eta(manifest.family) else None
        tokens = self._encoder.tokens(prompts)
        for rows in batches([len(row.ids) for row in tokens], self.batch_tokens):
            scores = self.run(*pad([tokens[i].ids for i in rows], manifest.text.pad_id))
            coefs[rows] = scores.coefs
            if raw_eta is not None:
                raw_eta[rows] = scores.raw_eta
            if progress is not None:
                progress(len(rows))
        truncated = np.array([row.truncated for row in tokens], np.bool_)
        unknown = np.array([row.unknown for row in tokens], np.float32)
        return self._scores(coefs, raw_eta, truncated, unknown)

    def run(self, input_ids: Ids, attention_mask: Ids) -> Scores:
        """One run over token ids of the bundle's tokenizer, (N, L) int64, padded on the right.

        Raises:
            PromptError: padding that is not on the right, an empty row, shapes that differ, or more tokens than the
                bundle's maximum.
        """
        return self._scores(*self._session.run(input_ids, attention_mask))

    def from_entries(self, entries: Sequence[Entry]) -> Scores:
        """Scores of prompts, from what was kept of them."""
        raw_eta = np.array([entry.raw_eta for entry in entries], np.float32) if has_eta(self.family) else None
        truncated = np.array([bool(entry.truncated) for entry in entries], np.bool_)
        shares = [entry.unknown for entry in entries if entry.unknown is not None]
        unknown = np.array(shares, np.float32) if len(shares) == len(entries) else None
        coefs = np.empty((len(entries), len(self.models)), np.float32)
        for row, entry in zip(coefs, entries, strict=True):
            row[:] = entry.coefs
        return self._scores(coefs, raw_eta, truncated, unknown)

    def close(self) -> None:
        """Nothing is held open: the model's memory goes with the last reference."""

    def _scores(
        self,
        coefs: Floats,
        raw_eta: Floats | None,
        truncated: NDArray[np.bool_] | None = None,
        unknown: Floats | None = None,
    ) -> Scores:
        manifest = self.bundle.manifest
        return Scores(
            manifest.models,
            coefs,
            raw_eta,
            manifest.family,
            manifest.aliases,
            self.ungrounded,
            truncated,
            unknown,
            self.support,
        )


def batch_tokens(precision: str, tokens: int = BATCH_TOKENS) -> int:
    """Padded tokens of one run; 1 runs each prompt alone.

    int8 does, so that no score depends on a prompt's neighbours, and no cache on who came first. On the plain route the
    activations share one scale per run. On the fused route every token has its own, and what is left is the order in
    which float32 sums are taken: up to 5e-7.
    """
    return 1 if precision == "int8" else tokens


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, shortest first, each at most `tokens` when padded (or one row)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
