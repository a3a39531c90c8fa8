"""Speed on a GPU against torch, and against what its matrix units can do.

    python benchmarks/gpu.py [--shapes 135m,0.5b,1.5b,7b] [--tokens 256] [--precision fp16] [--json]

For each shape, with random weights: milliseconds for one prompt, and prompts per second at the best batch; of torch in
bf16 with SDPA called one prompt at a time (as the research code serves it) and in batches, the same by torch.compile at
the batches that --compiled names, and of the fused graph in ONNX Runtime with bound memory, without and with CUDA
graphs. The share is of the matrix-multiply speed that this very
device reaches in torch on 8192 × 8192 matrices. Needs a CUDA device, torch with CUDA and onnxruntime-gpu.
`--device cpu --shapes tiny` checks on any machine that the script runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QWEN = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "rope_parameters": {"rope_theta": 1e6}}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "LlamaConfig",
        {
            "vocab_size": 1000,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    "135m": (
        "LlamaConfig",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "0.5b": (
        "Qwen2Config",
        {
            **QWEN,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    ),
    "1.5b": (
        "Qwen2Config",
        {
            **QWEN,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
    ),
    "7b": (
        "Qwen2Config",
        {
            **QWEN,
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
}
MODELS = 128
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="135m,0.5b,1.5b,7b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16", help="of the graph")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--compiled", default="", help="batches of torch.compile, which takes its time, such as 1,32")
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    for shape in shapes:
        if shape not in SHAPES:
            parser.error(f"shape {shape!r} is not known; valid: {', '.join(SHAPES)}")
    problem = missing(options.device)
    if problem is not None:
        raise SystemExit(f"benchmarks/gpu.py: {problem}")
    batches = [int(batch) for batch in options.batches.split(",")]
    peak = matmul_peak(options.device)
    compiled = [int(batch) for batch in options.compiled.split(",") if batch]
    rows = []
    for shape in shapes:
        print(f"{shape} …", file=sys.stderr)
        rows += measure(shape, options, batches, compiled, peak)
    result = {"device": device_name(options.device), "peak_tflops": peak / 1e12, "tokens": options.tokens, "rows": rows}
    print(json.dumps(result, indent=2) if options.json else table(result))


def missing(device: str) -> str | None:
    """What this machine lacks, in one sentence, or None."""
    import onnxruntime as ort
    import torch

    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none; --device cpu --shapes tiny checks only that the script runs"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "needs onnxruntime-gpu: pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return None


def device_name(device: str) -> str:
    """The GPU's name."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "the CPU, to check that the script runs"


def synchronise(device: str) -> None:
    """Waits for what was started on the device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(run: Callable[[], Any], device: str, seconds: float) -> float:
    """Median time of one call, after three that warm up."""
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def matmul_peak(device: str) -> float:
    """Floating-point operations per second of torch's own bf16 matrix product."""
    import torch

    n = 8192 if device == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b, device, 1.0)


def operations(config: Any, weights: int, tokens: int) -> float:
    """Floating-point operations of one prompt: two per weight and token, and causal attention."""
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2.0 * weights * tokens + 2.0 * config.num_hidden_layers * tokens**2 * width


