"""A run that goes on in another object from a file is the run that was never left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_task import make
from trimtab.core.decision import Progress
from trimtab.core.errors import SpecError, StoreError
from trimtab.core.protocols import Task, is_storable
from trimtab.core.registry import make_task
from trimtab.defaults import controller_for
from trimtab.records.store.snapshots import pack, read_snapshot, unpack, write_snapshot
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


STATE = {
    "list": [1, 2.5, None, "text", True, float("inf"), 2**100],
    "tuple": (np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(0.1)),
    "empty": {"map": {}, "list": [], "array": np.zeros((0, 3), np.float32)},
    "zero-dim": np.array(3.0),
}


def test_nested_states_survive_as_bytes() -> None:
    found = unpack(pack(STATE))
    assert found["list"] == STATE["list"]
    assert isinstance(found["tuple"], tuple)
    assert np.array_equal(found["tuple"][0], STATE["tuple"][0])
    assert found["tuple"][1] == np.float32(0.1)
    assert found["tuple"][1].dtype == np.float32
    assert found["empty"]["array"].shape == (0, 3)
    assert found["zero-dim"].shape == ()


@pytest.mark.parametrize("odd", [object(), {1: 2}, np.array(["text"]), [{3}]])
def test_what_is_not_plain_is_refused(odd: object) -> None:
    with pytest.raises(StoreError, match=r"^(state|snapshot): "):
        pack({"odd": odd})


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    kept = write_snapshot(tmp_path / "new" / "a.safetensors", STATE)
    assert read_snapshot(kept.path, kept.sha256)["list"][3] == "text"
    data = bytearray(kept.path.read_bytes())
    assert len(data) == kept.size
    data[-1] ^= 1
    kept.path.write_bytes(data)
    with pytest.raises(StoreError, match="was changed after it was written"):
        read_snapshot(kept.path, kept.sha256)
    kept.path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_snapshot(kept.path, kept.sha256)


def test_mutated_bytes_are_a_store_error_or_a_state() -> None:
    whole = pack(STATE)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), int(generator.integers(1, 6))):
            data[place] = int(generator.integers(256))
        cut = len(data) if generator.random() < 0.7 else int(generator.integers(len(data)))
        with suppress(StoreError):
            unpack(bytes(data[:cut]))


@pytest.mark.framework
def test_batches_without_a_state_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    training: Any = make_task("tabular/letters", variant="tiny").start(seed=0)
    monkeypatch.setattr(type(training.setup.batches), "state_dict", None)
    with pytest.raises(SpecError, match=r"ShuffledBatches has no state_dict\(\)"):
        training.position()
