"""An agent of each kind that can be saved: trained for a moment, and what it chooses then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import trimtab

POLICY = "policy.safetensors"
HYPERPARAM: dict[str, Any] = {"variant": "tiny", "decisions": 6}
SMALL: dict[str, Any] = {"net_arch": [4]}
ON: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "policy_kwargs": SMALL}
OFF: dict[str, Any] = {"learning_starts": 8, "buffer_size": 100, "policy_kwargs": SMALL}
LSTM: dict[str, Any] = {"policy_kwargs": SMALL | {"lstm_hidden_size": 4}}
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "q-learning": ("own", {}),
    "linucb": ("own", {}),
    "dqn": ("discrete", OFF),
    "ppo": ("multi-discrete", ON),
    "sac": ("continuous", OFF),
    "recurrent-ppo": ("own", ON | LSTM),
    "pretrained": ("policy", {"policy": POLICY}),
    "reference": ("discrete", {}),
    "random": ("continuous", {"seed": 5}),
}
"""Name -> the environment's actions, ``"own"`` for `Guess`; settings."""

NEEDS = {
    **dict.fromkeys(("dqn", "ppo", "sac"), ("stable_baselines3",)),
    "recurrent-ppo": ("sb3_contrib",),
}


class Guess(gymnasium.Env[np.ndarray, int]):
    """Six times, the number that was seen earns 1; small, for what grows with observations."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.left = 6
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.number)
        self.left -= 1
        return self._seen(), reward, self.left == 0, False, {}

    def _seen(self) -> np.ndarray:
        self.number = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.number]


def environment(kind: str) -> Any:
    if kind == "own":
        return Guess()
    if kind == "policy":  # of the contract that policies are made under
        more: dict[str, Any] = {"actions": "multi-discrete", "reward": "best-so-far"}
    else:
        more = {"actions": kind}
    return gymnasium.make("Hyperparam-v0", **HYPERPARAM, **more)


def learn(name: str, agent: Any) -> None:
    """Let an agent act and learn for four episodes."""
    env = environment(AGENTS[name][0])
    for seed in range(4):
        _episode(agent, env, seed, learns=True)


def write() -> None:
    Path("agents").mkdir()
    for name, (kind, settings) in AGENTS.items():
        agent = trimtab.agents.make(name, environment(kind), **settings)
        learn(name, agent)
        agent.save(f"agents/{name}.safetensors")


def choices(name: str) -> tuple[Any, list[Any]]:
    """Return an agent that is loaded, and what it chooses in an episode, not exploring."""
    env = environment(AGENTS[name][0])
    agent = trimtab.agents.load(f"agents/{name}.safetensors", env)
    return agent, _episode(agent, env, 100, learns=False)


def total(state: Any) -> float:
    """Return the sum of the sizes of all numbers in an agent's state."""
    if isinstance(state, dict):
        return sum(map(total, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(total, state))
    is_number = isinstance(state, int | float | np.ndarray | np.generic)
    return float(np.abs(np.asarray(state, float)).sum()) if is_number else 0.0


def _episode(agent: Any, env: Any, seed: int, *, learns: bool) -> list[Any]:
    env.action_space.seed(seed)
    seen, _ = env.reset(seed=seed)
    chosen: list[Any] = []
    is_over = False
    while not is_over:
        action = agent.choose_action(seen, explore=learns)
        chosen.append(np.asarray(action).tolist())
        following, reward, terminated, truncated, _ = env.step(action)
        if learns:
            agent.update(seen, action, float(reward), following, terminated, truncated)
        seen, is_over = following, terminated or truncated
    return chosen
