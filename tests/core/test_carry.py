"""A run's memory begins with the run's own rhythm, and survives packing to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import spec_of
from trimtab.core.carry import begin, pack_array, unpack_array
from trimtab.core.spec import window_ends


@given(st.lists(st.floats(width=32), max_size=5) | st.floats(width=32))
def test_packed_numbers_keep_every_bit(value: list[float] | float) -> None:
    array = np.float32(value)
    again = unpack_array(json.loads(json.dumps(pack_array(array))))

    assert again.dtype == np.float32
    assert np.shape(again) == np.shape(array)
    assert np.asarray(again).tobytes() == np.asarray(array).tobytes()


@given(st.integers(1, 400), st.integers(1, 30))
def test_memory_knows_the_rhythm_of_the_run(total: int, decisions: int) -> None:
    spec = spec_of(decisions=decisions)
    ends = window_ends(spec, total)
    carry = begin(spec, total)

    assert float(carry.decisions) == len(ends)
    np.testing.assert_allclose(carry.progress_at, np.append(0, ends) / total, rtol=1e-6)


def test_reference_is_read_in_the_middle_of_each_window_for_learning_rates_only() -> None:
    spec = spec_of(2, decisions=2, front_windows=0)
    carry = begin(spec, 4, reference=[1.0, 0.1, 1.0, 0.0])

    # A multiplier of zero counts as three decades down; the last row stands for the run's end.
    np.testing.assert_allclose(carry.reference_at, [[-1, 0], [-3, 0], [-3, 0]], atol=1e-6)


@pytest.mark.parametrize(("guarded", "front", "entry"), [(True, 6, -2.0), (False, 6, 0.0)])
def test_only_guarded_runs_enter_below_their_start(guarded: bool, front: int, entry: float) -> None:
    carry = begin(spec_of(2), 200, guarded=guarded)

    assert float(carry.front) == front
    np.testing.assert_array_equal(carry.offset, np.float32([entry, 0.0]))


def test_run_too_short_for_short_windows_enters_at_its_start() -> None:
    carry = begin(spec_of(), 40)

    assert float(carry.front) == 0.0
    assert float(carry.offset[0]) == 0.0


def test_bounds_are_offsets_from_the_start() -> None:
    carry = begin(spec_of(), 200)

    np.testing.assert_allclose(carry.low_offset, [-5.0], rtol=1e-6)
    np.testing.assert_allclose(carry.high_offset, [5.0], rtol=1e-6)
