"""Tabular Q-learning over a documented discretisation of the observation.

Source: Watkins and Dayan (1992); Sutton and Barto, 2nd edition, section 6.5. The step size of a
cell falls with its visits, as convergence asks, and exploration falls with the visits of a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.agents.base import AgentKind, BuiltInAgent, Transition, control_spec_of
from trimtab.core.errors import SpecError
from trimtab.core.features import observation_table
from trimtab.core.spec import ControlSpec

_MOST_STATES = 10**6

# Feature -> edges between its bins, in the feature's own unit (see the table of the environment).
_BINS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("progress", (0.005, 0.05, 0.25, 0.6)),  # first, short windows, early, middle, late
    ("val_change", (-0.04, 0.04)),  # falling, flat, rising
    ("val_over_best", (0.1,)),  # at the best or above it
    ("harm_seen", (0.5,)),  # of the first hyperparameter, as the next two
    ("from_safe", (-0.5, 0.5)),  # below, at or above the highest value that helped
    ("from_harmful", (-1.5, -0.6)),  # far below, below or near the lowest that harmed
)


def default_bins(spec: ControlSpec | None, size: int) -> list[tuple[int, list[float]]]:
    """Return ``(index, edges)`` of each feature that makes up a state.

    For a ``Hyperparam`` environment: progress (5 bins), change of the validation loss (3), whether
    it is above its best (2), and for the first hyperparameter whether harm was seen (2) and where
    the value is relative to the highest that helped (3) and the lowest that harmed (3): 540
    states. Elsewhere every number of the observation is cut at -0.5 and 0.5.
    """
    if spec is None:
        return [(index, [-0.5, 0.5]) for index in range(size)]
    index_of = {row["name"]: row["index"] for row in observation_table(spec)}
    first = spec.hyperparameters[0].name
    return [
        (index_of.get(name, index_of.get(f"{first}.{name}", -1)), list(edges))
        for name, edges in _BINS
    ]


class Discretisation:
    """Numbers states by which bin each chosen feature lies in.

    Args:
        bins: ``(index, rising edges)`` of each feature.
        size: Length of an observation.

    Raises:
        SpecError: An index is outside the observation, edges do not rise, or there would be more
            than a million states.
    """

    def __init__(self, bins: Sequence[Any], size: int) -> None:
        self._bins = [(int(index), np.asarray(edges, np.float64)) for index, edges in bins]
        for index, edges in self._bins:
            if not 0 <= index < size:
                raise SpecError(f"bins: index {index} is outside 0..{size - 1}; choose one inside")
            if np.any(np.diff(edges) <= 0):
                raise SpecError(f"bins: edges {edges.tolist()} of index {index} do not rise")
        self.n_states = math.prod(len(edges) + 1 for _, edges in self._bins)
        if self.n_states > _MOST_STATES:
            raise SpecError(
                f"bins: {len(self._bins)} features make {self.n_states} states, more than "
                f"{_MOST_STATES}; give fewer as bins=[(index, edges), ...]"
            )

    def state(self, observation: np.ndarray) -> int:
        """Return the number of the state that an observation falls into."""
        number = 0
        for index, edges in self._bins:
            number = number * (len(edges) + 1) + int(np.searchsorted(edges, observation[index]))
        return number


class QLearning(BuiltInAgent):
    """Learns the value of each action in each state of a table.

    Args:
        env: With discrete actions.
        bins: ``[(index, edges), ...]`` that make up a state; None: see
            `trimtab.agents.q_learning.default_bins`.
        discount: Weight of the next decision's value, in [0, 1]; rewards here are undiscounted.
        step_size: Smallest weight of a new sample; the first n weigh 1/n each.
        exploration: Visits of a state after which every other action is still explored.
        least_exploration: Share of explored actions that always remains.
        seed: Of exploration.

    Raises:
        SpecError: A setting is not allowed.
    """

    name = "q-learning"

    def __init__(
        self,
        env: Any,
        *,
        bins: list[Any] | None = None,
        discount: float = 1.0,
        step_size: float = 0.02,
        exploration: float = 30.0,
        least_exploration: float = 0.02,
        seed: int = 0,
    ) -> None:
        for name, share in (
            ("discount", discount),
            ("step_size", step_size),
            ("least_exploration", least_exploration),
        ):
            if not 0.0 <= share <= 1.0:
                raise SpecError(f"{name}: {share!r} is outside [0, 1]")
        size = int(np.prod(env.observation_space.shape))
        bins = default_bins(control_spec_of(env), size) if bins is None else bins
        settings = {
            "bins": [[int(index), [float(edge) for edge in edges]] for index, edges in bins],
            "discount": discount,
            "step_size": step_size,
            "exploration": exploration,
            "least_exploration": least_exploration,
            "seed": seed,
        }
        super().__init__(env, settings)
        self._states = Discretisation(bins, size)
        self._first = int(env.action_space.start)
        shape = (self._states.n_states, int(env.action_space.n))
        self.values = np.zeros(shape)
        self.visits = np.zeros(shape, np.int64)
        self._generator = np.random.default_rng(seed)

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> int:
        """Return an action: mostly the most valuable, of equals any."""
        self._boundary.look(np.asarray(observation))
        state = self._states.state(np.ravel(observation))
        n_actions = self.values.shape[1]
        if explore:
            seen = self.visits[state].sum()
            scale = float(self.settings["exploration"])
            share = max(scale / (scale + seen), float(self.settings["least_exploration"]))
            if self._generator.random() < share:
                return self._first + int(self._generator.integers(n_actions))
        # In a state that was never met, action 0 changes nothing.
        best = np.flatnonzero(self.values[state] == self.values[state].max())
        if not explore:
            return self._first + int(best[0])
        return self._first + int(self._generator.choice(best))

    def _learn(self, transition: Transition) -> None:
        """Move the value of the action towards its reward and the best value that follows."""
        cell = (
            self._states.state(np.ravel(transition.observation)),
            (int(transition.action) - self._first),
        )
        following = self._states.state(np.ravel(transition.next_observation))
        over = transition.terminated or transition.truncated
        ahead = 0.0 if over else float(self.values[following].max())
        target = transition.reward + float(self.settings["discount"]) * ahead
        self.visits[cell] += 1
        weight = max(1.0 / self.visits[cell], float(self.settings["step_size"]))
        self.values[cell] += weight * (target - self.values[cell])

    def state_dict(self) -> dict[str, Any]:
        """Return the table, the visits, and the state of exploration."""
        return {
            "values": self.values,
            "visits": self.visits,
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a table of the same shape."""
        self.values[:] = state["values"]
        self.visits[:] = state["visits"]
        self._generator.bit_generator.state = state["generator"]


KIND = AgentKind("q-learning", ("discrete",), lambda env, settings: QLearning(env, **settings))
