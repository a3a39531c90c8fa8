"""The bundle on disk: a folder with `p2l.json`, `model.onnx` and the tokenizer; its checks and its fingerprint.

The manifest lists every file that is read, with its sha256, and the fingerprint is over all of them but `SILENT_FILES`.
A file that scoring would read and that is not listed is refused; what nobody reads (a README, a licence, a file of
`SILENT_FILES` that is not listed) may lie in the folder, and is never opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from p2l_plugins.cache.entry import WIDEST, Bounds
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Family, Numbers
from p2l_plugins.prompts import CHAT_TEMPLATE, TextForm
from p2l_plugins.scoring.graph_file import GraphFile, read_graph_file
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts, read_training_prompts
from p2l_plugins.similar import ADD, hint
from p2l_plugins.support import Support

MANIFEST = "p2l.json"
STARTER = "starter"

GRAPH = "model.onnx"
#: Files that scoring reads; `model.onnx.data` holds the weights of large models.
SCORING_FILES = (GRAPH, "model.onnx.data", "tokenizer.json", CHAT_TEMPLATE)
#: What a bundle keeps of the votes that it was fitted to, for `p2l update`: sums, no text. It changes no score.
PAST_VOTES = "past_votes.npz"
#: Files that change no score, and are read only where the manifest lists them.
SILENT_FILES = (TRAINING_PROMPTS, PAST_VOTES)
#: All that an export lists.
BUNDLE_FILES = (*SCORING_FILES, *SILENT_FILES)

#: How far beyond the largest numbers on the gate's prompts a score may be: the starter's coefficients reach 6.7 there,
#: 7.0 on prompts of its data sets, and can't pass 12.6 while states are no longer than on the gate's prompts.
SLACK = 4.0

#: The operator that gives all activations of a run one scale, so that a prompt's scores depend on its neighbours.
_SCALE_OF_RUN = "DynamicQuantizeLinear"

_SUPPORT = TypeAdapter(dict[str, Support])


class Manifest(BaseModel):
    """What `p2l.json` says.

    Attributes:
        schema_version: of this file; another one is refused.
        name: of the model.
        family: outcome model; `rk` and `grk` have the output `raw_eta`.
        models: names in the order of the coefficients.
        aliases: other names of models, to names in `models`.
        ungrounded: models of a `grk` bundle that were trained only on votes without "both bad", so that their level is
            not tied to the others'.
        text: how turns become token ids.
        precision: of the weights in `model.onnx`.
        route: how the graph was made: `plain`, or `fused` with ONNX Runtime's fused operators.
        opset: ONNX opset of the graph.
        files: sha256 of every file.
        fingerprint: hash over all that changes a score; part of every cache key.
        training: summary of the training data; its `support` says how much is known of each model.
        quality: held-out figures.
        gate: figures of the export's checks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    family: Family
    models: tuple[str, ...]
    aliases: dict[str, str] = {}
    ungrounded: tuple[str, ...] = ()
    text: TextForm
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    route: Literal["plain", "fused"] = "plain"
    opset: int
    files: dict[str, str]
    fingerprint: str = ""
    training: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    gate: dict[str, Any] = {}

    @field_validator("training")
    @classmethod
    def _with_support(cls, training: dict[str, Any]) -> dict[str, Any]:
        try:
            _SUPPORT.validate_python(training.get("support", {}))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, ("support", *first["loc"])))
            raise ValueError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
        return training

    @property
    def support(self) -> dict[str, Support]:
        """How much is known of each model; a model that is not in it counts as well known."""
        return _SUPPORT.validate_python(self.training.get("support", {}))

    @property
    def bounds(self) -> Bounds:
        """How far from 0 the head's numbers can be: some times what they were on the gate's prompts."""
        return Bounds(self._reach("largest_coef", WIDEST.coefs), self._reach("largest_raw_eta", WIDEST.raw_eta))

    def _reach(self, figure: str, widest: float) -> float:
        largest = self.gate.get(figure)
        return SLACK * max(1.0, largest) if isinstance(largest, int | float) and math.isfinite(largest) else widest

    @property
    def ungrounded_models(self) -> frozenset[str]:
        """`ungrounded` as a set."""
        return frozenset(self.ungrounded)

    def expected_fingerprint(self) -> str:
        """128-bit hash, in hex, over family, models, text form and all listed files but `SILENT_FILES`."""
        content = {
            "schema_version": self.schema_version,
            "family": self.family,
            "models": self.models,
            "text": self.text.model_dump(mode="json"),
            "files": {name: digest for name, digest in self.files.items() if name not in SILENT_FILES},
        }
        data = json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes `p2l.json`, with the fingerprint filled in."""
        full = self.model_copy(update={"fingerprint": self.expected_fingerprint()})
        text = json.dumps(full.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def reach(coefs: Numbers, raw_eta: Numbers | None) -> dict[str, float]:
    """The figures of a gate that `Manifest.bounds` reads: the largest magnitudes of coefs (N, M) and raw_eta (N,)."""
    found = {"largest_coef": coefs} | ({} if raw_eta is None else {"largest_raw_eta": raw_eta})
    return {name: float(np.abs(values).max()) for name, values in found.items() if np.isfinite(values).all()}


def resolve_model(name: str, models: Sequence[str], aliases: dict[str, str]) -> int:
    """Index of a model by its name or an alias.

    Raises:
        BundleError: neither; the message has the nearest names.
    """
    canonical = aliases.get(name, name)
    if canonical in models:
        return models.index(canonical)
    raise BundleError(f"model {name!r} is not in the bundle; {hint(name, models, 'it has', ADD)}")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @cached_property
    def training_prompts(self) -> TrainingPrompts | None:
        """The prompts that it was trained on; None where it does not say."""
        listed = TRAINING_PROMPTS in self.manifest.files
        return read_training_prompts(self.folder) if listed else None

    @cached_property
    def runs_alone(self) -> bool:
        """Whether each prompt needs a run of its own, so that its scores do not depend on its neighbours.

        The graph says so as well, because the manifest's `precision` is not in the fingerprint.
        """
        return self.manifest.precision == "int8" or _SCALE_OF_RUN in self.graph_file.operators

    @cached_property
    def graph_file(self) -> GraphFile:
        """What the graph's file says."""
        return read_graph_file(self.folder / GRAPH)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Reads and checks a bundle: manifest, every file's hash, the files that would be read, fingerprint.

        Raises:
            BundleError: what is wrong, and with which file.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(f"{folder}: {MANIFEST} is missing, so this is not a bundle")
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            raise BundleError(f"{path}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
        for name in (GRAPH, "tokenizer.json"):
            if name not in manifest.files:
                raise BundleError(f"{path}: files does not list {name}, which every bundle has")
        for name, expected in manifest.files.items():
            file = folder / name
            if Path(name).name != name or not file.is_file():
                raise BundleError(f"{folder}: {name} is listed in {MANIFEST}, but there is no such file")
            if sha256(file) != expected:
                raise BundleError(
                    f"{file}: the content does not match its sha256 in {MANIFEST}; export or copy it again"
                )
        bundle = cls(folder, manifest)
        bundle._refuse_unlisted()
        if manifest.fingerprint != manifest.expected_fingerprint():
            raise BundleError(f"{path}: fingerprint does not match the bundle's content; export it again")
        if len(set(manifest.models)) != len(manifest.models) or not manifest.models:
            raise BundleError(f"{path}: models must be a list of different names")
        return bundle

    def _refuse_unlisted(self) -> None:
        """Raises a BundleError where scoring would read a file that the manifest does not list."""
        would_be_read = set(self.graph_file.locations)
        if (self.folder / CHAT_TEMPLATE).exists():
            would_be_read.add(CHAT_TEMPLATE)
        for name in sorted(would_be_read - set(self.manifest.files)):
            what = "is there" if name == CHAT_TEMPLATE else f"is where {GRAPH} has weights"
            raise BundleError(
                f"{self.folder}: {name!r} {what}, but {MANIFEST} does not list it, so nobody can tell whether it was "
                "changed; export the bundle again"
            )


def find_bundle(source: str | Path) -> Path:
    """The folder of a bundle: `starter`, a folder, or a Hugging Face hub id.

    Raises:
        BundleError: none of them.
    """
    if str(source) == STARTER:
        return Path(str(files("p2l_plugins"))) / STARTER
    if Path(source).is_dir():
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise BundleError(
            f"{source}: there is no such folder (a hub id needs huggingface_hub: pip install huggingface_hub)"
        ) from None
    try:
        return Path(snapshot_download(str(source), allow_patterns=[MANIFEST, *BUNDLE_FILES]))
    except Exception as error:  # the hub client raises many kinds, all of which mean the same to the user
        raise BundleError(
            f"{source}: neither a folder nor a hub id that can be fetched ({type(error).__name__})"
        ) from None


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
