"""A study on Ray whose workers and coordinator are killed ends as the quiet local one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ray")
from tests.search.chaos import (
    Killer,
    begin,
    gone_within,
    plain,
    query,
    recorded,
    require_same_study,
    under_fire,
)

RUNS = 12
DEEDS = {"worker": 6, "coordinator": 1, "disk": 1, "lock": 1}
SECONDS_TO_END = 40  # Ray takes its time to end the processes of a node


@pytest.mark.slow
def test_a_study_on_ray_under_fire_ends_as_the_quiet_local_one(tmp_path: Path) -> None:
    quiet, noisy = (f"sqlite:///{tmp_path / name}.db" for name in ("quiet", "noisy"))
    printed, complaints = begin(quiet).communicate(timeout=600)
    assert printed, complaints
    assert len(json.loads(printed)["runs"]) >= RUNS

    killer = Killer(noisy, "ray", DEEDS, expected=len(recorded(quiet)), flag=tmp_path / "full")
    output = under_fire(
        killer,
        "ray",
        900,
        SLOW_SECONDS="0.03",
        FULL_DISK_FLAG=str(tmp_path / "full"),
    )

    assert killer.done == DEEDS
    require_same_study(noisy, quiet)
    assert plain(output) == plain(printed)
    attempts = query(noisy, "select sum(attempts), count(*) from units")[0]
    assert attempts[0] > attempts[1] + DEEDS["worker"] // 2
    assert gone_within(SECONDS_TO_END, killer.seen) == set()
    assert len(killer.workers) >= DEEDS["worker"]
