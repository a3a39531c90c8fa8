"""A bundle's graph in ONNX Runtime, on the CPU or on a CUDA device; what can't be run is refused when it is loaded.

On a CUDA device inputs and outputs are bound to the device's memory. With CUDA graphs, batches are padded to buckets
of (rows × length): the kernels of a bucket are recorded once and launched together afterwards, which pays where a
model is so small that launching its kernels takes longer than running them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.errors import BundleError, ConfigError, P2LError, PromptError
from p2l_plugins.outcomes import Floats, Ids, has_eta
from p2l_plugins.scoring.bundle import Bundle, Manifest

DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

#: Lengths are padded to a multiple of this on a CUDA device, for its matrix products; on a CPU padding is only work.
CUDA_MULTIPLE = 8

#: Buckets of CUDA graphs: the smallest length, and the most padded tokens, above which launching costs little.
SMALLEST_BUCKET = 16
LARGEST_BUCKET_TOKENS = 4096

#: Operators that take nearly all of a run's time.
_COSTLY = re.compile("MatMul|Gemm|Attention")

_CUDA_REMEDY = "check that the NVIDIA driver, CUDA and cuDNN fit this onnxruntime-gpu"

#: What ONNX Runtime writes before the sentence that matters, and two sentences that state versions.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?")
_NEWER = re.compile(r"Opset (\d+) is under development.* till opset (\d+)|IR version: (\d+), max supported.*: (\d+)")


class Session:
    """Runs a bundle's graph. Safe to call from several threads.

    Args:
        bundle: a checked bundle.
        device: `cpu` or `cuda`.
        threads: threads of one run on the CPU; 0 lets ONNX Runtime choose.
        cuda_graphs: record the kernels of small batches; for `cuda` only.

    Raises:
        ConfigError: ONNX Runtime is missing, or the device is not available.
        BundleError: ONNX Runtime can't run the graph, or its inputs or outputs are not those of the manifest.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 0, cuda_graphs: bool = False) -> None:
        if cuda_graphs and device != "cuda":
            raise ConfigError("CUDA graphs need the device 'cuda'")
        self._session = _open(bundle, device, threads, cuda_graphs)
        self._outputs = _check(self._session, bundle)
        manifest = bundle.manifest
        self._max_length, self._width = manifest.text.max_length, len(manifest.models)
        self._bound = None
        if device == "cuda":
            self._bound = Bound(self._session, self._outputs, self._width, manifest.text, device, cuda_graphs)

    def run(self, input_ids: Ids, attention_mask: Ids) -> tuple[Floats, Floats | None]:
        """Coefficients (N, M) and, where the family has one, raw eta (N,), of right-padded token ids (N, L).

        Raises:
            PromptError: padding on the left or between tokens, a row without tokens or one that is too long, shapes
                that differ.
        """
        check_padding(input_ids, attention_mask, self._max_length)
        if self._bound is not None:
            results = self._bound.run(input_ids, attention_mask)
        else:
            results = self._session.run(self._outputs, {"input_ids": input_ids, "attention_mask": attention_mask})
        return results[0], results[1] if len(results) > 1 else None


def check_padding(input_ids: Ids, attention_mask: Ids, max_length: int) -> None:
    """Refuses what the graph would score wrongly without a word.

    Raises:
        PromptError: as `Session.run`.
    """
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise PromptError(
            f"input_ids {input_ids.shape} and attention_mask {attention_mask.shape} must both be (prompts, tokens)"
        )
    if input_ids.shape[1] > max_length:
        raise PromptError(f"{input_ids.shape[1]} tokens are more than the bundle's maximum of {max_length}")
    if not attention_mask.size or not (attention_mask[:, 0] == 1).all():
        raise PromptError("attention_mask must start with 1 in every row: padding goes on the right of the tokens")
    steps = np.diff(attention_mask, axis=1)
    if (steps > 0).any() or (attention_mask < 0).any():
        raise PromptError("attention_mask must be ones, then zeros: padding goes on the right of the tokens")


