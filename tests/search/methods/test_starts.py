"""Where runs start: ranges, draws, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.search.methods.starts import Range, StartDistribution, generator_for

STARTS = StartDistribution(
    (
        hyperparameter("lr", 1e-3),
        hyperparameter("weight_decay", 1e-2),
        hyperparameter("dropout", 0.2),
    ),
    2e-3,
)


def test_the_ranges_are_those_of_the_published_law():
    ranges = STARTS.ranges()
    assert ranges["lr"] == Range(2e-5, 0.2, True)
    assert ranges["weight_decay"].low == pytest.approx(1e-3)
    assert ranges["weight_decay"].high == pytest.approx(1e-1)
    assert ranges["dropout"] == Range(0.0, 0.7, False)


def test_draws_spread_evenly_over_the_decades_of_the_learning_rate():
    generator = generator_for("spread")
    scales = np.array([STARTS.draw(generator).scale for _ in range(4000)])
    assert 0.01 <= scales.min() < 0.012
    assert 85 < scales.max() <= 100
    # 4,000 draws: a quarter in each decade, with a standard error of 0.7 %.
    shares = np.histogram(np.log10(scales), bins=[-2, -1, 0, 1, 2])[0] / 4000
    assert np.allclose(shares, 0.25, atol=0.03)


def test_a_fixed_factor_leaves_the_other_draws_as_they_are():
    drawn = STARTS.draw(generator_for("x", 1))
    fixed = STARTS.draw(generator_for("x", 1), scale=10.0)
    assert fixed.values["lr"] == 10.0 * 2e-3
    assert fixed.values["weight_decay"] == drawn.values["weight_decay"]
    assert drawn == STARTS.draw(generator_for("x", 1))
    assert drawn != STARTS.draw(generator_for("x", 2))


@given(st.floats(0, 1), st.booleans())
def test_a_share_of_a_range_comes_back(share, is_log):
    where = Range(1e-4, 3.0, is_log)
    assert where.share_of(where.at(share)) == pytest.approx(share, abs=1e-9)
    assert where.low <= where.at(share) <= where.high


def test_a_law_without_a_learning_rate_is_refused():
    with pytest.raises(SpecError, match="none of kind lr among dropout"):
        StartDistribution((hyperparameter("dropout"),), 1.0)
