"""A folder with tiny.py, and assignments on small tasks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.postgresql_server import postgres
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.defaults import policy_path
from trimtab.search.methods.base import Assignment, Context, DecisionSchedule
from trimtab.search.methods.starts import StartDistribution, generator_for

__all__ = ["Assign", "assign", "folder", "postgres", "quadratic"]

HERE = Path(__file__).parent
POLICY = str(policy_path("trimtab-0"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder that holds tiny.py."""
    shutil.copy(HERE.parent / "tiny_task.py", tmp_path / "tiny.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.fixture(scope="session")
def quadratic() -> Task:
    return make_task("simulated/quadratic", variant="tiny", default_member=0)


Assign = Callable[..., Assignment]


@pytest.fixture
def assign(quadratic: Task) -> Assign:
    """Make an assignment on the quadratic, or on another task."""

    def make(
        seed: int = 0,
        *,
        budget: int = 1,
        scale: float | None = None,
        task: Task | None = None,
        **context: Any,
    ) -> Assignment:
        task = task or quadratic
        items = tuple(item for item in task.hyperparameters if item.kind == "lr")
        starts = StartDistribution(items, items[0].default)
        return Assignment(
            task=task,
            reference=("simulated/quadratic", "tiny"),
            starts=starts,
            windows=DecisionSchedule(),
            policy=POLICY,
            budget=budget,
            seed=seed,
            start=starts.draw(generator_for("test", seed), scale=scale),
            context=Context(**context),
        )

    return make
