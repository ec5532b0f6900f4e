"""Agents of Stable-Baselines3 and its contributions, driven one transition at a time.

`choose_action` and `update` do what the library's own ``learn()`` does between two steps of its
environment: they fill its own buffers and call its own ``train()``, so that the same transitions
and seed give the same weights. Only the loop is the caller's.

Two things are set for runs that are steered: rewards are not discounted (``gamma=1.0``), and the
end of the budget is taken as the end (``bootstrap=False``), since what is left of it is part of the
observation; ``bootstrap=True`` gives the library's handling of time limits. Every other keyword of
the library's class can be given as a setting.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from trimtab.agents.base import (
    AgentKind,
    BuiltInAgent,
    Transition,
    action_kind,
    control_spec_of,
)
from trimtab.core.errors import MissingDependencyError, SpecError
from trimtab.core.features import observation_table
from trimtab.core.spec import ACTION_KINDS

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


def _index_of_first(env: Any) -> int | None:
    """Return which number of an observation says that an episode begins, if one does."""
    spec = control_spec_of(env)
    if spec is None:
        return None
    rows = observation_table(spec)
    return next(int(row["index"]) for row in rows if row["name"] == "first")


class OnPolicyAgent(BuiltInAgent):
    """PPO and recurrent PPO: learns each time its rollout buffer is full.

    A file holds weights and optimiser, not the unfinished buffer: a loaded agent collects anew.

    Args:
        name: ``"ppo"`` or ``"recurrent-ppo"``.
        env: Gives the spaces.
        settings: Of the library's class, and ``bootstrap``.

    Attributes:
        model: The library's own object.
    """

    def __init__(self, name: str, env: Any, settings: Mapping[str, Any]) -> None:
        super().__init__(env, dict(settings))
        self.name = name
        given = dict(settings)
        self._bootstrap = bool(given.pop("bootstrap", False))
        self.model = make_model(name, env, given, total_timesteps=0)
        self._is_recurrent = name == "recurrent-ppo"
        self._discrete = action_kind(env) == "discrete"
        self._chosen: tuple[np.ndarray, Any, Any] | None = None
        self._lstm_states: Any = getattr(self.model, "_last_lstm_states", None)
        self._acting_states: Any = None  # of the choices without exploration
        self._first = _index_of_first(env)
        self._fresh = np.ones(1, bool)  # whether the next observation begins an episode
        self.model.policy.set_training_mode(False)
        self.model.rollout_buffer.reset()

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> Any:
        """Sample an action from the policy, or, not exploring, take the likeliest.

        A recurrent policy remembers what it sampled once `update` brings it back; choices without
        exploration have a memory of their own, which a Hyperparam environment's first observation
        clears, and elsewhere `begin_episode`.
        """
        self._boundary.look(np.asarray(observation))
        seen = np.asarray(observation)[None]
        if not explore:
            return self._likeliest(seen)
        import torch

        with torch.no_grad():
            outputs = self.model.policy(self._tensor(seen), *self._memory())
        actions = outputs[0].cpu().numpy()
        self._chosen = (seen, actions, outputs[1:])
        return self._acted(actions)[0]

    def begin_episode(self) -> None:
        """Forget what choices without exploration have seen; see `choose_action`."""
        self._acting_states = None

    def _learn(self, transition: Transition) -> None:
        """Add the transition to the buffer, and train when it is full."""
        model, seen = self.model, transition.observation[None]
        actions, (values, log_probs, *memory) = self._evaluated(seen, transition.action)
        over = transition.terminated or transition.truncated
        reward = np.array([transition.reward], np.float32)
        following = transition.next_observation[None]
        if memory:
            self._lstm_states = memory[0]
        if transition.truncated and not transition.terminated and self._bootstrap:
            reward += (model.gamma * self._value(following, np.zeros(1, bool))).numpy()[0]
        extra = {"lstm_states": model._last_lstm_states} if self._is_recurrent else {}
        if self._discrete:
            actions = actions.reshape(-1, 1)
        model.rollout_buffer.add(seen, actions, reward, self._fresh, values, log_probs, **extra)
        if self._is_recurrent:
            model._last_lstm_states = self._lstm_states
        self._fresh = np.array([over])
        model.num_timesteps += 1
        self._chosen = None
        if model.rollout_buffer.full:
            model.rollout_buffer.compute_returns_and_advantage(
                last_values=self._value(following, self._fresh), dones=self._fresh
            )
            model.train()
            model.policy.set_training_mode(False)
            model.rollout_buffer.reset()

    def _tensor(self, array: np.ndarray) -> Any:
        import torch

        return torch.as_tensor(array, device=self.model.device)

    def _memory(self) -> tuple[Any, ...]:
        """Return what a recurrent policy wants beside the observation."""
        if not self._is_recurrent:
            return ()
        return self._lstm_states, self._tensor(self._fresh.astype(np.float32))

    def _value(self, seen: np.ndarray, fresh: np.ndarray) -> Any:
        """Return the (1, 1) value of an observation, in the state of memory after it came."""
        import torch

        memory: tuple[Any, ...] = ()
        if self._is_recurrent:
            memory = (self._lstm_states.vf, self._tensor(fresh.astype(np.float32)))
        with torch.no_grad():
            return self.model.policy.predict_values(self._tensor(seen), *memory)

    def _acted(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environment takes them: those of a box within it."""
        space = self.model.action_space
        if isinstance(space, gymnasium.spaces.Box):
            return np.clip(actions, space.low, space.high)
        return actions

    def _likeliest(self, seen: np.ndarray) -> Any:
        if not self._is_recurrent:
            return self.model.predict(seen, deterministic=True)[0][0]
        begins = np.array([self._first is not None and seen[0, self._first] > 0])
        actions, self._acting_states = self.model.predict(
            seen, state=self._acting_states, episode_start=begins, deterministic=True
        )
        return actions[0]

    def _evaluated(self, seen: np.ndarray, action: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Return an action, its value and log-probability (and memory), as chosen if it was."""
        chosen = self._chosen
        if chosen is not None and np.array_equal(chosen[0], seen):
            acted = self._acted(chosen[1])[0]
            if np.array_equal(acted, np.asarray(action)):
                return chosen[1], chosen[2]
        import torch

        actions = np.asarray(action)[None]
        with torch.no_grad():
            values, log_probs, _ = self.model.policy.evaluate_actions(
                self._tensor(seen), self._tensor(actions), *self._memory()
            )
            memory = self.model.policy(self._tensor(seen), *self._memory())[3:]
        return actions, (values, log_probs, *memory)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser state and counters."""
        return kept_parameters(self.model, ("num_timesteps", "_n_updates"))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, optimiser state and counters."""
        take_over(self.model, state)


class OffPolicyAgent(BuiltInAgent):
    """DQN and SAC: learns from a replay buffer every few transitions.

    A file holds weights and optimiser, not the replay buffer: a loaded agent collects anew.

    Args:
        name: ``"dqn"`` or ``"sac"``.
        env: Gives the spaces.
        settings: Of the library's class, ``bootstrap``, and ``total_timesteps``: over how many
            decisions the exploration of DQN is spread (20,000).

    Attributes:
        model: The library's own object.
    """

    def __init__(self, name: str, env: Any, settings: Mapping[str, Any]) -> None:
        super().__init__(env, dict(settings))
        self.name = name
        given = dict(settings)
        self._bootstrap = bool(given.pop("bootstrap", False))
        total = given.pop("total_timesteps", 20_000)
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise SpecError(f"total_timesteps: {total!r} is not a whole number of at least 1")
        self.model = make_model(name, env, given, total_timesteps=total)
        if self.model.train_freq.unit.value != "step":
            raise SpecError(
                f"train_freq: {self.model.train_freq} counts episodes; give a number of steps"
            )
        self._chosen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._collected = 0
        self.model.policy.set_training_mode(False)

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> Any:
        """Return an action by the library's exploration, or, not exploring, the best."""
        self._boundary.look(np.asarray(observation))
        seen = np.asarray(observation)[None]
        if not explore:
            return self.model.predict(seen, deterministic=True)[0][0]
        self.model._last_obs = seen
        noise = self.model.action_noise
        actions, stored = self.model._sample_action(self.model.learning_starts, noise, 1)
        self._chosen = (seen, actions, stored)
        return actions[0]

    def _learn(self, transition: Transition) -> None:
        """Add the transition to the replay buffer, and train when it is due."""
        model = self.model
        over = transition.terminated or transition.truncated
        cut = self._bootstrap and transition.truncated and not transition.terminated
        model.num_timesteps += 1
        model.replay_buffer.add(
            transition.observation[None],
            transition.next_observation[None],
            self._stored(transition),
            np.array([transition.reward], np.float32),
            np.array([over]),
            [{"TimeLimit.truncated": cut}],
        )
        self._chosen = None
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        model._on_step()
        self._collected += 1
        if self._collected < model.train_freq.frequency:
            return
        steps = model.gradient_steps if model.gradient_steps >= 0 else self._collected
        self._collected = 0
        if model.num_timesteps > model.learning_starts and steps > 0:
            model.train(batch_size=model.batch_size, gradient_steps=steps)
            model.policy.set_training_mode(False)

    def _stored(self, transition: Transition) -> np.ndarray:
        """Return the (1, ...) action as the buffer keeps it: those of a box scaled to [-1, 1]."""
        action, chosen = np.asarray(transition.action)[None], self._chosen
        if chosen is not None and np.array_equal(chosen[1], action):
            return chosen[2]
        if isinstance(self.model.action_space, gymnasium.spaces.Box):
            scaled: np.ndarray = self.model.policy.scale_action(action)
            return scaled
        return action

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser state and counters."""
        counters = ("num_timesteps", "_n_updates", "_current_progress_remaining")
        more = ("_n_calls", "exploration_rate") if self.name == "dqn" else ()
        return kept_parameters(self.model, counters + more)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, optimiser state and counters."""
        take_over(self.model, state)


def _kind(name: str, actions: tuple[str, ...], agent: Callable[..., Any]) -> AgentKind:
    return AgentKind(name, actions, lambda env, settings: agent(name, env, settings))


PPO = _kind("ppo", ACTION_KINDS, OnPolicyAgent)
RECURRENT_PPO = _kind("recurrent-ppo", ACTION_KINDS, OnPolicyAgent)
DQN = _kind("dqn", ("discrete",), OffPolicyAgent)
SAC = _kind("sac", ("continuous",), OffPolicyAgent)