class Bound:
    """Runs with inputs and outputs bound to a device's memory.

    With CUDA graphs one thread makes all runs, one after another: ONNX Runtime keeps what it recorded per thread, a
    recorded graph reads and writes fixed addresses, and recording fails where another thread uses the device meanwhile.
    """

    def __init__(
        self, session: Any, outputs: Sequence[str], width: int, text: Any, device: str, cuda_graphs: bool
    ) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._width = width
        self._text = text
        self._device = device
        self._buckets: dict[tuple[int, int], tuple[Any, list[Any], list[Any], Any]] = {}
        self._thread = ThreadPoolExecutor(1, "p2l-cuda-graphs") if cuda_graphs else None

    def run(self, input_ids: Ids, attention_mask: Ids) -> list[Floats]:
        """The graph's outputs for these rows."""
        n, length = input_ids.shape
        if self._thread is not None:
            rows, columns = bucket(n, length, self._text.max_length)
            if rows * columns <= LARGEST_BUCKET_TOKENS:
                padded = self._padded(input_ids, attention_mask, rows, columns)
                return [result[:n] for result in self._thread.submit(self._run_bucket, padded).result()]
        columns = min(-(-length // CUDA_MULTIPLE) * CUDA_MULTIPLE, self._text.max_length)
        padded = self._padded(input_ids, attention_mask, n, columns)
        return self._run_once(padded) if self._thread is None else self._thread.submit(self._run_once, padded).result()

    def _padded(self, input_ids: Ids, attention_mask: Ids, rows: int, columns: int) -> tuple[Ids, Ids]:
        n, length = input_ids.shape
        ids = np.full((rows, columns), self._text.pad_id, np.int64)
        mask = np.zeros((rows, columns), np.int64)
        ids[:n, :length], mask[:n, :length] = input_ids, attention_mask
        mask[n:, 0] = 1  # a row without any token would divide by zero
        return ids, mask

    def _run_once(self, inputs: tuple[Ids, Ids]) -> list[Floats]:
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, value in zip(("input_ids", "attention_mask"), inputs, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, self._device, 0))
        for name in self._outputs:
            binding.bind_output(name, self._device, 0)
        self._session.run_with_iobinding(binding, _run_options(-1))
        return list(binding.copy_outputs_to_cpu())

    def _run_bucket(self, inputs: tuple[Ids, Ids]) -> list[Floats]:
        """The first run of a bucket warms up and records, later ones launch what was recorded."""
        import onnxruntime as ort

        shape = inputs[0].shape
        if shape not in self._buckets:
            binding, options = self._session.io_binding(), _run_options(len(self._buckets) + 1)
            given = [ort.OrtValue.ortvalue_from_numpy(np.zeros_like(v), self._device, 0) for v in inputs]
            widths = [(shape[0], self._width), (shape[0],)]
            got = [
                ort.OrtValue.ortvalue_from_shape_and_type(size, np.float32, self._device, 0)
                for size, _ in zip(widths, self._outputs, strict=False)
            ]
            for name, value in zip(("input_ids", "attention_mask"), given, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name, value in zip(self._outputs, got, strict=True):
                binding.bind_ortvalue_output(name, value)
            self._buckets[shape] = (binding, given, got, options)
        binding, given, got, options = self._buckets[shape]
        for value, new in zip(given, inputs, strict=True):
            value.update_inplace(new)
        self._session.run_with_iobinding(binding, options)
        return [value.numpy().copy() for value in got]


def _run_options(graph: int) -> Any:
    """Options of a run that records or launches the CUDA graph of this number; -1 does neither."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def bucket(n: int, length: int, max_length: int) -> tuple[int, int]:
    """Rows and length of the bucket of a batch: powers of two, the length at most the maximum."""
    rows = 1 << (n - 1).bit_length()
    columns = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return rows, max(length, min(columns, max_length))


def require_device(device: str) -> None:
    """Raises a ConfigError where the device is not known, or this ONNX Runtime was built without it."""
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is not known; valid: {', '.join(DEVICES)}")
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise ConfigError(
            "scoring needs ONNX Runtime: pip install 'p2l-plugins[cpu]' (or 'p2l-plugins[gpu]' with CUDA)"
        ) from None
    except ImportError as error:  # it is there
        raise ConfigError(
            f"ONNX Runtime can't be loaded ({error}); give the process more memory, or install it anew"
        ) from None
    if DEVICES[device] not in ort.get_available_providers():
        raise ConfigError(
            f"device {device!r} is not available: this ONNX Runtime has no {DEVICES[device]}; "
            "pip uninstall onnxruntime, then pip install 'p2l-plugins[gpu]'"
        )


def open_graph(path: Path, device: str = "cpu", threads: int = 0, settings: Mapping[str, str] | None = None) -> Any:
    """An ONNX Runtime session of a graph, on this device and no other.

    Args:
        threads: threads of one run on the CPU; 0 lets ONNX Runtime choose.
        settings: of the provider.

    Raises:
        ConfigError: the device is there, but did not take the graph.
        BundleError: ONNX Runtime would run the costly part of it on the CPU.
        Exception: whatever ONNX Runtime raises; its exceptions have no common base of their own.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if device == "cuda":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, and the session says that
            ort.preload_dlls()  # of the packages that the extra `gpu` brings: ONNX Runtime looks elsewhere by itself
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = (DEVICES[device], dict(settings or {}))
    # without enable_fallback=0 ONNX Runtime goes to the CPU, and prints to stdout, when a provider fails
    session = ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    if session.get_providers()[0] != DEVICES[device]:
        raise ConfigError(
            f"device {device!r} is not available: ONNX Runtime chose {session.get_providers()[0]}; {_CUDA_REMEDY}"
        )
    _require_kernels(session, path, device)
    return session


def _require_kernels(session: Any, path: Path, device: str) -> None:
    """Refuses a graph of which ONNX Runtime, without a word, runs matrix products or attention on the CPU."""
    if device == "cpu" or not hasattr(session, "get_provider_graph_assignment_info"):  # older ones do not tell
        return
    parts = session.get_provider_graph_assignment_info()
    elsewhere = {node.op_type for part in parts if part.ep_name != DEVICES[device] for node in part.get_nodes()}
    if costly := sorted(kind for kind in elsewhere if _COSTLY.search(kind)):
        raise BundleError(
            f"{path}: ONNX Runtime can't run {', '.join(costly)} of this precision on {device!r} and would use the "
            "CPU; export it with --precision fp16, or use device 'cpu'"
        )


def _open(bundle: Bundle, device: str, threads: int, cuda_graphs: bool) -> Any:
    require_device(device)
    path = bundle.folder / "model.onnx"
    try:
        return open_graph(path, device, threads, {"enable_cuda_graph": "1"} if cuda_graphs else None)
    except P2LError:
        raise
    except Exception as error:
        raise _refused(path, bundle.manifest, device, error) from None


def _refused(path: Path, manifest: Manifest, device: str, error: Exception) -> P2LError:
    """What ONNX Runtime's error at loading means, and what to do."""
    import onnxruntime as ort

    runtime = f"ONNX Runtime {ort.__version__}"
    kind = type(error).__name__
    detail = _PREFIX.sub("", str(error).partition("\n")[0]).replace(str(path), path.name)
    if kind == "InvalidProtobuf":
        return BundleError(f"{path}: the file is damaged or not an ONNX model; export it or copy it again")
    if newer := _NEWER.search(detail):
        what, has, most = ("opset", *newer.group(1, 2)) if newer[1] else ("IR version", *newer.group(3, 4))
        return BundleError(
            f"{path}: its {what} {has} is newer than the {most} that {runtime} supports; upgrade onnxruntime, or "
            "export it again"
        )
    if "graph capture" in detail:
        return BundleError(f"{path}: CUDA graphs can't record it ({detail}); load it without cuda_graphs")
    if kind == "NotImplemented" or "not a registered" in detail or "No Op registered" in detail:
        other = "upgrade onnxruntime" if manifest.precision == "fp32" else "export it with --precision fp32"
        return BundleError(
            f"{path}: {runtime} can't run this {manifest.route} {manifest.precision} bundle on {device!r} ({detail}); "
            f"{other}, or use another device"
        )
    if device == "cuda" and "CUDA" in detail:
        return ConfigError(f"device 'cuda' is not available ({detail}); {_CUDA_REMEDY}")
    return BundleError(f"{path}: {runtime} can't load it ({detail}); export it or copy it again")


def _check(session: Any, bundle: Bundle) -> list[str]:
    """The names of the outputs, after a check of inputs and outputs against the manifest."""
    path, manifest = bundle.folder / "model.onnx", bundle.manifest
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    expected = ["coefs", "raw_eta"] if has_eta(manifest.family) else ["coefs"]
    if inputs != {"input_ids", "attention_mask"} or set(outputs) != set(expected):
        raise BundleError(
            f"{path}: inputs {sorted(inputs)} and outputs {sorted(outputs)} are not those of {manifest.family}"
        )
    width = outputs["coefs"][-1]
    if not isinstance(width, int):  # the graph does not state it
        ids = np.full((1, 2), manifest.text.pad_id, np.int64)
        width = session.run(["coefs"], {"input_ids": ids, "attention_mask": np.ones_like(ids)}, _run_options(-1))[
            0
        ].shape[-1]
    if width != len(manifest.models):
        raise BundleError(f"{path}: the head has {width} outputs, but p2l.json names {len(manifest.models)} models")
    return expected
