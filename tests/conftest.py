"""What all tests share: no network, the folder of test data where there is one, small models made on the spot."""

import gc
import itertools
import json
import os
from pathlib import Path

import pytest
from helpers.topics import TOPICS, topic_votes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("P2L_SHARED", ROOT.parent / "shared"))

#: Folders and files that need a server, a training, a browser or seconds of another process: `--quick` leaves them out.
SLOW = (
    "cache/test_address.py",
    "cache/test_backends.py",
    "cache/test_parts.py",
    "cache/test_redis.py",
    "cache/test_users.py",
    "core/test_engine.py",
    "core/test_prompts.py",
    "core/test_score_files.py",
    "core/test_scorer.py",
    "core/test_session.py",
    "core/test_templates.py",
    "deploy",
    "e2e",
    "evaluation/test_command.py",
    "faults",
    "litellm_router/test_check.py",
    "litellm_router/test_endpoint.py",
    "litellm_router/test_fuzz.py",
    "litellm_router/test_offline.py",
    "litellm_router/test_personal.py",
    "litellm_router/test_redis_client.py",
    "litellm_router/test_settings.py",
    "litellm_router/test_shared.py",
    "litellm_router/test_shared_rights.py",
    "litellm_router/test_startup.py",
    "litellm_router/test_swap.py",
    "litellm_router/test_versions.py",
    "lmeval_task/test_harness.py",
    "lmeval_task/test_index.py",
    "onnx_export",
    "service",
    "test_cli.py",
    "test_cli_ends.py",
    "test_cli_leaderboard.py",
    "test_docs.py",
    "test_files.py",
    "test_repository.py",
    "test_wheel.py",
    "training",
    "votes/test_collected.py",
    "votes/test_command.py",
    "votes/test_lmeval.py",
    "votes/test_silently_wrong.py",
)


def is_slow(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / "tests" / name) for name in SLOW)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests without servers, trainings and slow processes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and is_slow(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: a long file at the end would leave the other processes without work."""
    items.sort(key=lambda item: not is_slow(item.path))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("P2L_DATA", SHARED / "data"))
    if not (folder / "llmrouter_scores.parquet").is_file():
        pytest.skip("the public data sets are not here (set P2L_SHARED to the folder that holds data/)")
    return folder


@pytest.fixture(scope="session")
def public_checkpoint() -> Path:
    """A tiny checkpoint in the published form, with expected outputs."""
    folder = SHARED / "fixtures" / "public_checkpoint_llama_bt"
    if not (folder / "expected.json").is_file():
        pytest.skip("the published-form checkpoint is not here (set P2L_SHARED to the folder that holds fixtures/)")
    return folder


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _saved(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers with a word tokenizer, as a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TOPICS, *itertools.chain(*TOPICS.values())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, **TINY)
    return _saved(BertModel(config), fast, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers whose tokenizer has a chat template but no CLS token, as a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<eos>", "user", *TOPICS, *itertools.chain(*TOPICS.values())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' + eos_token + ' ' }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=128, num_key_value_heads=2, **TINY)
    return _saved(LlamaModel(config), fast, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def votes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in topic_votes()) + "\n")
    return path


@pytest.fixture(scope="session")
def train_config(tiny_backbone: Path, votes_file: Path) -> Path:
    """Configuration of a training that takes seconds."""
    path = votes_file.parent / "train.yaml"
    path.write_text(
        f"name: tiny\nbackbone: {tiny_backbone}\nfamily: grk\nmax_length: 32\nepochs: 8\nbatch_size: 8\n"
        "learning_rate: 1.0e-3\nhead_learning_rate: 2.0e-2\naliases: {Coder-v1: coder}\n"
        f"data:\n  - {{path: {votes_file.name}, licence: CC0}}\n"
    )
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(train_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that `train` made from the topic votes."""
    from p2l_plugins.training.config import read_config
    from p2l_plugins.training.train import train

    output = tmp_path_factory.mktemp("run") / "checkpoint"
    train(read_config(train_config), train_config.parent, output)
    return output


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_checkpoint`."""
    from onnx_export.export import export

    output = tmp_path_factory.mktemp("export") / "bundle"
    export(tiny_checkpoint, output)
    return output


def pytest_collection_finish() -> None:
    """What the tests import stays: later collections of garbage need not walk through it."""
    gc.collect()
    gc.freeze()
