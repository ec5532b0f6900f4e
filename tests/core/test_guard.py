"""When the guard restores, cuts, ends a run, and when it lets the policy restore."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.episodes import Episode, drawn_episode, run_episode, spec_of
from trimtab.core.control import apply, no_action
from trimtab.core.guard import Reason, count_undone, describe_reason
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ACTION_KINDS, UNDOING

START = Metrics(val_loss=2.0)
GOOD = Metrics(val_loss=1.0)
BROKEN = Metrics(val_loss=math.nan, finite=0.0)
IDLE, RESTORE = [3, 0], [3, 1]


def run(*metrics: Metrics, action: list[int] | None = None, **options: object) -> Episode:
    names = ("max_divergences", "ruin", "front_windows", "decisions", "entry", *UNDOING)
    fields = {"entry": 0.0} | {name: options.pop(name) for name in names if name in options}
    spec = spec_of(2, **fields)
    action = action or [3, 3, 0]
    return run_episode(spec, [action] * len(metrics), [START, *metrics], **options)


def restored(episode: Episode) -> list[bool]:
    return [bool(values.restore) for values in episode.values]


@pytest.mark.parametrize(
    "metrics",
    [
        BROKEN,
        Metrics(val_loss=math.inf),
        Metrics(val_loss=math.nan),
        Metrics(val_loss=1.5, finite=0.0),
        Metrics(val_loss=2.0 * 5.1),
    ],
)
def test_divergence_restores_and_cuts_learning_rates_only(metrics: Metrics) -> None:
    episode = run(metrics, GOOD)

    assert restored(episode) == [False, True]
    np.testing.assert_allclose(episode.values[1].offset, [-0.7, 0.0], rtol=1e-6)
    lr, decay = (int(bits) for bits in episode.reasons[1])
    assert lr == Reason.ROLLBACK | Reason.CUT
    assert decay == Reason.ROLLBACK
    assert float(episode.carries[-1].divergences) == 1.0


def test_ruin_restores_without_counting_as_divergence() -> None:
    episode = run(GOOD, Metrics(val_loss=1.9), GOOD)

    assert restored(episode) == [False, False, True]
    assert float(episode.carries[-1].divergences) == 0.0
    assert float(episode.carries[-1].rollbacks) == 1.0


def test_infinite_ruin_switches_its_restore_off() -> None:
    assert not any(restored(run(GOOD, Metrics(val_loss=9.0), GOOD, ruin=math.inf)))


def test_rise_below_ruin_is_left_alone() -> None:
    below = 1.0 * math.exp(0.45)

    assert not any(restored(run(GOOD, Metrics(val_loss=below), GOOD)))


def undone(action: list[int] | None = None, **options: object) -> Episode:
    """Three short windows and two long ones, which end well and worse by .05 nats in turn."""
    worse = Metrics(val_loss=math.exp(0.05))
    fields = {"undo": 0.02, "front_windows": 3, "decisions": 9, **options}
    return run(GOOD, worse, GOOD, worse, GOOD, action=action, **fields)


def test_short_windows_that_end_worse_are_undone_and_rates_keep_their_moves() -> None:
    episode = undone(action=[5, 3, 0])

    assert restored(episode) == [False, False, True, False, False]  # the fourth is a long one
    last = episode.carries[-1]
    assert (float(last.rollbacks), float(last.restores), float(last.divergences)) == (0, 1, 0)
    assert {int(bits) for bits in episode.reasons[2]} == {Reason.UNDONE}
    assert float(episode.values[2].offset[0]) == pytest.approx(1.5)
    assert not float(last.harmed)


def test_after_a_window_was_undone_the_entry_no_longer_climbs_by_itself() -> None:
    offsets = [float(one.offset[0]) for one in undone(entry=-2.0).values]

    assert offsets == pytest.approx([-2, -4 / 3, -4 / 3, -4 / 3, -4 / 3])


def test_an_entry_that_resumes_climbs_on_after_the_window_that_was_undone() -> None:
    offsets = [float(one.offset[0]) for one in undone(entry=-2.0, entry_resumes=True).values]

    assert offsets == pytest.approx([-2, -4 / 3, -4 / 3, -2 / 3, -2 / 3])


def test_a_cut_ends_an_entry_that_resumes() -> None:
    fields = {"front_windows": 3, "decisions": 9, "entry": -2.0, "entry_resumes": True}
    episode = run(Metrics(val_loss=1.9), BROKEN, GOOD, GOOD, **fields)

    offsets = [float(one.offset[0]) for one in episode.values]
    assert offsets == pytest.approx([-2, -4 / 3, -4 / 3 - 0.7, -4 / 3 - 0.7])


def test_a_rise_within_the_runs_own_spread_is_kept() -> None:
    """Of .1 up, then .05 down: .12 above the best is less than twice as much, .4 is more."""
    metrics = [Metrics(val_loss=2.0 * math.exp(rise)) for rise in (0.1, 0.05, 0.12, 0.4, 0)]
    fields = {"undo": 0.005, "front_windows": 4, "decisions": 12}

    assert restored(run(*metrics, **fields)) == [False, True, True, True, True]
    kept = run(*metrics, undo_noise=2.0, **fields)
    assert restored(kept) == [False, False, False, False, True]


@pytest.mark.parametrize(
    "options",
    [{"undo": 0.0}, {"undo": 0.06}, {"guarded": False}, {"front_windows": 0}],
    ids=str,
)
def test_windows_are_kept_where_none_is_to_be_undone(options: dict[str, object]) -> None:
    assert not any(restored(undone(**options)))


def test_decisions_are_counted_whose_window_was_undone() -> None:
    both = {"lr": int(Reason.UNDONE | Reason.BOUNDS), "weight_decay": int(Reason.UNDONE)}
    one = {"lr": int(Reason.UNDONE), "weight_decay": 0}

    assert count_undone([both, one, {"lr": int(Reason.ROLLBACK | Reason.CUT)}]) == 2


def test_a_ruined_short_window_is_rolled_back_and_cut() -> None:
    fields = {"undo": 0.02, "front_windows": 3, "decisions": 9}
    episode = run(GOOD, Metrics(val_loss=1.9), GOOD, **fields)

    assert restored(episode) == [False, False, True]
    assert int(episode.reasons[2][0]) == Reason.ROLLBACK | Reason.CUT
    assert float(episode.carries[-1].rollbacks) == 1.0


def test_rollback_keeps_a_move_down_and_refuses_a_move_up() -> None:
    down, up = run(BROKEN, GOOD, action=[1, 3, 0]), run(BROKEN, GOOD, action=[5, 3, 0])

    assert float(down.values[1].offset[0]) == pytest.approx(-0.5 - 0.5 - 0.7)
    assert float(up.values[1].offset[0]) == pytest.approx(0.5 - 0.7)


def test_fourth_divergence_terminates() -> None:
    episode = run(*[BROKEN] * 4)

    assert [bool(carry.terminated) for carry in episode.carries[0::2]] == [False] * 4 + [True]


@given(st.integers(0, 5))
def test_one_divergence_more_than_allowed_terminates(allowed: int) -> None:
    episode = run(*[BROKEN] * (allowed + 1), max_divergences=allowed)

    ended = [bool(carry.terminated) for carry in episode.carries[0::2]]
    assert ended == [False] * (allowed + 1) + [True]


def test_guard_only_counts_where_it_only_watches() -> None:
    episode = run(*[BROKEN] * 5, guarded=False)

    last = episode.carries[-1]
    assert not any(restored(episode))
    assert (float(last.divergences), float(last.rollbacks), float(last.terminated)) == (5, 0, 0)


def test_divergence_before_the_first_step_is_not_counted() -> None:
    episode = run_episode(spec_of(), [IDLE], [BROKEN, GOOD])

    assert float(episode.carries[0].divergences) == 0.0
    assert not any(restored(episode))


# The policy's own restore.


def own_restore(*metrics: Metrics, action: list[int], last: list[int]) -> tuple[bool, int]:
    spec = spec_of(entry=0.0)
    actions = [action] * len(metrics)
    episode = run_episode(spec, actions, [START, *metrics])
    _, values, reason = apply(spec, episode.carries[-1], last, np)
    return bool(values.restore), int(reason[0])


def test_policy_may_go_back_when_worse_than_the_best() -> None:
    assert own_restore(GOOD, Metrics(val_loss=1.2), action=IDLE, last=RESTORE) == (
        True,
        Reason.RESTORE,
    )


def test_restore_is_refused_at_the_best() -> None:
    assert own_restore(GOOD, action=IDLE, last=RESTORE) == (False, Reason.RESTORE_REFUSED)


@pytest.mark.parametrize("pause", [0, 1, 2])
def test_restore_is_refused_for_a_while_after_a_restore(pause: int) -> None:
    spec = spec_of(entry=0.0, restore_pause=pause)
    metrics = [START, GOOD] + [Metrics(val_loss=1.2)] * 9
    episode = run_episode(spec, [IDLE, IDLE] + [RESTORE] * 8, metrics)

    masked = [False] * (pause + 1)
    assert restored(episode)[2 : 4 + pause + 1] == [True, *masked, True]


def test_restore_is_refused_where_the_guard_only_watches() -> None:
    metrics = [START, GOOD, Metrics(val_loss=1.2), GOOD]
    episode = run_episode(spec_of(), [IDLE, IDLE, RESTORE], metrics, guarded=False)

    assert not any(restored(episode))
    assert int(episode.reasons[-1][0]) == Reason.RESTORE_REFUSED


@given(st.integers(0, 2**32 - 1), st.sampled_from(ACTION_KINDS), st.booleans())
def test_a_restore_always_leads_to_better_weights(seed: int, actions: str, guarded: bool) -> None:
    episode = drawn_episode(spec_of(2, actions=actions), seed, faults=0.1, guarded=guarded)

    for seen, after, values in zip(
        episode.carries[0::2], episode.carries[1::2], episode.values, strict=False
    ):
        assert not (values.restore and seen.is_best)
        if values.restore:
            assert float(after.s_val) == float(seen.s_best)
            assert float(after.reward_now) == float(seen.reward_best)


@given(st.integers(0, 2**32 - 1))
def test_counts_agree_with_what_was_applied(seed: int) -> None:
    episode = drawn_episode(spec_of(), seed, faults=0.1)

    last = episode.carries[-1]
    forced = sum(bool(reason[0] & Reason.ROLLBACK) for reason in episode.reasons)
    assert float(last.restores) == sum(restored(episode))
    assert float(last.rollbacks) == forced + float(last.must_restore)


@pytest.mark.parametrize("bit", list(Reason))
def test_every_reason_has_words_of_its_own(bit: Reason) -> None:
    assert describe_reason(bit)
    assert describe_reason(bit) not in [describe_reason(other) for other in Reason if other != bit]


def test_no_reason_has_no_words() -> None:
    assert describe_reason(0) == ""


def test_entry_ramp_ends_with_a_restore() -> None:
    spec = spec_of(entry=-2.0)
    metrics = [START, GOOD, Metrics(val_loss=1.9), GOOD, GOOD]
    episode = run_episode(spec, [no_action(spec)] * 4, metrics)

    offsets = [float(values.offset[0]) for values in episode.values]
    assert offsets == pytest.approx(
        [-2.0, -2 + 1 / 3, -2 + 1 / 3 - 0.7, -2 + 1 / 3 - 0.7], abs=1e-5
    )
