"""What a bundle is made of: every file that is read is listed, and what changes a score changes the fingerprint."""

import json
import random
import shutil

import numpy as np
import pytest
from helpers.word_bundle import CLS, TEMPLATE, write_bundle

from p2l_plugins import P2L, BundleError
from p2l_plugins.scoring.bundle import SILENT_FILES, STARTER, Bundle, Manifest, find_bundle, sha256
from p2l_plugins.scoring.graph_file import PARTS, read_graph_file
from p2l_plugins.scoring.training_prompts import TrainingPrompts

onnx = pytest.importorskip("onnx")

PROMPTS = ["math code", "chat", "code chat math math"]


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a file of every kind: weights beside the graph, a chat template, files that change no score."""
    folder = write_bundle(tmp_path / "bundle", form="chat")
    with_weights_in(folder, "model.onnx.data")
    TrainingPrompts.of([("math",), ("code",)]).write(folder / "training_prompts.u32")
    (folder / "past_votes.npz").write_bytes(b"PK not read by scoring")
    state(folder)
    return folder


def with_weights_in(folder, name):
    """Moves the graph's tensors into a file beside it."""
    graph = onnx.load(str(folder / "model.onnx"))
    onnx.save(graph, str(folder / "model.onnx"), save_as_external_data=True, location="new", size_threshold=64)
    (folder / "new").rename(folder / name)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = name if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(graph.SerializeToString())


def state(folder, leave_out=()):
    """Writes the manifest anew, as whoever may write to the folder can: all hashes and the fingerprint fit."""
    manifest = Manifest.model_validate_json((folder / "p2l.json").read_bytes())
    names = {path.name for path in folder.iterdir()} - {"p2l.json", *leave_out}
    manifest.model_copy(update={"files": {name: sha256(folder / name) for name in names}}).write(folder)


