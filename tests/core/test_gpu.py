"""What runs on a CUDA device, against a stand-in for ONNX Runtime's provider that computes on the CPU.

The stand-in has the provider's rules: nothing else runs while a graph is recorded or launched, a graph belongs to the
thread that recorded it, and it reads and writes the addresses that it was recorded with. Which operators have kernels
is set by the test. That the kernels compute the same is for a machine that has a GPU: `benchmarks/gpu_all.py`.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from p2l_plugins import P2L, BundleError, ConfigError
from p2l_plugins.prompts import pad
from p2l_plugins.scoring.session import CUDA_MULTIPLE, DEVICES, LARGEST_BUCKET_TOKENS, bucket
from tests.helpers.command import called, run

ort = pytest.importorskip("onnxruntime")

SESSION, FROM_NUMPY, OF_SHAPE = (
    ort.InferenceSession,
    ort.OrtValue.ortvalue_from_numpy,
    ort.OrtValue.ortvalue_from_shape_and_type,
)


class Binding:
    """What is bound, its devices and addresses."""

    def __init__(self, real):
        self.real, self.devices, self.values = real, [], {}

    def bind_ortvalue_input(self, name, value):
        self.values[name] = value
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name, value):
        self.values[name] = value
        self.real.bind_ortvalue_output(name, value)

    def bind_output(self, name, device, number):
        self.devices.append((device, number))
        self.real.bind_output(name, "cpu", 0)

    def copy_outputs_to_cpu(self):
        return self.real.copy_outputs_to_cpu()

    def addresses(self):
        return {name: (value.data_ptr(), tuple(value.shape())) for name, value in self.values.items()}


class StandIn:
    """A session of the stand-in."""

    made: list["StandIn"]  # newest last
    without: frozenset[str]  # operators that have no kernel
    refuses: Exception | None

    def __init__(self, path, options, providers, enable_fallback):
        if StandIn.refuses is not None:
            raise StandIn.refuses
        assert enable_fallback == 0
        ((name, settings),) = providers
        assert name == DEVICES["cuda"]
        self.records = settings == {"enable_cuda_graph": "1"}
        self.real = SESSION(path, options, providers=["CPUExecutionProvider"])
        self.recorded = {}
        self.runs = []
        self.running = threading.Lock()
        StandIn.made.append(self)

    def __getattr__(self, name):
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self.real, name)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        shares = {"CUDAExecutionProvider": [], "CPUExecutionProvider": []}
        for node in nodes:
            host = node.op_type in StandIn.without or node.op_type == "Shape"
            shares[self.get_providers()[host]].append(node)
        return [SimpleNamespace(ep_name=name, get_nodes=lambda own=own: own) for name, own in shares.items()]

    def io_binding(self):
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, binding, options):
        number = int(options.get_run_config_entry("gpu_graph_id"))
        if self.records:
            assert self.running.acquire(blocking=False), "another thread uses the device while a graph is recorded"
        try:
            if number >= 0:
                assert self.records
                key = (threading.get_ident(), number)
                assert self.recorded.setdefault(key, binding.addresses()) == binding.addresses()
            self.runs.append((number, tuple(binding.values["input_ids"].shape()), tuple(binding.devices)))
            self.real.run_with_iobinding(binding.real, options)
            time.sleep(0.001)  # long enough for others to come in between
        finally:
            if self.records:
                self.running.release()


@pytest.fixture
def cuda(monkeypatch):
    """The stand-in in place of the provider; gives its class, and the devices on which values were made."""
    devices = []

    def from_numpy(value, device="cpu", number=0):
        devices.append((device, number))
        return FROM_NUMPY(value, "cpu", 0)

    def of_shape(shape, kind, device="cpu", number=0):
        devices.append((device, number))
        return OF_SHAPE(shape, kind, "cpu", 0)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", StandIn)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", from_numpy)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", of_shape)
    StandIn.made, StandIn.without, StandIn.refuses = [], frozenset(), None
    return SimpleNamespace(session=lambda: StandIn.made[-1], devices=devices)


@pytest.fixture(scope="module")
def checkpoint(tiny_backbone, tmp_path_factory):
    """An encoder of random weights."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from p2l_plugins.training.backbone import load_backbone
    from p2l_plugins.training.checkpoint import Checkpoint
    from p2l_plugins.training.model import P2LNetwork

    torch.manual_seed(0)
    start = load_backbone(str(tiny_backbone), 32)
    model = P2LNetwork(start.model, 3, "grk", start.pooling).eval()
    folder = tmp_path_factory.mktemp("gpu") / "checkpoint"
    folder.mkdir()
    training = {"head_type": "grk", "pooling": start.pooling, "max_length": 32}
    Checkpoint(model, start.tokenizer, ["coder", "counter", "weak"], start.form, training).save(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint):
    """Its bundle, by the fused route."""
    from onnx_export.export import export

    return export(checkpoint, checkpoint.parent / "bundle", route="fused").folder