def measure(
    shape: str, options: argparse.Namespace, batches: list[int], compiled: list[int], peak: float
) -> list[dict[str, Any]]:
    """The rows of one shape."""
    import torch
    import transformers

    from onnx_export.fused import export_fused
    from p2l_plugins.prompts import TextForm
    from p2l_plugins.training.checkpoint import Checkpoint
    from p2l_plugins.training.model import P2LNetwork

    kind, sizes = SHAPES[shape]
    config = getattr(transformers, kind)(**sizes)
    with torch.device(options.device):  # billions of random numbers take minutes on a CPU
        backbone = transformers.AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        model = P2LNetwork(backbone, MODELS, "grk", "cls").eval()
    model.to("cpu")
    flat = sum(parameter.numel() for parameter in backbone.parameters()) - config.vocab_size * config.hidden_size
    cost = operations(config, flat, options.tokens)
    form = TextForm(form="plain", max_length=options.tokens, pad_id=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        precision = options.precision if options.device == "cuda" else "fp32"
        export_fused(Checkpoint(model, None, [f"m{i}" for i in range(MODELS)], form, {}), path, precision)  # type: ignore[arg-type]
        model.to(options.device)
        rows.append(_row("torch bf16", shape, torch_runner(model, options), options, batches, cost / peak))
        if compiled:
            # on a CPU without a compiler: only that the model can be traced
            scores = torch.compile(
                model.scores, dynamic=False, backend="inductor" if options.device == "cuda" else "eager"
            )
            run = torch_runner(model, options, scores)
            rows.append(_row("torch bf16, compiled", shape, run, options, compiled, cost / peak))
            torch._dynamo.reset()
            del run, scores
        del model, backbone
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        for graphs in (False, True) if options.device == "cuda" else (False,):
            name = f"fused {precision}" + (", CUDA graphs" if graphs else "")
            run = onnx_runner(path, form, options, graphs)
            rows.append(_row(name, shape, run, options, batches, cost / peak))
            del run
            gc.collect()
    return rows


def _row(
    name: str,
    shape: str,
    run: Callable[[int], Any],
    options: argparse.Namespace,
    batches: list[int],
    limit: float,
) -> dict[str, Any]:
    """Batch 1, and the best of the batches that fit the memory.

    Args:
        limit: seconds of one prompt at the measured matrix-multiply speed.
    """
    seconds: dict[int, float] = {}
    for batch in batches:
        try:
            seconds[batch] = median_seconds(lambda batch=batch: run(batch), options.device, options.seconds)  # type: ignore[misc]
        except Exception as error:  # torch and ONNX Runtime have errors of their own for memory that is not there
            print(f"{shape}, {name}: stopped at batch {batch} ({str(error).splitlines()[0][:120]})", file=sys.stderr)
            break
    if not seconds:
        return _said({"shape": shape, "variant": name, "failed": True})
    best = min(seconds, key=lambda batch: seconds[batch] / batch)
    row = {
        "shape": shape,
        "variant": name,
        "one_prompt_ms": 1000 * seconds.get(1, float("nan")),
        "best_batch": best,
        "prompts_per_s": best / seconds[best],
        "share_of_peak_one": limit / seconds.get(1, float("nan")),
        "share_of_peak_best": limit * best / seconds[best],
    }
    return _said(row)


def _said(row: dict[str, Any]) -> dict[str, Any]:
    """The row, which is known even if the next one ends the process."""
    print(json.dumps(row), file=sys.stderr)
    return row


def _inputs(batch: int, tokens: int) -> tuple[Any, Any]:
    ids = np.random.default_rng(0).integers(5, 900, (batch, tokens))
    return ids, np.ones_like(ids)


def torch_runner(model: Any, options: argparse.Namespace, scores: Any = None) -> Callable[[int], Any]:
    """Runs a batch in torch, from ids in host memory to scores in host memory; `scores` is the model's, compiled."""
    import torch

    scores = scores or model.scores

    def run(batch: int) -> Any:
        ids, mask = (torch.from_numpy(value).to(options.device) for value in _inputs(batch, options.tokens))
        with torch.inference_mode():
            return scores(ids, mask)[0].float().cpu()

    return run


def onnx_runner(path: Path, form: Any, options: argparse.Namespace, cuda_graphs: bool) -> Callable[[int], Any]:
    """Runs a batch in ONNX Runtime as `p2l_plugins.scoring.session` does."""
    from p2l_plugins.scoring.session import Bound, open_graph

    bounds: list[Bound] = []

    def run(batch: int) -> Any:
        if not bounds:  # here, so that a graph that is refused fails its own row only
            session = open_graph(path, options.device, settings={"enable_cuda_graph": "1"} if cuda_graphs else None)
            bounds.append(Bound(session, ["coefs", "raw_eta"], MODELS, form, options.device, cuda_graphs))
        return bounds[0].run(*_inputs(batch, options.tokens))

    return run


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"{result['device']}: {result['peak_tflops']:.0f} TFLOP/s in bf16 matrix products; {result['tokens']} tokens",
        "",
        "| shape | variant | one prompt, ms | share of peak | best prompts/s (batch) | share of peak |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row.get("failed"):
            lines.append(f"| {row['shape']} | {row['variant']} | did not run | | | |")
            continue
        lines.append(
            f"| {row['shape']} | {row['variant']} | {row['one_prompt_ms']:.2f} | {row['share_of_peak_one']:.0%} "
            f"| {row['prompts_per_s']:.0f} ({row['best_batch']}) | {row['share_of_peak_best']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
