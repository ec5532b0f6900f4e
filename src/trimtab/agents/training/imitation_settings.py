"""Settings of learning by imitation, part of `LearnSettings`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimtab.core.errors import SpecError

__all__ = ["ImitationSettings"]


@dataclass(frozen=True)
class ImitationSettings:
    """Settings of the imitation.

    Attributes:
        learning_rate: Of Adam, at the start; it falls linearly to a tenth.
        updates: Steps of Adam an iteration; in the first eight at most 4, while no more than
            their runs are remembered.
        memory: Iterations whose runs are remembered.
        mixed: Remembered iterations that a step of Adam draws runs from.
        runs: Runs that it draws from each.
        distance: Weight of the squared distance from the tuned rate, in nats a squared decade;
            beyond four decades it grows linearly.
        overshoot: Share of the run that a decision answers for at least, where it leads above the
            tuned rate: what a rate too high destroys in a short window stays destroyed, unless
            ``spec.undo`` undoes it.
        lasting: The same for windows that are not short, at the beginning of the run; it falls with
            the share of the run that is done. Short windows may be undone (``spec.undo``).
        probe: Decades above the tuned rate that short windows have to lead to, at twice their
            weight; 0 leads to the tuned one. What is too high is found out, and undone
            (``spec.undo``).
        hold: Weight of -log p(no move) at the first decision, which has seen nothing: the window
            after it tells a start that is right from one far too high.
        restore: Weight of staying with the restores of the policy that training began from (on
            runs that another training remembered, of the one that it began from).
        polyak: Weight of the old average at each step of Adam; where steps are few (``updates``)
            the average is the policy itself.

    Raises:
        SpecError: A value is not allowed.
    """

    learning_rate: float = 1e-3
    updates: int = 24
    memory: int = 100
    mixed: int = 8
    runs: int = 16
    distance: float = 0.05
    overshoot: float = 0.0
    lasting: float = 0.0
    probe: float = 0.0
    hold: float = 0.0
    restore: float = 0.05
    polyak: float = 0.998

    def __post_init__(self) -> None:
        for name in ("updates", "memory", "mixed", "runs"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise SpecError(
                    f"imitation.{name}: {count!r} is not a whole number of at least 1; give one"
                )
        for name in (
            "learning_rate",
            "distance",
            "overshoot",
            "lasting",
            "probe",
            "hold",
            "restore",
            "polyak",
        ):
            number = getattr(self, name)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or number < 0:
                raise SpecError(
                    f"imitation.{name}: {number!r} is not a finite number of at least 0; give one"
                )
        if not self.learning_rate > 0:
            raise SpecError("imitation.learning_rate: 0 learns nothing; give a rate above it")
        if not self.polyak < 1:
            raise SpecError(f"imitation.polyak: {self.polyak!r} is not below 1; try 0.998")
