"""The local engine: warm processes, each unit once, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.search.engines.base import Resources
from trimtab.search.engines.choose import make_engine
from trimtab.search.engines.local import LocalEngine, visible_gpus

WORK = "tests.search.engines.work"


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2) as made:
        yield made


def work(name: str):
    from tests.search.engines import work as module

    return getattr(module, name)


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_every_unit_comes_back_once_from_workers_that_stay(engine: LocalEngine) -> None:
    first = sorted(engine.run(work("square"), [(n,) for n in range(7)]))
    assert [done.result[0] for done in first] == [0, 1, 4, 9, 16, 25, 36]
    again = list(engine.run(work("square"), [(1,), (2,), (3,)]))
    assert {done.result[1] for done in again} <= {done.result[1] for done in first}
    assert os.getpid() not in {done.result[1] for done in first}
    assert list(engine.run(work("square"), [])) == []


def test_a_unit_that_raises_says_so_and_leaves_the_worker(engine: LocalEngine) -> None:
    before = set(engine.processes)
    failed, fine = sorted(engine.run(work("fail_below"), [(0,), (2,)]))
    assert failed.error == "ValueError: 0 is below 1"
    assert "fail_below" in failed.trace
    assert (fine.result, fine.error, failed.died) == (2, "", False)
    assert set(engine.processes) >= before


def test_a_killed_worker_is_replaced_and_its_unit_told(engine: LocalEngine) -> None:
    done = sorted(engine.run(work("die_at"), [(n, 2) for n in range(5)]))
    assert [one.died for one in done] == [False, False, True, False, False]
    assert "signal 9" in done[2].error
    assert len(list(engine.run(work("square"), [(1,), (2,)]))) == 2


def test_leaving_early_ends_what_is_running(engine: LocalEngine) -> None:
    running = engine.run(work("square_slowly"), [(1, 0.0), (2, 60.0)])
    next(running)
    processes = set(engine.processes)
    start = time.monotonic()
    running.close()
    assert time.monotonic() - start < 10
    ended = processes - set(engine.processes)
    assert len(ended) == 1
    assert all(map(gone, ended))


def test_workers_use_one_thread_and_their_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    names = [("OMP_NUM_THREADS",), ("CUDA_VISIBLE_DEVICES",)]
    with LocalEngine(2) as made:
        slow = [(name, 0.5) for (name,) in [names[1], names[1], names[0]]]
        devices = [done.result for done in sorted(made.run(work("environment"), slow))]
    assert sorted(devices[:2]) == ["4", "7"]
    assert devices[2] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("gpus", "shares"), [(0, [[], []]), (0.5, [["4"], ["4"]]), (1.0, [["4"], ["7"]])]
)
def test_accelerators_are_shared_out(gpus: float, shares: list[list[str]]) -> None:
    made = LocalEngine(2, resources=Resources(gpus=gpus))
    assert [made._share(slot, ["4", "7"]) for slot in range(2)] == shares
    with pytest.raises(SpecError, match="this machine shows 2"):
        LocalEngine(2, resources=Resources(gpus=2))._share(0, ["4", "7"])


def test_hidden_accelerators_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


SCRIPT = """
import sys, time
from trimtab.search.engines.local import LocalEngine
from tests.search.engines.work import square_slowly
print("script runs", flush=True)
engine = LocalEngine(2)
seconds = float(sys.argv[1])
for done in engine.run(square_slowly, [(1, 0.0), (2, 0.0), (3, seconds), (4, seconds)]):
    print(done.result[0], *engine.processes, flush=True)
"""


def script(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(tmp_path / "script.py"), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    with script(tmp_path, 0.0) as process:
        printed, _ = process.communicate(timeout=60)
    assert printed.count("script runs") == 1
    assert process.returncode == 0


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with script(tmp_path, 60.0) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        workers = [int(pid) for pid in lines[2].split()[1:]]
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
    assert all(map(gone, workers))


def test_engines_are_chosen_by_name() -> None:
    with make_engine("local", 3) as made:
        assert (made.name, made.jobs) == ("local", 3)
    with pytest.raises(UnknownNameError, match="unknown engine 'lokal'; did you mean 'local'"):
        make_engine("lokal", 1)
    with pytest.raises(SpecError, match="jobs: 0 is not a whole number from 1"):
        make_engine("local", 0)
    with pytest.raises(SpecError, match="'auto' is for the Ray engine"):
        make_engine("local", 1, address="auto")
    with pytest.raises(SpecError, match="cpus: 0"):
        Resources(cpus=0)
    with pytest.raises(SpecError, match=r"gpus: -0\.5"):
        Resources(gpus=-0.5)
