"""Tiny environments with known answers; an agent that fails one has a fault of a known kind.

Each episode of `Choice` and `Reading` is one decision, so that the value of an action is its mean
reward. `Delay` pays at its end for what was done at its beginning.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

KINDS = ("discrete", "multi-discrete", "continuous")


def action_space(kind: str) -> gymnasium.Space[Any]:
    """Return a space of two actions, or of one number."""
    if kind == "discrete":
        return spaces.Discrete(2)
    if kind == "multi-discrete":
        return spaces.MultiDiscrete([2])
    return spaces.Box(-1.0, 1.0, (1,), np.float32)


def choice(action: Any) -> int:
    """Return 0 or 1 for an action of any kind."""
    return int(float(np.ravel(action)[0]) > 0)


class _Probe(gymnasium.Env[np.ndarray, Any]):
    """What the probes share: observations of ``size`` numbers in [-1, 1], one decision long."""

    size = 1

    def __init__(self, kind: str) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (self.size,), np.float32)
        self.action_space = action_space(kind)
        self.seen = np.zeros(self.size, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seen = self.first()
        return self.seen.copy(), {}

    def first(self) -> np.ndarray:
        return np.zeros(self.size, np.float32)

    def pay(self, action: Any) -> float:
        raise NotImplementedError

    def step(self, action: Any) -> Any:
        return self.seen.copy(), self.pay(action), True, False, {}


class Choice(_Probe):
    """Action 1 pays 1, action 0 nothing."""

    best = 1.0

    def pay(self, action: Any) -> float:
        return float(choice(action))


class Reading(_Probe):
    """The observation's sign says which action pays 1."""

    best = 1.0

    def first(self) -> np.ndarray:
        return np.array([self.np_random.choice([-1.0, 1.0])], np.float32)

    def pay(self, action: Any) -> float:
        return float(choice(action) == (self.seen[0] > 0))


class Noise(Reading):
    """As `Reading`, with noise of standard deviation 1 on top."""

    def pay(self, action: Any) -> float:
        return super().pay(action) + float(self.np_random.standard_normal())


class Delay(_Probe):
    """Action 1 now costs 0.2 and pays 1 two decisions later; the observation tells where one is."""

    best = 0.8
    size = 2

    def first(self) -> np.ndarray:
        return np.array([-1.0, -1.0], np.float32)

    def step(self, action: Any) -> Any:
        place, earned = self.seen[0], 0.0
        if place < -0.75 and choice(action):
            self.seen[1], earned = 1.0, -0.2
        over = place > 0.75
        if over:
            earned = float(self.seen[1] > 0)
        else:
            self.seen[0] = 0.0 if place < -0.75 else 1.0
        return self.seen.copy(), earned, bool(over), False, {}
