"""A smaller vocabulary for a training: of a unigram tokenizer what texts use, and the best pieces of each script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from p2l_plugins.errors import ConfigError
from p2l_plugins.training.variants import script_of


def cut_vocabulary(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int, lowercase: bool = False
) -> PreTrainedTokenizerBase:
    """Keeps `size` pieces of a tokenizer, and their rows of the model's embedding table, in place.

    Every single character stays, so that nothing becomes unknown. Of the rest, half are the pieces that occur most
    often in `texts`; half are taken script by script in turns, the most probable piece of each first, so that a script
    that the texts lack keeps its common words. With `lowercase` texts are read in small letters, and pieces with
    capitals go.

    Args:
        model: a transformers model; tokenizer: its own, of the kind Unigram.
        texts: of the training.
        size: pieces to keep.
        lowercase: whether capitals are to make no difference.

    Returns:
        The smaller tokenizer; the pieces that stay keep their order.

    Raises:
        ConfigError: the tokenizer is of another kind, or has fewer single characters to keep than `size`.
    """
    backend = cast(Any, tokenizer).backend_tokenizer
    content = json.loads(backend.to_str())
    if content["model"]["type"] != "Unigram":
        raise ConfigError(f"vocabulary: the tokenizer is of the kind {content['model']['type']!r}; valid: Unigram")
    pieces = content["model"]["vocab"]
    special = set(cast(Any, tokenizer).all_special_ids)
    valid = set(range(len(pieces)))
    if lowercase:
        content["normalizer"] = _then_lowercase(content["normalizer"])
        backend = Tokenizer.from_str(json.dumps(content))
        valid = {i for i, (text, _) in enumerate(pieces) if i in special or text == text.lower()}
    size = min(len(valid), size)
    kept = _kept(pieces, valid, _counts(backend, texts), size, special)
    number = {old: new for new, old in enumerate(kept)}
    content["model"]["vocab"] = [pieces[i] for i in kept]
    content["model"]["unk_id"] = number[content["model"]["unk_id"]]
    content["added_tokens"] = [token | {"id": number[token["id"]]} for token in content["added_tokens"]]
    for token in (content["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [number[i] for i in token["ids"]]
    table = cast(Any, model).get_input_embeddings()
    smaller = nn.Embedding(len(kept), table.embedding_dim)
    smaller.weight = nn.Parameter(table.weight.detach()[torch.tensor(kept)].clone())
    cast(Any, model).set_input_embeddings(smaller)
    config = cast(Any, model).config
    config.vocab_size = len(kept)
    for role in ("pad", "bos", "eos"):
        if (old := getattr(config, f"{role}_token_id", None)) is not None:
            setattr(config, f"{role}_token_id", number[old])
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    smaller_tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=smaller_tokenizer, **names)  # type: ignore[no-untyped-call]


def _then_lowercase(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    """A tokenizer's normalizer, as its file has it, with small letters as the last step."""
    return {"type": "Sequence", "normalizers": [*([normalizer] if normalizer else []), {"type": "Lowercase"}]}


def _counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text, add_special_tokens=False).ids)
    return counts


def _kept(pieces: list[list[Any]], valid: set[int], counts: Counter[int], size: int, special: set[int]) -> list[int]:
    """Numbers of the pieces that stay, of those that are valid, in order."""
    kept = {i for i in valid if i in special or len(pieces[i][0].lstrip("▁")) <= 1}
    if len(kept) >= size:
        raise ConfigError(f"vocabulary: is {size}, but {len(kept)} pieces are single characters, which all stay")
    half = len(kept) + (size - len(kept)) // 2
    for i, _ in counts.most_common():
        if len(kept) >= half:
            break
        if i in valid:
            kept.add(i)
    scripts: dict[str, list[int]] = {}
    for i in sorted(valid - kept, key=lambda i: (-pieces[i][1], i)):
        scripts.setdefault(_script(pieces[i][0]), []).append(i)
    queues = list(scripts.values())
    depth = 0
    while len(kept) < size:
        for queue in queues:
            if depth < len(queue) and len(kept) < size:
                kept.add(queue[depth])
        depth += 1
    return sorted(kept)


def _script(piece: str) -> str:
    """The script of a piece's first letter; empty without a letter."""
    return next((script_of(sign) for sign in piece if sign.isalpha()), "")
