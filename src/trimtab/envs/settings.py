"""How an environment is set up, and how the beginning of an episode is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import gymnasium
import numpy as np
from gymnasium import spaces

from trimtab.core import registry
from trimtab.core.control import n_discrete_actions
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.features import FEATURE_BOUND, observation_size
from trimtab.core.hyperparameters import Hyperparameter, resolve_hyperparameters
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Task
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import MOVES, REWARDS, ControlSpec

RewardFunction = Callable[[Metrics, Metrics], float]
"""``(metrics of the window before, metrics of this window) -> reward``."""

_RANDOM_STARTS = (0.01, 100.0)
_N_MEMBERS = 10**6  # seeds from here on are kept for reports
_SPLITS = ("selection", "validation")


class Begin(NamedTuple):
    """What an episode begins with; plain data.

    Attributes:
        number: Which member of the family, as drawn or given; None: the task is no family.
        drawn: Whether the number was drawn, and so stands for a member of the drawn shapes.
        factor: Start of the learning rates over their default.
        others: Start of every other steered hyperparameter; None: its default.
        seed: Seed of initialisation and data order.
    """

    number: int | None
    drawn: bool
    factor: float
    others: tuple[float | None, ...]
    seed: int


class EnvOptions(TypedDict, total=False):
    """The options that the environment and its vector form share, as they are given.

    `trimtab.envs.hyperparam_env.HyperparamEnv` documents each of them, `EnvSettings` has their
    defaults.
    """

    task: str | Task | Callable[[], Task]
    decisions: int
    actions: str
    reward: str | RewardFunction
    hyperparameters: Sequence[str | Hyperparameter]
    reference: str | Callable[[float], float]
    starts: str | float | Sequence[float] | None
    variant: str | None
    shapes: int | None
    reward_split: str
    control: Mapping[str, Any] | None


@dataclass(frozen=True)
class EnvSettings:
    """The options of `EnvOptions` with what follows from them; checked when made.

    Attributes:
        made: The task.
        reward_function: The user's own reward, or None.
        range: Lowest and highest factor of the starts.
        spec: The contract of an episode, with the hyperparameters' defaults as starts.
        multipliers: (T,) of the reference schedule.

    Raises:
        SpecError: An option is out of range, or two contradict each other.
        UnknownNameError: A task, reward, reference or hyperparameter is not known.
        MissingDependencyError: The task needs a package that is not installed.
    """

    task: str | Task | Callable[[], Task] = "simulated/quadratic"
    decisions: int = 20
    actions: str = "discrete"
    reward: str | RewardFunction = "log-loss"
    hyperparameters: Sequence[str | Hyperparameter] = ("lr",)
    reference: str | Callable[[float], float] = "warmup-linear"
    starts: str | float | Sequence[float] | None = None
    variant: str | None = None
    shapes: int | None = None
    reward_split: str = "selection"
    control: Mapping[str, Any] | None = None
    made: Task = field(init=False)
    reward_function: RewardFunction | None = field(init=False)
    range: tuple[float, float] = field(init=False)
    spec: ControlSpec = field(init=False)
    multipliers: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.hyperparameters, str):
            object.__setattr__(self, "hyperparameters", tuple(self.hyperparameters))
        if self.reward_split not in _SPLITS:
            raise unknown_name("reward_split", self.reward_split, _SPLITS)
        object.__setattr__(self, "made", self._make_task())
        object.__setattr__(self, "reward_function", self._find_reward())
        object.__setattr__(self, "range", self._starts())
        object.__setattr__(self, "spec", self._make_spec())
        object.__setattr__(
            self, "multipliers", reference_multipliers(self.reference, self.made.total_steps)
        )
        if self.draws_members:
            self.member(0, drawn=True)  # refuses a wrong number of shapes now, not at reset

    @property
    def draws_members(self) -> bool:
        """Whether each reset draws a member of the task's family."""
        named = isinstance(self.task, str) and registry.split_member(self.task)[1] is None
        return named and hasattr(self.made, "member")

    def member(self, number: int, *, drawn: bool) -> Any:
        """Return a member of the task's family.

        Raises:
            SpecError: The task is no family.
        """
        family: Any = self.made
        if not hasattr(family, "member"):
            raise SpecError(
                f"member: {number!r} asked of task {family.name}, which is no family of tasks; "
                "leave the option out"
            )
        return family.drawn(number, self.shapes) if drawn else family.member(number)

    def task_of(self, begin: Begin) -> Task:
        """Return the task that an episode runs."""
        if begin.number is None:
            return self.made
        task: Task = self.member(begin.number, drawn=begin.drawn)
        return task

    def begin(self, generator: np.random.Generator, options: Mapping[str, Any] | None) -> Begin:
        """Draw the beginning of an episode: member, starts, seed, always in this order.

        Args:
            generator: Of the environment.
            options: ``member`` and ``start_scale``, each in the place of what is drawn.

        Raises:
            SpecError: An option is not known, or not allowed.
        """
        options = dict(options or {})
        unknown = sorted(set(options) - {"member", "start_scale"})
        if unknown:
            raise unknown_name("reset option", unknown[0], ("member", "start_scale"))
        number = int(generator.integers(_N_MEMBERS))
        low, high = np.log10(self.range)
        factor = float(10.0 ** generator.uniform(low, high))
        others = tuple(
            self._other_start(item, generator)
            for item in self.spec.hyperparameters
            if item.kind != "lr"
        )
        seed = int(generator.integers(2**31))
        chosen, drawn = (number, True) if self.draws_members else (None, False)
        if "member" in options:
            self.member(options["member"], drawn=False)
            chosen, drawn = options["member"], False
        if "start_scale" in options:
            factor = _positive("start_scale", options["start_scale"])
        return Begin(chosen, drawn, factor, others, seed)

    def start_spec(self, begin: Begin, offered: Sequence[Hyperparameter]) -> ControlSpec:
        """Return the spec with its hyperparameters at the episode's start.

        Args:
            begin: Of the episode.
            offered: What the episode's task offers; its defaults count for hyperparameters that
                were asked for by name.
        """
        defaults = {item.name: item.default for item in offered}
        others = iter(begin.others)
        items = []
        for item, asked in zip(self.spec.hyperparameters, self.hyperparameters, strict=True):
            usual = defaults.get(item.name, item.default) if asked == item.name else item.default
            if item.kind == "lr":
                start: float | None = usual * begin.factor
            else:
                start = next(others)
            start = usual if start is None else start
            items.append(item if start == item.default else item.starting_at(start))
        return self.spec.with_hyperparameters(items)

    def _make_task(self) -> Task:
        if isinstance(self.task, str):
            return registry.make_task(self.task, variant=self.variant, default_member=0)
        if self.variant is not None:
            raise SpecError(
                f"variant: {self.variant!r} was asked of a task object; make that variant yourself"
            )
        if isinstance(self.task, Task) and not isinstance(self.task, type):
            return self.task
        given: Any = self.task
        made = given() if callable(given) else given
        if not isinstance(made, Task):
            raise SpecError(
                f"task: {self.task!r} is no task; give a registered name ("
                f"{', '.join(registry.names('task'))}), module:factory, or a task object"
            )
        return made

    def _make_spec(self) -> ControlSpec:
        more = dict(self.control or {})
        taken = {"hyperparameters", "decisions", "actions", "reward"} & set(more)
        if taken:
            raise SpecError(
                f"control: {sorted(taken)[0]!r} has an option of its own; give it there"
            )
        items = resolve_hyperparameters(self.hyperparameters, self.made.hyperparameters)
        try:
            return ControlSpec(
                hyperparameters=items,
                decisions=self.decisions,
                actions=self.actions,
                reward=self.reward
                if isinstance(self.reward, str) and self.reward in REWARDS
                else "function",
                **more,
            )
        except TypeError as error:
            fields = [name for name in ControlSpec.__dataclass_fields__ if name not in taken]
            wrong = [name for name in more if name not in fields]
            raise unknown_name("field of control", wrong[0] if wrong else str(error), fields) from (
                error
            )

    def _find_reward(self) -> RewardFunction | None:
        if not isinstance(self.reward, str):
            if not callable(self.reward):
                raise SpecError(
                    f"reward: {self.reward!r} is neither a name nor a function; "
                    f"have: {', '.join(REWARDS)}"
                )
            return self.reward
        if self.reward == "function":
            raise SpecError(
                "reward: 'function' names no function; give the function itself: "
                "reward=lambda before, after: before.val_loss - after.val_loss"
            )
        if self.reward in REWARDS:
            return None
        if self.reward in registry.names("reward"):
            found: RewardFunction = registry.lookup("reward", self.reward)
            return found
        known = [name for name in REWARDS if name != "function"]
        raise unknown_name("reward", self.reward, [*known, *registry.names("reward")])

    def _starts(self) -> tuple[float, float]:
        starts = self.starts
        if starts is None:
            starts = "random" if hasattr(self.made, "member") else "default"
        if isinstance(starts, str):
            if starts not in ("random", "default"):
                raise unknown_name("starts", starts, ("random", "default"))
            return _RANDOM_STARTS if starts == "random" else (1.0, 1.0)
        if isinstance(starts, Sequence):
            pair: Sequence[Any] = starts
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise SpecError(
                    f"starts: {starts!r} is no pair of a lowest and a highest factor; "
                    "write (0.01, 100.0)"
                )
            return _positive("starts", pair[0]), _positive("starts", pair[1])
        return _positive("starts", starts), _positive("starts", starts)

    def _other_start(self, item: Hyperparameter, generator: np.random.Generator) -> float | None:
        """Draw a start: within 10 times the default on a log scale, else uniform in bounds."""
        share = float(generator.uniform())
        if self.range[0] == self.range[1]:
            return None
        if item.scale == "log" and item.default > 0:
            drawn = item.default * 10.0 ** (2.0 * share - 1.0)
            return float(min(max(drawn, item.low), item.high))
        return item.low + share * (item.high - item.low)


def _positive(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise SpecError(f"{name}: {value!r} is not a number above 0; write a factor such as 0.01")
    return float(value)


def observation_space(spec: ControlSpec) -> spaces.Box:
    """Return the box of observations of one run."""
    return spaces.Box(-FEATURE_BOUND, FEATURE_BOUND, (observation_size(spec),), np.float32)


def action_space(spec: ControlSpec) -> gymnasium.Space[Any]:
    """Return the space of one run's actions; `trimtab.core.control.decode` gives their meaning."""
    width = len(spec.hyperparameters)
    if spec.actions == "discrete":
        return spaces.Discrete(n_discrete_actions(spec))
    if spec.actions == "continuous":
        return spaces.Box(-1.0, 1.0, (width + 1,), np.float32)
    return spaces.MultiDiscrete([len(MOVES)] * width + [2])