def flipped(path, position, bit=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


def scores_of(folder):
    scores = P2L.load(folder).score(PROMPTS)
    return scores.coefs.tobytes() + (b"" if scores.raw_eta is None else scores.raw_eta.tobytes())


def test_a_byte_that_flips_in_any_file_is_noticed(bundle):
    assert scores_of(bundle)
    draw = random.Random(22)
    for path in sorted(bundle.iterdir()):
        if path.name == "p2l.json":
            continue
        size = path.stat().st_size
        for position in {0, size - 1, *(draw.randrange(size) for _ in range(8))}:
            flipped(path, position)
            with pytest.raises(BundleError, match=f"{path.name}: the content does not match its sha256 in p2l.json"):
                Bundle.open(bundle)
            flipped(path, position)
    assert scores_of(bundle)


def test_whoever_rewrites_the_manifest_too_gets_another_fingerprint(bundle):
    before, draw = P2L.load(bundle).fingerprint, random.Random(22)
    for path in sorted(bundle.iterdir()):
        if path.name == "p2l.json":
            continue
        for position in (draw.randrange(path.stat().st_size) for _ in range(8)):
            flipped(path, position)
            state(bundle)
            after = Manifest.model_validate_json((bundle / "p2l.json").read_bytes()).fingerprint
            assert (after == before) == (path.name in SILENT_FILES), path.name
            flipped(path, position)
    state(bundle)
    assert P2L.load(bundle).fingerprint == before


def test_a_byte_that_flips_in_the_manifest_is_refused_or_changes_no_score(bundle):
    path = bundle / "p2l.json"
    text, before, was = path.read_bytes(), scores_of(bundle), P2L.load(bundle).fingerprint
    for position in random.Random(22).sample(range(len(text)), 80):
        flipped(path, position, bit=2)
        try:
            loaded = P2L.load(bundle)
        except BundleError:
            pass
        else:
            assert loaded.fingerprint == was
            assert scores_of(bundle) == before
        path.write_bytes(text)


@pytest.mark.parametrize("name", ["weights.bin", "README.md", "training_prompts.u32"])
def test_weights_in_a_file_that_is_not_listed_are_refused(tmp_path, name):
    folder = write_bundle(tmp_path / "bundle")
    with_weights_in(folder, name)
    state(folder, leave_out=[name])
    with pytest.raises(BundleError, match=rf"'{name}' is where model.onnx has weights, but p2l.json does not list it"):
        P2L.load(folder)


def test_weights_in_a_file_of_another_name_are_in_the_fingerprint(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    with_weights_in(folder, "weights.bin")
    state(folder)
    before, scores = P2L.load(folder).fingerprint, scores_of(folder)
    data = np.fromfile(folder / "weights.bin", np.uint8)
    table = data[: 4 * 18].view("<f4")
    table[6:9] += 1.0  # what "math" adds
    data.tofile(folder / "weights.bin")
    state(folder)
    assert scores_of(folder) != scores
    assert P2L.load(folder).fingerprint != before


@pytest.mark.parametrize("where", ["../outside.bin", "./inside.bin", "below/inside.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_elsewhere_are_refused(tmp_path, where):
    folder = write_bundle(tmp_path / "bundle")
    with_weights_in(folder, "inside.bin")
    (folder / "below").mkdir()
    shutil.copy(folder / "inside.bin", folder / "below")
    shutil.copy(folder / "inside.bin", tmp_path / "outside.bin")
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = where
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    state(folder, leave_out=["below"])
    with pytest.raises(BundleError, match=r"is where model.onnx has weights, but p2l.json does not list it"):
        P2L.load(folder)


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_chat_template_that_is_not_listed_is_refused(tmp_path, form):
    folder = write_bundle(tmp_path / "bundle", form=form)
    (folder / "chat_template.jinja").write_text(TEMPLATE + "math")
    state(folder, leave_out=["chat_template.jinja"])
    with pytest.raises(BundleError, match=r"'chat_template.jinja' is there, but p2l.json does not list it"):
        P2L.load(folder)


def test_files_that_nobody_reads_may_lie_beside(bundle):
    before, was = scores_of(bundle), P2L.load(bundle).fingerprint
    state(bundle, leave_out=SILENT_FILES)
    (bundle / "README.md").write_text(f"# A bundle {CLS}\n")
    (bundle / "LICENSE").write_text("Apache-2.0\n")
    (bundle / ".gitattributes").write_text("*.onnx filter=lfs\n")
    assert (scores_of(bundle), P2L.load(bundle).fingerprint) == (before, was)
    assert Bundle.open(bundle).training_prompts is None  # it is there, but not listed


def test_a_precision_that_is_not_true_lets_no_neighbour_change_a_score(tmp_path):
    """`precision` is not in the fingerprint; whether prompts run alone is in the graph as well."""
    folder = write_bundle(tmp_path / "bundle")
    graph = onnx.load(str(folder / "model.onnx"))
    nodes = graph.graph.node
    table = next(node for node in nodes if node.op_type == "ReduceSum" and "coefs" in node.output)
    table.output[0] = "exact"
    nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["exact"], ["q", "scale", "zero_point"]))
    nodes.append(onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["coefs"]))
    onnx.save(graph, str(folder / "model.onnx"))
    state(folder)
    p2l = P2L.load(folder)
    assert p2l.bundle.manifest.precision == "fp32"
    together = p2l.score(["chat", "math " * 30]).coefs[0]
    np.testing.assert_array_equal(p2l.score(["chat"]).coefs[0], together)


def test_the_starters_fingerprint_is_what_it_was():
    """Scores that are cached stay valid."""
    assert Bundle.open(find_bundle(STARTER)).manifest.fingerprint == "fc496c0aa70144a1e885502c54aab81b"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "p2l.json"])
def test_a_tampered_starter_is_refused(tmp_path, name):
    folder = shutil.copytree(find_bundle(STARTER), tmp_path / "starter")
    if name == "p2l.json":
        manifest = json.loads((folder / name).read_text())
        manifest["models"][:2] = manifest["models"][1::-1]
        (folder / name).write_text(json.dumps(manifest))
    else:
        flipped(folder / name, 5000)
    with pytest.raises(BundleError, match=name):
        P2L.load(folder)


