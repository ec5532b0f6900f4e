"""What a study says and does when its store fails its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import StoreError
from trimtab.core.registry import make_task
from trimtab.records.store.transactions import BUDGET_SECONDS, StoreWaitWarning, retry_budget
from trimtab.search.engines.base import Done
from trimtab.search.engines.local import InlineEngine
from trimtab.search.study import coordinator
from trimtab.search.study.coordinator import TuneResult
from trimtab.search.study.tune import tune

FULL = "StoreError: the store runs.db cannot grow: the disk is full"


class FullAtFirst(InlineEngine):
    """Fails so many units, as workers do whose store is full."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        if self.failures:
            self.failures -= 1
            yield Done(0, None, FULL)
        else:
            yield from super().run(function, units)


def spent(store: Path, failures: int) -> TuneResult:
    task = make_task("simulated/quadratic", variant="tiny", default_member=0)
    engine = FullAtFirst(failures)
    return tune(task, budget=1, policy="trimtab-0", store=store, study="s", engine=engine)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "_RETRY_SECONDS", (0.0, 0.0, 0.0))


def test_a_worker_whose_store_failed_is_told_of_once_and_its_unit_done_again(
    tmp_path: Path,
) -> None:
    with pytest.warns(StoreWaitWarning) as told:
        assert len(spent(tmp_path / "runs.db", failures=3).runs) == 1
    (warning,) = told
    assert f"study 's': {FULL}; it is tried again" in str(warning.message)


def test_what_a_worker_waited_for_is_not_waited_for_once_more(tmp_path: Path) -> None:
    budget = retry_budget(f"sqlite:///{tmp_path / 'runs.db'}")
    with (
        pytest.warns(StoreWaitWarning, match="the disk is full"),
        pytest.raises(StoreError, match=r"the disk is full; what was done is kept.*resume s goes"),
    ):
        spent(tmp_path / "runs.db", failures=4)
    assert budget.enter(0) < BUDGET_SECONDS / 2
