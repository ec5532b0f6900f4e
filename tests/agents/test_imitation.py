"""Imitation of tuned rates: its cost, what runs teach, and that it learns what can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from trimtab.agents import meta_training
from trimtab.agents.drawing import Drawn, all_buckets, draw_iteration
from trimtab.agents.imitation import (
    Imitator,
    Lessons,
    begin_imitation,
    cost_at,
    imitate,
    lessons_of,
    read_lessons,
    write_lessons,
)
from trimtab.agents.imitation_settings import ImitationSettings
from trimtab.agents.learn_settings import FamilyShare, LearnSettings, read_settings
from trimtab.agents.policy_network import all_logits, init_policy
from trimtab.agents.rollout import Episodes
from trimtab.agents.starts import TunedRates
from trimtab.controllers.learned import read_policy
from trimtab.core.errors import SpecError
from trimtab.core.features import GLOBAL_FEATURES, observation_size
from trimtab.core.spec import MOVES, ControlSpec, window_ends

GRID = np.linspace(-2.0, 2.0, 9)
HOW = ImitationSettings(updates=8, memory=3, mixed=2, runs=8)
SETTINGS = LearnSettings(
    name="probe",
    seed=3,
    iterations=12,
    tasks=3,
    siblings=4,
    decisions=(6, 8),
    steps_per_decision=(4.0, 4.5),
    width=16,
    tuned_share=0.5,
    reuse=2,
    families=(FamilyShare("simulated/quadratic"),),
    imitation=HOW,
)
SEEN = [name for name, _, _ in GLOBAL_FEATURES].index("slope")


def _lessons(told: bool, seed: int = 0, runs: int = 64, decisions: int = 4) -> Lessons:
    """Return lessons whose tuned rate lies within a decade, and whether it can be seen."""
    generator = np.random.default_rng(seed)
    place = generator.uniform(-0.9, 0.9, runs)
    observation = np.zeros((decisions, runs, observation_size(ControlSpec())), np.float32)
    observation[..., SEEN] = place if told else generator.uniform(-0.9, 0.9, runs)
    lessons = Lessons(
        observation,
        np.zeros((decisions, runs)),
        np.full((decisions, runs), 1 / decisions),
        np.log(np.full((decisions, runs, 2), 0.5)),
        (GRID[None, :] - place[:, None]) ** 2,
        GRID,
        place,
    )
    return Lessons(*(np.asarray(array, np.float32) for array in lessons))


def _learned(told: bool) -> float:
    learner = begin_imitation(init_policy(1, 32))
    settings = ImitationSettings(learning_rate=3e-3, updates=25, mixed=2, runs=32)
    memory = [_lessons(told, seed) for seed in range(4)]
    for iteration in range(20):
        learner, _ = imitate(
            learner,
            settings,
            memory,
            seed=iteration,
            remaining=1 - iteration / 20,
            iteration=8 + iteration,
        )
    fresh = _lessons(told, 99)
    moves, _ = all_logits(learner.policy, jnp.asarray(fresh.observation))
    expected = np.asarray(jnp.exp(moves) @ jnp.asarray(MOVES))[..., 0]
    return float(np.sqrt(np.mean((expected - fresh.place) ** 2)))


def test_a_tuned_rate_that_can_be_seen_is_found() -> None:
    assert _learned(told=True) < 0.2


def test_a_tuned_rate_that_cannot_be_seen_is_not_known() -> None:
    spread = float(_lessons(told=False, seed=99).place.std())
    assert _learned(told=False) == pytest.approx(spread, abs=0.15)


@given(place=st.floats(-4.0, 4.0), seed=st.integers(0, 50))
def test_the_cost_is_the_grids_loss_and_the_distance(place: float, seed: int) -> None:
    lessons = _lessons(told=True, seed=seed, runs=3, decisions=1)
    found = np.asarray(cost_at(jnp.full((1, 3), place), lessons, 0.1))[0]
    for run in range(3):
        lost = np.interp(place, GRID, lessons.losses[run]) - lessons.losses[run].min()
        off = abs(place - lessons.place[run])
        far = off**2 if off < 4 else 4 * off
        assert found[run] == pytest.approx(2 * np.log1p(lost / 2) + 0.1 * far, abs=1e-4)


def _drawn(iteration: int = 0) -> Drawn:
    return draw_iteration(SETTINGS, all_buckets(SETTINGS), iteration, TunedRates())


def _runs(drawn: Drawn) -> tuple[Episodes, Lessons]:
    policy = init_policy(5, 16)
    policy["move_b"], policy["move_w"] = policy["move_b"] * 0, policy["move_w"] * 2000
    episodes = meta_training._runs(SETTINGS, drawn, policy, "mean")
    assert drawn.tuned is not None
    lessons = lessons_of(
        episodes, drawn.spec, drawn.total_steps, drawn.tuned, drawn.decades, policy, 8
    )
    return episodes, lessons


def test_before_and_move_together_are_where_the_run_went() -> None:
    drawn = _drawn()
    episodes, lessons = _runs(drawn)
    k = len(window_ends(drawn.spec, drawn.total_steps))
    moves = np.interp(episodes.action[..., 0], np.arange(len(MOVES)), MOVES)
    assert np.abs(moves[3:]).max() > 0.6  # some are cut to the largest late move
    counted = lessons.weight[:k] > 0
    assert counted.mean() > 0.7
    assert drawn.tuned is not None
    went = episodes.offset[..., 0] + drawn.decades + drawn.tuned.place
    largest = np.where(
        np.arange(k) <= 2,  # short windows of 6 or 8 decisions
        1.0,
        drawn.spec.late_move,
    )[:, None]
    again = lessons.before[:k] + np.clip(moves, -largest, largest)
    assert np.allclose(again[counted], went[counted], atol=1e-5)
    assert not lessons.weight[:k][episodes.restored > 0].any()
    assert not lessons.weight[k:].any()
    assert lessons.weight[:, ~(episodes.restored > 0).any(0)].sum(0) == pytest.approx(1, abs=1e-5)


def test_the_start_of_a_tuned_run_is_its_grids_place() -> None:
    drawn = _drawn()
    assert drawn.tuned is not None
    _, lessons = _runs(drawn)
    at_start = drawn.decades == 0
    assert at_start.any()
    assert np.allclose(lessons.before[0, at_start], lessons.place[at_start] - 2.0, atol=1e-5)
    assert lessons.losses.shape == (12, 4)
    assert np.array_equal(lessons.grid, drawn.tuned.grid.astype(np.float32))


def test_lessons_read_back_as_written() -> None:
    memory = [_runs(_drawn(iteration))[1] for iteration in (0, 2)]
    again = read_lessons(write_lessons(memory))
    assert len(again) == 2
    for mine, theirs in zip(memory, again, strict=True):
        for name, array in mine._asdict().items():
            assert np.array_equal(array, getattr(theirs, name)), name
    assert read_lessons(write_lessons([])) == []


def test_a_stopped_imitation_ends_like_a_whole_one(tmp_path: Path) -> None:
    whole = meta_training.learn(SETTINGS, tmp_path / "whole", checkpoint_every=3)

    class StoppedError(Exception):
        pass

    def stop(progress: meta_training.Progress) -> None:
        assert np.isfinite(progress.figures["cost"])
        if progress.iteration == 11:
            raise StoppedError

    out = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        meta_training.learn(SETTINGS, out, checkpoint_every=3, on_progress=stop)
    resumed = meta_training.learn(SETTINGS, out, resume=True, checkpoint_every=3)
    first, second = load_file(whole), load_file(resumed)
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name


def test_restores_stay_those_of_the_policy_that_it_began_from(tmp_path: Path) -> None:
    from trimtab.defaults import policy_path

    begun = read_policy(policy_path("trimtab-1"))
    arrays = {name: jnp.asarray(array) for name, array in begun.parameters.items()}
    seen = np.random.default_rng(0).normal(size=(6, 40, observation_size(begun.spec)))
    seen = jnp.asarray(seen, jnp.float32)
    kept = all_logits(arrays, seen)[1]
    lessons = _lessons(told=True, runs=40, decisions=6)
    lessons = lessons._replace(observation=np.asarray(seen), restore=np.asarray(kept))

    def strayed(weight: float) -> float:
        learner: Imitator = begin_imitation(arrays)
        settings = ImitationSettings(updates=40, mixed=1, runs=40, restore=weight)
        for k in range(5):
            learner, _ = imitate(learner, settings, [lessons], seed=k, remaining=1.0, iteration=9)
        restore = all_logits(learner.policy, seen)[1]
        return float(jnp.abs(jnp.exp(restore) - jnp.exp(kept)).mean())

    assert strayed(1.0) < 0.5 * strayed(0.0)


def test_settings_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "probe.toml"
    text = '[imitation]\nupdates = 7\n[[families]]\nname = "simulated/quadratic"\n'
    file.write_text(text)
    assert read_settings(file).imitation == ImitationSettings(updates=7)
    file.write_text(text.replace("updates", "update"))
    with pytest.raises(SpecError, match="update"):
        read_settings(file)
    for name, wrong in (("updates", 0), ("memory", 0), ("distance", -1.0), ("polyak", 1.0)):
        with pytest.raises(SpecError, match=rf"{name}: {wrong}"):
            ImitationSettings(**{name: wrong})
    with pytest.raises(SpecError, match=r"\['lr', 'clip'\] cannot be learned by imitation"):
        replace(SETTINGS, spec={"hyperparameters": ["lr", "clip"]})
    with pytest.raises(SpecError, match=r"siblings: 3 is below 4"):
        replace(SETTINGS, siblings=3, tuned_share=0.0)
    with pytest.raises(SpecError, match=r"grid_decades: 0 is not above 0"):
        replace(SETTINGS, grid_decades=0)


def test_ppo_can_go_on_from_what_was_imitated_and_imitation_from_ppo(tmp_path: Path) -> None:
    imitated = meta_training.learn(SETTINGS, tmp_path / "imitated")
    ppo = replace(SETTINGS, imitation=None, iterations=2, critic_first=1)
    reinforced = meta_training.learn(ppo, tmp_path / "ppo", initial=imitated)
    begun = read_policy(imitated).parameters
    moved = max(
        np.abs(read_policy(reinforced).parameters[name] - array).max()
        for name, array in begun.items()
    )
    assert 0 < moved < 0.2
    again = replace(SETTINGS, iterations=1)
    meta_training.learn(again, tmp_path / "again", initial=reinforced)
    keys = jax.tree.leaves(load_file(tmp_path / "again" / "checkpoint-000001.safetensors"))
    assert keys
