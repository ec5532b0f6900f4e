"""A run that goes on in another object from a file is the run that was never left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.tiny_task import make
from trimtab.core.decision import Progress
from trimtab.core.errors import SpecError
from trimtab.core.protocols import Controller, StorableRun, Task, is_storable, members_of
from trimtab.core.registry import make_task
from trimtab.defaults import controller_for
from trimtab.records.store.snapshots import pack, unpack
from trimtab.tasks.run import RunResult, RunSettings, run_task


class Keeper:
    """Keeps one state as bytes, and stops or goes on."""

    def __init__(self, at: int, data: bytes | None = None) -> None:
        self.at, self.data, self.begun = at, data, data is not None

    def resumed(self) -> Mapping[str, Any] | None:
        return unpack(self.data) if self.begun and self.data else None

    def after(self, now: Progress, state: Callable[[], dict[str, Any]]) -> str | None:
        if not self.begun and now.decision is not None and now.decision.index == self.at:
            self.data = pack(state())
            return "stopped"
        return None


def run(task: Task, keeper: Keeper | None = None, policy: str | None = "trimtab-0") -> RunResult:
    items = tuple(item for item in task.hyperparameters if item.kind == "lr")
    spec, controller = controller_for(policy, items, decisions=10)
    return run_task(task, controller, spec, RunSettings(seed=3), keeper=keeper)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("simulated/quadratic", "tiny"),
        pytest.param("tabular/letters", "tiny", marks=pytest.mark.framework),
    ],
)
@pytest.mark.parametrize("at", [0, 4])
def test_a_run_that_goes_on_from_a_file_is_the_one_never_left(
    name: str, variant: str, at: int
) -> None:
    def task() -> Task:
        return make_task(name, variant=variant, default_member=0)

    whole = run(task())
    first = Keeper(at)
    part = run(task(), first)
    assert len(part.schedule) < len(whole.schedule)
    rest = run(task(), Keeper(at, first.data))
    assert rest.best == whole.best
    assert rest.test == whole.test
    assert rest.schedule == whole.schedule
    assert (rest.spent, rest.rollbacks) == (whole.spent, whole.rollbacks)
    later = [decision.index for decision in rest.decisions]
    assert later == list(range(at + 1, 10))
    assert len(first.data or b"") > 1000


def test_a_task_without_a_plain_form_is_not_storable() -> None:
    quadratic = make_task("simulated/quadratic", variant="tiny", default_member=0)
    assert not is_storable(make().start(seed=0))
    assert is_storable(quadratic.start(seed=0))


@pytest.mark.framework
def test_batches_without_a_state_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    training: Any = make_task("tabular/letters", variant="tiny").start(seed=0)
    monkeypatch.setattr(type(training.setup.batches), "state_dict", None)
    with pytest.raises(SpecError, match=r"ShuffledBatches has no state_dict\(\)"):
        training.position()


def test_what_a_protocol_asks_for_is_read_from_it() -> None:
    assert members_of(Task) == (
        "name",
        "hyperparameters",
        "total_steps",
        "monitor",
        "mode",
        "start",
    )
    assert members_of(Controller)[:3] == ("name", "guarded", "reset")
    assert members_of(StorableRun) == ("to_plain", "from_plain", "position", "set_position")
