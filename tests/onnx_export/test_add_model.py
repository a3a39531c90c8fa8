"""Adding, removing and renaming models of a bundle: the graph, the manifest, the commands."""

import json
import shutil

import numpy as np
import pytest
from helpers.topics import topic_votes

from p2l_plugins import P2L, BundleError, ConfigError, DataError
from p2l_plugins.outcomes import negative_log_likelihood
from p2l_plugins.prompts import as_turns
from p2l_plugins.scoring.bundle import Bundle, Manifest, sha256
from p2l_plugins.votes.read import read_votes

onnx = pytest.importorskip("onnx")
pytest.importorskip("scipy")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from onnx_export.edit import add_model, paired_gain, remove_models, rename_model  # noqa: E402
from onnx_export.head import find_head, load_graph, read_states, replace_head  # noqa: E402
from onnx_export.new_votes import votes_of  # noqa: E402

PROMPTS = sorted({as_turns(row["prompt"]) for row in topic_votes()}, reverse=True)  # 32 of sums, then 32 of code


@pytest.fixture(scope="module")
def without(tiny_bundle, tmp_path_factory):
    """The tiny bundle without `counter`."""
    return remove_models(Bundle.open(tiny_bundle), ["counter"], tmp_path_factory.mktemp("less") / "bundle")


@pytest.fixture(scope="module")
def added(without, votes_file, tmp_path_factory):
    """`counter` added back from its votes."""
    output = tmp_path_factory.mktemp("more") / "bundle"
    return add_model(without, read_votes(votes_file), "counter", output)


