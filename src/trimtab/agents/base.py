"""What every agent offers, how one is made by name, and how it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from trimtab.core import registry
from trimtab.core.errors import PolicyFileError, SpecError
from trimtab.core.nested_state import is_pickle_or_zip, numpy_form
from trimtab.core.spec import ControlSpec
from trimtab.records.array_files import arrays_in, pack, texts_in, unpack, write_whole

__all__ = [
    "Agent",
    "AgentKind",
    "BuiltInAgent",
    "EpisodeBoundary",
    "Seam",
    "Transition",
    "action_kind",
    "control_spec_of",
    "load",
    "make",
    "names",
    "save_agent",
]


class Agent(Protocol):
    """Chooses actions in one environment and learns from what they bring.

    Attributes:
        name: The name it was made by.
        settings: What it was made with, as JSON-able data.
    """

    name: str
    settings: Mapping[str, Any]

    def choose_action(self, observation: np.ndarray, *, explore: bool = True) -> Any:
        """Return an action of the environment's space for one observation.

        Args:
            observation: As the environment returned it.
            explore: Whether the agent may try what it does not think best.
        """
        ...

    def update(
        self,
        observation: np.ndarray,
        action: Any,
        reward: float,
        next_observation: np.ndarray,
        terminated: bool | None = None,
        truncated: bool | None = None,
    ) -> None:
        """Learn from one transition.

        Without ``terminated`` and ``truncated`` the agent finds out at the next call whether the
        episode went on: it did if that call's observation is this ``next_observation``.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write the agent to a file that `load` reads; nothing in it can be executed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned: nested dicts of arrays and JSON-able data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class AgentKind:
    """An agent that can be made by name; what entry points of ``trimtab.agents`` point to.

    Attributes:
        name: Such as ``"q-learning"``.
        actions: Kinds of actions that it can choose.
        make: ``(env, settings) -> Agent``.
    """

    name: str
    actions: tuple[str, ...]
    make: Callable[[gymnasium.Env[Any, Any], dict[str, Any]], Agent]


class Transition(NamedTuple):
    """One decision and what it brought.

    Attributes:
        observation: (n,) what was seen.
        action: What was done.
        reward: What it earned.
        next_observation: (n,) what was seen then.
        terminated: Whether the episode ended there for good.
        truncated: Whether it was cut off there.
    """

    observation: np.ndarray
    action: Any
    reward: float
    next_observation: np.ndarray
    terminated: bool
    truncated: bool


class EpisodeBoundary:
    """Finds the ends of episodes for agents that are updated with four arguments.

    A transition without flags is held back until the next observation is known: if it is another
    one than the transition led to, an episode ended there, and for good.

    Args:
        learn: Takes each transition once its flags are known.
        holds: Whether that is waited for; else a transition without flags went on.
    """

    def __init__(self, learn: Callable[[Transition], None], *, holds: bool = True) -> None:
        self._learn, self._holds = learn, holds
        self._held: Transition | None = None

    def look(self, observation: np.ndarray) -> None:
        """Say what is seen now; passes on the transition that was held back."""
        held, self._held = self._held, None
        if held is not None:
            went_on = np.array_equal(held.next_observation, observation)
            self._learn(held._replace(terminated=not went_on))

    def take(
        self,
        observation: np.ndarray,
        action: Any,
        reward: float,
        next_observation: np.ndarray,
        terminated: bool | None,
        truncated: bool | None,
    ) -> None:
        """Pass a transition on, or hold it back if its flags are not given."""
        before, after = np.asarray(observation), np.asarray(next_observation)
        self.look(before)
        known = not self._holds or terminated is not None or truncated is not None
        transition = Transition(
            before, action, float(reward), after, bool(terminated), bool(truncated)
        )
        if known:
            self._learn(transition)
        else:
            self._held = transition


Seam = EpisodeBoundary
"""The former name of `EpisodeBoundary`."""


