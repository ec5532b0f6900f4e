"""A choice that is made once, before a run begins: what it may be, and when there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import SpecError


@dataclass(frozen=True)
class StaticChoice:
    """One static choice.

    A task offers some in a tuple ``offers``; a study varies those that it is asked to.

    Attributes:
        name: Of a hyperparameter of the task, or else a keyword of the task's ``start``.
        low: Smallest number; unused where there are options.
        high: Largest number.
        is_log: Whether numbers are spread log-uniformly.
        is_whole: Whether numbers are whole.
        options: What is chosen from, the usual one first; empty for numbers.
        parent: Another choice that this one depends on, or an empty string.
        parent_options: The values of the parent for which there is this choice.

    Raises:
        SpecError: There is nothing to choose from.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_whole: bool = False
    options: tuple[Any, ...] = ()
    parent: str = ""
    parent_options: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        wrong = not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high)
        if not self.options and (wrong or (self.is_log and self.low <= 0)):
            raise SpecError(
                f"{self.name}: low={self.low!r} and high={self.high!r} are no range to choose from "
                f"{'on a log scale' if self.is_log else ''}; give low below high, or options"
            )

    def is_there(self, choices: Mapping[str, Any]) -> bool:
        """Whether there is this choice, given those that were made before."""
        return not self.parent or choices.get(self.parent) in self.parent_options

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain data, without what does not apply to it."""
        found: dict[str, Any] = {"name": self.name}
        if self.options:
            found["options"] = list(self.options)
        else:
            found |= {"low": self.low, "high": self.high, "is_log": self.is_log}
        if self.parent:
            found["if"] = {self.parent: list(self.parent_options)}
        return found
