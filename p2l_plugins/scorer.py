"""The noun of the package: `P2L` scores prompts with a bundle's ONNX model; `Scores` are the coefficients it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.bundle import Bundle, find_bundle, resolve_model
from p2l_plugins.errors import BundleError, ConfigError, PromptError
from p2l_plugins.leaderboard import Leaderboard, aggregate, win_rate_over_others
from p2l_plugins.outcomes import Array, Family, has_eta, win_matrix
from p2l_plugins.prompts import Prompt, TextEncoder, Turns, as_turns, pad

Floats = NDArray[np.float32]

#: Padded tokens in one run of the model: bounds its memory, and keeps short prompts from waiting for long ones.
BATCH_TOKENS = 4096

DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
    """

    models: tuple[str, ...]
    coefs: Floats
    raw_eta: Floats | None
    family: Family
    aliases: dict[str, str] = field(default_factory=dict, repr=False)
    ungrounded: frozenset[str] = field(default=frozenset(), repr=False)

    def __len__(self) -> int:
        return len(self.coefs)

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name.
        """
        return resolve_model(model, self.models, self.aliases)

    def win_rates(self) -> Array:
        """(N, M) mean P(beats another model) on each prompt, as in `Leaderboard.win_rate`; ties are not wins."""
        return win_rate_over_others(win_matrix(self.family, self.coefs, self.raw_eta), self.models, self.ungrounded)

    def leaderboard(self) -> Leaderboard:
        """The aggregate leaderboard of these prompts."""
        return aggregate(self.models, self.family, self.coefs, self.raw_eta, self.ungrounded)


class P2L:
    """A loaded bundle that scores prompts. Safe to call from several threads.

    Attributes:
        bundle: folder and manifest.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 0) -> None:
        """
        Args:
            bundle: a checked bundle.
            device: `cpu` or `cuda`.
            threads: threads of one run; 0 lets ONNX Runtime choose.

        Raises:
            ConfigError: ONNX Runtime is missing, or the device is not available.
            BundleError: ONNX Runtime can't read the model, or it has other inputs or outputs than the manifest says.
        """
        self.bundle = bundle
        manifest = bundle.manifest
        self._session = _session(bundle, device, threads)
        self._outputs = ["coefs", "raw_eta"] if has_eta(manifest.family) else ["coefs"]
        self._encoder = TextEncoder.from_folder(bundle.folder, manifest.text)

    @classmethod
    def load(cls, source: str | Path = "starter", device: str = "cpu", threads: int = 0) -> P2L:
        """Loads a bundle: a folder, a Hugging Face hub id, or `starter`, the one that ships with the package.

        Raises:
            BundleError: no bundle there, or one that is damaged.
            ConfigError: as `P2L`.
        """
        return cls(Bundle.open(find_bundle(source)), device, threads)

    @property
    def models(self) -> tuple[str, ...]:
        """Model names in the order of the coefficients."""
        return self.bundle.manifest.models

    @property
    def family(self) -> Family:
        """The outcome model."""
        return self.bundle.manifest.family

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""
        return self.bundle.manifest.fingerprint

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias.

        Raises:
            BundleError: an unknown name; the message lists the known ones.
        """
        return resolve_model(model, self.models, self.bundle.manifest.aliases)

    def score(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Scores:
        """Coefficients of prompts, in their order.

        Args:
            prompts: strings, or lists of user turns. A prompt longer than the bundle's maximum is cut on the left.
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
        ids = self._encoder.encode(prompts)
        for rows in batches([len(row) for row in ids], batch_tokens(manifest.precision)):
            input_ids, mask = pad([ids[i] for i in rows], manifest.text.pad_id)
            outputs = self._session.run(self._outputs, {"input_ids": input_ids, "attention_mask": mask})
            coefs[rows] = outputs[0]
            if raw_eta is not None:
                raw_eta[rows] = outputs[1]
            if progress is not None:
                progress(len(rows))
        apart = frozenset(manifest.ungrounded)
        return Scores(manifest.models, coefs, raw_eta, manifest.family, manifest.aliases, apart)


def batch_tokens(precision: str, tokens: int = BATCH_TOKENS) -> int:
    """Padded tokens of one run; 1 runs each prompt alone.

    int8 does: its activations share one scale per run, so that in a batch a prompt's scores would depend on its
    neighbours, and the cache on who came first.
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


def _session(bundle: Bundle, device: str, threads: int) -> Any:
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is not known; valid: {', '.join(DEVICES)}")
    try:
        import onnxruntime as ort
    except ImportError:
        raise ConfigError(
            "scoring needs ONNX Runtime: pip install 'p2l-plugins[cpu]' (or 'p2l-plugins[gpu]' with CUDA)"
        ) from None
    provider = DEVICES[device]
    if provider not in ort.get_available_providers():
        raise ConfigError(f"device {device!r} is not available: this ONNX Runtime has no {provider}")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    path = bundle.folder / "model.onnx"
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BundleError(f"{path}: ONNX Runtime can't load it ({str(error).splitlines()[0]})") from None
    if session.get_providers()[0] != provider:
        raise ConfigError(f"device {device!r} is not available: ONNX Runtime fell back to {session.get_providers()[0]}")
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    manifest = bundle.manifest
    expected = {"coefs", "raw_eta"} if has_eta(manifest.family) else {"coefs"}
    if inputs != {"input_ids", "attention_mask"} or set(outputs) != expected:
        raise BundleError(
            f"{path}: inputs {sorted(inputs)} and outputs {sorted(outputs)} are not those of {manifest.family}"
        )
    width = outputs["coefs"][-1]
    if width != len(manifest.models):
        raise BundleError(f"{path}: the head has {width} outputs, but p2l.json names {len(manifest.models)} models")
    return session
