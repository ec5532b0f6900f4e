"""A study in a process of its own, and a killer that acts on what the study has recorded."""

from __future__ import annotations

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

__all__ = ["Killer", "gone_within", "require_same_end"]

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, sys
from trimtab import tune
result = tune(
    "tests.search.study.slow_quadratic:make", budget=12.5, seed=5, jobs=2, store=sys.argv[1],
    study="s", policy="trimtab-0", sampler="random", snapshot_seconds=0.0, engine=sys.argv[2],
)
print(json.dumps(result.to_dict()))
"""
WORKERS = {"local": b"spawn_main", "ray": b"ray::_Worker"}
"""What stands in the command line of an engine's worker processes."""

RUNS = 12
"""Runs of the study, at least."""

PAUSE_SECONDS = 1.5  # how long the disk is full, and the database locked


# The study.


def begin(store: str, engine: str = "local", **more: str) -> subprocess.Popen[str]:
    """Start the study, or go on with it; its result is printed at the end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, store, engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def plain(printed: str) -> str:
    """Return a printed result without what differs from run to run."""
    result: Mapping[str, Any] = json.loads(printed)
    runs = [{k: v for k, v in row.items() if k != "seconds"} for row in result["runs"]]
    return json.dumps({**result, "runs": runs}, sort_keys=True)


# Its record.


def query(store: str, text: str) -> list[tuple[Any, ...]]:
    """Return rows of a store; none while there is no such table, or it cannot be reached."""
    if not store.startswith("sqlite:///"):
        return _query_server(store, text)
    path = Path(store.removeprefix("sqlite:///"))
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        with connection:
            found = connection.execute(text).fetchall()
        connection.close()
    except sqlite3.OperationalError:  # not made yet, or locked by us
        return []
    return found


def _server(store: str) -> Any:
    import psycopg

    return psycopg.connect(store.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)


def _query_server(store: str, text: str) -> list[tuple[Any, ...]]:
    import psycopg

    try:
        with _server(store) as connection:
            return list(connection.execute(text).fetchall())
    except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
        return []


def recorded(store: str) -> list[tuple[Any, ...]]:
    """Return every decision of every run by the place of its unit, all but the time of it."""
    return query(
        store,
        "select r.place, d.decision, d.step, d.metrics, d.observation, d.action, d.applied, "
        "d.reward from decisions d join runs r on r.id = d.run_id order by 1, 2",
    )


def require_same_study(noisy: str, quiet: str) -> None:
    """Assert that two stores hold the same study, each unit done once, all but the seconds."""
    outcomes = "select place, kind, status, outcome from units order by place"
    differing = [
        (one[:3], {k: (v, json.loads(two[3]).get(k)) for k, v in json.loads(one[3]).items()})
        for one, two in zip(query(quiet, outcomes), query(noisy, outcomes), strict=True)
        if _without_seconds(one) != _without_seconds(two)
    ]
    assert differing == []
    assert recorded(noisy) == recorded(quiet)
    assert {row[0] for row in query(noisy, "select status from units")} == {"done"}
    assert query(noisy, "select count(*) from runs") == query(quiet, "select count(*) from runs")
    assert {row[0] for row in query(noisy, "select status from runs")} <= {"finished", "stopped"}


def _without_seconds(unit: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*unit[:3], {k: v for k, v in json.loads(unit[3]).items() if k != "seconds"})


# Its processes.


def descendants(parent: int) -> dict[int, bytes]:
    """Return the command lines of all live processes under one, as the system tells of them."""
    parents: dict[int, int] = {}
    commands: dict[int, bytes] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)], commands[int(folder.name)] = int(fields[1]), command
    found: set[int] = set()
    known = {parent}
    while known:
        known = {one for one, above in parents.items() if above in known} - found
        found |= known
    return {one: commands[one] for one in sorted(found)}


def gone_within(seconds: float, processes: set[int]) -> set[int]:
    """Wait for processes to end; return those that did not."""
    end = time.monotonic() + seconds
    while True:
        left = {one for one in processes if _is_alive(one)}
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What happens to it.


class Killer:
    """Acts on recorded progress, in an order that a seed fixes.

    Args:
        store: Of the study.
        engine: Whose workers are killed.
        deeds: How often each deed is done: ``"worker"``, ``"coordinator"``, ``"disk"``, ``"lock"``
            and, of a database server, ``"disconnect"``.
        expected: Decisions of the whole study.
        flag: File that stands for a full disk while it is there.
    """

    def __init__(
        self, store: str, engine: str, deeds: Mapping[str, int], *, expected: int, flag: Path
    ) -> None:
        self.store, self.flag, self._mark = store, flag, WORKERS[engine]
        self.chance = random.Random(11)
        wanted = [deed for deed, count in deeds.items() for _ in range(count)]
        self.chance.shuffle(wanted)
        # Spread over the whole study: each deed waits for so many decisions in the store.
        self.plan = [(int(expected * (n + 1) / (len(wanted) + 2)), d) for n, d in enumerate(wanted)]
        self.workers: set[int] = set()
        self.seen: set[int] = set()
        self.done: dict[str, int] = {}

    def act(self, coordinator: subprocess.Popen[str]) -> None:
        """Do what is due, if it can be done now."""
        below = descendants(coordinator.pid)
        workers = [one for one, command in below.items() if self._mark in command]
        self.workers |= set(workers)
        self.seen |= set(below)
        if not self.plan or self._decisions() < self.plan[0][0]:
            return
        deed = self.plan[0][1]
        if deed == "worker":
            if not workers:
                return
            os.kill(self.chance.choice(workers), signal.SIGKILL)
        elif deed == "coordinator":
            coordinator.kill()
        else:
            deeds: dict[str, Callable[[], None]] = {
                "disk": self._fill,
                "lock": self._lock,
                "disconnect": self._disconnect,
            }
            deeds[deed]()
        self.done[deed] = self.done.get(deed, 0) + 1
        self.plan.pop(0)

    def _decisions(self) -> int:
        found = query(self.store, "select count(*) from decisions")
        return int(found[0][0]) if found else 0

    def _fill(self) -> None:
        self.flag.write_text("full")
        time.sleep(PAUSE_SECONDS)
        self.flag.unlink()

    def _lock(self) -> None:
        if not self.store.startswith("sqlite:///"):
            with _server(self.store) as server, server.transaction():
                server.execute("lock table units, runs, decisions in access exclusive mode")
                time.sleep(PAUSE_SECONDS)
            return
        path = self.store.removeprefix("sqlite:///")
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(PAUSE_SECONDS)
        connection.execute("ROLLBACK")
        connection.close()

    def _disconnect(self) -> None:
        """End every connection of the study, as a server does that is started again."""
        query(
            self.store,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()",
        )


def under_fire(killer: Killer, engine: str, seconds: float, **more: str) -> str:
    """Have the study done while the killer acts, begun again whenever it is killed; return it."""
    end = time.monotonic() + seconds
    while True:
        coordinator = begin(killer.store, engine, **more)
        while coordinator.poll() is None and time.monotonic() < end:
            killer.act(coordinator)
            time.sleep(0.05)
        if coordinator.poll() is None:
            coordinator.kill()
        output, complaints = coordinator.communicate(timeout=60)
        if coordinator.returncode == 0:
            return output
        assert time.monotonic() < end, f"not over after {seconds:.0f} s: {complaints[-2000:]}"
        assert coordinator.returncode == -signal.SIGKILL, complaints


def require_same_end(
    engine: str, noisy: str, deeds: Mapping[str, int], folder: Path, *, seconds: float, **more: str
) -> Killer:
    """Assert that a study under fire ends as the quiet local one does; return who fired.

    Args:
        engine: Of the study under fire.
        noisy: Its store.
        deeds: As in `Killer`.
        folder: For the quiet store and what stands for a full disk.
        seconds: How long the study under fire may take.
        more: Environment of the study under fire.
    """
    quiet = f"sqlite:///{folder / 'quiet.db'}"
    printed, complaints = begin(quiet).communicate(timeout=600)
    assert printed, complaints
    assert len(json.loads(printed)["runs"]) >= RUNS

    flag = folder / "full"
    killer = Killer(noisy, engine, deeds, expected=len(recorded(quiet)), flag=flag)
    paced = {"SLOW_SECONDS": "0.03", "FULL_DISK_FLAG": str(flag)}
    output = under_fire(killer, engine, seconds, **paced, **more)

    assert killer.done == deeds
    require_same_study(noisy, quiet)
    assert plain(output) == plain(printed)
    attempts = query(noisy, "select sum(attempts), count(*) from units")[0]
    assert attempts[0] > attempts[1] + deeds["worker"] // 2
    assert len(killer.workers) >= deeds["worker"]
    return killer
