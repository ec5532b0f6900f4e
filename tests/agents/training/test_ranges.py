"""Trainings under version 2 of the spec: ranges, and beginning from a policy of version 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.agents.training.learn import learn
from trimtab.agents.training.rollout import initial_carry
from trimtab.agents.training.settings import FamilyShare, LearnSettings
from trimtab.agents.training.task_sampling import sample_ranges
from trimtab.controllers.learned import LearnedController, read_policy
from trimtab.core.features import observation_size
from trimtab.core.spec import WIDEST_START
from trimtab.defaults import policy_path

pytestmark = pytest.mark.usefixtures("quick_compiling")

SETTINGS = LearnSettings(
    name="wide",
    iterations=1,
    tasks=2,
    siblings=5,
    decisions=(8,),
    steps_per_decision=(4.0, 4.1),
    range_share=0.5,
    families=(FamilyShare("simulated/quadratic"),),
    spec={"hyperparameters": ["lr"], "version": 2, "undo": 0.005},
)


def test_the_tuned_rate_and_the_start_lie_in_every_range() -> None:
    settings = replace(SETTINGS, range_share=1.0)
    rng = np.random.default_rng(0)
    decades, ends = sample_ranges(settings, rng.uniform(-2, 2, 2000), rng)
    low, high = ends.T
    assert (low <= 1e-6).all()
    assert (high >= -1e-6).all()
    assert (low + decades <= 1e-5).all()  # counted from the tuned rate
    assert (high + decades >= -1e-5).all()
    width = high - low
    assert width.min() == pytest.approx(0.2, rel=0.05)
    assert width.max() == pytest.approx(5.0, rel=0.05)


def test_without_a_range_starts_stay_and_ends_are_the_widest() -> None:
    given = np.linspace(-2, 2, 7)
    decades, ends = sample_ranges(
        replace(SETTINGS, range_share=0.0), given, np.random.default_rng()
    )
    assert np.array_equal(decades, given)
    assert np.array_equal(np.abs(ends), np.full((7, 2), WIDEST_START, np.float32))


def test_a_policy_of_version_1_answers_as_before_when_it_goes_on(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ppo=replace(SETTINGS.ppo, learning_rate=0.0))
    file = learn(settings, tmp_path / "out", initial=policy_path("trimtab-1"))
    made, before = read_policy(file), read_policy(policy_path("trimtab-1"))
    assert made.spec.version == 2
    old, new = LearnedController(before), LearnedController(made)
    rng = np.random.default_rng(0)
    for _ in range(5):
        seen = rng.normal(size=observation_size(before.spec)).astype(np.float32)
        more = rng.normal(size=observation_size(made.spec) - len(seen)).astype(np.float32)
        assert np.allclose(old.act(seen), new.act(np.concatenate([seen, more])), atol=1e-5)


def test_runs_begin_at_the_entry_of_their_range() -> None:
    carry = initial_carry(
        replace(read_policy(policy_path("trimtab-1")).spec, version=2), 200, 3, guarded=True
    )
    assert np.allclose(carry.entry, carry.offset)
