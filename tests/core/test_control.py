"""What a decision may do: decoding, bounds, rates, the entry ramp, and nothing if told so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.episodes import (
    ANY_FLOAT,
    ANY_METRICS,
    TOTAL_STEPS,
    WIDTHS,
    drawn_episode,
    random_metrics,
    run_episode,
    spec_of,
)
from trimtab.core.carry import begin
from trimtab.core.control import (
    action_shape,
    apply,
    check_action,
    decode,
    n_discrete_actions,
    no_action,
    observe,
)
from trimtab.core.errors import SpecError
from trimtab.core.guard import Reason
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ACTION_KINDS, MOVES, REWARDS, ControlSpec

seeds = st.integers(0, 2**32 - 1)
action_kinds = st.sampled_from(ACTION_KINDS)


def quiet_metrics(decisions: int) -> list[Metrics]:
    """Return metrics of a run in which the loss falls steadily."""
    return [Metrics(val_loss=2.0 - 0.05 * k, steps=10) for k in range(decisions + 1)]


# Decoding.


@pytest.mark.parametrize(
    ("actions", "count", "shape"),
    [("discrete", 14, ()), ("multi-discrete", 14, (3,)), ("continuous", 14, (3,))],
)
def test_actions_of_two_hyperparameters(actions: str, count: int, shape: tuple[int, ...]) -> None:
    spec = spec_of(2, actions=actions)

    assert n_discrete_actions(spec) == count
    assert action_shape(spec) == shape


def test_discrete_actions_move_one_hyperparameter_each() -> None:
    spec = spec_of(2, actions="discrete")
    decoded = [decode(spec, index, np) for index in range(n_discrete_actions(spec))]

    moves = np.array([moved for moved, _ in decoded])
    assert [float(restore) for _, restore in decoded] == [0.0] * 13 + [1.0]
    assert not moves[0].any()
    assert not moves[13].any()
    nonzero = [move for move in MOVES if move]
    np.testing.assert_array_equal(moves[1:7], np.float32([[move, 0] for move in nonzero]))
    np.testing.assert_array_equal(moves[7:13], np.float32([[0, move] for move in nonzero]))


def test_multi_discrete_actions_index_the_moves() -> None:
    moves, restore = decode(spec_of(2), [0, 5, 1], np)

    np.testing.assert_array_equal(moves, np.float32([-1.0, 0.5]))
    assert float(restore) == 1.0


def test_continuous_actions_are_the_moves_within_one_unit() -> None:
    moves, restore = decode(spec_of(2, actions="continuous"), [-3.0, 0.25, 0.5], np)

    np.testing.assert_array_equal(moves, np.float32([-1.0, 0.25]))
    assert float(restore) == 0.0


@given(action_kinds, WIDTHS)
def test_idle_action_decodes_to_nothing(actions: str, width: int) -> None:
    spec = spec_of(width, actions=actions)
    moves, restore = decode(spec, check_action(spec, no_action(spec)), np)

    assert not np.any(moves)
    assert not restore


@pytest.mark.parametrize(
    ("actions", "action", "message"),
    [
        ("multi-discrete", [3], r"shape \(1,\); multi-discrete actions have shape \(2,\)"),
        ("multi-discrete", [7, 0], r"\[7, 0\] is outside 0 .. \[6, 1\]"),
        ("multi-discrete", [-1, 0], r"\[-1, 0\] is outside"),
        ("multi-discrete", [3, 0.5], r"\[3.0, 0.5\] is outside"),
        ("discrete", 2.5, "2.5 is outside 0 .. 7"),
        ("multi-discrete", [3, 2], r"\[3, 2\] is outside"),
        ("discrete", 8, "8 is outside 0 .. 7"),
        ("discrete", [1], r"shape \(1,\)"),
        ("continuous", ["up", "no"], r"\['up', 'no'\]"),
        ("continuous", [None, None], "holds no plain numbers"),
    ],
)
def test_actions_of_another_kind_are_refused(actions: str, action: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_action(spec_of(1, actions=actions), action)


def test_a_place_between_two_moves_is_the_move_in_between() -> None:
    moves, restore = decode(spec_of(), check_action(spec_of(), [3.5, 0.0]), np)
    assert moves[0] == pytest.approx(0.1)
    assert restore == 0
    whole = [float(decode(spec_of(), np.array([i, 0]), np)[0][0]) for i in range(len(MOVES))]
    assert whole == pytest.approx(list(MOVES))


def test_action_that_is_not_finite_is_left_to_the_guard() -> None:
    assert np.isnan(check_action(spec_of(), [math.nan, 0.0])[0])


# Laws over whole runs.


@given(seeds, action_kinds, WIDTHS, st.booleans())
def test_offsets_stay_within_bounds(seed: int, actions: str, width: int, guarded: bool) -> None:
    episode = drawn_episode(spec_of(width, actions=actions), seed, faults=0.1, guarded=guarded)

    for carry in episode.carries:
        assert np.all(carry.offset >= carry.low_offset)
        assert np.all(carry.offset <= carry.high_offset)


@given(seeds, action_kinds, WIDTHS)
def test_late_moves_are_limited_unless_a_rollback_cuts(seed: int, actions: str, width: int) -> None:
    spec = spec_of(width, actions=actions)
    episode = drawn_episode(spec, seed)
    before, after = episode.carries[0:-1:2], episode.carries[1::2]

    for k, (one, two, reason) in enumerate(zip(before, after, episode.reasons, strict=True)):
        moved = np.abs(two.offset - one.offset) / one.units
        ramp = -spec.entry / spec.front_windows if 1 <= k <= spec.front_windows else 0.0
        limit = (1.0 if k <= spec.front_windows else spec.late_move) + ramp * one.is_lr
        cut = np.where(reason & Reason.CUT, spec.cut, 0.0)
        assert np.all(moved <= limit + cut + 1e-5)


def test_move_beyond_the_late_limit_is_cut_and_said() -> None:
    spec = spec_of()
    episode = run_episode(spec, [[0, 0], [6, 0]] * 4, quiet_metrics(8))

    assert [int(reason[0]) & Reason.RATE for reason in episode.reasons] == [0] * 7 + [Reason.RATE]
    offsets = [float(values.offset[0]) for values in episode.values]
    assert offsets[7] - offsets[6] == pytest.approx(spec.late_move)


def test_value_at_its_bound_is_held_and_said() -> None:
    spec = ControlSpec(hyperparameters=(hyperparameter("lr", 1.0, low=0.5, high=2.0),), entry=0.0)
    episode = run_episode(spec, [[6, 0], [0, 0], [0, 0]], quiet_metrics(3))

    high, low = np.float32(math.log10(2.0)), np.float32(math.log10(0.5))
    offsets = [values.offset[0] for values in episode.values]
    assert offsets == [high, low, low]
    assert [int(reason[0]) & Reason.BOUNDS for reason in episode.reasons] == [Reason.BOUNDS] * 3


@given(
    action_kinds,
    WIDTHS,
    st.floats(-4.0, 0.0).map(lambda decades: round(decades, 3)),
    st.integers(0, 6),
)
def test_zero_action_is_the_entry_ramp_and_then_exactly_the_reference(
    actions: str, width: int, entry: float, front: int
) -> None:
    spec = spec_of(width, actions=actions, entry=entry, front_windows=front)
    episode = run_episode(spec, [no_action(spec)] * 20, quiet_metrics(20))

    for k, values in enumerate(episode.values):
        share = 1 - k / front if k < front else 0.0
        np.testing.assert_allclose(values.offset[0], entry * share, atol=1e-5)
        assert not np.any(values.offset[1:])
        if k >= front:
            assert np.all(values.offset == 0.0)
            assert np.all(values.multiplier == 1.0)


def test_moves_that_cancel_leave_exactly_the_reference() -> None:
    spec = spec_of(entry=0.0)
    up, down = MOVES.index(0.2), MOVES.index(-0.2)
    actions = [[up, 0]] * 3 + [[down, 0]] * 3

    episode = run_episode(spec, actions, quiet_metrics(6))

    assert float(episode.values[-1].multiplier[0]) == 1.0


@given(seeds, action_kinds, WIDTHS, st.floats(0.0, 0.5))
def test_unguarded_run_without_moves_is_exactly_the_reference(
    seed: int, actions: str, width: int, faults: float
) -> None:
    spec = spec_of(width, actions=actions)
    generator = np.random.default_rng(seed)
    metrics = [random_metrics(generator, k, faults) for k in range(21)]
    episode = run_episode(spec, [no_action(spec)] * 20, metrics, guarded=False)

    for values in episode.values:
        assert np.all(values.offset == 0.0)
        assert np.all(values.multiplier == 1.0)
        assert not values.restore
        assert not values.terminated


@given(seeds, action_kinds)
def test_multiplier_is_ten_to_the_offset_on_log_scales_only(seed: int, actions: str) -> None:
    episode = drawn_episode(spec_of(8, actions=actions), seed)
    is_log = np.array([item.scale == "log" for item in episode.spec.hyperparameters])

    for values in episode.values:
        expected = np.where(is_log, 10.0 ** values.offset.astype(np.float64), 1.0)
        np.testing.assert_allclose(values.multiplier, expected, rtol=1e-5)
        assert values.multiplier.dtype == values.offset.dtype == np.float32


@given(
    st.lists(ANY_METRICS, min_size=2, max_size=8),
    action_kinds,
    st.booleans(),
    st.sampled_from(REWARDS),
)
def test_nothing_that_is_measured_makes_a_decision_non_finite(
    metrics: list[Metrics], actions: str, guarded: bool, reward: str
) -> None:
    spec = spec_of(2, actions=actions, reward=reward)
    idle = [no_action(spec)] * (len(metrics) - 1)
    episode = run_episode(spec, idle, metrics, guarded=guarded, budget=metrics[0].charge)

    assert np.all(np.isfinite(episode.observations))
    assert np.all(np.isfinite(episode.rewards))
    for values in episode.values:
        assert np.all(np.isfinite(np.concatenate([values.offset, values.multiplier])))


@given(st.lists(ANY_FLOAT, min_size=3, max_size=3))
def test_no_action_whatever_makes_a_value_non_finite(action: list[float]) -> None:
    spec = spec_of(2, actions="continuous")
    episode = run_episode(spec, [np.float32(action)], quiet_metrics(1))

    values, reason = episode.values[0], episode.reasons[0]
    assert np.all(np.isfinite(values.offset))
    is_finite = bool(np.all(np.isfinite(action)))
    assert np.all((reason & Reason.INVALID == 0) == is_finite)
    if not is_finite:
        np.testing.assert_array_equal(values.offset, np.float32([spec.entry, 0.0]))


def test_numpy_that_raises_on_overflow_does_not_end_a_run() -> None:
    metrics = [Metrics(val_loss=value) for value in (1e-30, math.inf, 3e38, -3e38)]

    with np.errstate(all="raise"):
        run_episode(spec_of(), [[3, 0]] * 3, metrics)


# The memory.


def test_memory_is_never_changed_in_place() -> None:
    spec = spec_of(2)
    carry = begin(spec, TOTAL_STEPS)
    for value in carry:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    seen, _, _ = observe(spec, carry, Metrics(val_loss=2.0), np)
    apply(spec, seen, np.array([6, 0, 0]), np)

    untouched = begin(spec, TOTAL_STEPS)
    for field, value in carry._asdict().items():
        np.testing.assert_array_equal(value, getattr(untouched, field), err_msg=field)


@settings(max_examples=10)
@given(seeds, action_kinds)
def test_memory_stays_float32_of_the_same_shapes(seed: int, actions: str) -> None:
    episode = drawn_episode(spec_of(2, actions=actions), seed, faults=0.1)
    begun = begin(episode.spec, TOTAL_STEPS)

    for carry in episode.carries:
        for field, value in carry._asdict().items():
            assert value.dtype == np.float32, field
            assert np.shape(value) == np.shape(getattr(begun, field)), field


def test_padding_changes_no_decision() -> None:
    spec = spec_of()
    plain, padded = begin(spec, TOTAL_STEPS), begin(spec, TOTAL_STEPS, pad_to=64)
    _, one, _ = observe(spec, plain, Metrics(val_loss=2.0), np)
    _, other, _ = observe(spec, padded, Metrics(val_loss=2.0), np)

    assert padded.progress_at.shape == (64,)
    np.testing.assert_array_equal(one, other)