def with_graph(bundle, folder, model, models=None):
    """A copy of a bundle with another graph, saved as it is."""
    shutil.copytree(bundle.folder, folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return restated(folder, bundle.manifest, models)


def restated(folder, manifest, models=None):
    files = {file.name: sha256(file) for file in folder.iterdir() if file.name != "p2l.json"}
    manifest.model_copy(update={"files": files, "models": models or manifest.models}).write(folder)
    return Bundle.open(folder)


def test_a_removed_model_added_back_from_its_votes_predicts_as_before(tiny_bundle, added, votes_file):
    bundle, figures = added
    before, after = P2L.load(tiny_bundle).score_turns(PROMPTS), P2L(bundle).score_turns(PROMPTS)
    assert after.models == ("coder", "weak", "counter")
    new, old = after.coefs[:, after.index("counter")], before.coefs[:, before.index("counter")]
    assert np.corrcoef(new, old)[0, 1] > 0.99
    assert np.sign(new[:32] - after.coefs[:32, 0]).tolist() == [1] * 32  # counter is good at sums,
    assert np.sign(new[32:] - after.coefs[32:, 0]).tolist() == [-1] * 32  # coder at code
    votes, _ = votes_of(read_votes(votes_file), "counter", ("coder", "weak"), "grk")

    def loss(scores):
        rows = [PROMPTS.index(prompt) for prompt in votes.prompts]
        order = [scores.index(name) for name in ("coder", "weak", "counter")]
        coefs, eta = scores.coefs[rows][:, order][votes.prompt], scores.raw_eta[rows][votes.prompt]
        side = np.arange(len(votes))
        return negative_log_likelihood("grk", coefs[side, votes.a], coefs[side, votes.b], votes.outcome, eta).mean()

    assert loss(after) < loss(before) + 0.01
    held_out = figures["held_out"]
    assert held_out["log_loss"]["fitted"] < held_out["log_loss"]["level_only"] - 0.1
    assert held_out["gain"] > 3 * held_out["gain_stderr"]


def test_the_other_models_do_not_change_by_a_bit(tiny_bundle, without, added):
    original = P2L.load(tiny_bundle).score_turns(PROMPTS)
    for bundle in (without, added[0]):
        scores = P2L(bundle).score_turns(PROMPTS)
        for name in ("coder", "weak"):
            np.testing.assert_array_equal(scores.coefs[:, scores.index(name)], original.coefs[:, original.index(name)])
        np.testing.assert_array_equal(scores.raw_eta, original.raw_eta)


def test_the_new_column_is_the_row_times_the_state(added):
    bundle, _ = added
    states, coefs, _ = read_states(bundle, PROMPTS)
    head = find_head(load_graph(bundle.folder), bundle.folder)
    assert head.weight.shape == (3, 32)
    np.testing.assert_allclose(states @ head.weight.T + head.bias, coefs, atol=1e-5)
    np.testing.assert_array_equal(coefs, P2L(bundle).score_turns(PROMPTS).coefs)


def test_the_state_is_the_torch_model_s_pooled_state(tiny_checkpoint, tiny_bundle):
    torch = pytest.importorskip("torch")
    from p2l_plugins.prompts import pad
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(tiny_checkpoint)
    ids, mask = pad(checkpoint.encoder.encode(PROMPTS), checkpoint.form.pad_id)
    with torch.inference_mode():
        pooled = checkpoint.model.pooled(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    bundle = Bundle.open(tiny_bundle)
    np.testing.assert_allclose(read_states(bundle, PROMPTS)[0], pooled, atol=1e-5)
    head = find_head(load_graph(tiny_bundle), tiny_bundle)
    np.testing.assert_array_equal(head.weight, checkpoint.model.head.head.weight.detach().numpy())


def test_the_manifest_says_what_was_added(without, added):
    bundle, figures = added
    old, new = without.manifest, bundle.manifest
    assert new.fingerprint != old.fingerprint
    assert new.training["changes"] == [{"change": "remove-model", "models": ["counter"]}, figures]
    assert (figures["used"], figures["others"], figures["unknown"]) == (320, 160, 0)
    assert figures["fit_votes"] + figures["held_out"]["votes"] == 320
    assert figures["fit_prompts"] + figures["held_out"]["prompts"] == figures["prompts"] == 64
    assert new.quality == old.quality
    assert {k: v for k, v in new.files.items() if k != "model.onnx"} == {
        k: v for k, v in old.files.items() if k != "model.onnx"
    }


def test_an_int8_bundle_takes_a_model_too(tiny_checkpoint, votes_file, tmp_path):
    from onnx_export.export import export

    bundle = export(tiny_checkpoint, tmp_path / "int8", precision="int8")
    assert (bundle.manifest.route, bundle.manifest.precision) == ("fused", "int8")
    less = remove_models(bundle, ["counter"], tmp_path / "less")
    more, _ = add_model(less, read_votes(votes_file), "counter", tmp_path / "more")
    before, after = P2L(bundle).score_turns(PROMPTS), P2L(more).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, 0], before.coefs[:, before.index("coder")])
    assert np.corrcoef(after.coefs[:, 2], before.coefs[:, before.index("counter")])[0, 1] > 0.99


def test_a_plain_bundle_takes_a_model_too(plain_bundle, votes_file, tmp_path):
    bundle = Bundle.open(plain_bundle)
    less = remove_models(bundle, ["counter"], tmp_path / "less")
    more, _ = add_model(less, read_votes(votes_file), "counter", tmp_path / "more")
    before, after = P2L(bundle).score_turns(PROMPTS), P2L(more).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, 0], before.coefs[:, before.index("coder")])


def test_a_fused_decoder_changes_its_models(public_checkpoint, tmp_path):
    from onnx_export.export import export
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(public_checkpoint)
    checkpoint.training["max_length"] = 64
    (tmp_path / "checkpoint").mkdir()
    checkpoint.save(tmp_path / "checkpoint")
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", route="fused")
    first, *others = bundle.manifest.models
    less = rename_model(remove_models(bundle, [first], tmp_path / "less"), others[0], "renamed", tmp_path / "renamed")
    assert less.manifest.models == ("renamed", *others[1:])
    prompts = [("hi!",), ("Write a haiku.", "Shorter.")]
    np.testing.assert_array_equal(P2L(less).score_turns(prompts).coefs, P2L(bundle).score_turns(prompts).coefs[:, 1:])


