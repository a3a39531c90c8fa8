"""Speed of one forward pass on the CPU: torch, the plain graph, the fused graph and its reduced precisions, in one run.

    python benchmarks/inference.py CHECKPOINT [--threads 2] [--seconds 20] [--json]

Variants take turns within one process, so that what else the machine does meets all of them; a shape's figure is the
median. Peak memory and load time are measured in a process of their own for each variant. Shapes longer than the
checkpoint's `max_length` are run where its backbone has the positions: the graph is exported at that length. Graphs are
exported without the gate, which `p2l export` runs: this script is about time only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((1, 32), (1, 128), (1, 512), (8, 128), (32, 128))
GRAPHS = {"plain": "fp32", "fused": "fp32", "fused int8": "int8"}
TORCH = {"torch fp32": "float32", "torch bf16": "bfloat16"}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint's folder, or `smollm2-135m`, `minilm` with a random head")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20.0, help="per shape")
    parser.add_argument("--shapes", default=",".join(f"{n}x{length}" for n, length in SHAPES), help="batch x tokens")
    parser.add_argument("--only", default=",".join([*TORCH, *GRAPHS]), help="variants, separated by commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(loaded(*options.measure, options.threads, int(options.shapes.split("x")[1]))))
        return
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    tokens = min(128, max(length for _, length in shapes))
    names = options.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, paths, sizes = prepare(options.checkpoint, Path(folder), names, max(n for _, n in shapes))
        own = {
            name: json.loads(
                subprocess.run(
                    [
                        *(sys.executable, __file__, "x", "--threads", str(options.threads)),
                        *("--shapes", f"1x{tokens}", "--measure", name, path),
                    ],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.splitlines()[-1]
            )
            for name, path in paths.items()
        }
        runs = {name: runner(name, path, options.threads) for name, path in paths.items()}
        vocabulary = checkpoint.model.model.config.vocab_size
        times = {shape: alternate(runs, shape, vocabulary, options.seconds) for shape in shapes}
    result = {
        "machine": f"{processor()}, {options.threads} threads",
        "times_ms": {f"{n}x{length}": times[n, length] for n, length in shapes},
        "tokens_of_peak": tokens,
        "load_s": {name: value["load_s"] for name, value in own.items()},
        "peak_mb": {name: value["peak_mb"] for name, value in own.items()},
        "file_mb": sizes,
    }
    print(json.dumps(result, indent=2) if options.json else table(result))


def prepare(spec: str, folder: Path, names: list[str], longest: int) -> tuple[Any, dict[str, str], dict[str, float]]:
    """The checkpoint, where each variant is (a graph, or the checkpoint's folder for torch), and the sizes in MB."""
    import torch

    from onnx_export.fused import export_fused, unsupported
    from onnx_export.graph import export_plain
    from p2l_plugins.training.backbone import PACKAGED, load_backbone
    from p2l_plugins.training.checkpoint import Checkpoint
    from p2l_plugins.training.model import P2LNetwork

    source = folder / "checkpoint"
    if spec in PACKAGED:
        backbone = load_backbone(spec, longest)
        torch.manual_seed(0)
        model = P2LNetwork(backbone.model, 100, "grk", backbone.pooling).eval()
        names_of_models = [f"model-{i}" for i in range(100)]
        training = {"head_type": "grk", "pooling": backbone.pooling, "max_length": longest}
        source.mkdir()
        Checkpoint(model, backbone.tokenizer, names_of_models, backbone.form, training).save(source)
    else:
        source = Path(spec)
    checkpoint = Checkpoint.load(source)
    positions = int(checkpoint.model.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    if positions < longest:
        raise SystemExit(f"the backbone has {positions} positions: leave out shapes of {longest} tokens with --shapes")
    checkpoint.form = checkpoint.form.model_copy(update={"max_length": max(longest, checkpoint.form.max_length)})
    paths = {name: str(source) for name in names if name in TORCH}
    for name in names:
        if name not in GRAPHS:
            continue
        if name != "plain" and unsupported(checkpoint) is not None:
            print(f"{name}: left out, the fused route does not cover {unsupported(checkpoint)}", file=sys.stderr)
            continue
        path = folder / name.replace(" ", "-") / "model.onnx"
        path.parent.mkdir()
        if name == "plain":
            export_plain(checkpoint, path)
        else:
            export_fused(checkpoint, path, GRAPHS[name])
        paths[name] = str(path)
    sizes = {
        name: sum(file.stat().st_size for file in Path(path).parent.iterdir()) / 1e6
        for name, path in paths.items()
        if name in GRAPHS
    }
    return checkpoint, paths, sizes


def runner(name: str, path: str, threads: int) -> Callable[[np.ndarray, np.ndarray], Any]:
    """A function of ids and mask that runs one variant."""
    if name in TORCH:
        import torch

        from p2l_plugins.training.checkpoint import Checkpoint

        torch.set_num_threads(threads)
        model = Checkpoint.load(path).model
        model.model.to(getattr(torch, TORCH[name]))

        def run_torch(ids: np.ndarray, mask: np.ndarray) -> Any:
            with torch.inference_mode():
                return model.scores(torch.from_numpy(ids), torch.from_numpy(mask))

        return run_torch
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # the threads of one session must not spin while another variant has its turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})


def alternate(runs: dict[str, Any], shape: tuple[int, ...], vocabulary: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each variant, which take turns; the first two turns only warm up."""
    ids = np.random.default_rng(0).integers(5, vocabulary - 5, shape)
    mask = np.ones(shape, np.int64)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 7 or time.perf_counter() < end:
        for name, run in runs.items():
            start = time.perf_counter()
            run(ids, mask)
            times[name].append(time.perf_counter() - start)
        turns += 1
    return {name: float(np.median(values[2:])) * 1000 for name, values in times.items()}


def loaded(name: str, path: str, threads: int, tokens: int) -> dict[str, float]:
    """Seconds to load (without imports), and this process's peak memory in MB after one prompt."""
    if name in TORCH:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    start = time.perf_counter()
    run = runner(name, path, threads)
    ready = time.perf_counter() - start
    run(np.full((1, tokens), 7), np.ones((1, tokens), np.int64))
    return {"load_s": ready, "peak_mb": peak_memory() / 1e6}


def peak_memory() -> float:
    """Bytes; not from getrusage, whose figure a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """Milliseconds and ratios to the first variant, as Markdown."""
    times = result["times_ms"]
    names = list(result["load_s"])
    lines = [
        f"{result['machine']}; ms (ratio to {names[0]})",
        "",
        "| batch × tokens | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for shape, row in times.items():
        cells = [f"{row[name]:.1f} ({row[name] / row[names[0]]:.2f})" for name in names]
        lines.append(f"| {shape.replace('x', ' × ')} | " + " | ".join(cells) + " |")
    lines.append("| load, s | " + " | ".join(f"{result['load_s'][name]:.2f}" for name in names) + " |")
    lines.append(
        "| peak memory at 1 × 128, MB | " + " | ".join(f"{result['peak_mb'][name]:.0f}" for name in names) + " |"
    )
    sizes = [f"{result['file_mb'][name]:.0f}" if name in result["file_mb"] else "" for name in names]
    return "\n".join([*lines, "| graph, MB | " + " | ".join(sizes) + " |"])


if __name__ == "__main__":
    main()