def ragged(p2l, count=24, longest=None, seed=0):
    """Token ids of different lengths."""
    rng = np.random.default_rng(seed)
    longest = longest or p2l.max_length
    lengths = [1, longest, *rng.integers(1, longest + 1, count - 2)]
    return [rng.integers(5, 14, length).tolist() for length in lengths]


def test_inputs_and_outputs_are_bound_to_the_device(cuda, bundle):
    p2l = P2L.load(bundle, "cuda")
    rows = ragged(p2l)
    for some in (rows[:1], rows[:7], rows):
        ids, mask = pad(some, 0)
        scores = p2l.run(ids, mask)
        expected = cuda.session().real.run(None, {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(scores.coefs, expected[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(scores.raw_eta, expected[1], rtol=1e-6, atol=1e-6)
    assert set(cuda.devices) == {("cuda", 0)}
    for number, (_, length), outputs in cuda.session().runs:
        assert number == -1
        assert length % CUDA_MULTIPLE == 0 or length == p2l.max_length
        assert outputs == (("cuda", 0), ("cuda", 0))


def test_the_libraries_of_the_extra_are_loaded_first_and_nothing_is_printed(cuda, bundle, monkeypatch, capfd):
    def preload():
        assert not StandIn.made
        print("Failed to load libcublas.so.13")  # as ONNX Runtime does
        loaded.append(True)

    loaded = []
    monkeypatch.setattr(ort, "preload_dlls", preload)
    P2L.load(bundle, "cuda")
    assert loaded == [True]
    assert capfd.readouterr().out == ""


def test_with_graphs_one_thread_records_each_bucket_once_whoever_asks(cuda, bundle):
    p2l = P2L.load(bundle, "cuda", cuda_graphs=True)
    p2l.warm_up()
    rows = ragged(p2l, 40)
    rng = np.random.default_rng(1)
    batches = [[rows[i] for i in rng.integers(0, 40, size)] for size in (1, 1, 2, 3, 5, 9, 200, 1, 7, 200, 33, 2)]
    batches = [pad(batch, 0) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda batch: p2l.run(*batch), batches * 2))
    for (ids, mask), scores in zip(batches * 2, results, strict=True):
        expected = cuda.session().real.run(None, {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(scores.coefs, expected[0], rtol=1e-6, atol=1e-6)
    runs, recorded = cuda.session().runs, cuda.session().recorded
    assert len({thread for thread, _ in recorded}) == 1
    shapes = {number: {shape for other, shape, _ in runs if other == number} for _, number in recorded}
    assert all(len(own) == 1 for own in shapes.values())
    assert len(set.union(*shapes.values())) == len(shapes)
    large = [shape for number, shape, _ in runs if number == -1]
    assert large
    assert all(np.prod(bucket(*shape, p2l.max_length)) > LARGEST_BUCKET_TOKENS for shape in large)


def test_the_thread_of_the_graphs_ends_with_the_bundle(cuda, bundle):
    before = set(threading.enumerate())
    p2l = P2L.load(bundle, "cuda", cuda_graphs=True)
    p2l.score(["fig"])
    (own,) = (thread for thread in set(threading.enumerate()) - before if thread.name.startswith("p2l-cuda-graphs"))
    StandIn.made.clear()
    del p2l
    own.join(10)
    assert not own.is_alive()


def test_attention_that_would_run_on_the_cpu_is_refused(cuda, bundle):
    StandIn.without = frozenset({"MultiHeadAttention", "GroupQueryAttention", "Gather"})
    with pytest.raises(
        BundleError, match=r"can't run MultiHeadAttention of this precision on 'cuda' .* fp16"
    ) as caught:
        P2L.load(bundle, "cuda")
    assert str(caught.value).startswith(str(bundle))
    StandIn.without = frozenset({"Gather", "Concat"})  # shapes are the host's
    assert P2L.load(bundle, "cuda").score(["fig"]).coefs.shape == (1, 3)


def test_an_onnxruntime_that_does_not_tell_where_operators_run_is_taken(cuda, bundle, monkeypatch):
    monkeypatch.delattr(StandIn, "get_provider_graph_assignment_info")
    StandIn.without = frozenset({"MultiHeadAttention"})
    assert P2L.load(bundle, "cuda").score(["fig"]).coefs.shape == (1, 3)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 100: no CUDA-capable device is detected ; GPU=0"
            ),
            ConfigError,
            r"device 'cuda' is not available \(CUDA failure 100: no .*\); check that the NVIDIA driver, CUDA and",
        ),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the "
                "user as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
            ),
            BundleError,
            r"model\.onnx: CUDA graphs can't record it \(This session .*\); load it without cuda_graphs",
        ),
    ],
)
def test_what_the_provider_refuses_is_said_in_one_sentence(cuda, bundle, error, kind, message):
    StandIn.refuses = error
    with pytest.raises(kind, match=message) as caught:
        P2L.load(bundle, "cuda", cuda_graphs=True)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_cuda():
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("here it would run")
    return (
        "p2l: device 'cuda' is not available: this ONNX Runtime has no CUDAExecutionProvider; "
        "pip uninstall onnxruntime, then pip install 'p2l-plugins[gpu]'\n"
    )


