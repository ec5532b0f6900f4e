"""Models of Stable-Baselines3 and its contributions: made, read out and filled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from trimtab.core.errors import MissingDependencyError, SpecError

_ON_POLICY: dict[str, Any] = {"n_steps": 400, "batch_size": 100, "gamma": 1.0, "gae_lambda": 0.95}
_OFF_POLICY: dict[str, Any] = {"gamma": 1.0, "learning_starts": 200, "buffer_size": 50_000}
_USUAL: dict[str, dict[str, Any]] = {
    "ppo": _ON_POLICY | {"ent_coef": 0.01},
    "recurrent-ppo": _ON_POLICY | {"ent_coef": 0.01},
    "dqn": _OFF_POLICY | {"exploration_fraction": 0.3, "target_update_interval": 500},
    "sac": _OFF_POLICY,
}
_POLICIES = {"recurrent-ppo": "MlpLstmPolicy"}


class _SpacesOnly(gymnasium.Env[Any, Any]):
    """What the library is shown of the environment: it never steps it."""

    def __init__(self, env: Any) -> None:
        self.observation_space = env.observation_space
        self.action_space = copy.deepcopy(env.action_space)


def _sb3_class(name: str) -> Any:
    try:
        if name == "recurrent-ppo":
            import sb3_contrib

            return sb3_contrib.RecurrentPPO
        import stable_baselines3

        return getattr(stable_baselines3, name.upper())
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"agent {name!r} needs the package {error.name!r}, which is not installed; "
            "pip install 'trimtab[agents]'"
        ) from error


def make_model(name: str, env: Any, settings: Mapping[str, Any], total_timesteps: int) -> Any:
    """Return the library's model, set up as its ``learn()`` would before the first step.

    Args:
        name: Of the agent.
        env: Gives the spaces; the model never steps it.
        settings: Keywords of the library's class.
        total_timesteps: Decisions over which its schedules are spread.

    Raises:
        SpecError: The class has no such keyword.
        MissingDependencyError: The library is not installed.
    """
    # A copy: the library writes into the dicts that it is given.
    own = copy.deepcopy(dict(settings))
    given = {"seed": 0, "device": "cpu", "verbose": 0, **_USUAL[name], **own}
    cls = _sb3_class(name)
    try:
        model = cls(_POLICIES.get(name, "MlpPolicy"), _SpacesOnly(env), **given)
    except TypeError as error:
        raise SpecError(f"agent {name!r}: {error}; see the library's class {cls.__name__}") from (
            error
        )
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(folder=None, output_formats=[]))
    model._total_timesteps = total_timesteps
    model._last_episode_starts = np.ones(1, bool)
    return model


def _arrays(value: Any) -> Any:
    """Return nested parameters with tensors as arrays; `_tensors` is the inverse."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, Mapping):
        return {key: _arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays(item) for item in value]
    return value


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tensors(item) for item in value]
    return value


def kept_parameters(model: Any, counters: tuple[str, ...]) -> dict[str, Any]:
    """Return a model's weights and optimiser as arrays, and its counters."""
    return {
        "parameters": _arrays(model.get_parameters()),
        "counters": {name: getattr(model, name) for name in counters},
    }


def take_over(model: Any, state: Mapping[str, Any]) -> None:
    """Give a model what `kept_parameters` returned."""
    parameters = dict(_tensors(state["parameters"]))
    model.set_parameters(parameters, exact_match=True, device="cpu")
    for name, value in state["counters"].items():
        setattr(model, name, value)
