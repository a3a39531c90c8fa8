"""Bundles and scoring: the starter, and a tiny bundle."""

import json
import shutil

import numpy as np
import pytest

from p2l_plugins import P2L, BundleError, ConfigError, PromptError
from p2l_plugins.cache.entry import Entry
from p2l_plugins.prompts import pad
from p2l_plugins.scoring.bundle import Bundle, Manifest, find_bundle
from p2l_plugins.scoring.scorer import EVERYDAY, batches

PROMPTS = [
    "hello",
    "Prove that the square root of 2 is irrational.",
    ["What is a monad?", "I still don't get it."],
    "¿Cuáles son los efectos secundarios más comunes del ibuprofeno?",
    "long " * 2000,
]


@pytest.fixture(scope="module")
def starter():
    return P2L.load("starter")


def test_the_starter_scores_offline(starter):
    scores = starter.score(PROMPTS)
    assert scores.coefs.shape == (len(PROMPTS), len(starter.models))
    assert scores.coefs.dtype == np.float32
    assert scores.raw_eta.shape == (len(PROMPTS),)
    assert np.isfinite(scores.coefs).all()
    assert len(scores) == len(PROMPTS)
    assert scores.leaderboard().n_prompts == len(PROMPTS)


def test_the_starter_depends_on_the_prompt(starter):
    coefs = starter.score(PROMPTS).coefs
    centred = coefs - coefs.mean(axis=0)
    assert centred.std() > 0.1


def test_the_starter_is_small_and_says_what_it_is(starter):
    folder = find_bundle("starter")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 60_000_000
    manifest = starter.bundle.manifest
    licences = {row["licence"] for row in manifest.training["data"]}
    assert {licence.partition(",")[0] for licence in licences} == {"Apache-2.0", "MIT", "CC0", "CC BY 4.0"}
    assert all(", " in licence for licence in licences if licence.startswith("CC BY"))  # it asks for the source
    assert manifest.precision == "int8"
    assert manifest.gate["prompt_specific_spearman"] >= 0.99
    quality = manifest.quality["held_out"]
    for name in ("mmlupro_correctness", "llmrouter_scores"):
        routed = quality[name]["routed"]
        assert routed["random"] < routed["best_single"] < routed["p2l"] < routed["oracle"]


