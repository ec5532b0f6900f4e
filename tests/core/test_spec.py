"""A spec survives JSON, names what a policy depends on, and splits a run into windows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import IncompatiblePolicyError, SpecError, UnknownNameError
from trimtab.core.hyperparameters import KINDS, hyperparameter
from trimtab.core.spec import ACTION_KINDS, REWARDS, ControlSpec, short_windows, window_ends

specs = st.builds(
    ControlSpec,
    hyperparameters=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True).map(
        lambda kinds: tuple(hyperparameter(kind) for kind in kinds)
    ),
    decisions=st.integers(1, 60),
    actions=st.sampled_from(ACTION_KINDS),
    reward=st.sampled_from(REWARDS),
    front_windows=st.integers(0, 8),
    least_steps=st.integers(1, 6),
    front_share=st.floats(0.001, 0.2),
    entry=st.floats(-4.0, 0.0),
    late_move=st.floats(0.0, 1.0),
    ruin=st.floats(0.0, 5.0) | st.just(math.inf),
    undo=st.floats(0.0, 0.5),
    undo_noise=st.floats(0.0, 4.0),
    entry_resumes=st.booleans(),
    max_divergences=st.integers(0, 5),
)
totals = st.integers(1, 5000)


@given(specs)
def test_spec_survives_json(spec: ControlSpec) -> None:
    again = ControlSpec.from_json(spec.to_json())

    assert again == spec
    assert hash(again) == hash(spec)
    assert again.compatibility_hash() == spec.compatibility_hash()


def test_hash_of_the_default_spec_stays() -> None:
    # Policies that were made under it carry it: it may change only together with SPEC_VERSION.
    assert ControlSpec().compatibility_hash() == "6d994bc44f8d7aa9"


@given(specs, specs)
def test_hashes_are_equal_just_when_the_specs_are_compatible(
    one: ControlSpec, other: ControlSpec
) -> None:
    is_equal = one.compatibility_hash() == other.compatibility_hash()

    assert is_equal == (one.compatibility() == other.compatibility())


def test_settings_of_a_run_stay_outside_the_hash() -> None:
    one = ControlSpec()
    other = ControlSpec(hyperparameters=("dropout", "lr"), decisions=7)

    assert one.compatibility_hash() == other.compatibility_hash()
    one.require_compatible(other)


def test_whole_numbers_hash_like_the_floats_that_they_equal() -> None:
    spec = ControlSpec(explosion=5, entry=-2)

    assert spec == ControlSpec()
    assert spec.compatibility_hash() == ControlSpec().compatibility_hash()


def test_policy_of_another_spec_is_refused_by_field_and_value() -> None:
    theirs = ControlSpec(entry=-1.0, reward="final")

    with pytest.raises(IncompatiblePolicyError, match=r"entry: -1\.0 there, -2\.0 here") as caught:
        ControlSpec().require_compatible(theirs)
    assert "reward: 'final' there, 'log-loss' here" in str(caught.value)


def test_spec_of_another_version_is_refused() -> None:
    with pytest.raises(IncompatiblePolicyError, match="version: 2 there, 1 here"):
        ControlSpec().require_compatible(replace(ControlSpec(), version=2))


def test_names_stand_for_their_kinds() -> None:
    assert ControlSpec(hyperparameters=["lr"]) == ControlSpec()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hyperparameters": ()}, "is empty"),
        ({"hyperparameters": ("lr", "lr")}, "lr is named twice"),
        ({"hyperparameters": "lr"}, "'lr' is one text"),
        ({"decisions": 0}, "decisions: 0"),
        ({"decisions": 2.5}, "decisions: 2.5"),
        ({"decisions": True}, "decisions: True"),
        ({"front_windows": -1}, "front_windows: -1"),
        ({"front_share": 0.0}, "front_share: 0.0"),
        ({"front_share": 1.0}, "front_share: 1.0"),
        ({"entry": 0.5}, "entry: 0.5"),
        ({"entry": math.nan}, "entry: nan"),
        ({"entry": -math.inf}, "entry: -inf"),
        ({"late_move": 1.5}, "late_move: 1.5"),
        ({"ruin": -1.0}, "ruin: -1.0"),
        ({"undo": -0.1}, "undo: -0.1"),
        ({"undo_noise": math.nan}, "undo_noise: nan"),
        ({"entry_resumes": 1}, "entry_resumes: 1"),
        ({"explosion": 0.5}, "explosion: 0.5"),
        ({"cut": -0.7}, "cut: -0.7"),
        ({"cut": "much"}, "cut: 'much'"),
        ({"max_divergences": -1}, "max_divergences: -1"),
        ({"restore_pause": -1}, "restore_pause: -1"),
    ],
)
def test_fields_out_of_range_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ControlSpec(**fields)


@pytest.mark.parametrize(("field", "name"), [("actions", "discreet"), ("reward", "log_loss")])
def test_unknown_names_get_the_nearest(field: str, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"'{name}'; did you mean"):
        ControlSpec(**{field: name})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"hyperparameters": [{"name": "lr"}]}',
        json.dumps(json.loads(ControlSpec().to_json()) | {"depth": 3}),
    ],
)
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="not a control spec"):
        ControlSpec.from_json(text)


def test_move_units_go_by_kind_and_scale() -> None:
    spec = ControlSpec(hyperparameters=("lr", "weight_decay", "momentum", "dropout"))

    np.testing.assert_array_equal(spec.move_units, np.float32([1.0, 0.5, 0.5, 0.2]))


def test_spec_for_other_hyperparameters_keeps_the_rest() -> None:
    spec = ControlSpec(decisions=7).with_hyperparameters([hyperparameter("dropout")])

    assert (spec.decisions, spec.hyperparameters[0].name) == (7, "dropout")


# Windows.


@given(specs, totals)
def test_windows_rise_strictly_to_the_last_step(spec: ControlSpec, total: int) -> None:
    ends = window_ends(spec, total)

    assert len(ends) == min(spec.decisions, max(1, total // spec.least_steps))
    assert ends[-1] == total
    assert np.all(np.diff(ends, prepend=0) >= 1)


@given(specs, totals)
def test_windows_without_short_ones_are_even(spec: ControlSpec, total: int) -> None:
    ends = window_ends(replace(spec, front_windows=0), total)

    decisions = min(spec.decisions, max(1, total // spec.least_steps))
    assert ends.tolist() == [k * total // decisions for k in range(1, decisions + 1)]


@given(specs, totals)
def test_short_windows_take_their_share_and_no_more_than_half(
    spec: ControlSpec, total: int
) -> None:
    short, length = short_windows(spec, total)
    ends = window_ends(spec, total)

    assert short <= min(spec.front_windows, len(ends) // 3)
    assert ends[:short].tolist() == [k * length for k in range(1, short + 1)]
    assert short * length <= total // 2
    if not short:
        assert ends.tolist() == window_ends(replace(spec, front_windows=0), total).tolist()


def test_windows_of_a_usual_run() -> None:
    ends = window_ends(ControlSpec(), 200)

    assert ends[:6].tolist() == [2, 4, 6, 8, 10, 12]
    assert ends[6:].tolist() == [12 + k * 188 // 14 for k in range(1, 15)]


@pytest.mark.parametrize("total", [1, 2, 3, 19, 79])
def test_run_too_short_for_its_decisions_has_fewer(total: int) -> None:
    assert len(window_ends(ControlSpec(least_steps=4), total)) == max(1, total // 4)


@pytest.mark.parametrize("total", [1, 2, 3, 19])
def test_run_shorter_than_its_decisions_decides_before_each_step(total: int) -> None:
    assert window_ends(ControlSpec(), total).tolist() == list(range(1, total + 1))


@pytest.mark.parametrize("total", [40, 43])
def test_even_windows_as_long_as_short_ones_are_not_short(total: int) -> None:
    spec = ControlSpec(front_windows=6)

    assert short_windows(spec, total) == (0, 0)


@pytest.mark.parametrize("total", [0, -5])
def test_run_without_steps_is_refused(total: int) -> None:
    with pytest.raises(SpecError, match=f"total_steps: {total} is below 1"):
        window_ends(ControlSpec(), total)
