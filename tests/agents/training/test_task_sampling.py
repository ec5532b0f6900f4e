"""Where runs of meta-training start: tuned rates, shares of starts, tasks that are used again."""

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

from trimtab.agents.training import learn as meta_training
from trimtab.agents.training import task_sampling
from trimtab.agents.training.ppo import PPOSettings
from trimtab.agents.training.rollout import rollout
from trimtab.agents.training.settings import FamilyShare, LearnSettings, read_settings
from trimtab.agents.training.task_sampling import TunedRates, lowest_place, sample_decades
from trimtab.core.errors import SpecError
from trimtab.envs.simulators.batch import programs

pytestmark = pytest.mark.usefixtures("quick_compiling")

GRID_DECADES = LearnSettings().grid_decades
GRID = np.linspace(-GRID_DECADES, GRID_DECADES, 8)
SETTINGS = LearnSettings(
    name="probe",
    seed=3,
    iterations=5,
    tasks=3,
    siblings=4,
    decisions=(6,),
    steps_per_decision=(2.0, 2.5),
    width=16,
    tuned_share=0.5,
    reuse=2,
    families=(FamilyShare("simulated/quadratic"),),
    ppo=PPOSettings(epochs=1, minibatches=1),
)
REPOSITORY = Path(__file__).parents[3]
SETTINGS_FILES = sorted(
    [
        *(REPOSITORY / "benchmarks/learning").glob("*.toml"),
        *(REPOSITORY / "src/trimtab/policies").glob("*.toml"),
    ]
)


@given(place=st.floats(-1.2, 1.2), bend=st.floats(0.1, 3.0), level=st.floats(0.01, 100.0))
def test_the_lowest_place_of_a_bowl_is_found_between_the_points(
    place: float, bend: float, level: float
) -> None:
    losses = level * np.exp(bend * (GRID - place) ** 2)
    # At the ends of the grid there is one neighbour less to smooth with.
    near = 1e-6 if abs(place) < 0.7 else 0.25
    assert lowest_place(GRID, losses[None])[0] == pytest.approx(place, abs=near)


def test_the_lowest_place_stays_on_the_grid_and_away_from_what_is_not_finite() -> None:
    rising, falling = np.exp(GRID), np.exp(-GRID)
    ruined = np.where(GRID > 0.5, np.nan, np.exp(-GRID))
    found = lowest_place(GRID, np.stack([rising, falling, ruined]))
    assert found[0] == pytest.approx(-GRID_DECADES)
    assert found[1] == pytest.approx(GRID_DECADES)
    assert -0.5 < found[2] < 0.75
    assert np.isfinite(lowest_place(GRID, np.full((1, 8), np.nan))).all()


def test_shares_of_the_starts_are_as_set() -> None:
    settings = LearnSettings(tuned_share=0.4, near_share=0.2, withheld=0.25, start_decades=2.0)
    decades, missing = sample_decades(settings, 20_000, np.random.default_rng(0))
    assert np.mean(decades == 0) == pytest.approx(0.4, abs=0.02)
    near = (np.abs(decades) <= 0.3) & (decades != 0)
    expected = 0.6 * (0.2 + 0.8 * (0.85 * 0.3 / 2 + 0.15 * 0.3 / 3.4))
    assert np.mean(near) == pytest.approx(expected, abs=0.02)
    assert np.mean(missing) == pytest.approx(0.25, abs=0.02)
    assert np.abs(decades).max() <= 3.4


def test_tuned_rates_are_near_the_best_of_a_finer_grid() -> None:
    settings = LearnSettings(tasks=4, siblings=8, tuned_share=0.3)
    family = task_sampling.family_of(FamilyShare("simulated/quadratic"), ("lr",))
    bucket, offered = programs(family, 0), family.hyperparameters
    spec = meta_training.control_spec(settings, offered, 6)
    keys = jnp.repeat(jax.random.split(jax.random.key(2), 4), 8, axis=0)
    asked = (settings, bucket, spec, offered, keys, jax.random.key(5), 60)
    tuned = TunedRates()
    found = tuned.of(*asked)
    assert found is not None
    rates = found.rate
    assert rates.shape == (32,)
    assert tuned.of(*asked) is found  # the same tasks are not run again
    assert TunedRates().of(replace(settings, tuned_share=0.0), *asked[1:]) is None
    by_task = rates.reshape(4, 8)
    assert np.all(by_task == by_task[:, :1])

    def loss_at(factor: float) -> np.ndarray:
        return rollout(
            bucket,
            spec,
            {},
            keys,
            jax.random.split(jax.random.key(9), 32),
            lambda _: (rates * factor)[:, None].astype(np.float32),
            60,
            mode="zero",
            guarded=False,
        ).best_val.reshape(4, 8)

    here = np.log(loss_at(1.0)).mean(1)
    for factor in (0.03, 30.0):
        assert np.all(here <= np.log(loss_at(factor)).mean(1) + 0.02), factor


def test_iterations_in_a_row_train_on_the_same_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks, orders, actions, grids = [], [], [], []
    plain, grid = meta_training.rollout, task_sampling.rollout

    def watched(bucket, spec, parameters, task_keys, run_keys, *rest, **named):
        tasks.append(np.asarray(jax.random.key_data(task_keys)).tobytes())
        orders.append(np.asarray(jax.random.key_data(run_keys)).tobytes())
        actions.append(named["seed"])
        return plain(bucket, spec, parameters, task_keys, run_keys, *rest, **named)

    def counted(*given, **named):
        grids.append(given)
        return grid(*given, **named)

    monkeypatch.setattr(meta_training, "rollout", watched)
    monkeypatch.setattr(task_sampling, "rollout", counted)
    meta_training.learn(SETTINGS, tmp_path / "out")
    assert [tasks.index(each) for each in tasks] == [0, 0, 2, 2, 4]
    assert len(set(orders)) == 5
    assert len(set(actions)) == 5  # and with them the starts, drawn by the same generator
    assert len(grids) == 3


def test_a_training_stopped_among_shared_tasks_ends_alike(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    whole = meta_training.learn(SETTINGS, tmp_path / "whole", checkpoint_every=1)

    class StoppedError(Exception):
        pass

    def stop(progress: meta_training.Progress) -> None:
        if progress.iteration == 4:
            raise StoppedError

    out = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        meta_training.learn(SETTINGS, out, checkpoint_every=1, on_progress=stop)
    resumed = meta_training.learn(SETTINGS, out, resume=True, checkpoint_every=1)
    first, second = load_file(whole), load_file(resumed)
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name


def test_settings_that_cannot_work_are_refused() -> None:
    for name in ("tuned_share", "near_share", "far_share", "default_share", "withheld"):
        with pytest.raises(SpecError, match=rf"{name}: 4.0 is outside 0..1"):
            LearnSettings(**{name: 4.0})
    with pytest.raises(SpecError, match=r"reuse: 0 is below 1"):
        LearnSettings(reuse=0)
    with pytest.raises(SpecError, match=r"siblings: 3 is below 4"):
        replace(SETTINGS, siblings=3)


@pytest.mark.parametrize("file", SETTINGS_FILES)
def test_the_settings_of_every_training_in_the_log_can_be_read(file: Path) -> None:
    assert read_settings(file).families
