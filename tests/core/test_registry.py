"""Names are listed without loading, and every wrong reference gets one clear error."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core import registry
from trimtab.core.errors import MissingDependencyError, SpecError, UnknownNameError, noted_task


class TaskOfOne:
    name = "mine"
    hyperparameters = ()
    total_steps = 10
    monitor = "loss"
    mode = "min"

    def start(self, *, seed: int) -> Any:
        raise NotImplementedError


class Family(TaskOfOne):
    def __init__(self, *, variant: str = "default", member: int = 0) -> None:
        self.variant = variant
        self.member = member


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[importlib.metadata.EntryPoint]]:
    """What other packages register for tasks; the test appends to it before the first lookup."""
    module = ModuleType("trimtab_test_tasks")
    vars(module).update(Family=Family, TaskOfOne=TaskOfOne, made=TaskOfOne(), number=3)
    vars(module)["half"] = lambda: SimpleNamespace(name="half", total_steps=3)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = [entry(name) for name in ("Family", "TaskOfOne", "made", "number", "half")]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: entries if group == "trimtab.tasks" else [],
    )
    registry._offers.cache_clear()
    yield entries
    registry._offers.cache_clear()


def entry(attribute: str, name: str | None = None) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(
        name or f"test/{attribute}", f"trimtab_test_tasks:{attribute}", "trimtab.tasks"
    )


def test_built_in_tasks_are_listed_and_sorted() -> None:
    tasks = registry.names("task")
    assert "simulated/quadratic" in tasks
    assert list(tasks) == sorted(tasks)


def test_an_entry_whose_module_is_absent_does_not_break_listing(
    offered: list[importlib.metadata.EntryPoint],
) -> None:
    offered.append(importlib.metadata.EntryPoint("gone", "no_such_module:x", "trimtab.tasks"))
    assert "gone" in registry.names("task")
    with pytest.raises(UnknownNameError, match=r"task 'gone': there is no module 'no_such_module'"):
        registry.lookup("task", "gone")


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'tasks'; did you mean 'task'\?"):
        registry.names("tasks")


@pytest.mark.usefixtures("offered")
def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'test/Famly'; did you mean 'test/Family'\?"):
        registry.lookup("task", "test/Famly")


def test_a_name_registered_twice_for_different_things_is_refused(
    offered: list[importlib.metadata.EntryPoint],
) -> None:
    offered.append(entry("TaskOfOne", name="test/Family"))
    with pytest.raises(SpecError, match=r"'test/Family' is registered by more than one package"):
        registry.lookup("task", "test/Family")


def test_a_name_registered_twice_for_the_same_thing_is_one(
    offered: list[importlib.metadata.EntryPoint],
) -> None:
    offered.append(entry("Family"))
    assert registry.lookup("task", "test/Family") is Family


@pytest.mark.usefixtures("offered")
def test_variant_and_member_reach_the_factory() -> None:
    task = registry.make_task("test/Family@17", variant="tiny")
    assert (task.variant, task.member) == ("tiny", 17)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(("reference", "member"), [("test/Family", 5), ("test/Family@2", 2)])
def test_a_named_member_wins_over_the_default_one(reference: str, member: int) -> None:
    assert registry.make_task(reference, default_member=5).member == member  # type: ignore[attr-defined]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("name", ["test/TaskOfOne", "test/made"])
def test_a_task_that_is_no_family_ignores_the_default_member(name: str) -> None:
    assert registry.make_task(name, default_member=5).name == "mine"


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("name", ["test/TaskOfOne", "test/made"])
def test_a_task_without_members_or_variants_refuses_them(name: str) -> None:
    with pytest.raises(SpecError, match=r"takes no member and was asked for 3"):
        registry.make_task(f"{name}@3")
    with pytest.raises(SpecError, match=r"takes no variant and was asked for 'tiny'"):
        registry.make_task(name, variant="tiny")


@pytest.mark.usefixtures("offered")
def test_what_makes_no_task_is_refused_with_what_is_missing() -> None:
    with pytest.raises(SpecError, match=r"'test/number' is a int, neither a task"):
        registry.make_task("test/number")
    with pytest.raises(
        SpecError, match=r"SimpleNamespace without hyperparameters, monitor, mode, start"
    ):
        registry.make_task("test/half")


@pytest.mark.parametrize("member", ["", "x", "-1", "1.5", "²", "1@2"])
def test_a_member_that_is_no_whole_number_is_refused(member: str) -> None:
    with pytest.raises(SpecError, match="is not a whole number from 0"):
        registry.split_member(f"simulated/mlp@{member}")


@given(st.text(st.characters(exclude_characters="@"), min_size=1), st.integers(0, 10**12))
def test_splitting_a_member_inverts_writing_it(name: str, member: int) -> None:
    assert registry.split_member(f"{name}@{member}") == (name, member)
    assert registry.split_member(name) == (name, None)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_task_of_the_users_own_is_made_from_module_and_factory(user_module: Path) -> None:
    (user_module / "trimtab_users_task.py").write_text(
        "from types import SimpleNamespace\n"
        "class Tasks:\n"
        "    @staticmethod\n"
        "    def mine():\n"
        "        return SimpleNamespace(name='mine', hyperparameters=(), total_steps=3,\n"
        "                               monitor='loss', mode='min', start=None)\n"
    )
    assert registry.make_task("trimtab_users_task:Tasks.mine").total_steps == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:make", r"there is no module 'no_such_module'; check the spelling"),
        ("json.nothing:make", r"there is no module 'json.nothing'"),
        ("json:dmps", r"unknown attribute of json 'dmps'; did you mean 'dumps'\?"),
        (":make", r"'' is no module name; write module:factory"),
        (".tasks:make", r"'.tasks' is no module name; write module:factory"),
    ],
)
def test_a_reference_to_nothing_says_what_is_not_there(reference: str, message: str) -> None:
    with pytest.raises((SpecError, UnknownNameError), match=message):
        registry.make_task(reference)


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("altair", r"pip install 'trimtab\[report\]'"),
        ("no_such_package", "install no_such_package"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(
    user_module: Path, monkeypatch: pytest.MonkeyPatch, package: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "trimtab_users_needs", raising=False)
    (user_module / "trimtab_users_needs.py").write_text(f"import {package}.part\n")
    with pytest.raises(MissingDependencyError, match=f"needs the package '{package}'.*{remedy}"):
        registry.make_task("trimtab_users_needs:make")


def test_a_package_that_is_missing_when_the_task_is_made_is_named_too(user_module: Path) -> None:
    (user_module / "trimtab_users_late.py").write_text("def make():\n    import no_such_package\n")
    with pytest.raises(MissingDependencyError, match="needs the package 'no_such_package'"):
        registry.make_task("trimtab_users_late:make")


def test_an_error_inside_the_users_module_is_not_hidden(user_module: Path) -> None:
    (user_module / "trimtab_users_broken.py").write_text("raise ValueError('mine')\n")
    with pytest.raises(ValueError, match=r"^mine") as raised:
        registry.make_task("trimtab_users_broken:make")
    assert str(raised.value) == "mine"
    assert noted_task(raised.value) == "trimtab_users_broken:make"