def test_serve_without_cuda_ends_with_one_sentence(no_cuda):
    done = run("serve", "--device", "cuda", "--port", "0", status=1, timeout=120)
    assert done.stdout == ""
    assert done.stderr.endswith("\n" + no_cuda)


def test_export_without_cuda_says_one_sentence_and_writes_nothing(no_cuda, tmp_path):
    pytest.importorskip("onnx")
    done = called("export", tmp_path, tmp_path / "bundle", "--device", "cuda", "--precision", "fp16", status=2)
    assert done.stderr == no_cuda
    assert not (tmp_path / "bundle").exists()


# ---- export for a device


def test_export_refuses_a_graph_that_has_no_kernels_there(cuda, checkpoint, tmp_path):
    export = pytest.importorskip("onnx_export.export").export
    StandIn.without = frozenset({"MultiHeadAttention"})
    with pytest.raises(BundleError, match=r"^model\.onnx: ONNX Runtime can't run MultiHeadAttention of this precision"):
        export(checkpoint, tmp_path / "bundle", device="cuda", route="fused")
    assert not (tmp_path / "bundle").exists()


#: Inputs that kernels for CUDA read on the host.
HOST_INPUTS = {
    "Expand": {1},
    "GroupQueryAttention": {6},
    "Range": {0, 1, 2},
    "ReduceMax": {1},
    "ReduceSum": {1},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Squeeze": {1},
    "Unsqueeze": {1},
}


def crossings(graph):
    """Nodes whose inputs ONNX Runtime would copy between host and device in each run, which no CUDA graph can record.

    By its rule (`GetCpuPreferredNodes`): what is made of shapes alone is computed on the host, but for operators that
    read their inputs there anyway.
    """
    fixed = {value.name for value in (*graph.initializer, *graph.input)} | {""}
    host, found = set(), []
    for node in graph.node:
        reads = HOST_INPUTS.get(node.op_type, set())
        made = [i for i, name in enumerate(node.input) if name not in fixed]
        if node.op_type == "Shape" or (made and all(node.input[i] in host and i not in reads for i in made)):
            host.update(node.output)
        elif any((node.input[i] in host) != (i in reads) for i in made):
            found.append((node.op_type, node.name))
    return found


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["encoder", "llama", "qwen2", "qwen3"])
def test_no_fused_graph_copies_shapes_to_the_device(kind, precision, tmp_path):
    onnx, transformers = pytest.importorskip("onnx"), pytest.importorskip("transformers")
    from onnx_export.fused import export_fused
    from p2l_plugins.prompts import TextForm
    from p2l_plugins.training.checkpoint import Checkpoint
    from p2l_plugins.training.model import P2LNetwork

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {"encoder": "Bert", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config = getattr(transformers, f"{names[kind]}Config")(**sizes, vocab_size=100)
    backbone = transformers.AutoModel.from_config(config)
    for pooling in ("cls", "mean") if kind == "encoder" else ("cls",):
        model = P2LNetwork(backbone, 5, "grk", pooling).eval()
        form = TextForm(form="plain", max_length=64, pad_id=0)
        export_fused(Checkpoint(model, None, [f"m{i}" for i in range(5)], form, {}), tmp_path / "model.onnx", precision)
        assert crossings(onnx.load(tmp_path / "model.onnx").graph) == []
