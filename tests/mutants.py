"""Changes the code a little, many times, and sees whether the tests of that code notice: `make mutants`.

    python tests/mutants.py [--per-module 16] [--seed 1] [--least 0.9] [MODULE ...]

A mutant is one change in one file: another comparison, sign, constant, bound or branch, a call or a result that is left
out. A sample of them, drawn with a seed, is written into a copy of the tree, one at a time, and the tests of its module
run there. Each run is a fork of a process that has the packages loaded, so that it takes seconds. A mutant that no test
notices is printed with its line and its change: then a test is missing, or the change changes nothing (CONTRIBUTING.md
lists those that were looked at). Ends with 1 where fewer than `--least` of the mutants of all modules were killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[1]

_CACHE = (
    "tests/cache/test_value.py",
    "tests/cache/test_keys.py",
    "tests/cache/test_parts.py",
    "tests/core/test_cache.py",
)
_ROUTER = tuple(
    f"tests/litellm_router/test_{name}.py" for name in ("decision", "rules", "strategy", "traffic", "features")
)

#: Test files of each module.
TESTS: dict[str, tuple[str, ...]] = {
    "p2l_plugins/outcomes.py": ("tests/core/test_outcomes.py", "tests/core/test_routing.py"),
    "p2l_plugins/routing/policies.py": ("tests/core/test_routing.py", "tests/core/test_pacing.py"),
    "p2l_plugins/routing/pacing.py": ("tests/core/test_pacing.py",),
    "p2l_plugins/prompts.py": ("tests/core/test_prompts.py",),
    "p2l_plugins/cache/entry.py": _CACHE,
    "p2l_plugins/cache/value.py": _CACHE,
    "p2l_plugins/cache/memory.py": _CACHE,
    "p2l_plugins/cache/breaker.py": _CACHE,
    "litellm_router/decision.py": _ROUTER,
    "litellm_router/chat.py": ("tests/litellm_router/test_chat.py",),
    "litellm_router/conversations.py": ("tests/litellm_router/test_chat.py",),
    "litellm_router/attempts.py": ("tests/litellm_router/test_versions.py",),
}

#: What the tests import beside the package, loaded once.
PACKAGES = ("numpy", "scipy.special", "scipy.optimize", "hypothesis", "onnxruntime", "tokenizers", "redis.asyncio")
PACKAGES += (
    "fastapi",
    "uvicorn",
    "httpx",
    "litellm",
    "valkey",
    "onnx",
    "schemathesis",
    "pytest_asyncio",
    "pytest_timeout",
)

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax"}


class Mutant(NamedTuple):
    """A change: bytes `start` to `end` of a file become `new`."""

    line: int
    start: int
    end: int
    old: str
    new: str


def mutants_of(source: str) -> list[Mutant]:
    """All changes of a source, in its order."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, new in _changes(ast.parse(source)):
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        start, end = starts[node.lineno - 1] + node.col_offset, starts[end_line - 1] + end_column
        found.append(Mutant(node.lineno, start, end, data[start:end].decode(), new))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes below one with what may stand in their places; not in messages, logs, annotations and decorators."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _says(child):
                continue
            for new in _instead(child):
                assert isinstance(child, (ast.expr, ast.stmt))
                yield child, new
            yield from _changes(child)


