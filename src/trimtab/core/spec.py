"""The contract between a policy and a run: what is seen, what is done, what is rewarded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from trimtab.core.errors import IncompatiblePolicyError, SpecError, unknown_name
from trimtab.core.hyperparameters import (
    Hyperparameter,
    hyperparameter,
    resolve_hyperparameters,
)

__all__ = [
    "ACTION_KINDS",
    "LEAST_STEPS",
    "MOVES",
    "NARROW",
    "REWARDS",
    "SPEC_VERSION",
    "SPEC_VERSIONS",
    "UNDOING",
    "WIDEST_START",
    "ControlSpec",
    "short_windows",
    "window_ends",
]

SPEC_VERSION = 1
"""What a spec has that says nothing: of the policy that ships."""

SPEC_VERSIONS: tuple[int, ...] = (1, 2)
"""Contracts that this code runs; a new one whenever features, action decoding or guard change
their meaning. 2 shows the policy the run's range and how far it has come from its first weights,
and enters a range from its low end."""

WIDEST_START = 2.0
"""Decades either way of the start that learning rates stay within under version 2, where no range
is given."""

NARROW = 0.5
"""Decades up to which a range is narrow: version 2 begins at the start, with no entry."""

ACTION_KINDS: tuple[str, ...] = ("discrete", "multi-discrete", "continuous")

MOVES: tuple[float, ...] = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)
"""The moves of one hyperparameter, in its own `ControlSpec.move_units`."""

LEAST_STEPS = 4
"""Steps for each decision in the runs of shipped policies and of what is compared with them."""

REWARDS: tuple[str, ...] = (
    "log-loss",
    "best-so-far",
    "relative",
    "cost-aware",
    "final",
    "function",
)

_LR_UNIT, _LOG_UNIT, _LINEAR_UNIT = 1.0, 0.5, 0.2

UNDOING: tuple[str, ...] = ("undo", "undo_noise", "entry_resumes")
"""Fields of `ControlSpec` that say which short windows are undone, and what comes after one."""

# Field -> smallest value, and the largest.
_COUNTS = {
    "decisions": 1,
    "least_steps": 1,
    "front_windows": 0,
    "max_divergences": 0,
    "restore_pause": 0,
}
_NUMBERS = {
    "front_share": (0.0, 1.0),
    "entry": (-math.inf, 0.0),
    "late_move": (0.0, 1.0),
    "ruin": (0.0, math.inf),
    "undo": (0.0, math.inf),
    "undo_noise": (0.0, math.inf),
    "explosion": (1.0, math.inf),
    "cut": (0.0, 5.0),
}


@dataclass(frozen=True)
class ControlSpec:
    """Everything a controller must agree on with the run that it steers.

    ``compatibility_hash`` covers what a policy's weights depend on: the version, features, action
    decoding, reward and guard. ``hyperparameters``, ``decisions``, ``least_steps`` and the
    reference schedule are settings of a run and stay outside.

    Attributes:
        hyperparameters: What is steered, one token each, in this order.
        decisions: Number K of decisions a run.
        least_steps: Steps that a run has to have for each of its decisions; a shorter run has
            fewer decisions.
        actions: ``"discrete"``, ``"multi-discrete"`` or ``"continuous"``.
        reward: Name of a reward in `trimtab.core.rewards`.
        front_windows: How many of the first windows are short ones (0: all windows are equal).
        front_share: Length of a short window as a share of all steps (at least 2 steps).
        entry: Coordinate offset at which learning rates begin while there are short windows, in
            decades below the start (0: they begin at the start); under version 2 the low end of
            their range is taken in its place, unless the range is `NARROW`. Short window by short
            window the offset returns to zero, unless the policy or the guard moves it; once the
            best weights were put back, it is moved by the policy alone (see ``entry_resumes``).
        late_move: Largest move after the short windows, in units of the hyperparameter's move.
        ruin: Rise of the log of the normalised validation loss over its best at which the guard
            restores the best weights; infinity switches that off.
        undo: Rise of the same at the end of a short window at which the guard goes back to the best
            weights without a cut, so that short windows try rates without lasting harm;
            0 switches that off.
        undo_noise: How many times the run's own spread of validation losses (the mean size of
            their changes in windows that were kept) such a rise has to exceed as well; so the
            first window is never undone. 0: it need not.
        entry_resumes: Whether the return from ``entry`` goes on after the best weights were put
            back without a cut, up to half a decade below the start.
        explosion: Validation loss over its initial value from which a run counts as diverged.
        cut: Decades by which a rollback lowers every learning rate.
        max_divergences: Divergences that are mended; the next one terminates the run.
        restore_pause: How many decisions more than one the restore action is masked for after a
            restore.
        version: One of `SPEC_VERSIONS`.

    Raises:
        SpecError: A field is out of range.
    """

    hyperparameters: tuple[Hyperparameter, ...] = field(
        default_factory=lambda: (hyperparameter("lr"),)
    )
    decisions: int = 20
    least_steps: int = 1
    actions: str = "multi-discrete"
    reward: str = "log-loss"
    front_windows: int = 6
    front_share: float = 0.01
    entry: float = -2.0
    late_move: float = 0.5
    ruin: float = 0.5
    undo: float = 0.0
    undo_noise: float = 0.0
    entry_resumes: bool = False
    explosion: float = 5.0
    cut: float = 0.7
    max_divergences: int = 3
    restore_pause: int = 1
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.actions not in ACTION_KINDS:
            raise unknown_name("kind of actions", self.actions, ACTION_KINDS)
        if self.reward not in REWARDS:
            raise unknown_name("reward", self.reward, REWARDS)
        if self.version not in SPEC_VERSIONS:
            raise SpecError(
                f"version: {self.version!r} is none of {', '.join(map(str, SPEC_VERSIONS))}, which "
                "this version of trimtab runs; use the version that made the spec"
            )
        # A name stands for its kind's usual bounds; equal specs have equal fields and hashes.
        items = resolve_hyperparameters(self.hyperparameters)
        object.__setattr__(self, "hyperparameters", items)
        for name, least in _COUNTS.items():
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise SpecError(f"{name}: {count!r} is not a whole number of at least {least}")
        if not isinstance(self.entry_resumes, bool):
            raise SpecError(f"entry_resumes: {self.entry_resumes!r} is neither true nor false")
        for name, (low, high) in _NUMBERS.items():
            number = getattr(self, name)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not low <= number <= high:
                raise SpecError(
                    f"{name}: {number!r} is not a number from {low:g} to {high:g}; "
                    "choose one or leave it out"
                )
            object.__setattr__(self, name, float(number))
        if not 0 < self.front_share < 1 or math.isinf(self.entry):
            raise SpecError(
                f"front_share: {self.front_share} must lie strictly between 0 and 1, "
                f"and entry: {self.entry} be finite"
            )

    @property
    def move_units(self) -> np.ndarray:
        """(H,) float32: the size of a move of 1.0, in coordinate units of each hyperparameter."""
        units = [
            _LR_UNIT if item.kind == "lr" else _LINEAR_UNIT if item.scale == "linear" else _LOG_UNIT
            for item in self.hyperparameters
        ]
        return np.asarray(units, np.float32)

    def compatibility(self) -> dict[str, Any]:
        """Return the fields that a policy's weights depend on, as plain data."""
        fields = asdict(self)
        for name in ("hyperparameters", "decisions", "least_steps"):
            fields.pop(name)
        return fields | {"moves": list(MOVES)}

    def compatibility_hash(self) -> str:
        """Return 16 hexadecimal digits that name everything in `compatibility`."""
        fields = self.compatibility()
        for name in UNDOING:
            if not fields[name]:  # as before there was this field
                del fields[name]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def require_compatible(self, other: ControlSpec) -> None:
        """Raise unless a policy made under ``other`` may run under this spec.

        Raises:
            IncompatiblePolicyError: Names each field that differs, with both values.
        """
        mine, theirs = self.compatibility(), other.compatibility()
        differing = [
            f"{k}: {theirs[k]!r} there, {mine[k]!r} here" for k in mine if mine[k] != theirs[k]
        ]
        if differing:
            raise IncompatiblePolicyError(
                f"the policy was made under another spec ({'; '.join(differing)}); "
                "run it under its own spec, or train one for this"
            )

    def with_hyperparameters(self, items: Sequence[Hyperparameter]) -> ControlSpec:
        """Return this spec for other hyperparameters."""
        return replace(self, hyperparameters=tuple(items))

    def to_json(self) -> str:
        """Return the spec as one JSON object; `from_json` gives back an equal spec."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ControlSpec:
        """Return the spec written by `to_json`.

        Raises:
            SpecError: The text is no spec, or holds a field that this version does not know.
        """
        try:
            fields = json.loads(text)
            items = tuple(Hyperparameter(**item) for item in fields.pop("hyperparameters"))
            return cls(hyperparameters=items, **fields)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"not a control spec: {error}; make one with ControlSpec()") from error


def _decisions(spec: ControlSpec, total_steps: int) -> int:
    return min(spec.decisions, max(1, total_steps // spec.least_steps))


def short_windows(spec: ControlSpec, total_steps: int) -> tuple[int, int]:
    """Return how many of the first windows are short in a run of that many steps, and their steps.

    ``min(front_windows, K // 3)`` windows of ``max(2, round(front_share T))`` steps, or (0, 0) if
    these and one step for each later window would take more than half of the run.
    """
    decisions = _decisions(spec, total_steps)
    short = min(spec.front_windows, decisions // 3)
    length = max(2, round(spec.front_share * total_steps))
    if not short or short * length + decisions - short > total_steps // 2:
        return 0, 0
    return short, length


def window_ends(spec: ControlSpec, total_steps: int) -> np.ndarray:
    """Return (K,) int64: the step at which each decision's window ends, rising to ``total_steps``.

    Without short windows, window k = 1..K ends at ``floor(k T / K)``. With `short_windows`, the
    windows after them share the steps that are left in the same even way. A run with fewer than
    ``least_steps`` steps a decision has ``max(1, T // least_steps)`` decisions.

    Raises:
        SpecError: ``total_steps`` is below 1.

    >>> window_ends(ControlSpec(decisions=4, front_windows=0), 10).tolist()
    [2, 5, 7, 10]
    """
    if total_steps < 1:
        raise SpecError(f"total_steps: {total_steps} is below 1; announce at least one step")
    decisions = _decisions(spec, total_steps)
    short, length = short_windows(spec, total_steps)
    late = decisions - short
    front = np.arange(1, short + 1) * length
    rest = total_steps - short * length
    return np.concatenate([front, short * length + np.arange(1, late + 1) * rest // late]).astype(
        np.int64
    )
