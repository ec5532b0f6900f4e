"""Settings of learning by imitation, part of `LearnSettings`."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.core.errors import SpecError

__all__ = ["ImitationSettings"]


@dataclass(frozen=True)
class ImitationSettings:
    """Settings of the imitation.

    Attributes:
        learning_rate: Of Adam, at the start; it falls linearly to a tenth.
        updates: Steps of Adam an iteration.
        memory: Iterations whose runs are remembered.
        mixed: Remembered iterations that a step of Adam draws runs from.
        runs: Runs that it draws from each.
        distance: Weight of the squared distance from the tuned rate, in nats a squared decade;
            beyond four decades it grows linearly.
        restore: Weight of staying with the restores of the policy that training began from.
        polyak: Weight of the old average at each step of Adam.
    """

    learning_rate: float = 1e-3
    updates: int = 24
    memory: int = 100
    mixed: int = 8
    runs: int = 16
    distance: float = 0.05
    restore: float = 0.05
    polyak: float = 0.998

    def __post_init__(self) -> None:
        for name in ("updates", "memory", "mixed", "runs"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: {getattr(self, name)!r} is below 1; give a whole number")
        for name in ("distance", "restore"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name}: {getattr(self, name)!r} is below 0; give a weight")
        if not 0 <= self.polyak < 1:
            raise SpecError(f"polyak: {self.polyak!r} is outside 0..1, 1 left out; try 0.998")