def _says(node: ast.AST) -> bool:
    """Whether a statement only says something: a text alone, an error, a line in a log, an import, a type."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith("log.")
    if isinstance(node, ast.Assign):
        return "Literal[" in ast.unparse(node.value)
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr))


def _instead(node: ast.AST) -> Iterator[str]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=right) if type(op) in _COMPARISONS:
            yield f"({ast.unparse(ast.Compare(left, [_COMPARISONS[type(op)]()], right))})"
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            yield f"({ast.unparse(ast.BinOp(left, _OPERATORS[type(op)](), right))})"
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"({ast.unparse(ast.BoolOp(other, values))})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            yield (
                f"({value} + 1)" if value < 2 else f"({value} * 1.5)" if isinstance(value, float) else f"({value} + 1)"
            )
        case ast.Constant(value=str(value)) if value:
            yield repr(value + "x")
        case ast.Name(id=name) if name in _NAMES:
            yield _NAMES[name]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield f"({ast.unparse(ast.IfExp(test, orelse, body))})"
        case ast.Slice(lower=lower, upper=upper, step=step) if lower is not None and upper is None and step is None:
            yield f"({ast.unparse(lower)}) + 1:"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "return None"
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "pass"
        case ast.Break():
            yield "continue"
        case ast.Continue():
            yield "break"


def tested(tree: Path, tests: tuple[str, ...], limit_s: float, log: Path) -> tuple[str, float]:
    """`passed`, `failed` or `slow`, and the processor seconds of a module's tests in a tree, in a fork of this process.

    The limit is one of processor time, so that a busy machine makes no mutant slow; what waits ends after 10 minutes.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 5))
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        os.chdir(tree)
        sys.path[0:0] = [str(tree), str(tree / "tests")]
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--durations=3", "-m", "not alone"]
        os._exit(int(pytest.main([*options, *tests])))
    outcome, used_s = "slow", 0.0
    while time.monotonic() - started < 600:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            code, used_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            outcome = {0: "passed", -signal.SIGXCPU: "slow"}.get(code, "failed")
            break
        time.sleep(0.02)
    for what in (signal.SIGINT, signal.SIGKILL):  # its fixtures end what they started, if it still runs
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, what)
            if not used_s and what is signal.SIGINT:
                time.sleep(2)
    if not used_s:
        os.waitpid(child, 0)
    return outcome, used_s


def copied(tree: Path) -> None:
    """The files of the working tree that git knows or would add."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=HERE,
        capture_output=True,
        check=True,
    )
    for name in filter(None, names.stdout.decode().split("\0")):
        if (HERE / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, tree / name)


def main() -> int:
    """Runs the sample and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="files of TESTS; all by default")
    parser.add_argument("--per-module", type=int, default=16, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--least", type=float, default=0.9, help="share of mutants that must be killed")
    args = parser.parse_args()
    if unknown := [name for name in args.modules if name not in TESTS]:
        parser.error(f"no tests are named for {unknown[0]}; valid: {', '.join(TESTS)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "P2L_SHARED": os.environ.get("P2L_SHARED", str(HERE.parent / "shared"))}
    sys.path[:] = [path for path in sys.path if path not in ("", str(HERE), str(HERE / "tests"))]
    for package in PACKAGES:
        importlib.import_module(package)
    killed = total = 0
    with tempfile.TemporaryDirectory(prefix="p2l-mutants-") as folder:
        tree, log = Path(folder, "tree"), Path(folder, "log")
        copied(tree)
        for name in args.modules:
            outcome, usual_s = tested(tree, TESTS[name], 600, log)
            if outcome != "passed":
                print(log.read_text(errors="replace")[-3000:])
                print(f"{name}: its tests fail without a change", flush=True)
                return 1
            path = tree / name
            source = path.read_text()
            possible = mutants_of(source)
            sample = random.Random(f"{args.seed} {name}").sample(possible, min(args.per_module, len(possible)))
            print(f"{name}: {len(sample)} of {len(possible)} mutants; its tests take {usual_s:.0f} s", flush=True)
            for mutant in sorted(sample):
                data = source.encode()
                path.write_bytes(data[: mutant.start] + mutant.new.encode() + data[mutant.end :])
                os.utime(path, (total, total))  # a second of its own: Python takes what it compiled for one of these
                outcome, _ = tested(tree, TESTS[name], 20 + 3 * usual_s, log)
                total, killed = total + 1, killed + (outcome != "passed")
                what = {"passed": "SURVIVED", "failed": "killed", "slow": "killed (slow)"}[outcome]
                old, new = " ".join(mutant.old.split()), " ".join(mutant.new.split())
                print(f"  {what:14}{name}:{mutant.line}: {old[:90]}  ->  {new[:90]}", flush=True)
            path.write_text(source)
    print(f"{killed} of {total} mutants killed: {killed / max(total, 1):.2f}")
    return int(killed < args.least * total)


if __name__ == "__main__":
    sys.exit(main())
