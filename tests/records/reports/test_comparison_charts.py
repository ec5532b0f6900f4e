"""Where names stand in the picture of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.records.reports.comparison_charts import apart

VALUES = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=9)


@given(VALUES, st.floats(0.01, 0.3))
def test_names_keep_their_order_a_gap_and_their_mean(values: list[float], gap: float) -> None:
    moved = apart(values, gap, -9.0, 9.0)
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.asarray(moved)[order]) >= gap - 1e-9)
    assert np.mean(moved) == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) == 1 or np.diff(np.sort(values)).min() >= gap:
        assert moved == pytest.approx(values)


@given(VALUES, st.floats(0.01, 0.3), st.lists(st.floats(-1.0, 1.0), min_size=9, max_size=9))
def test_no_other_places_are_nearer(values: list[float], gap: float, tried: list[float]) -> None:
    moved = np.sort(apart(values, gap, -9.0, 9.0))
    wanted = np.sort(values)
    # Any places with the gap, made from the found ones and a change that keeps it.
    other = moved + np.maximum.accumulate(np.asarray(tried[: len(values)]))
    assert np.sum((moved - wanted) ** 2) <= np.sum((other - wanted) ** 2) + 1e-9


@given(VALUES, st.floats(0.01, 0.3))
def test_names_stay_within_the_picture_where_there_is_room(values: list[float], gap: float) -> None:
    moved = apart(values, gap, -1.3, 1.3)
    assert min(moved) >= -1.3 - 1e-9
    assert max(moved) <= 1.3 + 1e-9
