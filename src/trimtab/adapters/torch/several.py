"""Several optimisers that a loop steps one after the other, as one."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from trimtab.adapters.torch.wrappers import unwrapped


class Several:
    """The groups of several optimisers, which step and clear gradients together.

    Groups stand in the order of the optimisers. One that joins later stands at the end, whichever
    optimiser it joined, so that an index means the same group in all the run.

    Args:
        given: The optimisers as the loop has them, which may be wrapped.

    Attributes:
        given: Them, in the order in which they step.
        parts: What is inside of each.
        defaults: Nothing: they have none in common.
    """

    def __init__(self, given: Sequence[Any]) -> None:
        self.given = list(given)
        self.parts = [unwrapped(optimizer) for optimizer in given]
        self.defaults: dict[str, Any] = {}
        self._order: list[tuple[int, int]] = []  # which optimiser, and which of its groups
        self._known = [0] * len(self.parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups; they are the optimisers' own."""
        return [self.parts[part].param_groups[index] for part, index in self._places()]

    @property
    def state(self) -> dict[Any, Any]:
        """Each weight's state, in a new mapping."""
        return {weight: held for part in self.parts for weight, held in part.state.items()}

    def step(self) -> None:
        """Step each optimiser."""
        for optimizer in self.given:
            optimizer.step()

    def zero_grad(self) -> None:
        """Clear the gradients of each."""
        for optimizer in self.given:
            optimizer.zero_grad()

    def columns(self, part: Any) -> list[int]:
        """Return the indices of one optimiser's groups."""
        return [at for at, (which, _) in enumerate(self._places()) if self.parts[which] is part]

    def states(self) -> list[MutableMapping[Any, Any]]:
        """Return, for each group, where its optimiser keeps the state of its weights."""
        return [self.parts[part].state for part, _ in self._places()]

    def _places(self) -> list[tuple[int, int]]:
        for which, part in enumerate(self.parts):
            there = len(part.param_groups)
            if there > self._known[which]:
                self._order += [(which, index) for index in range(self._known[which], there)]
                self._known[which] = there
        return self._order


def parts_of(optimizer: Any) -> list[Any]:
    """Return the optimisers that step together; one alone is one."""
    return optimizer.parts if isinstance(optimizer, Several) else [optimizer]


def columns_of(optimizer: Any, part: Any) -> list[int]:
    """Return the indices of the groups of one of `parts_of`."""
    if isinstance(optimizer, Several):
        return optimizer.columns(part)
    return list(range(len(optimizer.param_groups)))


def states_of(optimizer: Any) -> list[MutableMapping[Any, Any]]:
    """Return, for each group, where the state of its weights is kept."""
    if isinstance(optimizer, Several):
        return optimizer.states()
    return [optimizer.state] * len(optimizer.param_groups)
