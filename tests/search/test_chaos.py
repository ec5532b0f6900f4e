"""A study whose processes are killed again and again ends as the quiet one does."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.postgresql_server import new_database
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
DEEDS = {"worker": 20, "coordinator": 5, "disk": 1, "lock": 1}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_study_under_fire_ends_as_the_quiet_one(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    quiet, noisy = (f"sqlite:///{tmp_path / name}.db" for name in ("quiet", "noisy"))
    deeds = dict(DEEDS)
    if database == "postgresql":
        noisy = new_database(request.getfixturevalue("postgres"))
        deeds["disconnect"] = 2
    printed, complaints = begin(quiet).communicate(timeout=600)
    assert printed, complaints
    assert len(json.loads(printed)["runs"]) >= RUNS

    killer = Killer(noisy, "local", deeds, expected=len(recorded(quiet)), flag=tmp_path / "full")
    output = under_fire(
        killer,
        "local",
        1200,
        SLOW_SECONDS="0.03",
        FULL_DISK_FLAG=str(tmp_path / "full"),
        TRIMTAB_SNAPSHOTS=str(tmp_path / "kept"),
    )

    assert killer.done == deeds
    require_same_study(noisy, quiet)
    assert plain(output) == plain(printed)
    attempts = query(noisy, "select sum(attempts), count(*) from units")[0]
    assert attempts[0] > attempts[1] + deeds["worker"] // 2
    assert gone_within(5, killer.seen) == set()
    assert len(killer.workers) >= deeds["worker"]


def test_a_full_disk_is_what_the_test_says_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.search import slow_quadratic

    monkeypatch.setattr(slow_quadratic, "_FULL", tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        slow_quadratic._write_or_fail(tmp_path / "a.partial", b"")
    assert caught.value.errno == errno.ENOSPC
