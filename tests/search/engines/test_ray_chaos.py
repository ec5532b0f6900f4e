"""A study on Ray whose workers and coordinator are killed ends as the quiet local one does."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")
from tests.search.study.chaos import gone_within, require_same_end

DEEDS = {"worker": 6, "coordinator": 1, "disk": 1, "lock": 1}
SECONDS_TO_END = 40  # Ray takes its time to end the processes of a node


@pytest.mark.slow
def test_a_study_on_ray_under_fire_ends_as_the_quiet_local_one(tmp_path: Path) -> None:
    noisy = f"sqlite:///{tmp_path / 'noisy.db'}"
    killer = require_same_end("ray", noisy, DEEDS, tmp_path, seconds=900)
    assert gone_within(SECONDS_TO_END, killer.seen) == set()
