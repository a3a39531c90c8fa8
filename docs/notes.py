"""The notes of a release, its section of CHANGELOG.md: `python docs/notes.py 0.1.0`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(version: str) -> str:
    """What CHANGELOG.md says of a version. Raises ValueError where it says nothing."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        raise ValueError(f"CHANGELOG.md: no entry {version}; write one under '## {version}'")
    return found[1].strip() + "\n"


def main() -> int:
    """Prints them, where the version is the one that is built."""
    given = sys.argv[1].removeprefix("v")
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if given != built:
        print(f"the tag says {given}, pyproject.toml {built}; they must be the same", file=sys.stderr)
        return 1
    print(notes(given), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
