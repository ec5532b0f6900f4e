"""A study whose processes are killed again and again ends as the quiet one does."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from trimtab.search.study import tune
result = tune(
    "tests.search.slow_quadratic:make", budget=12.5, seed=5, jobs=2, store=sys.argv[1], study="s",
    policy="trimtab-0", sampler="random", snapshot_seconds=0.0,
)
print(json.dumps(result.to_dict()))
"""
RUNS = 12
WORKER_KILLS, COORDINATOR_KILLS = 20, 5


def begin(store: Path, **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def children(parent: int) -> list[int]:
    """Return the live child processes that train, found by what the system tells of them."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"spawn_main" in command:
            found.append(int(folder.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def query(store: Path, text: str) -> list[tuple[Any, ...]]:
    if not store.exists():
        return []
    try:
        connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5)
        with connection:
            found = connection.execute(text).fetchall()
        connection.close()
    except sqlite3.OperationalError:  # not made yet, or locked by us
        return []
    return found


def decisions_in(store: Path) -> int:
    found = query(store, "select count(*) from decisions")
    return int(found[0][0]) if found else 0


def plain(printed: str) -> str:
    result: Mapping[str, Any] = json.loads(printed)
    runs = [{k: v for k, v in row.items() if k != "seconds"} for row in result["runs"]]
    return json.dumps({**result, "runs": runs}, sort_keys=True)


def without_seconds(unit: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*unit[:3], {k: v for k, v in json.loads(unit[3]).items() if k != "seconds"})


def recorded(store: Path) -> list[tuple[Any, ...]]:
    """Return every decision of every run by the place of its unit, all but the time of it."""
    return query(
        store,
        "select r.place, d.decision, d.step, d.metrics, d.observation, d.action, d.applied, "
        "d.reward from decisions d join runs r on r.id = d.run_id order by 1, 2",
    )


class Killer:
    """Acts on recorded progress, in an order that a seed fixes."""

    def __init__(self, store: Path, expected: int, flag: Path) -> None:
        self.store, self.flag = store, flag
        self.chance = random.Random(11)
        deeds = ["worker"] * WORKER_KILLS + ["coordinator"] * COORDINATOR_KILLS
        deeds += ["disk", "lock"]
        self.chance.shuffle(deeds)
        # Spread over the whole study: each deed waits for so many decisions in the store.
        self.plan = [(int(expected * (n + 1) / (len(deeds) + 2)), d) for n, d in enumerate(deeds)]
        self.seen: set[int] = set()
        self.done: dict[str, int] = {}

    def act(self, coordinator: subprocess.Popen[str]) -> None:
        """Do what is due, if it can be done now."""
        workers = children(coordinator.pid)
        self.seen |= set(workers)
        if not self.plan or decisions_in(self.store) < self.plan[0][0]:
            return
        deed = self.plan[0][1]
        deeds: dict[str, Callable[[], None]] = {"disk": self.fill, "lock": self.lock}
        if deed == "worker":
            if not workers:
                return
            os.kill(self.chance.choice(workers), signal.SIGKILL)
        elif deed == "coordinator":
            coordinator.kill()
        else:
            deeds[deed]()
        self.done[deed] = self.done.get(deed, 0) + 1
        self.plan.pop(0)

    def fill(self) -> None:
        self.flag.write_text("full")
        time.sleep(1.5)
        self.flag.unlink()

    def lock(self) -> None:
        connection = sqlite3.connect(self.store, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(1.5)
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.slow
def test_a_study_under_fire_ends_as_the_quiet_one(tmp_path: Path) -> None:
    quiet, noisy = tmp_path / "quiet.db", tmp_path / "noisy.db"
    printed, complaints = begin(quiet).communicate(timeout=600)
    assert printed, complaints
    assert len(json.loads(printed)["runs"]) >= RUNS
    expected = recorded(quiet)

    killer = Killer(noisy, len(expected), tmp_path / "full")
    more = {"SLOW_SECONDS": "0.03", "FULL_DISK_FLAG": str(tmp_path / "full")}
    end = time.monotonic() + 1200
    while True:
        coordinator = begin(noisy, **more)
        while coordinator.poll() is None and time.monotonic() < end:
            killer.act(coordinator)
            time.sleep(0.02)
        output, complaints = coordinator.communicate(timeout=60)
        if coordinator.returncode == 0 or time.monotonic() > end:
            break
        assert coordinator.returncode == -signal.SIGKILL, complaints

    assert killer.done == {
        "worker": WORKER_KILLS,
        "coordinator": COORDINATOR_KILLS,
        "disk": 1,
        "lock": 1,
    }
    outcomes = "select place, kind, status, outcome from units order by place"
    differing = [
        (one[:3], {k: (v, json.loads(two[3]).get(k)) for k, v in json.loads(one[3]).items()})
        for one, two in zip(query(quiet, outcomes), query(noisy, outcomes), strict=True)
        if without_seconds(one) != without_seconds(two)
    ]
    assert differing == []
    assert plain(output) == plain(printed)
    assert recorded(noisy) == expected
    assert {row[0] for row in query(noisy, "select status from units")} == {"done"}
    assert query(noisy, "select count(*) from runs") == query(quiet, "select count(*) from runs")
    assert {row[0] for row in query(noisy, "select status from runs")} <= {"finished", "stopped"}
    attempts = query(noisy, "select sum(attempts), count(*) from units")[0]
    assert attempts[0] > attempts[1] + WORKER_KILLS // 2
    for _ in range(100):
        if not any(map(is_alive, killer.seen)):
            break
        time.sleep(0.05)
    assert not any(map(is_alive, killer.seen))
    assert len(killer.seen) >= WORKER_KILLS


def test_a_full_disk_is_what_the_test_says_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.search import slow_quadratic

    monkeypatch.setattr(slow_quadratic, "_FULL", tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        slow_quadratic._write_or_fail(tmp_path / "a.partial", b"")
    assert caught.value.errno == errno.ENOSPC
