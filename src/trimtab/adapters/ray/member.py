"""A member of a population whose learning rate is steered and whose other values are explored.

Nothing here knows who trains the member. It is told a loss at the end of each window and says
with which values to go on; it can take the place of another member, and it is plain data at any
moment, so that whoever keeps it can go on with it in another process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trimtab.core.carry import pack_array, unpack_array
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import KINDS, Hyperparameter
from trimtab.core.metrics import Metrics, loss_from_validation
from trimtab.core.references import reference_multipliers
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec, short_windows
from trimtab.defaults import controller_for

_RESAMPLE, _FACTOR, _START = 1, 2, 3  # what a draw is for
_ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "beta_1": "beta1"}


def kind_of(name: str) -> str:
    """Return the kind that a hyperparameter's name says, or ``"other"``.

    >>> kind_of("learning_rate")
    'lr'
    """
    known = _ALIASES.get(name, name)
    return known if known in KINDS else "other"


@dataclass(frozen=True)
class SearchRange:
    """Where a hyperparameter may be: a range, or one of some choices.

    Attributes:
        name: Its key in a trial's configuration.
        kind: One of `trimtab.core.hyperparameters.KINDS`.
        low: Smallest value.
        high: Largest value.
        is_log: Whether it is drawn on a log scale.
        is_integer: Whether values are rounded.
        choices: The values, in their order, in the place of a range.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_integer: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"{self.name}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.choices:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SpecError(
                f"{self.name}: [{self.low}, {self.high}] is no range; give low below high"
            )
        if self.is_log and self.low <= 0:
            raise SpecError(
                f"{self.name}: low={self.low} cannot stand on a log scale; give a positive one"
            )

    def within(self, value: Any) -> Any:
        """Return the nearest value that is allowed."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        held = min(max(float(value), self.low), self.high)
        return round(held) if self.is_integer else held

    def draw(self, generator: np.random.Generator) -> Any:
        """Return a value drawn from the range, evenly on its scale."""
        if self.choices:
            return self.choices[int(generator.integers(len(self.choices)))]
        share = float(generator.random())
        if self.is_log:
            return self.within(self.low * (self.high / self.low) ** share)
        return self.within(self.low + share * (self.high - self.low))

    def neighbour(self, value: Any, factor: float) -> Any:
        """Return the value times a factor, or the next of the choices up or down."""
        if not self.choices:
            return self.within(float(value) * factor)
        place = self.choices.index(self.within(value)) + (1 if factor > 1 else -1)
        return self.choices[min(max(place, 0), len(self.choices) - 1)]


@dataclass(frozen=True)
class MemberSettings:
    """What all members of a population have in common.

    Attributes:
        ranges: What may change; those of kind ``lr`` are steered, the others are explored
            whenever a member takes another's place.
        total: Units of time of a member's whole life.
        interval: Units between decisions, after the short windows at the beginning.
        mode: ``"min"`` or ``"max"``: which way the metric gets better.
        policy: Who steers; see `trimtab.defaults.controller_for`.
        reference: Name of the schedule that steered values follow.
        seed: Of everything that is drawn.
        factors: By which values are moved when a member takes another's place.
        resample: Chance that an explored value is drawn anew instead.
    """

    ranges: tuple[SearchRange, ...]
    total: int
    interval: float
    mode: str = "min"
    policy: Any = "trimtab-1"
    reference: str = "warmup-linear"
    seed: int = 0
    factors: tuple[float, ...] = (1.2, 0.8)
    resample: float = 0.25

    def __post_init__(self) -> None:
        if self.total < 2:
            raise SpecError(f"max_t: {self.total} leaves nothing to decide; give at least 2")
        if not 0 < self.interval < self.total:
            raise SpecError(
                f"perturbation_interval: {self.interval} is not between 0 and max_t={self.total}"
            )
        if not any(item.kind == "lr" for item in self.ranges):
            raise SpecError(
                f"nothing of {', '.join(item.name for item in self.ranges) or 'no ranges'} is a "
                "learning rate, which is what the policy steers; name it by "
                "kinds={'your_name': 'lr'}"
            )

    @property
    def steered(self) -> tuple[SearchRange, ...]:
        """The ranges that the policy steers."""
        return tuple(item for item in self.ranges if item.kind == "lr")

    def generator(self, *place: int) -> np.random.Generator:
        """Return a generator for one draw, whatever was drawn before."""
        return np.random.default_rng([self.seed, *place])


def _decisions(spec: ControlSpec, total: int, interval: float) -> int:
    """Return the number of decisions that puts ``interval`` units between the later ones."""
    fronts = min(spec.front_windows, int(total / interval) // 3)
    length = max(2, round(spec.front_share * total))
    return fronts + max(1, int((total - fronts * length) / interval))


@dataclass
class Member:
    """One member, from its start to its end.

    Args:
        settings: What it has in common with the others.
        number: Its place in the population; what is drawn depends on it.
        given: Start values by name; those that are missing are drawn.

    Attributes:
        settings: As given.
        number: As given.
        starts: Start value of each range.
        values: The values that hold now, the reference included.
        waiting: Whether a window was reported and nothing was decided yet.
        wants_best: Whether the last decision was to go back to the best weights.
        is_best: Whether the last report was the best so far.
        best_path: Where its keeper has put the best weights; kept with the state.
        log: One row a decision: ``time``, ``loss``, ``values``, ``source``, ``why``.

    Raises:
        SpecError: A start is outside its range.
    """

    settings: MemberSettings
    number: int
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = {item.name: self._start(item) for item in self.settings.ranges}
        self.values = dict(self.starts)
        self.waiting, self.wants_best, self.is_best = False, False, False
        self.best_path = ""
        self.log: list[dict[str, Any]] = []
        self._loss = math.nan
        self._measured: dict[str, float] = {}
        self._before: dict[str, Any] = {}
        self._session = self._new_session()
        self._follow_session()

    @property
    def loss(self) -> float:
        """The last reported loss, lower is better; nan before the first report."""
        return self._loss

    @property
    def can_be_followed(self) -> bool:
        """Whether another member may take over from its last decision."""
        return bool(self._before) and math.isfinite(self._loss)

    @property
    def may_follow(self) -> bool:
        """Whether the short windows at the beginning, in which all members are alike, are over."""
        front, _ = short_windows(self._session.spec, self._session.total_steps)
        return self._session.decisions_made > front

    @property
    def boundary(self) -> float:
        """Time of the next decision; infinite if there will be none."""
        session = self._session
        if not session.carry.started:
            return 1.0
        if session.finished or session.steps_done >= session.total_steps:
            return math.inf
        return 1.0 + session.steps_done + max(session.window(), 1)

    def report(self, value: float, measured: Mapping[str, float] | None = None) -> None:
        """Take in the monitored metric at the end of a window, and wait for a decision."""
        self._loss, _ = loss_from_validation(float(value), mode=self.settings.mode)
        self._measured = {"metric": float(value), **dict(measured or {})}
        self.waiting = True

    def decide(self) -> None:
        """Let the policy choose the values of the next window."""
        self.waiting, self.is_best, self.wants_best = False, False, False
        self._before = self._state_of_session()
        self._step(f"member {self.number}")

    def follow(self, other: Member) -> None:
        """Take the place of another member as it was at its last decision, and explore from there.

        Steered values are moved by one of the factors and steered on; the others are moved too, or
        drawn anew.
        """
        self.waiting, self.is_best, self.wants_best = False, False, False
        place = (self.number, len(self.log))
        self.starts, self.best_path = dict(other.starts), other.best_path
        self._loss, self._measured = other._loss, dict(other._measured)
        self._session = self._new_session()
        self._load_session(other._before)
        self._move_session(self.settings.generator(*place, _FACTOR))
        self._before = self._state_of_session()
        steered = {item.name for item in self.settings.steered}
        for index, item in enumerate(self.settings.ranges):
            if item.name not in steered:
                generator = self.settings.generator(*place, _RESAMPLE, index)
                self.values[item.name] = self._explored(item, other.values[item.name], generator)
        self._step(f"member {other.number}")

    # As plain data.

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return {
            "number": self.number,
            "starts": dict(self.starts),
            "values": dict(self.values),
            "waiting": self.waiting,
            "best_path": self.best_path,
            "loss": self._loss,
            "measured": dict(self._measured),
            "before": self._before,
            "session": self._state_of_session(),
            "log": [dict(row) for row in self.log],
        }

    @classmethod
    def from_state(cls, settings: MemberSettings, state: Mapping[str, Any]) -> Member:
        """Return the member that `state_dict` was taken from.

        Raises:
            SpecError: The state belongs to a population with other settings.
        """
        member = cls(settings, int(state["number"]), state["starts"])
        member._load_session(state["session"])
        member.values = dict(state["values"])
        member.waiting, member.best_path = bool(state["waiting"]), str(state["best_path"])
        member._loss, member._measured = float(state["loss"]), dict(state["measured"])
        member._before = dict(state["before"])
        member.log = [dict(row) for row in state["log"]]
        return member

    # Inside.

    def _start(self, item: SearchRange) -> Any:
        places = [one.name for one in self.settings.ranges]
        if item.name not in self.given:
            generator = self.settings.generator(self.number, _START, places.index(item.name))
            return item.draw(generator)
        value = self.given[item.name]
        if item.choices and value not in item.choices:
            raise SpecError(
                f"{item.name}: a trial starts at {value!r}, which is none of "
                f"{', '.join(map(repr, item.choices))}; start at one of these"
            )
        if not item.choices and not item.low <= float(value) <= item.high:
            raise SpecError(
                f"{item.name}: a trial starts at {value}, outside [{item.low}, {item.high}]; "
                "widen the bounds or start within them"
            )
        return value

    def _new_session(self) -> Session:
        settings = self.settings
        items = tuple(self._steered(item) for item in settings.steered)
        spec, controller = controller_for(settings.policy, items)
        # A unit of time is a report, and stands for many steps.
        decisions = _decisions(spec, settings.total, settings.interval)
        spec = replace(spec, decisions=decisions, least_steps=1)
        # The first unit of time passes before there is a first loss to decide by.
        multipliers = reference_multipliers(settings.reference, settings.total)
        return Session(
            spec,
            controller,
            total_steps=settings.total - 1,
            reference=multipliers[1:],
            keep=self._note_best,
            restore=self._note_restore,
            seed=settings.seed,
        )

    def _steered(self, item: SearchRange) -> Hyperparameter:
        scale = "log" if item.low > 0 else "linear"
        start = float(self.starts[item.name])
        return Hyperparameter(item.name, item.kind, start, item.low, item.high, scale)

    def _note_best(self) -> None:
        self.is_best = True

    def _note_restore(self) -> None:
        self.wants_best = True

    def _step(self, source: str) -> None:
        session, time = self._session, self.boundary
        is_first = not session.carry.started
        if is_first and not math.isfinite(self._loss):
            why = "no finite loss yet"  # nothing can be related to it
        else:
            finite = math.isfinite(self._loss)
            decision = session.step(
                Metrics(
                    val_loss=self._loss,
                    steps=0.0 if is_first else float(session.window()),
                    finite=float(finite),
                ),
                self._measured,
            )
            why = "" if decision is None else decision.why()
        self._follow_session()
        row = {"time": time, "loss": self._loss, "values": dict(self.values)}
        self.log.append({"member": self.number, **row, "source": source, "why": why})

    def _follow_session(self) -> None:
        """Set the steered values to those of the coming window's middle, within their ranges."""
        session = self._session
        middle = session.steps_done + session.window() // 2
        for index, item in enumerate(self.settings.steered):
            self.values[item.name] = item.within(session.value(index, middle))

    def _move_session(self, generator: np.random.Generator) -> None:
        carry = self._session.carry
        offset = np.array(carry.offset, np.float32)
        for index, item in enumerate(self._session.spec.hyperparameters):
            factor = float(
                self.settings.factors[int(generator.integers(len(self.settings.factors)))]
            )
            if item.scale == "log":
                offset[index] += np.float32(math.log10(factor))
            else:
                value = self._session.unscheduled(index, offset)
                moved = item.to_coordinate(value * factor) - item.to_coordinate(item.default)
                offset[index] = np.float32(moved)
        offset = np.clip(offset, carry.low_offset, carry.high_offset)
        state = self._state_of_session()
        state["carry"]["offset"] = state["offset"] = pack_array(offset)
        self._load_session(state)

    def _explored(self, item: SearchRange, value: Any, generator: np.random.Generator) -> Any:
        if float(generator.random()) < self.settings.resample:
            return item.draw(generator)
        factors: Sequence[float] = self.settings.factors
        return item.neighbour(value, float(factors[int(generator.integers(len(factors)))]))

    def _state_of_session(self) -> dict[str, Any]:
        state = self._session.state_dict()
        state["schedule"] = []  # the log has what was decided
        # Through text, so that what is kept is what a restored population would read.
        plain: dict[str, Any] = json.loads(json.dumps(state))
        return plain

    def _load_session(self, state: Mapping[str, Any]) -> None:
        offset = unpack_array(state["offset"])
        self._session.load_state_dict(state)
        if len(offset) != len(self.settings.steered):
            raise SpecError(
                f"the saved member has {len(offset)} steered values, this population "
                f"{len(self.settings.steered)}; go on with the settings of the first run"
            )
