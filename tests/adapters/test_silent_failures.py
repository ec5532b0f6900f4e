"""The demonstrations of silent failures show real ones, and trimtab's answer to each."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "silent_failures.py"

pytestmark = pytest.mark.framework


@functools.cache
def demonstration(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, str(PROGRAM), name, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])[name]
    return found


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("keras", 0.1, [0.1] * 4),
        ("transformers", 1e-3, [5e-4] + [1e-3] * 3),  # it holds for one step
        ("lightning", 4, [4] * 4),
    ],
)
def test_the_framework_ignores_what_was_asked(name, before, after):
    it = demonstration(name)

    assert it["asked"][4:] == [it["asked"][-1]] * 4
    assert it["asked"][-1] != before
    assert it["used"] == pytest.approx([before] * 4 + after, rel=0.01)


@pytest.mark.parametrize("name", ["keras", "transformers"])
def test_under_trimtab_each_step_uses_what_was_recorded(name):
    it = demonstration(name)

    assert it["refusal"] == ""
    assert len(it["asked_by_trimtab"]) == 8
    assert len(set(it["asked_by_trimtab"])) >= 2
    assert it["used_with_trimtab"] == pytest.approx(it["asked_by_trimtab"], rel=0.01)


def test_what_cannot_be_changed_is_refused_or_changed():
    it = demonstration("lightning")

    if it["refusal"]:
        assert "batch_size" in it["refusal"]
        assert it["used_with_trimtab"] == []
    else:
        assert len(set(it["used_with_trimtab"])) > 1
