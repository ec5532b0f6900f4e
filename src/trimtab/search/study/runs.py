"""Controllers for forks: the policy from a snapshot on, with other actions than it chose before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.core.protocols import Controller
from trimtab.core.spec import MOVES

_HIGHEST = float(len(MOVES) - 1)


class ForkedController:
    """A controller whose multi-discrete moves are shifted for a while, or made at random.

    Args:
        inner: Who chooses.
        shift: Added to the place of every move among `MOVES`, in the first ``lasting`` decisions.
        noise: Standard deviation of what is added to it in all decisions.
        seed: Of the noise; each decision's number depends on the seed and its count only.
        lasting: Decisions that are shifted.
    """

    def __init__(
        self,
        inner: Controller,
        *,
        shift: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        lasting: int = 2,
    ) -> None:
        self.name, self.guarded = inner.name, inner.guarded
        self._inner, self._shift, self._noise = inner, shift, noise
        self._seed, self._lasting, self._count = seed, lasting, 0

    def reset(self, *, seed: int) -> None:
        """Forget the last run."""
        self._inner.reset(seed=seed)
        self._count = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the inner action, moved."""
        action = np.asarray(self._inner.act(observation), np.float32)
        generator = np.random.default_rng([self._seed, self._count])
        moved = self._noise * generator.standard_normal(len(action) - 1)
        if self._count < self._lasting:
            moved = moved + self._shift
        self._count += 1
        places = np.clip(action[:-1] + moved.astype(np.float32), 0.0, _HIGHEST)
        return np.append(places, action[-1]).astype(np.float32)

    def is_novel(self, observation: np.ndarray) -> bool:
        """Return whether the inner controller has never seen anything like an observation."""
        asked = getattr(self._inner, "is_novel", None)
        return False if asked is None else bool(asked(observation))

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state and how many decisions were made since the fork."""
        return {"inner": self._inner.state_dict(), "since_fork": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, or begin a fork from the inner controller's own state."""
        is_own = "since_fork" in state
        self._count = int(state["since_fork"]) if is_own else 0
        inner = state["inner"] if is_own else state
        if not is_own or inner is not None:
            self._inner.load_state_dict(inner)