def low_rank(bundle, folder, rank=4, cast=True):
    """The bundle with its head as two factors and a bias, state → rank → M, and a cast at the end."""
    model = load_graph(bundle.folder)
    head = find_head(model, bundle.folder)
    rng = np.random.default_rng(0)
    first = rng.normal(size=(head.weight.shape[1], rank)).astype(np.float32)
    second = np.linalg.lstsq(first, head.weight.T, rcond=None)[0].astype(np.float32)
    nodes = [node for node in model.graph.node if not set(node.output) & set(head.chain)]
    nodes += [
        helper.make_node("MatMul", [head.state, "first"], ["low"]),
        helper.make_node("MatMul", ["low", "second"], ["product"]),
        helper.make_node("Add", ["head_bias", "product"], ["sum" if cast else "coefs"]),
        *([helper.make_node("Cast", ["sum"], ["coefs"], to=TensorProto.FLOAT)] if cast else []),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("first", first), ("second", second), ("head_bias", head.bias)):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return with_graph(bundle, folder, model)


def test_a_low_rank_head_grows_in_its_second_factor(without, votes_file, tmp_path):
    factored = low_rank(without, tmp_path / "factored")
    states, coefs, _ = read_states(factored, PROMPTS)
    assert states.shape == (64, 4)
    bundle, figures = add_model(factored, read_votes(votes_file), "counter", tmp_path / "more")
    head = find_head(load_graph(bundle.folder), bundle.folder)
    assert head.weight.shape == (3, 4)
    np.testing.assert_array_equal(P2L(bundle).score_turns(PROMPTS).coefs[:, :2], coefs)
    assert figures["held_out"]["log_loss"]["fitted"] < figures["held_out"]["log_loss"]["level_only"]


@pytest.mark.parametrize("transposed", [True, False])
def test_a_gemm_head_in_both_orientations(without, votes_file, tmp_path, transposed):
    model = load_graph(without.folder)
    head = find_head(model, without.folder)
    nodes = [node for node in model.graph.node if not set(node.output) & set(head.chain)]
    nodes.append(helper.make_node("Gemm", [head.state, "w", "b"], ["coefs"], transB=int(transposed)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stored = np.ascontiguousarray(head.weight if transposed else head.weight.T)
    model.graph.initializer.extend([numpy_helper.from_array(stored, "w"), numpy_helper.from_array(head.bias, "b")])
    gemm = with_graph(without, tmp_path / "gemm", model)
    found = find_head(load_graph(gemm.folder), gemm.folder)
    np.testing.assert_array_equal(found.weight, head.weight)
    bundle, _ = add_model(gemm, read_votes(votes_file), "counter", tmp_path / "more")
    before, after = P2L(gemm).score_turns(PROMPTS), P2L(bundle).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, :2], before.coefs)


def test_a_head_in_half_precision_stays_in_it(without, votes_file, tmp_path):
    model = load_graph(without.folder)
    head = find_head(model, without.folder)
    nodes = [node for node in model.graph.node if not set(node.output) & set(head.chain)]
    nodes += [
        helper.make_node("Cast", [head.state], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["half", "w", "b"], ["half_coefs"], transB=1),
        helper.make_node("Cast", ["half_coefs"], ["coefs"], to=TensorProto.FLOAT),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("w", head.weight), ("b", head.bias)):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), name))
    source = Bundle(without.folder, without.manifest.model_copy(update={"precision": "fp16"}))
    half = with_graph(source, tmp_path / "half", model)
    bundle, _ = add_model(half, read_votes(votes_file), "counter", tmp_path / "more")
    assert find_head(load_graph(bundle.folder), bundle.folder).weight.dtype == np.float16
    before, after = P2L(half).score_turns(PROMPTS), P2L(bundle).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, :2], before.coefs)


