"""A contextual bandit: each decision is judged by its own reward alone.

Source: Li, Chu, Langford and Schapire (2010), algorithm 1 (LinUCB with disjoint linear models).
It cannot learn that an action pays later; it is what a method without a horizon reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.agents.base import AgentKind, BuiltInAgent, Transition
from trimtab.core.errors import SpecError


class LinUCB(BuiltInAgent):
    """One ridge regression of the reward on the observation for each action.

    Args:
        env: With discrete actions.
        width: Width of the confidence bound that is added to the predicted reward (alpha).
        ridge: Weight of the prior; above 0.

    Raises:
        SpecError: A setting is not allowed.
    """

    name = "linucb"
    _needs_ends = False  # a bandit does not look ahead

    def __init__(self, env: Any, *, width: float = 0.5, ridge: float = 1.0) -> None:
        if not ridge > 0 or width < 0:
            raise SpecError(f"width {width!r} must be at least 0 and ridge {ridge!r} above 0")
        super().__init__(env, {"width": width, "ridge": ridge})
        self._first = int(env.action_space.start)
        n_actions, size = int(env.action_space.n), int(np.prod(env.observation_space.shape)) + 1
        self.inverse = np.tile(np.eye(size) / ridge, (n_actions, 1, 1))
        self.moment = np.zeros((n_actions, size))

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> int:
        """Return the action with the highest bound, or, not exploring, the highest prediction."""
        context = _context(observation)
        score = np.einsum("aij,aj,i->a", self.inverse, self.moment, context)
        if explore:
            spread = np.einsum("aij,i,j->a", self.inverse, context, context)
            score = score + float(self.settings["width"]) * np.sqrt(np.maximum(spread, 0.0))
        return self._first + int(np.argmax(score))

    def _learn(self, transition: Transition) -> None:
        """Add one sample to the action's regression (Sherman and Morrison's formula)."""
        chosen, context = int(transition.action) - self._first, _context(transition.observation)
        gain = self.inverse[chosen] @ context
        self.inverse[chosen] -= np.outer(gain, gain) / (1.0 + context @ gain)
        self.moment[chosen] += transition.reward * context

    def state_dict(self) -> dict[str, Any]:
        """Return the regressions."""
        return {"inverse": self.inverse, "moment": self.moment}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over regressions of the same shape."""
        self.inverse[:] = state["inverse"]
        self.moment[:] = state["moment"]


def _context(observation: np.ndarray) -> np.ndarray:
    return np.append(np.ravel(np.asarray(observation, np.float64)), 1.0)


KIND = AgentKind("linucb", ("discrete",), lambda env, settings: LinUCB(env, **settings))
