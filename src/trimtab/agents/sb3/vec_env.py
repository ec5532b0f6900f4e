"""Batched environments in the form that Stable-Baselines3 trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from trimtab.core.errors import SpecError


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as a ``VecEnv``.

    The library wants an environment that is over to be reset within the same step: its last
    observation is in ``info["terminal_observation"]``, and ``info["TimeLimit.truncated"]`` says
    whether it was cut off. ``info["episode"]`` holds return and length, as its ``Monitor`` does.

    .. code-block:: python

        envs = gymnasium.make_vec("Hyperparam-v0", num_envs=64)
        stable_baselines3.PPO("MlpPolicy", SB3VecEnv(envs)).learn(100_000)

    Args:
        envs: Such as ``gymnasium.make_vec("Hyperparam-v0", num_envs=64)``; its ``reset`` has to
            know the option ``reset_mask``.
        bootstrap: Whether the end of the budget counts as a time limit, after which the library
            adds the value of what would have come. What is left of the budget is part of the
            observation, so that it is the end by default.

    Raises:
        SpecError: The environments reset themselves in the step that ends an episode.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], *, bootstrap: bool = False) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode == AutoresetMode.SAME_STEP:
            raise SpecError(
                f"autoreset_mode: {mode.value} would reset what ended twice; make the "
                "environments without it"
            )
        self.envs, self._bootstrap = envs, bootstrap
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Begin all episodes; return (N, n) float32 observations."""
        seeds: Any = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, _ = self.envs.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        return np.asarray(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the step that `step_wait` does."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step; return observations, rewards, ends, and info of each environment.

        Raises:
            SpecError: There are no actions to take.
        """
        if self._actions is None:
            raise SpecError("step_wait() before step_async(); call step(actions)")
        seen, reward, terminated, truncated, _ = self.envs.step(self._actions)
        over = np.logical_or(terminated, truncated)
        self._returns += reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        observation = np.array(seen)
        if over.any():
            fresh, _ = self.envs.reset(options={"reset_mask": over})
            for env in np.flatnonzero(over):
                cut = bool(truncated[env]) and not bool(terminated[env])
                infos[env] = {
                    "terminal_observation": seen[env].copy(),
                    "TimeLimit.truncated": cut and self._bootstrap,
                    "episode": {"r": float(self._returns[env]), "l": int(self._lengths[env])},
                }
            observation[over] = np.asarray(fresh)[over]
            self._returns[over], self._lengths[over] = 0.0, 0
        return observation, np.asarray(reward, np.float32), over, infos

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the batch, once for each environment asked for."""
        return [getattr(self.envs, attr_name) for _ in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the environments of a batch share their attributes.

        Raises:
            SpecError: Always.
        """
        del indices
        raise SpecError(
            f"{attr_name}: cannot be set to {value!r} for some of a batch; make it with the option"
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once; return its result for each environment asked for."""
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each: a batch has no wrappers inside."""
        del wrapper_class
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
