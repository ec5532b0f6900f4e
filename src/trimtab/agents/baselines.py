"""Agents that do not learn: chance, doing nothing, and the policy that ships with trimtab."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.agents.base import AgentKind, BuiltInAgent, control_spec_of
from trimtab.controllers.fixed import ReferenceController
from trimtab.core.errors import SpecError
from trimtab.core.features import observation_table
from trimtab.core.protocols import Controller
from trimtab.core.spec import ACTION_KINDS, ControlSpec


class RandomAgent(BuiltInAgent):
    """Draws every action uniformly from the space.

    Args:
        env: With any actions.
        seed: Of the draws.
    """

    name = "random"
    _needs_ends = False

    def __init__(self, env: Any, *, seed: int = 0) -> None:
        super().__init__(env, {"seed": seed})
        self._space = copy.deepcopy(env.action_space)
        self._space.seed(seed)

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> Any:  # noqa: ARG002
        """Return any action."""
        return self._space.sample()


class ControllerAgent(BuiltInAgent):
    """Lets a controller of live runs act in the environment; a policy stays in its own file.

    Args:
        name: Of the agent.
        env: A ``Hyperparam`` environment.
        controller: Asked for each action; reset at the first observation of an episode.
        settings: What the agent was made with.
    """

    _needs_ends = False

    def __init__(
        self, name: str, env: Any, controller: Controller, settings: Mapping[str, Any]
    ) -> None:
        super().__init__(env, settings)
        self.name = name
        self._controller = controller
        rows = observation_table(_required_spec(name, env))
        self._first = next(row["index"] for row in rows if row["name"] == "first")

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> Any:  # noqa: ARG002
        """Return what the controller chooses; it does not explore."""
        if observation[self._first] > 0:
            self._controller.reset(seed=0)
        return np.array(self._controller.act(np.array(observation, np.float32)))

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state in the middle of a run."""
        return {"controller": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._controller.load_state_dict(state["controller"])


def _required_spec(name: str, env: Any) -> ControlSpec:
    spec = control_spec_of(env)
    if spec is None:
        raise SpecError(
            f"agent {name!r} acts in Hyperparam environments only, not in "
            f"{getattr(env, 'unwrapped', env)!r}; make one with gymnasium.make('Hyperparam-v0')"
        )
    return spec


def _refuse_settings(name: str, settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(settings) - set(known))
    if unknown:
        have = ", ".join(known) or "none"
        raise SpecError(
            f"agent {name!r} has no setting {unknown[0]!r}; leave it out (have: {have})"
        )


def _make_reference(env: Any, settings: dict[str, Any]) -> ControllerAgent:
    _refuse_settings("reference", settings, ())
    controller = ReferenceController(_required_spec("reference", env))
    return ControllerAgent("reference", env, controller, {})


def _make_pretrained(env: Any, settings: dict[str, Any]) -> ControllerAgent:
    """Return the shipped policy, or the one of ``policy=``, under the environment's contract."""
    from trimtab.defaults import DEFAULT_POLICY, controller_for

    _refuse_settings("pretrained", settings, ("policy",))
    policy = str(settings.get("policy", DEFAULT_POLICY))
    spec = _required_spec("pretrained", env)
    theirs, controller = controller_for(policy, spec.hyperparameters, decisions=spec.decisions)
    spec.require_compatible(theirs)
    return ControllerAgent("pretrained", env, controller, {"policy": policy})


RANDOM = AgentKind("random", ACTION_KINDS, lambda env, settings: RandomAgent(env, **settings))
REFERENCE = AgentKind("reference", ACTION_KINDS, _make_reference)
PRETRAINED = AgentKind("pretrained", ("multi-discrete",), _make_pretrained)
