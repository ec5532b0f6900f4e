"""``Hyperparam-v0``: one fine-tuning run, real or simulated, as a Gymnasium environment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from trimtab.core.control import check_action
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.features import observation_table
from trimtab.core.spec import ControlSpec
from trimtab.envs.episode import Episode
from trimtab.envs.forks import is_fork_of_jax, refuse_jax, runs_on_jax
from trimtab.envs.render import draw_episode, write_episode
from trimtab.envs.settings import (
    Begin,
    EnvOptions,
    EnvSettings,
    action_space,
    observation_space,
)

_STATE_FORMAT = "trimtab-episode-1"
_LATEST: list[tuple[EnvOptions, EnvSettings]] = []
"""The latest settings whose task trains under JAX; a forked process cannot make them itself."""


class HyperparamEnv(gymnasium.Env[np.ndarray, Any]):
    """One fine-tuning run as an episode: at each decision the agent moves hyperparameters.

    The environment drives the same `trimtab.core.session.Session` as a live run, guard included:
    what an agent meets here is what it meets in use.

    ## Options

    | option | default | meaning |
    |---|---|---|
    | ``task`` | ``"simulated/quadratic"`` | registered name, ``NAME@MEMBER``, ``module:factory``, a task object or a function that makes one |
    | ``decisions`` | 20 | number of decisions an episode |
    | ``actions`` | ``"discrete"`` | or ``"multi-discrete"``, ``"continuous"`` |
    | ``reward`` | ``"log-loss"`` | a name of `trimtab.core.rewards`, or a function ``(Metrics before, Metrics after) -> float`` |
    | ``hyperparameters`` | ``("lr",)`` | what is steered: names that the task offers, or `Hyperparameter` objects |
    | ``reference`` | ``"warmup-linear"`` | schedule that the learning rates follow, or a function of progress in [0, 1) |
    | ``starts`` | None | see *Start* |
    | ``variant`` | None | ``"tiny"``, ``"small"`` or ``"default"``: size of the task |
    | ``shapes`` | None | how many network shapes of a simulated family members are drawn from; None: one, since each is compiled and pretrained for itself |
    | ``reward_split`` | ``"selection"`` | split that the reward is computed from, where the task has it; or ``"validation"``, as in a live run |
    | ``control`` | None | further fields of `ControlSpec` by name, such as ``{"front_windows": 0}`` |
    | ``render_mode`` | None | ``"ansi"`` (a table in text) or ``"rgb_array"`` (the run so far as a picture) |

    ## Action

    With H hyperparameters; moves are in units of 1 decade of a learning rate, 0.5 decades of other
    values on a log scale, 0.2 of the range of the others, and larger ones than the spec's
    ``late_move`` are cut after the first short windows.

    | ``actions`` | space | meaning |
    |---|---|---|
    | ``"discrete"`` | ``Discrete(6 H + 2)`` | 0: nothing; 1 + 6 h + j: move j of (-1, -0.5, -0.2, 0.2, 0.5, 1) of hyperparameter h; the last: back to the best weights |
    | ``"multi-discrete"`` | ``MultiDiscrete([7] * H + [2])`` | move of each, (-1, -0.5, -0.2, 0, 0.2, 0.5, 1); 1: back to the best weights |
    | ``"continuous"`` | ``Box(-1, 1, (H + 1,))`` | move of each; above 0.5: back to the best weights |

    An action that is not finite is no move.

    ## Reward

    By default the fall of the log of the normalised loss over the window, in nats: it adds up to
    what the run achieved, and is to be summed without discount. `trimtab.core.rewards` has the
    table of all. For ``"relative"`` a reference run that nobody steers (same task, start, seed)
    is trained at reset.

    ## Start

    ``reset(seed)`` draws, in this order: the member of a simulated family (unless the task is given
    as ``NAME@MEMBER``), the start of the learning rates over their default, the starts of other
    steered hyperparameters, and the seed of initialisation and data order. ``starts`` is
    ``"random"`` (the default of simulated tasks: log-uniform in [0.01, 100]; other steered
    hyperparameters within 10 times their default on a log scale, else uniform within their
    bounds), ``"default"`` (the default of other tasks), a factor, or a pair of a lowest and a
    highest factor. ``reset(options={"member": 17, "start_scale": 0.01})`` sets what would be drawn.
    While there are short windows a learning rate enters two decades below its start.

    ## Terminated

    The run diverged (a loss that is not finite, or above five times its initial value) one time
    more than the three that are mended by going back to the best weights.

    ## Truncated

    All steps of the run are done. The remaining budget is part of the observation.

    ## Info

    ``task``, ``step``, ``total_steps``, ``decision``, ``seed`` (of the run), ``start_scale``, and
    after a step ``values`` (hyperparameter to value at the next step, reference included),
    ``restored`` and ``reason`` (why the guard changed the action, in words).

    ## Versions

    * v0: first version.

    ## Observation

    """  # noqa: E501 - rows of tables

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by Gymnasium
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        """Check all options; nothing is trained before `reset`.

        Args:
            render_mode: See the class, as for the others.
            options: By name.

        Raises:
            SpecError: An option is out of range, or two contradict each other.
            UnknownNameError: A task, reward, reference, hyperparameter or mode is not known.
            MissingDependencyError: The task needs a package that is not installed.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown_name("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.settings = _settings_of(options)
        self.observation_space = observation_space(self.control_spec)
        self.action_space = action_space(self.control_spec)
        self._episode: Episode | None = None
        self._actions: list[Any] = []

    @property
    def control_spec(self) -> ControlSpec:
        """The contract that episodes run under, with the hyperparameters' defaults as starts."""
        return self.settings.spec

    @property
    def episode(self) -> Episode:
        """The episode in progress.

        Raises:
            ResetNeeded: There is none.
        """
        if self._episode is None:
            raise ResetNeeded("no episode has begun; call reset() first")
        return self._episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a run; return the (n,) float32 observation before step 1, and info.

        Args:
            seed: Of everything that is drawn from here on.
            options: ``member`` (which of the family) and ``start_scale`` (of learning rates).

        Raises:
            SpecError: An option has a value that is not allowed, or JAX cannot run in this process.
            UnknownNameError: There is no such option.
        """
        if is_fork_of_jax() and runs_on_jax(self.settings.made):
            raise refuse_jax()
        super().reset(seed=seed)
        self._start(self.settings.begin(self.np_random, options))
        return self.episode.observation.copy(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply an action and train the next window; see the class for what is returned.

        Raises:
            ResetNeeded: No episode has begun, or it is over.
            SpecError: The action is not one of the action space.
        """
        episode = self.episode
        if episode.over:
            raise ResetNeeded("the episode is over; call reset() before the next step()")
        asked = check_action(self.control_spec, action)
        reward = episode.step(asked)
        self._actions.append(asked.tolist())
        terminated = episode.session.terminated
        truncated = episode.session.finished and not terminated
        return episode.observation.copy(), reward, terminated, truncated, self._info()

    def render(self) -> Any:
        """Return the run so far: (480, 640, 3) uint8 for ``rgb_array``, text for ``ansi``."""
        if self.render_mode == "ansi":
            return write_episode(self.episode)
        if self.render_mode == "rgb_array":
            return draw_episode(self.episode)
        gymnasium.logger.warn("render() needs a render_mode; pass one to gymnasium.make()")
        return None

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Return the metrics of the best-on-validation weights on a split; for reports only."""
        return self.episode.evaluate(split)

    # Saving in the middle.

    def get_state(self) -> dict[str, Any]:
        """Return what `set_state` needs to continue this episode, as JSON-able data.

        It holds the beginning of the episode and the actions so far: tasks are deterministic, so
        that doing them again leads to the same place, whatever the framework.

        Raises:
            ResetNeeded: No episode has begun.
        """
        return {
            "format": _STATE_FORMAT,
            "settings": self._digest(),
            "begin": list(self.episode.begin),
            "actions": list(self._actions),
            "generator": self.np_random.bit_generator.state,
            "generator_seed": self.np_random_seed,
            "observation": _digest_of(self.episode.observation),
        }

    def set_state(self, state: Mapping[str, Any]) -> np.ndarray:
        """Continue an episode saved by `get_state`; return the observation that comes next.

        Raises:
            SpecError: The state is none, is of an environment with other options, or the task is
                not deterministic and ended elsewhere.
        """
        if state.get("format") != _STATE_FORMAT:
            raise SpecError(
                f"state: format {state.get('format')!r}, expected {_STATE_FORMAT!r}; "
                "give what get_state() returned"
            )
        if state["settings"] != self._digest():
            raise SpecError(
                f"state: saved by an environment with other options ({state['settings']} there, "
                f"{self._digest()} here); make this one with the same"
            )
        number, drawn, factor, others, seed = state["begin"]
        self._start(Begin(number, drawn, factor, tuple(others), seed))
        for action in state["actions"]:
            asked = check_action(self.control_spec, action)
            self.episode.step(asked)
            self._actions.append(asked.tolist())
        self.np_random.bit_generator.state = state["generator"]
        self._np_random_seed = state["generator_seed"]
        if _digest_of(self.episode.observation) != state["observation"]:
            raise SpecError(
                f"state: task {self.episode.task.name} gave other observations when the actions "
                "were done again; only deterministic tasks can be continued"
            )
        return self.episode.observation.copy()

    # Inside.

    def _start(self, begin: Begin) -> None:
        self._episode = Episode(self.settings, begin)
        self._actions = []

    def _info(self) -> dict[str, Any]:
        episode = self.episode
        session = episode.session
        info: dict[str, Any] = {
            "task": episode.task.name,
            "step": session.steps_done,
            "total_steps": session.total_steps,
            "decision": session.decisions_made,
            "seed": episode.begin.seed,
            "start_scale": episode.begin.factor,
        }
        if episode.decisions:
            latest = episode.decisions[-1]
            info["values"] = dict(episode.values())
            info["restored"] = latest.restored
            info["reason"] = latest.why()
        return info

    def _digest(self) -> str:
        """Return digits that tell apart environments whose episodes differ."""
        settings = self.settings
        named = settings.reward if isinstance(settings.reward, str) else "function"
        text = json.dumps(
            [
                settings.spec.to_json(),
                settings.made.name,
                settings.draws_members,
                settings.made.total_steps,
                named,
                settings.reward_split,
                settings.shapes,
                _digest_of(settings.multipliers),
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def _observation_rows() -> str:
    """Return the table of the observation for one steered learning rate, as Markdown."""
    lines = ["    | index | name | meaning | unit | bounds |", "    |---|---|---|---|---|"]
    for row in observation_table(ControlSpec()):
        bounds = f"{row['low']:g} .. {row['high']:g}"
        cells = (str(row["index"]), f"``{row['name']}``", row["meaning"], row["unit"], bounds)
        lines.append(f"    | {' | '.join(cells)} |")
    return "\n".join(lines)


# Written from the features themselves, so that it cannot fall behind them.
HyperparamEnv.__doc__ = (
    f"{(HyperparamEnv.__doc__ or '').rstrip()}\n\n"
    "    ``Box(-3, 3, (n,), float32)``, one row an index. Every further hyperparameter appends\n"
    "    the rows that begin with ``lr.``, under its own name.\n\n"
    f"{_observation_rows()}\n    "
)


def _settings_of(options: EnvOptions) -> EnvSettings:
    """Return the settings that options stand for.

    Where JAX cannot run they are those that the process had before the fork, so that an
    environment can be made there, and its first episode says what is wrong.
    """
    if is_fork_of_jax():
        for known, settings in _LATEST:
            if known == options:
                return settings
        if runs_on_jax(options.get("task", "")):
            raise refuse_jax()
    settings = EnvSettings(**options)
    if runs_on_jax(settings.made):
        _LATEST[:] = [(options, settings)]
    return settings