@pytest.mark.parametrize("name", ["starter", "tiny"])
def test_neighbours_change_nothing(starter, tiny_bundle, name):
    p2l = starter if name == "starter" else P2L.load(tiny_bundle)
    together = p2l.score(PROMPTS).coefs
    alone = np.concatenate([p2l.score([prompt]).coefs for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(p2l.score(PROMPTS[::-1]).coefs[::-1], together, atol=1e-5)


def test_no_prompts_give_no_rows(starter):
    assert starter.score([]).coefs.shape == (0, len(starter.models))


def test_models_go_by_name_or_alias(tiny_bundle):
    p2l = P2L.load(tiny_bundle)
    assert p2l.index("coder") == p2l.index("Coder-v1") == p2l.models.index("coder")
    with pytest.raises(BundleError, match="'gpt-99' is not in the bundle; it has coder, counter, weak"):
        p2l.index("gpt-99")


def test_an_empty_prompt_is_named(starter):
    with pytest.raises(PromptError, match="prompt 2: the prompt is empty"):
        starter.score(["x", " "])
    with pytest.raises(PromptError, match="list of prompts"):
        starter.score("one prompt")


def test_progress_counts_every_prompt(starter):
    seen = []
    starter.score(PROMPTS, progress=seen.append)
    assert sum(seen) == len(PROMPTS)


def test_batches_are_sorted_and_bounded():
    lengths = [5, 100, 3, 40, 40, 7]
    found = list(batches(lengths, 80))
    assert sorted(i for rows in found for i in rows) == list(range(6))
    assert [lengths[i] for rows in found for i in rows] == sorted(lengths)
    assert all(len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= 80 for rows in found)


@pytest.fixture
def broken(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_changed_byte_is_refused_by_file(broken, name):
    data = bytearray((broken / name).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: the content does not match its sha256"):
        Bundle.open(broken)


def edit(folder, **changes):
    path = folder / "p2l.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["counter", "coder", "weak"]}, "fingerprint does not match"),
        ({"family": "elo"}, "family: input should be 'bt', 'bt-tie', 'rk' or 'grk'"),
        ({"schema_version": 2}, "schema_version: input should be 1"),
        ({"colour": "red"}, "colour: extra inputs are not permitted"),
        ({"files": {}}, "does not list model.onnx"),
        ({"files": {"model.onnx": "", "tokenizer.json": "", "../p2l.json": ""}}, "model.onnx: the content does not"),
    ],
)
def test_a_bad_manifest_is_refused(broken, changes, message):
    edit(broken, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(broken)


def test_a_missing_file_is_named(broken, tmp_path):
    (broken / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is listed in p2l\.json, but there is no such file"):
        Bundle.open(broken)
    with pytest.raises(BundleError, match=r"neither a folder nor a hub id|there is no such folder"):
        P2L.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"p2l\.json is missing"):
        P2L.load(tmp_path)


def test_the_fingerprint_covers_what_changes_a_score(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    same = manifest.model_copy(update={"quality": {"x": 1}, "name": "other", "aliases": {}})
    assert same.expected_fingerprint() == manifest.fingerprint
    for update in (
        {"models": manifest.models[::-1]},
        {"family": "rk"},
        {"text": manifest.text.model_copy(update={"max_length": 31})},
        {"text": manifest.text.model_copy(update={"cut": "left"})},
        {"files": {**manifest.files, "model.onnx": "0"}},
        {"files": {**manifest.files, "tokenizer.json": "0"}},
    ):
        assert manifest.model_copy(update=update).expected_fingerprint() != manifest.fingerprint


def test_a_manifest_from_before_there_was_a_choice_of_the_cut_keeps_its_fingerprint(broken):
    form = {"form": "plain", "max_length": 16, "pad_id": 0, "cls_token": None, "special_tokens": {}}
    manifest = Manifest.model_validate(
        {"name": "x", "family": "bt", "models": ["a", "b"], "text": form, "opset": 20}
        | {"files": {"model.onnx": "0", "tokenizer.json": "1"}}
    )
    assert manifest.text.cut == "left"
    assert manifest.expected_fingerprint() == "0bb05e50812fb1a55e837e6329d97e86"
    ours = Bundle.open(broken).manifest
    assert ours.text.cut == "middle"
    assert json.loads((broken / "p2l.json").read_text())["text"]["cut"] == "middle"
    ours.model_copy(update={"text": ours.text.model_copy(update={"cut": "left"})}).write(broken)
    assert "cut" not in json.loads((broken / "p2l.json").read_text())["text"]
    assert Bundle.open(broken).manifest.text.cut == "left"


def test_the_overall_scores_are_the_leaderboard_of_everyday_prompts(starter):
    prompts = EVERYDAY.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(prompts) == 32
    board = starter.score(prompts).leaderboard(intervals=False)
    np.testing.assert_array_equal(starter.overall.coefs, board.coefs.astype(np.float32))
    assert starter.overall.raw_eta == board.raw_eta
    assert starter.overall.coefs.dtype == np.float32


def test_a_warm_bundle_scores_nothing_for_them(tiny_bundle, monkeypatch):
    p2l = P2L.load(tiny_bundle)
    p2l.warm_up()
    monkeypatch.setattr(p2l, "score_turns", None)
    assert p2l.overall is p2l.overall
    assert p2l.overall.coefs.shape == (3,)


def test_entries_give_back_what_was_scored(starter):
    scores = starter.score(["Why?", "𓀀𓁐", "word " * 1000])
    entries = [
        Entry(coefs, float(eta), bool(cut), float(unknown))
        for coefs, eta, cut, unknown in zip(scores.coefs, scores.raw_eta, scores.truncated, scores.unknown, strict=True)
    ]
    again = starter.from_entries(entries)
    np.testing.assert_array_equal(again.unknown, scores.unknown)
    np.testing.assert_array_equal(again.truncated, scores.truncated)
    assert scores.unknown.dtype == again.unknown.dtype == np.float32
    assert scores.unknown.tolist() == [0, 1, 0]
    assert starter.from_entries([*entries, entries[0]._replace(unknown=None)]).unknown is None


BOILERPLATE = (
    "<system-reminder> Follow the rules of the project. Keep functions short, write a test for each change, and never "
    "commit to the main branch. Answer in the language of the question. Files that were read before may have changed. "
    "Ask before you delete anything, and say what you did not do. </system-reminder>\n"
)
ASKS = (
    "Prove that the square root of 2 is irrational.",
    "Write a poem about autumn in the style of Keats.",
    "Fix the failing test in the parser of this repository.",
    "Which drugs interact with warfarin?",
    "Summarise the contract below and list who owes what.",
)
HEADS = ("Translate the text below into French:", "Find the bugs in what follows.", "Write a haiku about this:")


@pytest.mark.parametrize(
    ("heads", "tail"), [(ASKS, BOILERPLATE * 60), (HEADS, (BOILERPLATE * 20)[:4900])], ids=["asks", "instructions"]
)
def test_what_is_asked_before_a_long_tail_counts(starter, heads, tail):
    scores = starter.score([f"{head}\n\n{tail}" for head in heads])
    assert scores.truncated.all()
    assert len({row.tobytes() for row in scores.coefs}) == len(heads)
    for i, head in enumerate(heads):
        assert all(np.abs(scores.coefs[i] - scores.coefs[j]).max() > 0.01 for j in range(i)), head
    in_turns = starter.score([[head, *[tail] * 2] for head in heads])
    assert len({row.tobytes() for row in in_turns.coefs}) == len(heads)


def test_the_checkpoint_and_its_bundle_cut_the_middle_alike(tiny_checkpoint, tiny_bundle):
    torch = pytest.importorskip("torch")
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint, p2l = Checkpoint.load(tiny_checkpoint), P2L.load(tiny_bundle)
    assert checkpoint.form == p2l.bundle.manifest.text
    assert checkpoint.training["cut"] == "middle"
    prompts = [("code loop " + "apple pear " * 200 + end,) for end in ("sum", "stack")] + [("sum apple " * 200, "fig")]
    ids, mask = pad(checkpoint.encoder.encode(prompts), checkpoint.form.pad_id)
    assert ids.shape == (3, 32)
    with torch.inference_mode():
        coefs, eta = checkpoint.model.scores(torch.from_numpy(ids), torch.from_numpy(mask))
    scores = p2l.score_turns(prompts)
    np.testing.assert_allclose(scores.coefs, coefs.numpy(), atol=1e-4)
    np.testing.assert_allclose(scores.raw_eta, eta.numpy(), atol=1e-4)
    assert scores.truncated.all()


def test_a_missing_device_is_said(tiny_bundle):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ConfigError, match="device 'cuda' is not available"):
        P2L.load(tiny_bundle, device="cuda")
    with pytest.raises(ConfigError, match="valid: cpu, cuda"):
        P2L.load(tiny_bundle, device="tpu")
