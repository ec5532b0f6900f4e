"""The locks hold what pyproject.toml asks for, at the versions of constraints.txt, with hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest

from locks.update import DATA_PACKAGES, LOCKS, NOT_LOCKED, ROOT

requirements = pytest.importorskip("packaging.requirements")
utils = pytest.importorskip("packaging.utils")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = [*LOCKS, "data"]
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)", re.MULTILINE)


def pins(file: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / file).read_text(encoding="utf-8")))


def of_extra(extra: str) -> Iterator[str]:
    for line in PROJECT["project"]["optional-dependencies"][extra]:
        yield from expanded(line)


def of_group(group: str) -> Iterator[str]:
    for line in PROJECT["dependency-groups"][group]:
        if isinstance(line, dict):
            yield from of_group(line["include-group"])
        else:
            yield from expanded(line)


def expanded(line: str) -> Iterator[str]:
    """Yield a requirement, or what stands behind one of trimtab's own extras."""
    wanted = requirements.Requirement(line)
    if wanted.name != "trimtab":
        yield line
    for extra in wanted.extras if wanted.name == "trimtab" else ():
        yield from of_extra(extra)


def asked_of(name: str) -> set[str]:
    """Return the requirements that a lock must answer."""
    if name == "data":
        return set(DATA_PACKAGES)
    extras, groups = LOCKS[name]
    lines = [] if extras is None else list(PROJECT["project"]["dependencies"])
    for extra in extras or ():
        lines += of_extra(extra)
    for group in groups:
        lines += of_group(group)
    return {line for line in lines if not re.match(r"torch\b", line)}


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_what_is_asked_for(name: str) -> None:
    held = pins(f"locks/{name}.txt")
    assert asked_of(name)
    for line in sorted(asked_of(name)):
        wanted = requirements.Requirement(line)
        version = held.get(utils.canonicalize_name(wanted.name), "nothing")
        is_fine = version != "nothing" and wanted.specifier.contains(version, prereleases=True)
        assert is_fine, f"locks/{name}.txt holds {version} for {line}; run make lock"


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_agrees_with_the_constraints(name: str) -> None:
    assert pins(f"locks/{name}.txt").items() <= pins("constraints.txt").items()


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_has_hashes_and_none_says_where_it_came_from(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    for entry in text.replace(" \\\n", " ").splitlines():
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", entry), entry
        assert not entry.startswith(NOT_LOCKED), entry
    assert "://" not in text
