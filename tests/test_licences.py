"""The licences of all that an installation brings, by what the packages say of themselves."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Proprietary, and only through the extra `proxy`: README, docs/litellm.md and docs/security.md say so.
PROPRIETARY = {"litellm-enterprise"}

#: Packages that this environment need not have: another device, another machine, another platform.
MAY_BE_ABSENT = re.compile(r"onnxruntime-gpu|ray|nvidia-.*|cuda-.*|triton|colorama|pywin32|tzdata|win-.*|winloop")

#: SPDX names. Permissive ones; and LGPL and MPL, whose packages are used as they are.
ALLOWED = set(
    "0BSD Apache-2.0 LLVM-exception BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python ISC LGPL-2.1-or-later "
    "LGPL-3.0-only MIT MIT-0 MIT-CMU MPL-2.0 PSF-2.0 Unlicense ZPL-2.1 Zlib".split()
)

#: Classifiers, and first lines of the field before there were SPDX names.
ALLOWED_NAMES = {
    "Apache",
    "Apache 2.0",
    "Apache 2.0 License",
    "Apache License 2.0",
    "Apache License, Version 2.0",
    "Apache Software License",
    "BSD",
    "BSD License",
    "BSD 3-Clause License",
    "3-Clause BSD License",
    "GNU Lesser General Public License v2 or later (LGPLv2+)",
    "ISC License",
    "ISC License (ISCL)",
    "MIT License",
    "The MIT License (MIT)",
    "Mozilla Public License 2.0 (MPL 2.0)",
    "Python Software Foundation License",
    "The Unlicense (Unlicense)",
}


def own(extra):
    """Requirements of the base (""), or of an extra of ours."""
    lines = PROJECT["dependencies"] if not extra else PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def brought_by(extra):
    """Names of all packages that an extra brings with the base, here installed or not."""
    waiting = [("", one) for one in own("") + own(extra)]
    found, seen = set(), set()
    while waiting:
        asked, requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(requirement.name)
        if name == "p2l-plugins":
            waiting += [("", one) for inner in requirement.extras for one in own(inner)]
            continue
        found.add(name)
        for option in {"", *requirement.extras} - {option for known, option in seen if known == name}:
            seen.add((name, option))
            waiting += [(option, Requirement(line)) for line in needs(name)]
    return found


def needs(name):
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def refused(name):
    """What a package says that is not allowed; empty where all is."""
    data = distribution(name).metadata
    if expression := data.get("License-Expression"):
        return parts_of(expression) - ALLOWED
    classifiers = {
        line.rpartition("::")[2].strip() for line in data.get_all("Classifier") or [] if line.startswith("License ::")
    } - {"OSI Approved", "DFSG approved"}
    said = classifiers or {(data.get("License") or "nothing").strip().partition("\n")[0].strip()}
    return {one for one in said - ALLOWED_NAMES if parts_of(one) - ALLOWED}


def parts_of(expression):
    return set(re.split(r"\s+(?:AND|OR|WITH)\s+", re.sub(r"[()]", "", expression)))


EXTRAS = sorted(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_licences_are_on_the_list(extra):
    absent, bad = set(), {}
    for name in sorted(brought_by(extra) - PROPRIETARY):
        try:
            if wrong := refused(name):
                bad[name] = wrong
        except PackageNotFoundError:
            absent.add(name)
    assert not bad
    assert {name for name in absent if not MAY_BE_ABSENT.fullmatch(name)} == set()


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_only_the_extra_proxy_brings_a_proprietary_package(extra):
    assert bool(brought_by(extra) & PROPRIETARY) == (extra in ("proxy", "dev"))


def test_the_way_without_it_names_all_the_others():
    lines = (ROOT / "examples/proxy.txt").read_text(encoding="utf-8").splitlines()
    named = {canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")}
    extra = [Requirement(line) for line in requires("litellm")]
    theirs = {
        canonicalize_name(one.name)
        for one in extra
        if one.marker is not None and not one.marker.evaluate({"extra": ""}) and one.marker.evaluate({"extra": "proxy"})
    }
    assert theirs - named == PROPRIETARY
    assert not named & PROPRIETARY


@pytest.mark.parametrize("page", ["README.md", "docs/litellm.md", "docs/security.md"])
def test_the_pages_that_name_the_extra_say_so(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "litellm-enterprise" in text
    assert "examples/proxy.txt" in text


def test_packages_that_read_what_strangers_send_are_pinned():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    assert {"h11", "starlette", "jinja2", "uvicorn", "fastapi", "pydantic", "tokenizers", "onnxruntime"} <= set(pins)