@pytest.mark.parametrize(
    "source",
    [
        "../other",
        "../../none",
        "/nowhere/at/all",
        "a/b/c",
        "-x",
        "~/bundle",
        "a//b",
        "a/..",
        "a\x00b",
        "a b",
        "x" * 200,
    ],
)
def test_a_hub_id_like_a_path_is_neither_fetched_nor_made(tmp_path, monkeypatch, source):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(BundleError):
        P2L.load(source)
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]


HUGE = 2**45


@pytest.mark.parametrize("where", ["made", "weights", "output"])
def test_huge_dimensions_are_refused_or_fail_with_their_prompt(tmp_path, where):
    folder = write_bundle(tmp_path / "bundle", family="bt")
    graph = onnx.load(str(folder / "model.onnx"))
    if where == "made":  # as much memory as nobody has, asked for when it runs
        shape = onnx.numpy_helper.from_array(np.array([HUGE]), "shape")
        graph.graph.initializer.append(shape)
        graph.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))
        graph.graph.node.append(onnx.helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0))
        last = next(node for node in graph.graph.node if "coefs" in node.output)
        last.output[0] = "sums"
        graph.graph.node.append(onnx.helper.make_node("Add", ["sums", "zero"], ["coefs"]))
    elif where == "weights":
        next(one for one in graph.graph.initializer if one.name == "table").dims[0] = HUGE
    else:
        graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = HUGE
    onnx.save(graph, str(folder / "model.onnx"))
    state(folder)
    if where == "made":
        with pytest.raises(Exception, match=r"(?i)alloc|memory|size"):
            P2L.load(folder).score(["math"])
    elif where == "output":  # ONNX Runtime knows better than the graph says
        assert P2L.load(folder).score(["math"]).coefs.shape == (1, 3)
    else:
        with pytest.raises(BundleError, match=r"model\.onnx"):
            P2L.load(folder)


# ---- reading a graph's file


def test_every_way_to_a_tensor_is_followed():
    """Against onnx's own description of the format: no message that can hold a tensor or an operator is left out."""

    def leads(message, above=()):
        inner = {field.message_type for field in message.fields if field.message_type} - {*above, message}
        return message.name in ("NodeProto", "TensorProto") or any(leads(one, (*above, message)) for one in inner)

    waiting, known = [onnx.ModelProto.DESCRIPTOR], {"TensorProto"}
    while waiting:
        message = waiting.pop()
        known.add(message.name)
        parts = {f.number: f.message_type for f in message.fields if f.message_type and leads(f.message_type)}
        assert PARTS[message.name] == {number: part.name for number, part in parts.items()}
        waiting += [part for part in parts.values() if part.name not in known]
    assert set(PARTS) == known
    assert PARTS["TensorProto"] == {onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "StringStringEntryProto"}


def test_tensors_in_inner_graphs_functions_and_attributes_are_found(tmp_path):
    def external(name):
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    helper = onnx.helper
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "inner", [], [], [external("inner")])
    constant = helper.make_node("Constant", [], ["c"], value=external("attribute"))
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function(
        "ours", "f", ["x"], ["y"], [helper.make_node("Constant", [], ["y"], value=external("function"))], []
    )
    graph = helper.make_graph([constant, branch], "outer", [], [], [external("outer")])
    sparse = graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(external("sparse"))
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function]).SerializeToString())
    found = read_graph_file(path)
    assert found.locations == {"inner", "attribute", "function", "outer", "sparse"}
    assert found.operators == {"Neg", "Constant", "If"}


@pytest.mark.parametrize("data", [b"", b"\x3a", b"not a graph", b"\xff" * 40, b"\x3a\x05abc", b"\x0b"])
def test_what_is_no_graph_is_refused(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="damaged or not an ONNX model"):
        read_graph_file(path)