def test_weights_in_external_data_stay_where_they_are(without, votes_file, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(without.folder, folder)
    model = onnx.load(str(folder / "model.onnx"))
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=128
    )
    large = restated(folder, without.manifest)
    assert "model.onnx.data" in large.manifest.files
    bundle, _ = add_model(large, read_votes(votes_file), "counter", tmp_path / "more")
    assert bundle.manifest.files["model.onnx.data"] == large.manifest.files["model.onnx.data"]
    np.testing.assert_array_equal(
        P2L(bundle).score_turns(PROMPTS).coefs[:, :2], P2L(without).score_turns(PROMPTS).coefs
    )


def test_a_graph_that_ends_otherwise_is_refused(without, tmp_path):
    model = load_graph(without.folder)
    head = find_head(model, without.folder)
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "coefs" else name for name in node.output]
    model.graph.node.append(helper.make_node("Tanh", ["raw"], ["coefs"]))
    with pytest.raises(BundleError, match="does not end in a linear layer with a weight and a bias of its own"):
        find_head(model, without.folder)
    model = load_graph(without.folder)
    model.graph.node.append(helper.make_node("Identity", [head.weight_name], ["copy"]))
    with pytest.raises(BundleError, match="shares them"):
        find_head(model, without.folder)


def test_the_head_that_was_written_is_the_head_that_is_read(without):
    model = load_graph(without.folder)
    head = find_head(model, without.folder)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(7, 32)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    replace_head(model, head, weight, bias)
    again = find_head(onnx.load_from_string(model.SerializeToString()), without.folder)
    np.testing.assert_array_equal(again.weight, weight)
    np.testing.assert_array_equal(again.bias, bias)
    onnx.checker.check_model(model)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return read_votes(path)


def test_the_new_model_is_turned_to_side_a_and_the_rest_is_counted(tmp_path):
    rows = [
        {"prompt": "x", "model_a": "coder", "model_b": "new", "winner": "model_a", "weight": 2},
        {"prompt": "x", "model_a": "new", "model_b": "weak", "winner": "tie"},
        {"prompt": "y", "model_a": "coder", "model_b": "weak", "winner": "model_a"},
        {"prompt": "z", "model_a": "new", "model_b": "stranger", "winner": "model_a"},
        {"prompt": "z", "model_a": "new", "model_b": "weak", "winner": "model_b"},
    ]
    votes, counts = votes_of(write(tmp_path / "v.jsonl", rows), "new", ("coder", "weak"), "grk")
    assert votes.models == ("coder", "weak", "new")
    assert votes.prompts == [("x",), ("z",)]
    assert votes.a.tolist() == [2, 2, 2]
    assert votes.b.tolist() == [0, 1, 1]
    assert votes.outcome.tolist() == [1, 2, 1]
    assert votes.weight.tolist() == [2, 1, 1]
    assert (counts.used, counts.others, counts.unknown, counts.unknown_models) == (3, 1, 1, ("stranger",))


def test_errors_name_the_problem_and_nothing_is_written(without, votes_file, tmp_path):
    votes = read_votes(votes_file)
    output = tmp_path / "out"

    def refused(error, match, name="counter", votes=votes, bundle=without, **options):
        with pytest.raises(error, match=match):
            add_model(bundle, votes, name, options.pop("output", output), **options)
        assert not list(tmp_path.glob("*out*"))

    refused(ConfigError, "already has a model 'coder'", "coder")
    refused(ConfigError, "'Coder-v1' is an alias of 'coder'", "Coder-v1")
    refused(ConfigError, "is not a name", " ")
    refused(ConfigError, "neither the new model nor one of the bundle; valid: coder, weak", aliases={"x": "nobody"})
    refused(ConfigError, "'coder' is the name of a model itself", aliases={"coder": "weak"})
    refused(ConfigError, "has it as an alias of 'coder'", aliases={"Coder-v1": "weak"})
    refused(ConfigError, r"held-out is 1, but must be at least 0 and below 1", fraction=1.0)
    refused(DataError, "no vote is on 'nobody'; the votes are on coder, counter, weak", "nobody")
    rows = [{"prompt": "x", "model_a": "new", "model_b": "stranger", "winner": "model_a"}]
    strangers = write(tmp_path / "v.jsonl", rows)
    refused(DataError, r"all 1 votes on 'new' are with models that .* does not have \(stranger\)", "new", strangers)
    refused(DataError, "already exists", output=without.folder)
    bt = Bundle(without.folder, without.manifest.model_copy(update={"family": "bt"}))
    refused(DataError, "80 of 320 votes on 'counter' are ties.*--drop-ties", bundle=bt)
    refused(DataError, "all 64 prompts with votes on 'counter' are held out", fraction=1 - 1e-9)


