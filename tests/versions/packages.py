"""The bounds of pyproject.toml tried: what an environment of `make matrix` installs, and the table of docs/versions.md.

    python tests/versions/packages.py list core-lowest           the packages of that environment, for pip -r
    python tests/versions/packages.py table FOLDER [--write]     what passed in FOLDER's environments

A room is a part of the tests with the extras that they touch. In its environment `lowest` these have the lower bounds
of pyproject.toml, all at once, in `newest` none.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "versions.md"
START, END = "<!-- the tables that make matrix writes -->\n", "<!-- end of the tables -->\n"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: The extras whose bounds a room tries; "" are the dependencies of the base.
ROOMS = {
    "core": ("", "cpu", "serve", "cache", "analysis"),
    "eval": ("cpu", "eval"),
    "train": ("cpu", "train", "export"),
}
BOUNDS = ("lowest", "newest")

#: Builds for a GPU take gigabytes, so the newest of the others is tried with the torch of constraints.txt.
PINNED = ("torch",)


@dataclass(frozen=True)
class Run:
    """What was tried in an environment.

    Attributes:
    python: its version; versions: of each package that the room tries.
    passed, skipped, failed: numbers of tests.
    """

    python: str
    versions: dict[str, str]
    passed: int
    skipped: int
    failed: int


def tried(room: str) -> list[str]:
    """The requirements that a room tries, as pyproject.toml has them."""
    extras = PROJECT["optional-dependencies"]
    lines = [line for extra in ROOMS[room] for line in (extras[extra] if extra else PROJECT["dependencies"])]
    return [line for line in dict.fromkeys(lines) if not line.startswith(PROJECT["name"])]


def name_of(line: str) -> str:
    """The name of a requirement, without extras and bounds."""
    return re.split(r"[\[<>=]", line)[0]


def listed(room: str, bound: str) -> list[str]:
    """Requirements of an environment."""
    pins = dict(re.findall(r"^(\S+?)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    lines = tried(room)
    names = {name_of(line) for line in lines}
    if bound == "lowest":
        own = [line.replace(">=", "==") for line in lines]
    else:
        own = [f"{name}=={pins[name]}" if name in PINNED else name for name in sorted(names)]
    return own + [line for line in PROJECT["dependencies"] if name_of(line) not in names]


def run_in(folder: Path, room: str) -> Run | None:
    """What the last tests in an environment gave, by pytest's report tests.xml; None where they have not run."""
    if not (folder / "tests.xml").is_file():
        return None
    suites = ET.parse(folder / "tests.xml").getroot().iter("testsuite")  # noqa: S314 (written by pytest)
    counts = dict.fromkeys(("tests", "skipped", "failures", "errors"), 0)
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.attrib[name])
    names = sorted({name_of(line) for line in tried(room)})
    script = (
        "import json, platform, sys; from importlib.metadata import version;"
        "print(json.dumps([platform.python_version(), {name: version(name) for name in sys.argv[1:]}]))"
    )
    done = subprocess.run(
        [folder / "bin" / "python", "-c", script, *names], capture_output=True, text=True, check=True, timeout=60
    )
    python, versions = json.loads(done.stdout)
    failed = counts["failures"] + counts["errors"]
    return Run(python, versions, counts["tests"] - counts["skipped"] - failed, counts["skipped"], failed)


def table(room: str, runs: dict[str, Run | None]) -> str:
    """Markdown: a row per package, a column per environment, then what passed."""
    rows = [("Python", lambda run: run.python)]
    rows += [(name, lambda run, name=name: run.versions[name]) for name in sorted(map(name_of, tried(room)))]
    rows += [(f"**{what}**", operator.attrgetter(what)) for what in ("passed", "failed", "skipped")]
    lines = [f"| {room} | {' | '.join(runs)} |", "|:---|" + ":---|" * len(runs)]
    for name, of in rows:
        cells = ["not run" if run is None else str(of(run)) for run in runs.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    """Puts the tables between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + "\n" + text + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").add_argument("environment", choices=[f"{r}-{b}" for r in ROOMS for b in BOUNDS])
    tables = commands.add_parser("table")
    tables.add_argument("folder", type=Path, help="where the environments are")
    tables.add_argument("--write", action="store_true", help="put them into the docs")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(listed(*options.environment.split("-"))))
        return 0
    found = {room: {bound: run_in(options.folder / f"{room}-{bound}", room) for bound in BOUNDS} for room in ROOMS}
    text = "\n".join(table(room, runs) for room, runs in found.items())
    print(text)
    if options.write:
        write(text)
    return int(any(run is None or run.failed for runs in found.values() for run in runs.values()))


if __name__ == "__main__":
    sys.exit(main())
