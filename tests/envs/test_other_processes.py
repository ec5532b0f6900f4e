"""``Hyperparam-v0`` in processes that did not import trimtab, and in forked ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 240


def run(program: str, folder: Path) -> str:
    """Run a program in a process of its own; fail where it hangs."""
    file = folder / "program.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_id_with_its_module_is_known_without_an_import(tmp_path: Path) -> None:
    program = """
import gymnasium, sys
assert "trimtab" not in sys.modules
env = gymnasium.make("trimtab:Hyperparam-v0", decisions=4)
assert env.reset(seed=0)[0].shape == env.observation_space.shape
envs = gymnasium.make_vec("trimtab:Hyperparam-v0", num_envs=2, vectorization_mode="sync")
print(env.spec.id, envs.reset(seed=0)[0].shape[0])
"""
    assert run(program, tmp_path).split() == ["Hyperparam-v0", "2"]


@pytest.mark.framework
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_workers_of_stable_baselines3_know_it(tmp_path: Path, start_method: str) -> None:
    pytest.importorskip("stable_baselines3")
    program = f"""
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

if __name__ == "__main__":
    import sys
    envs = make_vec_env(
        "trimtab:Hyperparam-v0",
        n_envs=2,
        env_kwargs={{"actions": "multi-discrete"}},
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={{"start_method": {start_method!r}}},
    )
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(16)
    print(model.num_timesteps)
    envs.close()
"""
    assert run(program, tmp_path).split() == ["16"]


@pytest.mark.framework
@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "continuous"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_of_stable_baselines3_passes(kind: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    import gymnasium

    checker.check_env(gymnasium.make("trimtab:Hyperparam-v0", actions=kind))


ASYNC = """
import sys
import gymnasium as gym

OPTIONS = {{"task": {task!r}, "variant": "tiny", "decisions": 4}}

if __name__ == "__main__":
    if {used_before}:
        gym.make_vec("trimtab:Hyperparam-v0", num_envs=2, **OPTIONS).reset(seed=0)
    try:
        envs = gym.make_vec(
            "trimtab:Hyperparam-v0", num_envs=2, vectorization_mode="async",
            vector_kwargs={{"context": {context!r}}}, **OPTIONS,
        )
        envs.reset(seed=0)
        envs.step(envs.action_space.sample())
        print("stepped")
    except Exception as error:
        print(type(error).__name__, error)
    envs.close(terminate=True)
"""


@pytest.mark.framework
@pytest.mark.parametrize("used_before", [False, True])
def test_a_forked_worker_says_that_jax_would_wait_for_ever(
    tmp_path: Path, used_before: bool
) -> None:
    pytest.importorskip("jax")
    program = ASYNC.format(task="simulated/mlp", context="fork", used_before=used_before)
    said = run(program, tmp_path)
    assert said.startswith("SpecError process")
    assert 'vector_kwargs={"context": "spawn"}' in said


@pytest.mark.framework
def test_a_spawned_worker_trains_under_jax(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    program = ASYNC.format(task="simulated/mlp", context="spawn", used_before=True)
    assert run(program, tmp_path).split() == ["stepped"]


def test_a_forked_worker_trains_what_needs_no_jax(tmp_path: Path) -> None:
    program = ASYNC.format(task="simulated/quadratic", context="fork", used_before=False)
    assert run(program, tmp_path).split() == ["stepped"]


def test_a_task_of_ones_own_under_jax_is_refused_as_well(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    (tmp_path / "own.py").write_text("""
import jax.numpy as jnp
from trimtab.core.registry import make_task

class Own:
    def __init__(self):
        inner = make_task("simulated/quadratic", default_member=0)
        self.inner, self.name = inner, "own"
        self.hyperparameters, self.total_steps = inner.hyperparameters, inner.total_steps
        self.monitor, self.mode = inner.monitor, inner.mode
        float(jnp.ones(3).sum())

    def start(self, *, seed):
        float(jnp.ones(3).sum())
        return self.inner.start(seed=seed)
""")
    program = ASYNC.format(task="own:Own", context="fork", used_before=False)
    said = run(program.replace('"variant": "tiny", ', ""), tmp_path)
    assert said.startswith("SpecError process")
