"""A member of a population: what it does depends on its reports and its seed alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trimtab.adapters.ray.member import Member, MemberSettings, SearchRange
from trimtab.core.errors import SpecError

RATE = SearchRange("lr", "lr", 1e-5, 1e-1, is_log=True)
DECAY = SearchRange("weight_decay", "weight_decay", 0.0, 0.3)
SIZE = SearchRange("width", "other", choices=(8, 16, 32))


def settings(**changes: object) -> MemberSettings:
    return MemberSettings(
        **{"ranges": (RATE, DECAY, SIZE), "total": 40, "interval": 4.0, "seed": 3} | changes
    )


def live(member: Member, losses: list[float]) -> Member:
    for loss in losses:
        member.report(loss)
        member.decide()
    return member


FALLING = [1.0, 0.9, 0.85, 0.7, 0.66, 0.5]


def test_equal_seeds_and_reports_give_equal_decisions() -> None:
    first, second = (live(Member(settings(), 1), FALLING) for _ in range(2))
    assert first.log == second.log
    assert Member(settings(seed=4), 1).starts != Member(settings(), 1).starts
    assert Member(settings(), 2).starts != Member(settings(), 1).starts


def test_a_member_goes_on_from_its_state_as_text() -> None:
    member = live(Member(settings(), 0), FALLING)
    copy = Member.from_state(settings(), json.loads(json.dumps(member.state_dict())))
    assert copy.boundary == member.boundary
    for one in (member, copy):
        live(one, [0.52, 0.3, math.nan, 0.4])
    assert copy.log == member.log
    assert copy.state_dict() == member.state_dict()


def test_values_stay_in_their_ranges_whatever_the_factors() -> None:
    wild = settings(factors=(1000.0, 0.001), resample=0.5)
    leader, loser = Member(wild, 0, {"lr": 1e-1}), Member(wild, 1, {"lr": 1e-5})
    generator = np.random.default_rng(0)
    while loser.boundary < math.inf:
        leader.report(float(generator.random()))
        loser.report(2.0)
        leader.decide()
        loser.follow(leader)
        for member in (leader, loser):
            assert RATE.low <= member.values["lr"] <= RATE.high
            assert DECAY.low <= member.values["weight_decay"] <= DECAY.high
            assert member.values["width"] in SIZE.choices


def test_values_that_are_not_steered_change_only_by_following() -> None:
    leader, loser = live(Member(settings(), 0), FALLING), live(Member(settings(), 1), FALLING)
    assert leader.values["weight_decay"] == leader.starts["weight_decay"]
    before = dict(loser.values)
    loser.report(5.0)
    loser.follow(leader)
    assert loser.values != before
    assert loser.boundary == leader.boundary
    assert loser.loss == leader.loss
    assert loser.log[-1]["source"] == "member 0"


def test_decisions_come_at_the_interval_after_short_windows() -> None:
    member, times = Member(settings(total=100, interval=10.0), 0), []
    while member.boundary < math.inf:
        times.append(member.boundary)
        member.report(1.0)
        member.decide()
    early = times[:4]
    assert early == [1.0, 3.0, 5.0, 7.0]
    assert set(np.diff(times[4:])) <= {10.0, 11.0, 12.0, 13.0}
    assert times[-1] == 100.0


def test_a_run_without_a_finite_loss_is_not_steered() -> None:
    member = Member(settings(), 0)
    member.report(math.nan)
    before = dict(member.values)
    member.decide()
    assert member.values == before
    assert member.log[-1]["why"] == "no finite loss yet"
    assert not member.can_be_followed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total": 1}, "max_t: 1 leaves nothing"),
        ({"interval": 50.0}, "perturbation_interval: 50.0"),
        ({"ranges": (DECAY,)}, "nothing of weight_decay is a learning rate"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        settings(**changes)


def test_a_start_outside_its_range_is_refused() -> None:
    with pytest.raises(SpecError, match=r"a trial starts at 0\.5, outside"):
        Member(settings(), 0, {"lr": 0.5})
    with pytest.raises(SpecError, match="starts at 9, which is none of 8, 16, 32"):
        Member(settings(), 0, {"width": 9})
