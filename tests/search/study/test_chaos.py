"""A study whose processes are killed again and again ends as the quiet one does."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.postgresql_server import new_database
from tests.search.study.chaos import gone_within, require_same_end

DEEDS = {"worker": 20, "coordinator": 5, "disk": 1, "lock": 1}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_study_under_fire_ends_as_the_quiet_one(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    noisy, deeds = f"sqlite:///{tmp_path / 'noisy.db'}", dict(DEEDS)
    if database == "postgresql":
        noisy = new_database(request.getfixturevalue("postgres"))
        deeds["disconnect"] = 2
    kept = str(tmp_path / "kept")
    killer = require_same_end("local", noisy, deeds, tmp_path, seconds=1200, TRIMTAB_SNAPSHOTS=kept)
    assert gone_within(5, killer.seen) == set()


def test_a_full_disk_is_what_the_test_says_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.search.study import slow_quadratic

    monkeypatch.setattr(slow_quadratic, "_FULL", tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        slow_quadratic._write_or_fail(tmp_path / "a.partial", b"")
    assert caught.value.errno == errno.ENOSPC