def test_a_bt_bundle_can_leave_ties_out(votes_file):
    votes, counts = votes_of(read_votes(votes_file), "counter", ("coder", "weak"), "bt", drop_ties=True)
    assert (counts.used, counts.ties) == (240, 80)
    assert votes.decisive().all()


def test_a_score_column_without_a_common_prompt_is_no_vote(tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = [{"prompt": "x", "coder": 1, "weak": 0, "new": None}, {"prompt": "y", "coder": None, "weak": None, "new": 1}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match="no vote is on 'new': its scores are all missing, or"):
        votes_of(read_votes(path), "new", ("coder", "weak"), "grk")


def test_opponents_without_a_level_give_none_to_the_new_model(without, votes_file, tmp_path):
    votes = read_votes(votes_file)
    both = Bundle(without.folder, without.manifest.model_copy(update={"ungrounded": ("coder", "weak")}))
    apart, _ = add_model(both, votes, "counter", tmp_path / "apart", fraction=0)
    assert apart.manifest.ungrounded == ("coder", "weak", "counter")
    one = Bundle(without.folder, without.manifest.model_copy(update={"ungrounded": ("weak",)}))
    tied, figures = add_model(one, votes, "counter", tmp_path / "tied", fraction=0)
    assert tied.manifest.ungrounded == ("weak",)
    assert figures["held_out"] is None


def test_removing_takes_aliases_along_and_leaves_one_model_at_least(tiny_bundle, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    less = remove_models(bundle, ["coder", "weak"], tmp_path / "less").manifest
    assert less.models == ("counter",)
    assert less.aliases == {}
    with pytest.raises(ConfigError, match="leave at least one"):
        remove_models(bundle, ["coder", "weak", "counter"], tmp_path / "none")
    with pytest.raises(ConfigError, match="'Coder-v1' is an alias; the model's name is 'coder'"):
        remove_models(bundle, ["Coder-v1"], tmp_path / "none")
    with pytest.raises(ConfigError, match="model 'nobody' is not in the bundle; it has coder, counter, weak"):
        remove_models(bundle, ["nobody"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_renamed_model_answers_to_its_old_name(tiny_bundle, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    renamed = rename_model(bundle, "coder", "coder-2", tmp_path / "renamed")
    manifest = renamed.manifest
    assert manifest.models == ("coder-2", "counter", "weak")
    assert manifest.aliases == {"Coder-v1": "coder-2", "coder": "coder-2"}
    assert manifest.fingerprint != bundle.manifest.fingerprint
    assert manifest.files == bundle.manifest.files
    assert P2L(renamed).index("coder") == P2L(bundle).index("coder")
    back = rename_model(renamed, "coder-2", "coder", tmp_path / "back", keep_alias=False).manifest
    assert back.models == bundle.manifest.models
    assert back.aliases == bundle.manifest.aliases
    assert back.fingerprint == bundle.manifest.fingerprint
    for name, match in (("weak", "already has a model"), ("", "is not a name")):
        with pytest.raises(ConfigError, match=match):
            rename_model(bundle, "coder", name, tmp_path / "no")


def test_a_paired_gain_is_a_ratio_over_prompts():
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 5, 5000).astype(float)
    first, second = weight * rng.normal(1.2, 0.5, 5000), weight * 1.0
    gain, error = paired_gain(first, second, weight)
    np.testing.assert_allclose(gain, (first.sum() - second.sum()) / weight.sum())
    draws = rng.integers(5000, size=(1000, 5000))
    bootstrap = (first - second)[draws].sum(axis=1) / weight[draws].sum(axis=1)
    np.testing.assert_allclose(error, bootstrap.std(), rtol=0.1)
    assert paired_gain(first[:1], second[:1], weight[:1])[1] is None


@pytest.fixture
def p2l(monkeypatch, capsys, tmp_path):
    """Runs the command in `tmp_path`: (stdout, stderr)."""
    from p2l_plugins.cli import main

    def run(*arguments, status=0):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["p2l", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == status, printed.err
        return printed

    return run


def test_the_commands(without, p2l, tmp_path):
    rows = [*topic_votes(), {"prompt": "sum fig", "model_a": "counter", "model_b": "who", "winner": "model_a"}]
    named = json.dumps(rows).replace('"counter"', '"Counter-v9"')
    votes = tmp_path / "votes.jsonl"
    votes.write_text("\n".join(json.dumps(row) for row in json.loads(named)))
    arguments = ("add-model", without.folder, "--votes", votes, "--name", "counter", "--alias", "Counter-v9=counter")
    shown = p2l(*arguments).out
    assert "counter: 320 votes on 64 prompts with 2 models" in shown
    assert "160 votes without counter were ignored" in shown
    assert "1 votes with models that the bundle does not have were left out: who" in shown
    assert f"fingerprint {without.manifest.fingerprint} → " in shown
    bundle = Bundle.open(tmp_path / "tiny+counter")
    assert bundle.manifest.aliases["Counter-v9"] == "counter"
    removed = json.loads(p2l("remove-model", bundle.folder, "weak", "-o", tmp_path / "less", "--json").out)
    assert removed["models"] == 2
    assert removed["previous_fingerprint"] == bundle.manifest.fingerprint
    renamed = p2l("rename-model", bundle.folder, "counter", "c", "-o", tmp_path / "renamed", "--drop-alias").out
    assert renamed.startswith("counter is now c\n")
    assert Manifest.model_validate_json((tmp_path / "renamed" / "p2l.json").read_bytes()).models[-1] == "c"
    wrong = p2l(*arguments, "--alias", "nothing", status=2)
    assert wrong.err.strip() == "p2l: --alias 'nothing' must have the form OTHER=MODEL"


def test_two_models_that_only_met_each_other_are_added_together(tiny_bundle, p2l, tmp_path):
    one = remove_models(Bundle.open(tiny_bundle), ["counter", "coder"], tmp_path / "one")
    rows = [row for row in topic_votes() if "weak" not in (row["model_a"], row["model_b"])]
    votes = tmp_path / "votes.jsonl"
    votes.write_text("\n".join(map(json.dumps, rows)))
    shown = p2l(
        *("add-model", one.folder, "--votes", votes, "--model", "counter", "--model", "coder"),
        *("--name", "mine", "--refit-ties", "-o", tmp_path / "both"),
    )
    assert "counter, coder: 160 votes on 64 prompts; known opponents: none" in shown.out
    bundle = Bundle.open(tmp_path / "both")
    assert (bundle.manifest.name, bundle.manifest.models) == ("mine", ("weak", "counter", "coder"))
    assert set(bundle.manifest.ungrounded) == {"counter", "coder"}  # no vote is "both bad"
    before, after = P2L(one).score_turns(PROMPTS), P2L(bundle).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, 0], before.coefs[:, 0])
    assert np.sign(after.coefs[:32, 1] - after.coefs[:32, 2]).tolist() == [1] * 32
    assert np.sign(after.coefs[32:, 1] - after.coefs[32:, 2]).tolist() == [-1] * 32
    change = bundle.manifest.training["changes"][-1]
    line = change["raw_eta"]
    np.testing.assert_allclose(after.raw_eta, line["slope"] * before.raw_eta + line["shift"], atol=1e-4)
    assert after.raw_eta.mean() < before.raw_eta.mean()  # these votes hold no tie
    assert change["held_out"]["over_marginal"][0] > 0.1


def test_known_rows_stay_and_the_new_ones_meet_them(without, votes_file, tmp_path):
    from onnx_export.add_models import add_models

    bundle, figures = add_models(without, read_votes(votes_file), ["counter"], tmp_path / "more")
    assert figures["known_opponents"] == ["coder", "weak"]
    before, after = P2L(without).score_turns(PROMPTS), P2L(bundle).score_turns(PROMPTS)
    np.testing.assert_array_equal(after.coefs[:, :2], before.coefs)
    np.testing.assert_array_equal(after.raw_eta, before.raw_eta)
    assert np.sign(after.coefs[:32, 2] - after.coefs[:32, 0]).tolist() == [1] * 32


def test_what_loses_to_a_baseline_is_refused(without, tmp_path):
    """On the held-out prompts the opposite of the rest happens."""
    from onnx_export.add_models import add_models
    from p2l_plugins.votes.votes import held_out

    out = dict(zip(PROMPTS, held_out(PROMPTS, 0.2, 0), strict=True))
    rows = [
        {"prompt": row["prompt"], "model_a": "new", "model_b": "coder"}
        | {"winner": "model_b" if out[as_turns(row["prompt"])] else "model_a"}
        for row in topic_votes()
    ]
    votes = write(tmp_path / "votes.jsonl", rows)
    with pytest.raises(DataError, match=r"the new rows lose to the constant forecast by .* write it with --force"):
        add_models(without, votes, ["new"], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    bundle, figures = add_models(without, votes, ["new"], tmp_path / "forced", force=True)
    assert bundle.manifest.models[-1] == "new"
    assert figures["held_out"]["over_constant"][0] < 0
    with pytest.raises(DataError, match="no vote is on 'nobody' with another new model"):
        add_models(without, votes, ["nobody"], tmp_path / "no")


def test_a_model_from_published_accuracies_alone(tiny_bundle, p2l, tmp_path):
    table, prompts = tmp_path / "table.csv", tmp_path / "prompts.jsonl"
    table.write_text("category,accuracy,n\nsum,0.9,1000\ncode,0.2,1000\n")
    lines = [{"prompt": turns[0], "category": turns[0].split()[0]} for turns in PROMPTS]
    prompts.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "loop", "category": "other"}])))
    arguments = ("add-model", tiny_bundle, "--accuracies", table, "--model", "published")
    shown = p2l(*arguments, "--prompts", prompts, "-o", tmp_path / "more").out
    assert "| sum | 32 | 0.900 | 0." in shown
    after = P2L(Bundle.open(tmp_path / "more")).score_turns(PROMPTS)
    usable = 1 / (1 + np.exp(-after.coefs[:, -1].astype(float)))
    assert abs(usable[:32].mean() - 0.9) < 0.05
    assert abs(usable[32:].mean() - 0.2) < 0.05
    assert p2l(*arguments, status=2).err.strip() == "p2l: --accuracies TABLE and --prompts FILE belong together"
    table.write_text("category,accuracy\nsum,90\n")
    assert "valid are a name, a number from 0 to 1" in p2l(*arguments, "--prompts", prompts, status=1).err
    table.write_text("category,accuracy\nlaw,0.5\n")
    assert "no prompt is of the category 'law'; the prompts are of code, other, sum" in (
        p2l(*arguments, "--prompts", prompts, status=1).err
    )
    assert "either --votes FILE or --accuracies" in p2l("add-model", tiny_bundle, "--model", "x", status=2).err
