"""The checkpoint folder, in the published form, so that published checkpoints load here and ours have the same files.

`config.json`, `model.safetensors` (weights `model.*`, `head.head.*`, `head.eta_head.*`), tokenizer files,
`model_list.json` and `training_config.json`. Safetensors only, and no code from a checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from p2l_plugins.errors import BundleError
from p2l_plugins.files.tables import read_json_object
from p2l_plugins.outcomes import FAMILIES
from p2l_plugins.prompts import Cut, TextEncoder, TextForm
from p2l_plugins.training.model import ENCODERS, P2LNetwork


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder: that of `tokenizer.json` where there is one.

    AutoTokenizer would choose a class by the model's type, and some classes build a tokenizer of their own kind from
    the vocabulary, whatever the file says.
    """
    if (folder / "tokenizer.json").is_file():
        return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast.from_pretrained(folder))
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options))


def text_form(tokenizer: PreTrainedTokenizerBase, encoder: bool, max_length: int, cut: Cut = "left") -> TextForm:
    """The text form that this tokenizer's checkpoints are read with.

    Raises:
        BundleError: no pad token, or a decoder without a CLS token.
    """
    if tokenizer.pad_token_id is None:
        raise BundleError(
            "its tokenizer has no pad token; set pad_token in tokenizer_config.json (the end token will do)"
        )
    if encoder:
        return TextForm(form="plain", max_length=max_length, pad_id=tokenizer.pad_token_id, cut=cut)
    if tokenizer.cls_token is None:
        raise BundleError("its tokenizer has no CLS token, which the published text form needs")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return TextForm(
        form="chat",
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        cls_token=tokenizer.cls_token,
        special_tokens=special,
        cut=cut,
    )


def text_encoder(tokenizer: PreTrainedTokenizerBase, form: TextForm) -> TextEncoder:
    """The project's own text → ids path over a copy of this tokenizer, the one that inference uses."""
    from tokenizers import Tokenizer

    template = tokenizer.chat_template if form.form == "chat" else None
    return TextEncoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), form, cast("str | None", template))


class Checkpoint:
    """A trained or published P2L model with all that its folder holds.

    Attributes:
        model: the torch model, in evaluation mode.
        tokenizer: transformers' tokenizer.
        models: names in the order of the coefficients.
        form: the text form.
        training: the content of `training_config.json`.
    """

    def __init__(
        self,
        model: P2LNetwork,
        tokenizer: PreTrainedTokenizerBase,
        models: Sequence[str],
        form: TextForm,
        training: dict[str, Any],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.models = tuple(models)
        self.form = form
        self.training = training

    @property
    def encoder(self) -> TextEncoder:
        """Turns → ids."""
        return text_encoder(self.tokenizer, self.form)

    @classmethod
    def load(cls, source: str | Path) -> Checkpoint:
        """Loads a folder or hub id, ours or published. Safetensors only, no code from the checkpoint.

        Raises:
            BundleError: a file is missing, or the weights do not fit `config.json` and `model_list.json`.
        """
        folder = checkpoint_folder(source)
        for name in ("config.json", "model_list.json", "training_config.json"):
            if not (folder / name).is_file():
                raise BundleError(f"{folder}: {name} is missing; a P2L checkpoint has it")
        models = _model_list(folder / "model_list.json")
        training = read_json_object(folder / "training_config.json")
        family = training.get("head_type")
        if training.get("loss_type") in ("bag", "grk") or family == "bag":
            family = "grk"
        elif training.get("loss_type") in ("bt-tie", "bt_tie"):
            family = "bt-tie"
        if family not in FAMILIES:
            raise BundleError(
                f"{folder}/training_config.json: head_type {family!r} is not known; valid: {', '.join(FAMILIES)}, bag"
            )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        encoder = config.model_type in ENCODERS
        pooling = training.get("pooling", "mean" if encoder else "cls")
        with init_empty_weights():  # so that the file's weights are the only ones in memory
            backbone = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
            model = P2LNetwork(backbone, len(models), family, pooling)
        _load_weights(model, folder, len(models))
        tokenizer = load_tokenizer(folder)
        limit = int(getattr(config, "max_position_embeddings", 8192))
        length = min(int(training.get("max_length", limit)), limit)
        try:
            form = text_form(tokenizer, encoder, length, training.get("cut", "left"))
        except ValidationError:
            raise BundleError(
                f"{folder}/training_config.json: cut {training['cut']!r} is not known; valid: left, middle"
            ) from None
        return cls(model.eval(), tokenizer, models, form, training)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint's files into an existing folder."""
        cast(Any, self.model.model).config.save_pretrained(folder)
        parts = {"model": self.model.model, "head": self.model.head.merged()}
        state = {
            f"{part}.{name}": value.detach().cpu().contiguous().clone()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)
        _write_json(folder / "model_list.json", list(self.models))
        _write_json(folder / "training_config.json", self.training)


def _model_list(path: Path) -> list[str]:
    try:
        models = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(models, list) or not all(isinstance(m, str) for m in models) or len(set(models)) < len(models):
        raise BundleError(f"{path}: must be a list of different model names")
    return models


def checkpoint_folder(source: str | Path) -> Path:
    """A local folder as it is; a hub id is fetched from the Hugging Face hub (or its local cache).

    Raises:
        BundleError: neither a folder nor a repository that can be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BundleError(
            f"{source}: neither a folder nor a hub id that can be fetched ({type(error).__name__})"
        ) from None


def _load_weights(model: P2LNetwork, folder: Path, n_models: int) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BundleError(f"{folder}: no .safetensors file; other weight formats are not read")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise BundleError(f"{file}: not a readable safetensors file ({error})") from None
        state.update({n: value.float() for n, value in tensors.items() if not n.startswith("model.pooler.")})
    rows = state.get("head.head.weight", torch.empty(0)).shape[0]
    if rows != n_models:
        raise BundleError(f"{folder}: the head has {rows} rows, but model_list.json names {n_models} models")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise BundleError(
            f"{folder}: the weights do not fit config.json ({str(error).splitlines()[1].strip()})"
        ) from None
    if missing or unexpected:
        name, fault = (missing[0], "missing") if missing else (unexpected[0], "not expected")
        raise BundleError(f"{folder}: the weight {name!r} is {fault}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