class BuiltInAgent(Agent):
    """What the agents here share: how they are told transitions, and how they are saved.

    A leaf says how it chooses, what it learns from a transition, and what its state is.

    Args:
        env: Gives the spaces.
        settings: What the agent was made with.
    """

    _needs_ends = True  # of episodes, to learn from a transition

    def __init__(self, env: Any, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._spaces = str(env.observation_space), str(env.action_space)
        self._boundary = EpisodeBoundary(self._learn, holds=self._needs_ends)

    def update(
        self,
        observation: np.ndarray,
        action: Any,
        reward: float,
        next_observation: np.ndarray,
        terminated: bool | None = None,
        truncated: bool | None = None,
    ) -> None:
        """Learn from one transition; see `Agent.update`."""
        self._boundary.take(observation, action, reward, next_observation, terminated, truncated)

    def _learn(self, transition: Transition) -> None:
        """Learn nothing."""

    def save(self, path: str | Path) -> None:
        """Write settings and state; see `Agent.save`."""
        save_agent(self, self._spaces, path)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over nothing."""


def names() -> tuple[str, ...]:
    """Return the names that `make` knows."""
    return registry.names("agent")


def action_kind(env: Any) -> str:
    """Return the kind of an environment's actions, as `ControlSpec.actions` names them.

    Raises:
        SpecError: The space is none of the three kinds.
    """
    space = env.action_space
    kinds = {
        spaces.Discrete: "discrete",
        spaces.MultiDiscrete: "multi-discrete",
        spaces.Box: "continuous",
    }
    for kind, name in kinds.items():
        if isinstance(space, kind):
            return name
    raise SpecError(
        f"action space {space} is neither discrete, multi-discrete nor continuous; "
        "choose another environment"
    )


def control_spec_of(env: Any) -> ControlSpec | None:
    """Return the contract of a ``Hyperparam`` environment, wrapped or not; None for others."""
    spec = getattr(getattr(env, "unwrapped", env), "control_spec", None)
    return spec if isinstance(spec, ControlSpec) else None


def make(name: str, env: Any, **settings: Any) -> Agent:
    """Return a new agent for an environment.

    Args:
        name: One of `names`: ``q-learning``, ``linucb``, ``dqn``, ``ppo``, ``sac``,
            ``recurrent-ppo``, ``pretrained``, ``reference``, ``random``.
        env: A Gymnasium environment with a box of observations.
        settings: Of the agent; its module documents them.

    Raises:
        UnknownNameError: No agent has that name.
        SpecError: The agent cannot choose such actions, or a setting is not known or allowed.
        MissingDependencyError: The agent needs a package that is not installed.
    """
    kind: AgentKind = registry.lookup("agent", name)
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise SpecError(
            f"agent {name!r} acts in one environment, not in {env.num_envs} at once; make it with "
            "gymnasium.make(), or train Stable-Baselines3 itself on "
            "trimtab.agents.sb3.vec_env.SB3VecEnv(envs)"
        )
    found = action_kind(env)
    if found not in kind.actions:
        wanted = " or ".join(f"actions={item!r}" for item in kind.actions)
        raise SpecError(
            f"agent {name!r} needs {wanted}; this environment has actions={found!r} "
            f"({env.action_space}); make the environment with another kind, or choose another agent"
        )
    if not isinstance(env.observation_space, spaces.Box):
        raise SpecError(
            f"agent {name!r} needs a Box of observations; this environment has "
            f"{env.observation_space}; flatten it first"
        )
    try:
        return kind.make(env, settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise SpecError(f"agent {name!r}: {error}; leave that setting out") from error


def save_agent(agent: Agent, env_spaces: tuple[str, str], path: str | Path) -> None:
    """Write an agent, whole or not at all; see `Agent.save`.

    Args:
        agent: Which.
        env_spaces: Its observation and action space in words.
        path: File to write.
    """
    try:
        settings = json.dumps(dict(agent.settings), sort_keys=True)
    except TypeError as error:
        raise SpecError(
            f"agent {agent.name!r} was made with a setting that cannot be written as JSON "
            f"({error}); make it with names and numbers"
        ) from error
    header = {"name": agent.name, "settings": settings, "spaces": list(env_spaces)}
    write_whole(Path(path), pack(agent.state_dict(), _FORM, header=json.dumps(header)))


def load(path: str | Path, env: Any) -> Agent:
    """Return the agent in a file, for an environment with the same spaces.

    Raises:
        PolicyFileError: The file is unreadable, damaged, foreign, or a pickle.
        SpecError: It was saved for an environment with other spaces.
    """
    header, state = _read_agent(path)
    if not {"name", "settings", "spaces"} <= header.keys():
        raise PolicyFileError(f"agent {path} is damaged (header {sorted(header)}); save it again")
    found = [str(env.observation_space), str(env.action_space)]
    if header["spaces"] != found:
        raise SpecError(
            f"agent {path}: made for observations {header['spaces'][0]} and actions "
            f"{header['spaces'][1]}, this environment has {found[0]} and {found[1]}; "
            "make the environment with the same options"
        )
    agent = make(header["name"], env, **json.loads(header["settings"]))
    try:
        agent.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise PolicyFileError(f"agent {path} is damaged ({first}); save it again") from error
    return agent


_FORM = numpy_form("trimtab-agent-2", PolicyFileError, "save it again", keeps_integers=True)
_OLD_FORMAT = "trimtab-agent-1"
_OLD_ARRAY, _OLD_INTEGER_KEYS = "array:", "integer keys"


def _read_agent(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and state that `save_agent` wrote, or an older version's."""
    from safetensors import SafetensorError

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PolicyFileError(
            f"agent {path}: {error.strerror or error}; name a file that save() wrote"
        ) from error
    if is_pickle_or_zip(data):
        raise PolicyFileError(
            f"agent {path} is a pickle or zip archive, which could run code and is not read; "
            "save the agent with its own save()"
        )
    where = f"agent {path} is damaged or truncated ({len(data)} bytes)"
    with _FORM.refusing(where, SafetensorError):
        texts = texts_in(data)
        if texts.get("format") == _OLD_FORMAT:
            state = _old_state(json.loads(texts["state"]), arrays_in(data))
        elif texts.get("format") == _FORM.format:
            state = unpack(data, _FORM, where)
        else:
            raise PolicyFileError(
                f"agent {path} has format {texts.get('format')!r}, expected {_FORM.format!r}; "
                "it was not written by an agent's save()"
            )
        return dict(json.loads(texts["header"])), dict(state)


def _old_state(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return a part of the state in a file of the first format, which put arrays in strings."""
    if isinstance(value, str) and value.startswith(_OLD_ARRAY):
        return arrays[value[len(_OLD_ARRAY) :]]
    if isinstance(value, list):
        return [_old_state(item, arrays) for item in value]
    if isinstance(value, dict):
        if list(value) == [_OLD_INTEGER_KEYS]:
            numbered = value[_OLD_INTEGER_KEYS]
            return {int(key): _old_state(item, arrays) for key, item in numbered.items()}
        return {key: _old_state(item, arrays) for key, item in value.items()}
    return value
