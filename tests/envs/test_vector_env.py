"""The batched environment against the single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from tests.case_names import without_address
from tests.tiny_task import TinyTask
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.envs.hyperparam_env import HyperparamEnv
from trimtab.envs.vector_env import HyperparamVectorEnv

pytest.importorskip("jax")

QUICK: dict[str, Any] = {"variant": "tiny", "decisions": 8}
STABLE: dict[str, Any] = QUICK | {"starts": 1.0}
N = 4


def make_vec(num_envs: int = N, **options: Any) -> HyperparamVectorEnv:
    envs = gymnasium.make_vec("Hyperparam-v0", num_envs=num_envs, **(QUICK | options))
    assert isinstance(envs, HyperparamVectorEnv)
    return envs


class Singles:
    """N single environments that are reset as a vector environment resets them."""

    def __init__(self, **options: Any) -> None:
        self.envs = [HyperparamEnv(**(QUICK | options)) for _ in range(N)]
        self.over = [False] * N

    def reset(self, seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(self.envs)])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        rows: list[tuple[Any, ...]] = []
        for i, env in enumerate(self.envs):
            if self.over[i]:
                rows.append((env.reset()[0], 0.0, False, False))
            else:
                rows.append(env.step(actions[i])[:4])
            self.over[i] = rows[-1][2] or rows[-1][3]
        return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward": "relative", "actions": "multi-discrete"},
        {
            "reward": "cost-aware",
            "actions": "continuous",
            "hyperparameters": ("momentum", "lr", "weight_decay"),
        },
        {"reward": "final", "hyperparameters": ("momentum",), "reward_split": "validation"},
    ],
    ids=without_address,
)
def test_a_batch_is_the_single_environments(options: dict[str, Any]) -> None:
    batch, singles = make_vec(**(STABLE | options)), Singles(**(STABLE | options))
    observation, _ = batch.reset(seed=3)
    np.testing.assert_allclose(observation, singles.reset(3), rtol=1e-5, atol=1e-5)
    batch.single_action_space.seed(0)
    for decision in range(20):
        actions = np.array([batch.single_action_space.sample() for _ in range(N)])
        found, expected = batch.step(actions)[:4], singles.step(actions)
        if decision < 3:
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[2], expected[2])
        np.testing.assert_array_equal(found[3], expected[3])


def test_environments_out_of_phase_stay_right() -> None:
    options = {"control": {"max_divergences": 0}, "starts": (10.0, 3000.0)}
    batch, singles = make_vec(**options), Singles(**options)
    batch.reset(seed=11)
    singles.reset(11)
    phases = set()
    for _ in range(24):
        actions = np.array([5, 0, 3, 0])
        found, expected = batch.step(actions), singles.step(actions)
        np.testing.assert_array_equal(found[2], expected[2])
        np.testing.assert_array_equal(found[3], expected[3])
        np.testing.assert_array_equal(
            found[4]["step"], [env.episode.session.steps_done for env in singles.envs]
        )
        phases.add(len(set(found[4]["decision"].tolist())))
    assert max(phases) > 1


def test_an_environment_that_is_over_is_reset_by_the_next_step() -> None:
    batch = make_vec(starts=0.01)
    assert batch.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    batch.reset(seed=0)
    for _ in range(8):
        _, _, terminated, truncated, info = batch.step(np.zeros(N, np.int64))
    assert truncated.all()
    assert not terminated.any()
    assert (info["step"] == 40).all()
    _, reward, terminated, truncated, info = batch.step(np.zeros(N, np.int64))
    assert not (terminated | truncated).any()
    assert (reward == 0).all()
    assert (info["step"] == 0).all()


def test_seeds_decide() -> None:
    def play(seed: Any) -> bytes:
        batch = make_vec()
        seen = [batch.reset(seed=seed)[0]]
        seen += [batch.step(np.full(N, 2))[0] for _ in range(10)]
        return np.stack(seen).tobytes()

    assert play(0) == play(0)
    assert play([0, 1, 2, 3]) == play(0)
    assert play(1) != play(0)


def test_some_environments_can_be_reset_alone() -> None:
    batch = make_vec()
    batch.reset(seed=0)
    batch.step(np.zeros(N, np.int64))
    before = batch.step(np.zeros(N, np.int64))[0]
    mask = np.array([False, True, False, False])
    after, info = batch.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert info["decision"].tolist() == [2, 0, 2, 2]


def test_the_best_weights_are_tested() -> None:
    batch, singles = make_vec(**STABLE), Singles(**STABLE)
    batch.reset(seed=3)
    singles.reset(3)
    for _ in range(5):
        batch.step(np.full(N, 4))
        singles.step(np.full(N, 4))
    expected = [env.evaluate()["loss"] for env in singles.envs]
    np.testing.assert_allclose(batch.evaluate()["loss"], expected, rtol=1e-4)


def test_gymnasium_wrappers_take_it() -> None:
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vec())
    envs.reset(seed=0)
    returns = []
    for _ in range(9):
        info = envs.step(np.zeros(N, np.int64))[-1]
        if "episode" in info:
            returns += info["episode"]["l"][info["_episode"]].tolist()
    assert returns == [8] * N


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": TinyTask(), "variant": None}, "no simulated family and cannot be batched"),
        ({"reward": lambda before, after: 0.0}, "is a function and cannot be compiled"),
        ({"render_mode": "rgb_array"}, "is not drawn in batches"),
    ],
    ids=without_address,
)
def test_what_cannot_be_batched_says_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        make_vec(**options)
    assert 'vectorization_mode="sync"' in str(caught.value)
    if "render_mode" not in options:
        envs = gymnasium.make_vec(
            "Hyperparam-v0", num_envs=2, vectorization_mode="sync", **(QUICK | options)
        )
        envs.reset(seed=0)
        assert envs.step(np.zeros(2, np.int64))[1].shape == (2,)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(SpecError, match="num_envs: 0"):
        HyperparamVectorEnv(0)
    batch = make_vec()
    with pytest.raises(ResetNeeded, match="call reset"):
        batch.step(np.zeros(N, np.int64))
    with pytest.raises(SpecError, match="3 seeds for 4 environments"):
        batch.reset(seed=[1, 2, 3])
    with pytest.raises(SpecError, match="reset_mask"):
        batch.reset(options={"reset_mask": np.zeros(N, bool)})
    with pytest.raises(UnknownNameError, match="did you mean 'member'"):
        batch.reset(options={"membr": 3})
    batch.reset(seed=0)
    with pytest.raises(SpecError, match=r"actions of shape \(3,\)"):
        batch.step(np.zeros(3, np.int64))
    with pytest.raises(SpecError, match="are not all in"):
        batch.step(np.full(N, 9))
    with pytest.raises(UnknownNameError, match="unknown split"):
        batch.evaluate("exam")


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["simulated/mlp", "simulated/transformer", "simulated/cnn", "simulated/wide"]
)
def test_a_batch_of_networks_is_the_single_environments(task: str) -> None:
    pytest.importorskip("sklearn")
    options = STABLE | {"task": task}
    batch, singles = make_vec(**options), Singles(**options)
    np.testing.assert_allclose(batch.reset(seed=3)[0], singles.reset(3), rtol=1e-5, atol=1e-5)
    for decision in range(17):
        actions = np.full(N, decision % 7)
        found, expected = batch.step(actions)[:4], singles.step(actions)
        if decision < 3:
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[2], expected[2])
        np.testing.assert_array_equal(found[3], expected[3])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, "SameStep"])
def test_an_episode_that_ends_is_followed_in_the_same_step_as_gymnasium_does_it(mode: Any) -> None:
    envs = make_vec(autoreset_mode=mode, starts=1.0)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    singles = gymnasium.vector.SyncVectorEnv(
        [lambda: HyperparamEnv(**STABLE)] * N, autoreset_mode=AutoresetMode.SAME_STEP
    )
    np.testing.assert_allclose(envs.reset(seed=3)[0], singles.reset(seed=3)[0], atol=2e-3)
    generator, ended = np.random.default_rng(0), 0
    for _ in range(18):  # two episodes and a bit
        actions = generator.integers(0, envs.single_action_space.n, N)
        ours, theirs = envs.step(actions), singles.step(actions)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)
        info, expected = ours[4], theirs[4]
        assert ("final_obs" in info) == ("final_obs" in expected)
        np.testing.assert_array_equal(info["step"], expected["step"])
        if "final_obs" not in info:
            continue
        over = ours[2] | ours[3]
        ended += int(over.sum())
        for name in ("_final_obs", "_final_info"):
            np.testing.assert_array_equal(info[name], over)
            np.testing.assert_array_equal(expected[name], over)
        for env in range(N):
            if over[env]:
                last, other = info["final_obs"][env], expected["final_obs"][env]
                np.testing.assert_allclose(last, other, atol=2e-3)
                assert last.dtype == other.dtype
                assert (last != ours[0][env]).any()
            else:
                assert info["final_obs"][env] is None
        for name in ("step", "decision", "start_scale", "restored"):
            column, mask = info["final_info"][name], info["final_info"][f"_{name}"]
            np.testing.assert_array_equal(mask, over)
            np.testing.assert_allclose(column[over], expected["final_info"][name][over])
            assert column.dtype == expected["final_info"][name].dtype
    assert ended == 2 * N


def test_an_unknown_way_of_resetting_is_refused() -> None:
    with pytest.raises(SpecError, match=r"autoreset_mode: 'later' is none of NextStep, SameStep"):
        make_vec(autoreset_mode="later")
    with pytest.raises(SpecError, match=r"Disabled.*is none of"):
        make_vec(autoreset_mode=AutoresetMode.DISABLED)
