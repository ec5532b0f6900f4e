"""Where to look next around a rate that was found."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.search.study.steered_strategy import next_decade


def searched(loss_at, runs: int) -> list[float]:
    tried: list[tuple[float, float]] = []
    for _ in range(runs):
        place = next_decade(tried)
        tried.append((place, loss_at(place)))
    return [place for place, _ in tried]


def test_it_looks_at_the_found_rate_then_on_both_sides_of_the_best():
    assert searched(lambda place: 1.0 + place**2, 3) == pytest.approx([0.0, 0.3, -0.3])


def test_it_walks_to_a_rate_that_is_far_off():
    places = searched(lambda place: math.exp((place - 1.3) ** 2), 8)
    assert min(abs(place - 1.3) for place in places) < 0.05


def test_runs_under_way_are_not_proposed_again():
    assert next_decade([(0.0, 2.0)], [0.3]) == pytest.approx(-0.3)
    assert next_decade([], [0.0]) == pytest.approx(0.1)


def test_a_rate_at_which_runs_are_lost_is_a_neighbour_without_a_parabola():
    tried = [(0.0, 1.0), (0.3, math.inf), (-0.3, 2.0)]
    assert abs(next_decade(tried)) == pytest.approx(0.1)


finite = st.floats(-3.0, 3.0)


@given(
    st.lists(st.tuples(finite, st.floats(1e-6, 1e6) | st.just(math.inf)), max_size=12),
    st.lists(finite, max_size=2),
)
def test_no_place_is_looked_at_twice(tried, taken):
    place = next_decade(tried, taken)
    assert math.isfinite(place)
    assert all(abs(place - other) >= 0.05 - 1e-9 for other in [*(p for p, _ in tried), *taken])
