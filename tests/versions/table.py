"""The table of LiteLLM's versions in docs/litellm-versions.md: `python tests/versions/table.py --write PYTHON …`.

Runs tests/helpers/scenarios.py with the Python of each version's environment, and puts who answered between the
marks of the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "litellm-versions.md"
START, END = "<!-- the table that make matrix writes -->\n", "<!-- end of the table -->\n"


def outcomes(python: Path) -> dict:
    """What scenarios.py prints in an environment."""
    script = ROOT / "tests" / "helpers" / "scenarios.py"
    done = subprocess.run([python, script], capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def cell(found: dict[str, dict]) -> str:
    """Who answered, once where async, sync, streaming and not agree."""
    answered = {f"{way}": one["answered"] for way, one in found.items()}
    if len(set(answered.values())) == 1:
        return next(iter(answered.values()))
    by_kind = {kind: {text for way, text in answered.items() if way.startswith(kind)} for kind in ("async", "sync")}
    if all(len(texts) == 1 for texts in by_kind.values()):
        return "; ".join(f"{kind} {texts.pop()}" for kind, texts in by_kind.items())
    return "; ".join(f"{way} {text}" for way, text in answered.items())


def table(runs: list[dict]) -> str:
    """Markdown: a row per scenario, a column per version."""
    lines = ["| the best model | " + " | ".join(run["litellm"] for run in runs) + " |", "|:---|" + ":---|" * len(runs)]
    for name in runs[0]["outcomes"]:
        lines.append(f"| {name} | " + " | ".join(cell(run["outcomes"][name]) for run in runs) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into the docs")
    options = parser.parse_args()
    runs = [outcomes(python) for python in options.pythons]
    text = table(runs)
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        PAGE.write_text(before + START + text + END + rest.partition(END)[2], encoding="utf-8")
    wrong = [
        f"{run['litellm']}: {name}, {way}: {one['problem']}"
        for run in runs
        for name, ways in run["outcomes"].items()
        for way, one in ways.items()
        if one["problem"]
    ]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
