"""Controllers that look at nothing: the reference, chance, and a schedule replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.control import n_discrete_actions, no_action
from trimtab.core.spec import MOVES, ControlSpec


class ReferenceController:
    """Moves nothing and is not guarded: the run is the reference, bit for bit."""

    guarded = False

    def __init__(self, spec: ControlSpec, name: str = "reference") -> None:
        self.name = name
        self._idle = no_action(spec)

    def reset(self, *, seed: int) -> None:
        """Do nothing."""

    def act(self, observation: np.ndarray) -> np.ndarray:  # noqa: ARG002 - it looks at nothing
        """Return the action that moves nothing."""
        return self._idle

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def zero(spec: ControlSpec) -> ReferenceController:
    """Return a controller that moves nothing, under the name of the control experiment."""
    return ReferenceController(spec, name="zero")


class RandomController:
    """Draws each action uniformly; what any learned policy has to beat."""

    name = "random"
    guarded = True

    def __init__(self, spec: ControlSpec) -> None:
        self.spec = spec
        self._generator = np.random.default_rng(0)

    def reset(self, *, seed: int) -> None:
        """Seed the generator."""
        self._generator = np.random.default_rng(seed)

    def act(self, observation: np.ndarray) -> np.ndarray:  # noqa: ARG002 - it looks at nothing
        """Return an action of the spec's kind."""
        width = len(self.spec.hyperparameters)
        if self.spec.actions == "discrete":
            return np.asarray(self._generator.integers(n_discrete_actions(self.spec)))
        if self.spec.actions == "continuous":
            return self._generator.uniform(-1, 1, width + 1).astype(np.float32)
        moves = self._generator.integers(len(MOVES), size=width)
        return np.append(moves, self._generator.integers(2))

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._generator.bit_generator.state = state["generator"]


class ReplayController:
    """Replays a list of actions, one a decision, and then moves nothing."""

    guarded = True

    def __init__(self, spec: ControlSpec, actions: Sequence[Any], name: str = "open-loop") -> None:
        self.name = name
        self._actions = [np.asarray(action) for action in actions]
        self._idle = no_action(spec)
        self._next = 0

    def reset(self, *, seed: int) -> None:
        """Begin again."""
        del seed
        self._next = 0

    def act(self, observation: np.ndarray) -> np.ndarray:  # noqa: ARG002 - it looks at nothing
        """Return the next action of the list."""
        self._next += 1
        return self._actions[self._next - 1] if self._next <= len(self._actions) else self._idle

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the list."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._next = int(state["next"])
