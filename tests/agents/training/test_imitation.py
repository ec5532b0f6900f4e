"""Imitation of tuned rates: its cost, what runs teach, and that it learns what can be seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")

import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from trimtab.agents.training import learn as meta_training
from trimtab.agents.training.checkpoints import load_checkpoint, load_memory
from trimtab.agents.training.imitation import (
    Imitator,
    Lessons,
    begin_imitation,
    cost_at,
    imitate,
    lessons_of,
    read_lessons,
    remembered_by,
    unseen_cost,
    write_lessons,
)
from trimtab.agents.training.policy_network import all_logits, init_policy
from trimtab.agents.training.rollout import Episodes, fair_lr
from trimtab.agents.training.settings import (
    FamilyShare,
    ImitationSettings,
    LearnSettings,
    read_settings,
)
from trimtab.agents.training.task_sampling import (
    SampledRuns,
    TunedRates,
    all_variants,
    lowest_place,
    sample_runs,
)
from trimtab.controllers.learned import read_policy
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.features import GLOBAL_FEATURES, observation_size
from trimtab.core.spec import MOVES, ControlSpec, window_ends

pytestmark = pytest.mark.usefixtures("quick_compiling")

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
SEEN, FIRST = (
    [name for name, _, _ in GLOBAL_FEATURES].index(feature) for feature in ("slope", "first")
)


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


def test_a_rate_too_high_weighs_more_where_it_answers_for_more() -> None:
    lessons = _lessons(told=False, seed=2)
    # Four windows of a hundredth of the run; nothing can be seen of the tuned rate.
    short = lessons._replace(
        observation=lessons.observation * 0, weight=np.full_like(lessons.weight, 0.01)
    )
    # Three short ones in front of a long one.
    front = short._replace(weight=np.concatenate([short.weight[:3], np.full((1, 64), 0.97)]))

    def place(overshoot: float = 0.0, lasting: float = 0.0, runs: Lessons = short) -> float:
        learner = begin_imitation(init_policy(1, 16))
        settings = ImitationSettings(
            learning_rate=1e-2, updates=25, mixed=2, runs=32, overshoot=overshoot, lasting=lasting
        )
        for k in range(8):
            learner, _ = imitate(learner, settings, [runs], seed=k, remaining=1.0, iteration=9)
        moves, _ = all_logits(learner.policy, jnp.asarray(short.observation))
        return float((jnp.exp(moves) @ jnp.asarray(MOVES)).mean())

    middle = float(lessons.place.mean())
    assert place(0.0) == pytest.approx(middle, abs=0.15)
    assert place(0.01) == pytest.approx(place(0.0), abs=1e-4)  # no less than its share anyway
    assert place(0.2) < middle - 0.3
    assert place(lasting=0.2) < middle - 0.3
    # Windows that are short beside another, and the last one, have nothing that lasts.
    assert place(lasting=2.0, runs=front) == pytest.approx(place(runs=front), abs=1e-4)


def test_the_first_decision_can_be_held_where_later_ones_move() -> None:
    lessons = _lessons(told=False, seed=2)
    observation = lessons.observation * 0
    observation[0, :, FIRST] = 1.0
    lessons = lessons._replace(observation=observation, before=lessons.before - 2)  # all too low

    def moves(hold: float) -> np.ndarray:
        learner = begin_imitation(init_policy(1, 16))
        settings = ImitationSettings(learning_rate=1e-2, updates=25, mixed=2, runs=32, hold=hold)
        for k in range(8):
            learner, _ = imitate(learner, settings, [lessons], seed=k, remaining=1.0, iteration=9)
        chosen, _ = all_logits(learner.policy, jnp.asarray(observation))
        return np.asarray(jnp.exp(chosen) @ jnp.asarray(MOVES))[:, 0, 0]

    assert moves(0.0).min() > 0.8
    held = moves(0.3)
    assert abs(held[0]) < 0.2
    assert held[1:].min() > 0.6


def test_short_windows_lead_above_the_tuned_rate_where_they_probe() -> None:
    lessons = _lessons(told=False, seed=2)
    observation = lessons.observation * 0
    observation[:3, :, SEEN] = 1.0  # three windows of a hundredth, then one that is long
    weight = np.concatenate([np.full((3, 64), 0.01), np.full((1, 64), 0.97)])
    lessons = lessons._replace(observation=observation, weight=weight)

    def moves(**more: float) -> np.ndarray:
        learner = begin_imitation(init_policy(1, 16))
        settings = ImitationSettings(learning_rate=1e-2, updates=25, mixed=2, runs=32, **more)
        for k in range(12):
            learner, _ = imitate(learner, settings, [lessons], seed=k, remaining=1.0, iteration=9)
        chosen, _ = all_logits(learner.policy, jnp.asarray(observation))
        return np.asarray(jnp.exp(chosen) @ jnp.asarray(MOVES))[:, 0, 0]

    middle = float(lessons.place.mean())
    assert moves() == pytest.approx(np.full(4, middle), abs=0.2)
    probed = moves(probe=0.7)
    assert probed[:3] == pytest.approx(np.full(3, middle + 0.7), abs=0.2)
    assert probed[3] == pytest.approx(middle, abs=0.2)
    # The cost on unseen runs is that of what was asked for.
    idle = init_policy(1, 16)
    idle["move_w"] = idle["move_w"] * 0
    short = weight < 0.5
    cost = cost_at(jnp.asarray(lessons.before - 0.7 * short), lessons, HOW.distance)
    expected = (np.asarray(cost) * weight * (1 + short)).sum() / weight.sum()
    found = unseen_cost(begin_imitation(idle), replace(HOW, probe=0.7), lessons)
    assert found == pytest.approx(float(expected), rel=1e-4)
    one = Lessons(*(np.asarray(each)[:, :1] if np.ndim(each) > 1 else each for each in lessons))
    one = one._replace(losses=lessons.losses[:1], place=lessons.place[:1])
    settings = ImitationSettings(updates=1, mixed=1, runs=1, probe=0.7)
    _, seen = imitate(begin_imitation(idle), settings, [one], seed=0, remaining=1.0, iteration=9)
    off = ((one.before - 0.7 * short[:, :1] - one.place) ** 2 * one.weight).sum()
    assert seen["decades_off"] == pytest.approx(float(np.sqrt(off / one.weight.sum())), rel=1e-4)
    # What leads above the probe is what overshoots.
    assert moves(probe=0.7, overshoot=0.2)[:3].max() < probed[:3].min() - 0.15


@given(place=st.floats(-4.0, 4.0), seed=st.integers(0, 50))
def test_the_cost_is_the_grids_loss_and_the_distance(place: float, seed: int) -> None:
    lessons = _lessons(told=True, seed=seed, runs=3, decisions=1)
    found = np.asarray(cost_at(jnp.full((1, 3), place), lessons, 0.1))[0]
    for run in range(3):
        lost = np.interp(place, GRID, lessons.losses[run]) - lessons.losses[run].min()
        off = abs(place - lessons.place[run])
        far = off**2 if off < 4 else 4 * off
        assert found[run] == pytest.approx(2 * np.log1p(lost / 2) + 0.1 * far, abs=1e-4)


def _drawn(iteration: int = 0) -> SampledRuns:
    return sample_runs(SETTINGS, all_variants(SETTINGS), iteration, TunedRates())


def _runs(drawn: SampledRuns) -> tuple[Episodes, Lessons]:
    policy = init_policy(5, 16)
    policy["move_b"], policy["move_w"] = policy["move_b"] * 0, policy["move_w"] * 2000
    episodes = meta_training._runs(SETTINGS, drawn, policy, "mean")
    return episodes, _taught_by(episodes, drawn)


def _taught_by(episodes: Episodes, drawn: SampledRuns) -> Lessons:
    assert drawn.tuned is not None
    return lessons_of(
        episodes,
        drawn.spec,
        total_steps=drawn.total_steps,
        tuned=drawn.tuned,
        decades=drawn.decades,
        first=init_policy(5, 16),
        pad_to=8,
    )


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
    # The guard had the last word just where it cut the rate, by .7 decades.
    before = np.concatenate([np.full_like(went[:1], -2.0), episodes.offset[:-1, :, 0]])
    is_cut = episodes.offset[..., 0] - before < np.clip(moves, -largest, largest) - 0.6
    assert is_cut.any()
    assert episodes.restored[is_cut].all()
    assert (counted == ~is_cut)[episodes.alive > 0].all()
    assert not lessons.weight[k:].any()
    assert lessons.weight[:, ~is_cut.any(0)].sum(0) == pytest.approx(1, abs=1e-5)
    # Going back to the best weights, by the policy or a window undone, leaves a move its own.
    back = episodes._replace(restored=np.ones_like(episodes.restored))
    assert np.array_equal(_taught_by(back, drawn).weight, lessons.weight)


def test_the_start_of_a_tuned_run_is_its_grids_place() -> None:
    drawn = _drawn()
    assert drawn.tuned is not None
    _, lessons = _runs(drawn)
    at_start = drawn.decades == 0
    assert at_start.any()
    assert np.allclose(lessons.before[0, at_start], lessons.place[at_start] - 2.0, atol=1e-5)
    assert lessons.losses.shape == (12, 4)
    assert np.array_equal(lessons.grid, drawn.tuned.grid.astype(np.float32))


def test_every_run_is_taught_by_the_grid_of_its_own_task() -> None:
    drawn = _drawn()
    assert drawn.tuned is not None
    fair = fair_lr(drawn.programs, drawn.programs.prepare(drawn.task_keys, drawn.run_keys)[0])
    assert np.allclose(drawn.tuned.rate, fair * 10.0**drawn.tuned.place)
    own = [lowest_place(drawn.tuned.grid, np.exp(line)[None])[0] for line in drawn.tuned.losses]
    assert np.allclose(own, drawn.tuned.place)
    assert len({round(place, 6) for place in own}) > 1
    assert drawn.tuned.grid.tolist() == pytest.approx([-1.75, -1.75 / 3, 1.75 / 3, 1.75])
    wider = replace(SETTINGS, grid_decades=3.0)
    found = sample_runs(wider, all_variants(wider), 0, TunedRates()).tuned
    assert found is not None
    assert found.grid.tolist() == pytest.approx([-3.0, -1.0, 1.0, 3.0])


def test_the_average_follows_slowly_once_there_is_something_to_follow() -> None:
    settings = replace(HOW, updates=5, polyak=0.9)
    begun = begin_imitation(init_policy(1, 16))
    memory = [_lessons(told=True)]

    def moved(iteration: int) -> tuple[float, float]:
        after, _ = imitate(begun, settings, memory, seed=0, remaining=1.0, iteration=iteration)
        far = [
            max(float(jnp.abs(arrays[name] - begun.first[name]).max()) for name in begun.first)
            for arrays in (after.policy, after.average)
        ]
        return far[0], far[1]

    young, old = moved(0), moved(8)
    assert young[0] == young[1] > 0
    assert old[0] > young[0]  # five steps of Adam, not four
    assert 0.1 * old[0] < old[1] < 0.45 * old[0]


def test_the_rate_falls_to_a_tenth() -> None:
    begun, memory = begin_imitation(init_policy(1, 16)), [_lessons(told=True)]
    settings = replace(HOW, updates=1)
    far = []
    for remaining in (1.0, 0.0):
        after, _ = imitate(begun, settings, memory, seed=0, remaining=remaining, iteration=9)
        far.append(float(jnp.abs(after.policy["move_w"] - begun.policy["move_w"]).max()))
    assert far[1] == pytest.approx(0.1 * far[0], rel=1e-2)


def test_a_decision_weighs_as_many_steps_as_it_answers_for() -> None:
    drawn = _drawn()
    episodes, lessons = _runs(drawn)
    ends = window_ends(drawn.spec, drawn.total_steps)
    share = np.diff(ends, prepend=0) / drawn.total_steps
    assert len(set(share)) > 1  # short windows first
    whole = ~(episodes.restored > 0).any(0)
    assert np.allclose(lessons.weight[: len(ends), whole], share[:, None])
    given_up = episodes._replace(alive=np.where(np.arange(len(ends))[:, None] < 3, 1.0, 0.0))
    given_up = given_up._replace(alive=np.broadcast_to(given_up.alive, episodes.alive.shape))
    assert drawn.tuned is not None
    after = lessons_of(
        given_up,
        drawn.spec,
        total_steps=drawn.total_steps,
        tuned=drawn.tuned,
        decades=drawn.decades,
        first=init_policy(5, 16),
        pad_to=8,
    )
    assert not after.weight[3:].any()


def test_no_more_is_remembered_than_was_asked_for(tmp_path: Path) -> None:
    meta_training.learn(replace(SETTINGS, iterations=5), tmp_path / "out")
    assert load_memory(tmp_path / "out")["weight"].shape == (3, 8, 12)


def test_a_training_begins_with_what_others_remember(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    meta_training.learn(replace(SETTINGS, iterations=2, seed=1), first)
    meta_training.learn(replace(SETTINGS, iterations=3, seed=2), second)
    long = replace(SETTINGS, iterations=1, imitation=replace(HOW, memory=100))
    meta_training.learn(long, tmp_path / "out", remember=[first, second])
    kept = load_memory(tmp_path / "out")["weight"]
    assert kept.shape == (6, 8, 12)
    others = remembered_by(long, [first, second])
    assert len(others) == 5
    for mine, theirs in zip(kept[:5], others, strict=True):
        assert np.array_equal(mine, theirs.weight)
    # A training that is resumed has them already.
    longer = replace(long, iterations=2)
    meta_training.learn(
        longer, tmp_path / "two", remember=[first], checkpoint_every=1, minutes=1e-9
    )
    meta_training.learn(longer, tmp_path / "two", remember=[first], resume=True)
    kept = load_memory(tmp_path / "two")["weight"]
    assert len(kept) == 4


def test_what_cannot_be_learned_from_is_named(tmp_path: Path) -> None:
    place = tmp_path / "first"
    meta_training.learn(replace(SETTINGS, iterations=3, seed=9), place)
    rewarded = tmp_path / "rewarded"
    meta_training.learn(replace(SETTINGS, iterations=1, seed=9, imitation=None), rewarded)
    for settings, folder, message in (
        (SETTINGS, tmp_path / "none", "none holds no training"),
        (SETTINGS, rewarded, "rewarded remembers no runs"),
        (replace(SETTINGS, tasks=4), place, r"shape \(8, 12, \d+\) .* these settings \(8, 16, "),
        (replace(SETTINGS, decisions=(6, 10)), place, r"these settings \(10, 12, "),
        (replace(SETTINGS, tasks=2, siblings=6), place, "have 4 siblings, these settings 6"),
        (replace(SETTINGS, seed=9), place, "first has seed 9 as well"),
        (SETTINGS, place, "imitation.memory: 3 iterations are remembered, and 3 are there"),
        (replace(SETTINGS, grid_decades=3.0), place, "up to 1.75 decades, these settings 3"),
        (replace(SETTINGS, imitation=None), place, "first is of use to imitation only"),
    ):
        with pytest.raises(SpecError, match=message):
            meta_training.learn(settings, tmp_path / "out", remember=[folder])
        assert not (tmp_path / "out" / "settings.json").exists()


def test_the_cost_on_unseen_runs_is_that_of_where_the_policy_leads() -> None:
    lessons = _lessons(told=True, seed=4)
    lessons = lessons._replace(weight=np.random.default_rng(0).random(lessons.weight.shape))
    idle = init_policy(0, 16)
    idle["move_w"] = idle["move_w"] * 0  # as often up as down: no move in the mean
    cost = np.asarray(cost_at(jnp.asarray(lessons.before), lessons, HOW.distance))
    expected = (cost * lessons.weight).sum() / lessons.weight.sum()
    learner = begin_imitation(idle)._replace(policy=init_policy(1, 16))
    found = unseen_cost(learner, HOW, lessons)  # of the average, which is idle
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_curves_tell_the_cost_on_tasks_that_were_not_learned_from(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    meta_training.learn(replace(SETTINGS, iterations=2), begun)
    lines = [json.loads(line) for line in (begun / "curves.jsonl").read_text().splitlines()]
    assert ["cost_unseen" in line for line in lines] == [True, False]  # tasks are used twice
    lessons = read_lessons(load_memory(begun))[0]
    untrained = begin_imitation(init_policy(SETTINGS.seed, SETTINGS.width))
    assert lines[0]["cost_unseen"] == pytest.approx(unseen_cost(untrained, HOW, lessons), rel=1e-5)


def test_a_training_that_remembers_much_takes_all_its_steps_at_once() -> None:
    begun = begin_imitation(init_policy(1, 16))
    settings = replace(HOW, updates=6, polyak=0.9)

    def moved(count: int) -> float:
        memory = [_lessons(told=True, seed=seed) for seed in range(count)]
        after, _ = imitate(begun, settings, memory, seed=0, remaining=1.0, iteration=0)
        gap = jnp.abs(after.policy["move_w"] - after.average["move_w"]).max()
        return float(gap)

    assert moved(1) == 0 == moved(8)
    assert moved(9) > 0


def test_lessons_read_back_as_written() -> None:
    memory = [_runs(_drawn(iteration))[1] for iteration in (0, 2)]
    again = read_lessons(write_lessons(memory))
    assert len(again) == 2
    for mine, theirs in zip(memory, again, strict=True):
        for name, array in mine._asdict().items():
            assert np.array_equal(array, getattr(theirs, name)), name
    assert read_lessons(write_lessons([])) == []


def test_a_stopped_imitation_ends_like_a_whole_one(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    meta_training.learn(replace(SETTINGS, iterations=9, seed=8), begun)
    whole = meta_training.learn(SETTINGS, tmp_path / "whole", initial=begun, checkpoint_every=3)

    class StoppedError(Exception):
        pass

    def stop(progress: meta_training.Progress) -> None:
        assert np.isfinite(progress.figures["cost"])
        if progress.iteration == 11:
            raise StoppedError

    out = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        meta_training.learn(SETTINGS, out, initial=begun, checkpoint_every=3, on_progress=stop)
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
    with pytest.raises(UnknownNameError, match=r"\[imitation\] 'update'; did you mean 'updates'"):
        read_settings(file)
    wrong = [("updates", 0), ("updates", 2.5), ("memory", True), ("runs", "x"), ("distance", -1.0)]
    wrong += [("polyak", 1.0), ("learning_rate", 0), ("learning_rate", math.nan)]
    for name, value in wrong:
        with pytest.raises(SpecError, match=rf"imitation\.{name}: '?{value}"):
            ImitationSettings(**{name: value})
    probing = replace(HOW, probe=0.4)
    with pytest.raises(SpecError, match=r"imitation\.probe: 0.4 .* say undo = 0.005 under"):
        replace(SETTINGS, imitation=probing)
    assert replace(SETTINGS, imitation=probing, spec={**SETTINGS.spec, "undo": 0.005})
    with pytest.raises(SpecError, match="critic_first: 3 means nothing to imitation"):
        replace(SETTINGS, critic_first=3)
    two = FamilyShare("simulated/mlp", options={"hyperparameters": ["lr", "clip"]})
    with pytest.raises(SpecError, match=r"simulated/mlp offers \['lr', 'clip'\]"):
        replace(SETTINGS, families=(two,))
    with pytest.raises(SpecError, match="grid_decades: inf is not finite"):
        replace(SETTINGS, grid_decades=math.inf)
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
    first = load_checkpoint(tmp_path / "again", begin_imitation(init_policy(0, 16)))
    assert first is not None
    for name, array in read_policy(reinforced).parameters.items():
        assert np.array_equal(first.learner.first[name], array), name
    with pytest.raises(SpecError, match="begin from the policy file in that folder"):
        meta_training.learn(ppo, tmp_path / "mixed", initial=tmp_path / "imitated")


def test_a_training_from_before_a_setting_was_there_is_resumed(tmp_path: Path) -> None:
    out, ppo = tmp_path / "out", replace(SETTINGS, imitation=None, iterations=1)
    meta_training.learn(ppo, out)
    kept = json.loads((out / "settings.json").read_text())
    for newer in ("imitation", "grid_decades"):
        del kept[newer]
    (out / "settings.json").write_text(json.dumps(kept))
    meta_training.learn(ppo, out, resume=True)
    imitating = replace(SETTINGS, iterations=1)
    meta_training.learn(imitating, tmp_path / "imitating")
    kept = json.loads((tmp_path / "imitating" / "settings.json").read_text())
    del kept["imitation"]["hold"]
    (tmp_path / "imitating" / "settings.json").write_text(json.dumps(kept))
    meta_training.learn(imitating, tmp_path / "imitating", resume=True)
    with pytest.raises(SpecError, match="other settings"):
        meta_training.learn(replace(ppo, grid_decades=2.0), out, resume=True)


def test_every_iteration_keeps_the_restores_of_the_beginning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept, plain = [], meta_training.lessons_of

    def watched(*given, **named):
        kept.append(np.asarray(named["first"]["restore_w"]))
        return plain(*given, **named)

    monkeypatch.setattr(meta_training, "lessons_of", watched)
    out = meta_training.learn(replace(SETTINGS, iterations=4), tmp_path / "out")
    assert all(np.array_equal(array, kept[0]) for array in kept)
    assert not np.array_equal(read_policy(out).parameters["restore_w"], kept[0])
