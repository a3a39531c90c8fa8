"""All that is to be measured on a machine with a GPU, in four steps of less than ten minutes each.

    python benchmarks/gpu_all.py --step correctness --out FOLDER
    python benchmarks/gpu_all.py --step inference --out FOLDER
    python benchmarks/gpu_all.py --step serve --out FOLDER
    python benchmarks/gpu_all.py --step train --out FOLDER

Each step runs its parts one after another as processes with limits of their own, goes on after one that fails, and
writes what is known so far to FOLDER/STEP.json and FOLDER/STEP.md after each part.

- correctness: the gate of export on the device in bf16 and fp16, of the checkpoint that --fixture names and of the
  starter; how much batches and padding change a score; that a CLS token off by one is refused; that CUDA graphs give
  the same bits.
- inference: `benchmarks/gpu.py` at 135M, 0.5B, 1.5B and 7B, with torch.compile at batches 1 and 32.
- serve: `p2l serve` of a random model of the 135M shape with 50 and 500 connections, without and with CUDA graphs.
- train: `p2l train` of that model in bf16, with one forward per prompt and with one per vote.

It needs torch with CUDA, onnxruntime-gpu, the packages of the extras export, train and serve, and a checkpoint in the
published form for --fixture, whose tokenizer the random models take too. `--device cpu --tiny` checks on any machine
that every part runs; its figures mean nothing. Only one part: --part NAME.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

#: Steps, their parts, and the seconds that each part may take.
STEPS: dict[str, dict[str, int]] = {
    "correctness": {
        "providers": 40,
        "fixture fp16": 90,
        "fixture bf16": 90,
        "off by one": 60,
        "starter fp16": 130,
        "starter bf16": 130,
    },
    "inference": {"135m": 100, "0.5b": 110, "1.5b": 140, "7b": 220},
    "serve": {"bundle": 270, "without graphs": 140, "with graphs": 140},
    "train": {"checkpoint": 60, "by prompt": 240, "by vote": 240},
}
CONNECTIONS = (50, 500)
VOTES_PER_PROMPT = 8
WORDS = "the of and to in is that it was for on are as with his they at be this from have or by one had not but".split()

Row = dict[str, Any]


def main() -> None:
    """Runs a step, or in a process of its own a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=[*STEPS, "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--work", type=Path, help="folder of the models; default: a temporary one")
    parser.add_argument("--fixture", type=Path, default=ROOT.parent / "shared/fixtures/public_checkpoint_llama_bt")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest models, seconds per part")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits, on a slower machine")
    parser.add_argument("--part", help="one part of the step")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_part(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if options.work is None:
            options.work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options.work = options.work.resolve()
        options.work.mkdir(parents=True, exist_ok=True)
        failed = [name for step in STEPS if options.step in (step, "all") for name in run_step(step, options)]
    if failed:
        raise SystemExit(f"benchmarks/gpu_all.py: failed: {', '.join(failed)}")


def run_step(step: str, options: argparse.Namespace) -> list[str]:
    """Runs the parts of a step, writes its tables, and returns the parts that failed."""
    done: dict[str, dict[str, Any]] = {}
    parts = {name: limit for name, limit in STEPS[step].items() if options.part in (None, name)}
    if options.tiny and step == "inference":
        del parts["0.5b"], parts["1.5b"], parts["7b"]
    for name, limit in parts.items():
        started = time.monotonic()
        rows, problem = part_rows(step, name, round(limit * options.patience), options)
        done[name] = {"seconds": round(time.monotonic() - started, 1), "failed": problem, "rows": rows}
        (options.out / f"{step}.json").write_text(json.dumps(done, indent=2))
        (options.out / f"{step}.md").write_text(markdown(step, done))
    print((options.out / f"{step}.md").read_text(), flush=True)
    return [f"{step}/{name}" for name, part in done.items() if part["failed"]]


def part_rows(step: str, name: str, limit: int, options: argparse.Namespace) -> tuple[list[Row], str | None]:
    """The rows that a part printed, and why it failed. Its processes are stopped at its limit."""
    command = [sys.executable, __file__, "--inside", "--step", step, "--part", name, "--out", str(options.out)]
    command += ["--work", str(options.work), "--fixture", str(options.fixture), "--device", options.device]
    command += ["--tiny"] if options.tiny else []
    libraries = [str(path) for one in sys.path for path in sorted(Path(one).glob("nvidia/**/lib")) if path.is_dir()]
    path = ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(":")
    environment = os.environ | {"LD_LIBRARY_PATH": path, "PYTHONUNBUFFERED": "1"}
    with (options.work / "stdout").open("w+") as out, (options.work / "stderr").open("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        with contextlib.suppress(ProcessLookupError):  # what a part started and left running, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        out.seek(0)
        err.seek(0)
        rows = [json.loads(line) for line in out if line.startswith("{")]
        said = [line.strip() for line in err if line.strip()]
    print(f"{step}/{name}: {'stopped at its limit' if status is None else f'status {status}'}", *said[-3:], sep="\n  ")
    if status == 0:
        return rows, None
    return rows, f"stopped after {limit} s" if status is None else (said or ["no word"])[-1][:300]


def markdown(step: str, done: dict[str, dict[str, Any]]) -> str:
    """The rows of all parts as one table per set of columns, then what failed."""
    lines = [f"## {step}"]
    columns: list[str] = []
    for name, part in done.items():
        for row in part["rows"]:
            if list(row) != columns:
                columns = list(row)
                lines += ["", f"| part | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{name}: failed: {part['failed']}" for name, part in done.items() if part["failed"])]
    lines.append("seconds: " + ", ".join(f"{name} {part['seconds']}" for name, part in done.items()))
    return "\n".join(lines) + "\n"


def run_part(options: argparse.Namespace) -> None:
    """One part: prints its rows as lines of JSON."""
    for row in PARTS[options.step](options.part, options):
        print(json.dumps(row), flush=True)


# ---- correctness


def correctness(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of a part of that step."""
    if part == "providers":
        yield providers(options)
    elif part == "off by one":
        yield off_by_one(options)
    else:
        name, precision = part.split()
        if options.device == "cpu":
            precision = "fp32" if precision == "bf16" else precision  # no bfloat16 products there
        yield from exported(name, precision, options)


def providers(options: argparse.Namespace) -> Row:
    """What the machine has; fails without the device."""
    import onnxruntime
    import torch

    from p2l_plugins.scoring.session import require_device

    require_device(options.device)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "card": card,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "providers": " ".join(onnxruntime.get_available_providers()),
    }


def source(name: str, options: argparse.Namespace) -> Path:
    """The checkpoint folder of the fixture, or of the starter as its bundle is read back."""
    if name == "fixture" and not options.tiny:
        return Path(options.fixture)
    folder = options.work / f"{name}-checkpoint"
    if not folder.is_dir():
        from p2l_plugins.scoring.bundle import Bundle, find_bundle
        from p2l_plugins.training.checkpoint import Checkpoint
        from p2l_plugins.training.from_bundle import checkpoint_of

        if name == "fixture":
            checkpoint = Checkpoint.load(options.fixture)
        else:
            checkpoint = checkpoint_of(Bundle.open(find_bundle("starter")))
        model = checkpoint.model
        length = 48 if options.tiny else checkpoint.form.max_length
        checkpoint.training = {"head_type": model.family, "pooling": model.pooling, "max_length": length}
        folder.mkdir()
        checkpoint.save(folder)
    return Path(folder)


def exported(name: str, precision: str, options: argparse.Namespace) -> Iterator[Row]:
    """Exports through the gate on the device; then batches, padding and CUDA graphs of what it wrote."""
    from onnx_export.export import export
    from p2l_plugins import P2L
    from p2l_plugins.scoring.session import Bound

    output = options.work / f"{name}-{precision}"
    bundle = export(source(name, options), output, precision, device=options.device)
    gate, text = bundle.manifest.gate, bundle.manifest.text
    p2l = P2L(bundle, options.device)
    rng = np.random.default_rng(0)
    longest = min(text.max_length, 48 if options.tiny else 512)
    rows = [rng.integers(5, 400, length) for length in rng.integers(1, longest + 1, 24)]
    alone = np.concatenate([p2l.run(*padded([row], text.pad_id)).coefs for row in rows])
    scale = float(alone.std())
    together = p2l.run(*padded(rows, text.pad_id)).coefs
    ids, mask = padded(rows, text.pad_id)
    garbage = p2l.run(np.where(mask == 1, ids, rng.integers(5, 400, ids.shape)), mask).coefs
    session = p2l._session._session
    graphs: Bound | None = Bound(session, p2l._session._outputs, len(p2l.models), text, options.device, True)
    if options.device == "cuda":
        graphs = P2L(bundle, options.device, cuda_graphs=True)._session._bound
    plain = Bound(session, p2l._session._outputs, len(p2l.models), text, options.device, False)
    assert graphs is not None
    same = True
    for shape in [(1, 16), (2, 32), (4, longest), (1, 16), (2, 32), (8, 16), (4, longest)]:
        given = rng.integers(5, 400, shape), np.ones(shape, np.int64)
        same &= all(
            np.array_equal(one, other) for one, other in zip(graphs.run(*given), plain.run(*given), strict=True)
        )
    yield {
        "route": bundle.manifest.route,
        "precision": precision,
        "longest": gate["longest_tokens"],
        "error in std": gate.get("max_error_in_std", gate["max_error"]),
        "win probability error": gate.get("mean_win_probability_error", float("nan")),
        "rank correlation": gate.get("prompt_specific_spearman", float("nan")),
        "batch effect in std": float(np.abs(together - alone).max()) / scale,
        "padding effect in std": float(np.abs(garbage - together).max()) / scale,
        "graphs bit for bit": same,
    }
    if not same:
        raise SystemExit("CUDA graphs give other bits than runs without them")


def padded(rows: list[Any], pad_id: int) -> tuple[Any, Any]:
    """Token ids and mask, padded on the right."""
    from p2l_plugins.prompts import pad

    return pad([row.tolist() for row in rows], pad_id)


def off_by_one(options: argparse.Namespace) -> Row:
    """A graph that reads the token before CLS must not pass the gate."""
    import torch

    from onnx_export.gate import References, failure, measure
    from onnx_export.graph import export_plain
    from p2l_plugins.scoring.session import open_graph
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(options.fixture)
    checkpoint.form = checkpoint.form.model_copy(update={"max_length": 48 if options.tiny else 256})
    references, backbone = References(checkpoint), checkpoint.model.model

    def before_cls(input_ids: Any, attention_mask: Any) -> Any:
        states = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = (attention_mask.sum(dim=1) - 2)[:, None, None].expand(-1, 1, states.shape[-1])
        return torch.gather(states, 1, last)[:, 0]

    checkpoint.model.pooled = before_cls  # type: ignore[method-assign]
    path = options.work / "off.onnx"
    export_plain(checkpoint, path, "fp16")
    problem = failure(measure(open_graph(path, options.device), references, "fp16"), "fp16")
    if problem is None:
        raise SystemExit("a CLS token off by one passes the gate")
    return {"a CLS token off by one": f"refused: {problem}"}


# ---- inference


def inference(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of `benchmarks/gpu.py` for a shape, as they come."""
    shape = (
        ("tiny", "--tokens", "16", "--batches", "1,4", "--compiled", "1", "--seconds", "0.05")
        if options.tiny
        else (part, "--compiled", "1,32")
    )
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", options.device, "--shapes", *shape]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
        print(process.stdout.readline(), file=sys.stderr)  # the card and its peak
    if process.returncode:
        raise SystemExit(process.returncode)


# ---- a model of the 135M shape


def random_checkpoint(options: argparse.Namespace) -> Path:
    """A checkpoint of random weights with the fixture's tokenizer."""
    folder = Path(options.work / "random")
    if not folder.is_dir():
        import torch
        import transformers
        from gpu import SHAPES

        from p2l_plugins.training.checkpoint import Checkpoint
        from p2l_plugins.training.model import P2LNetwork

        torch.manual_seed(0)
        kind, sizes = SHAPES["tiny" if options.tiny else "135m"]
        like = Checkpoint.load(options.fixture)
        sizes = {**sizes, "vocab_size": max(sizes["vocab_size"], len(like.tokenizer)), "max_position_embeddings": 512}
        config = getattr(transformers, kind)(**sizes)
        backbone = transformers.AutoModel.from_config(config, dtype=torch.float32)
        model = P2LNetwork(backbone, 128, "grk", "cls").eval()
        training = {"head_type": "grk", "pooling": "cls", "max_length": 32 if options.tiny else 256}
        names = [f"m{i}" for i in range(128)]
        folder.mkdir()
        Checkpoint(model, like.tokenizer, names, like.form, training).save(folder)
    return folder


# ---- serve


def serving(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """Exports the bundle, or serves it to each number of connections."""
    bundle = options.work / "served"
    if part == "bundle":
        from onnx_export.export import export

        half = "fp16" if options.device == "cuda" else "fp32"
        export(random_checkpoint(options), bundle, half, device=options.device)
        yield {"bundle": "135M shape", "precision": half}
        return
    graphs = part == "with graphs" and options.device == "cuda"
    with served(bundle, graphs, options) as port:
        for connections in (5, 20) if options.tiny else CONNECTIONS:
            yield asyncio.run(load(port, connections, 1.0 if options.tiny else 20.0))


@contextlib.contextmanager
def served(bundle: Path, graphs: bool, options: argparse.Namespace) -> Iterator[int]:
    """The port of a service of the bundle, when it is ready."""
    code = (
        "import functools; from p2l_plugins import P2L, cli; "
        f"P2L.load = functools.partial(P2L.load, cuda_graphs={graphs}); cli.main()"
    )
    command = [sys.executable, "-c", code, "serve", str(bundle), "--device", options.device, "--port", "0"]
    command += ["--max-per-address", "1000", "--max-pending", "2048"]
    log = options.work / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 90
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the service did not get ready: {log.read_text()[-500:]}")
            found = re.search(r"http://\S+:(\d+)", log.read_text())
            with contextlib.suppress(OSError):
                if found and b" 200 " in asyncio.run(once(int(found[1]), b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")):
                    break
            time.sleep(0.2)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


async def once(port: int, request: bytes) -> bytes:
    """The first line that a service answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return line


async def load(port: int, connections: int, seconds: float) -> Row:
    """Asks on so many connections at once, each for one new prompt of about 100 words after another."""
    times: list[float] = []
    errors = 0
    until = time.monotonic() + seconds

    async def client(seed: int) -> None:
        nonlocal errors
        rng = np.random.default_rng(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            text = " ".join(rng.choice(WORDS, int(rng.integers(20, 180))))
            body = json.dumps({"prompts": [text]}).encode()
            head = f"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            started = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            length = re.search(rb"content-length: (\d+)", answer.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            if answer.startswith(b"HTTP/1.1 200"):
                times.append(time.perf_counter() - started)
            else:
                errors += 1
        writer.close()

    ended = await asyncio.gather(*(client(seed) for seed in range(connections)), return_exceptions=True)
    errors += sum(isinstance(one, BaseException) for one in ended)
    p50, p99 = np.percentile([1e3 * one for one in times] or [float("nan")], [50, 99])
    return {
        "connections": connections,
        "prompts per s": len(times) / seconds,
        "p50 ms": float(p50),
        "p99 ms": float(p99),
        "errors": errors,
    }


# ---- train


def training(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """Makes the checkpoint, or trains on votes of which eight share a prompt, or none."""
    checkpoint = random_checkpoint(options)
    if part == "checkpoint":
        return
    name = part.replace(" ", "-")
    prompts = (16 if options.tiny else 2048) // (1 if part == "by prompt" else 4)  # a quarter of the votes is enough
    rng = np.random.default_rng(0)
    rows = []
    for i in range(prompts):
        text = " ".join(rng.choice(WORDS, 10 if options.tiny else 150))
        for j in range(VOTES_PER_PROMPT):
            a, b = rng.choice(128, 2, replace=False)
            own = f"{text} {i}" if part == "by prompt" else f"{text} {i} {j}"
            winner = ["model_a", "model_b", "tie", "tie (bothbad)"][int(rng.integers(4))]
            rows.append({"prompt": own, "model_a": f"m{a}", "model_b": f"m{b}", "winner": winner})
    (options.work / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = options.work / f"{name}.yaml"
    config.write_text(
        f"name: {name}\nbackbone: {checkpoint}\nmax_length: {32 if options.tiny else 256}\nepochs: 1\nheld_out: 0\n"
        f"batch_size: {4 if options.tiny else 32}\nbf16: {str(options.device == 'cuda').lower()}\n"
        f"ties: refuse\ndata:\n  - {{path: {name}.jsonl, prompt_weight: null, licence: none}}\n"
    )
    output = options.work / f"{name}-checkpoint"
    command = [
        sys.executable,
        "-m",
        "p2l_plugins.cli",
        "train",
        str(config),
        "--data",
        str(options.work),
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    report = json.loads((output / "training_report.json").read_text())
    seconds = next(entry["train_runtime"] for entry in report["log"] if "train_runtime" in entry)
    yield {
        "votes": report["votes"],
        "forwards": report["prompts"],
        "seconds": seconds,
        "votes per s": report["votes"] / seconds,
        "forwards per s": report["prompts"] / seconds,
    }


PARTS = {"correctness": correctness, "inference": inference, "serve": serving, "train": training}


if __name__ == "__main__":
    main()
