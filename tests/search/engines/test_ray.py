"""The Ray engine: the same results, a lost worker replaced, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
from trimtab.core.errors import SpecError, StoreError
from trimtab.search.engines.base import Done, Resources
from trimtab.search.engines.choose import make_engine
from trimtab.search.engines.ray import RayEngine
from trimtab.search.study.tune import tune

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def work(name: str) -> Any:
    from tests.search.engines import work as module

    return getattr(module, name)


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    made = make_engine("ray", 2)
    assert isinstance(made, RayEngine)
    with made:
        yield made
        processes = made.processes
    assert all(is_gone(pid) for pid in processes)
    import ray

    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_named() -> None:
    with (
        RayEngine(1, address="127.0.0.1:1") as nowhere,
        pytest.raises(StoreError, match=r"cluster at 127\.0\.0\.1:1 cannot be reached"),
    ):
        list(nowhere.run(work("square"), [(1,)]))


def test_units_come_back_once_as_from_the_local_engine(engine: RayEngine) -> None:
    units = [(n,) for n in range(6)]
    done = sorted(engine.run(work("fail_below"), units))
    with make_engine("local", 2) as local:
        expected = sorted(local.run(work("fail_below"), units))
    assert [one[:3] for one in done] == [one[:3] for one in expected]
    assert done[0].error == "ValueError: 0 is below 1"
    assert not any(one.died for one in done)


def test_workers_stay_warm_and_run_side_by_side(engine: RayEngine) -> None:
    first = {one.result[1] for one in engine.run(work("square_slowly"), [(n, 0.3) for n in (1, 2)])}
    again = {one.result[1] for one in engine.run(work("square_slowly"), [(n, 0.3) for n in (1, 2)])}
    assert len(first) == 2
    assert again == first


def test_a_killed_worker_gives_its_unit_back_and_is_replaced(engine: RayEngine) -> None:
    done = sorted(engine.run(work("die_at"), [(n, 2) for n in range(6)]))
    assert [one.place for one in done] == list(range(6))
    assert [one.died for one in done] == [False, False, True, False, False, False]
    assert done[2].error.startswith("a Ray worker ended")
    (retried,) = engine.run(work("die_at"), [(2, -1)])
    assert retried.result == 2


def test_a_worker_killed_from_outside_is_noticed(engine: RayEngine) -> None:
    list(engine.run(work("square"), [(1,), (2,)]))
    victim = engine.processes[0]
    results = engine.run(work("square_slowly"), [(n, 1.0) for n in range(4)])
    first = next(results)
    os.kill(victim, signal.SIGKILL)
    done = sorted([first, *results])
    assert [one.place for one in done] == list(range(4))
    assert sum(one.died for one in done) <= 1
    assert all(one.died or one.result[0] == one.place**2 for one in done)
    assert is_gone(victim)


def test_leaving_early_ends_what_is_running(engine: RayEngine) -> None:
    results = engine.run(work("square_slowly"), [(0, 0.0), (1, 60.0)])
    next(results)
    results.close()
    assert next(engine.run(work("square"), [(3,)])).result[0] == 9


class Deadly:
    """An engine whose first unit kills its worker in the middle."""

    def __init__(self, inner: RayEngine, marker: Path) -> None:
        self._inner, self._marker = inner, marker
        self.name, self.jobs = inner.name, inner.jobs

    def run(self, function: Any, units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        from tests.search.engines.dying import die_once

        assert function.__name__ == "run_job"
        for done in self._inner.run(die_once, [(str(self._marker), *unit) for unit in units]):
            self.died = getattr(self, "died", 0) + done.died
            yield done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_study_ends_alike_on_either_engine_and_with_a_worker_killed(
    engine: RayEngine, tmp_path: Path
) -> None:
    def spend(name: str, where: Any) -> tuple[str, list[str]]:
        result = tune(
            "simulated/quadratic",
            variant="tiny",
            policy="trimtab-0",
            sampler="random",
            snapshot_seconds=0.0,
            seed=1,
            budget=3,
            jobs=2,
            store=tmp_path / f"{name}.db",
            study="s",
            engine=where,
        )
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.runs]
        best = None if result.best is None else vars(result.best)
        states = [row["status"] for row in result.runs]
        return json.dumps([best, rows, result.spent], sort_keys=True), states

    deadly = Deadly(engine, tmp_path / "killed")
    quiet, states = spend("local", "local")
    killed, _ = spend("ray", deadly)
    assert deadly.died == 1
    assert killed == quiet
    assert len(states) >= 3


def test_more_than_a_node_has_is_refused(engine: RayEngine) -> None:
    with (
        RayEngine(1, resources=Resources(cpus=1000.0)) as greedy,
        pytest.raises(SpecError, match="cpus=1000 gpus=0 for one run, and the largest node"),
    ):
        list(greedy.run(work("square"), [(1,)]))
    import ray

    assert ray.is_initialized(), "a Ray of somebody else's was ended"
