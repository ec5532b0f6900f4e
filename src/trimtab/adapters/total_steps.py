"""How many optimiser steps a loop over a data loader will do."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from trimtab.core.errors import SpecError


def total_steps(
    loader: Any, *, epochs: int = 1, accumulation: int = 1, drop_last: bool = False
) -> int:
    """Return how often the optimiser steps in a loop over a data loader.

    Args:
        loader: A ``DataLoader``, or anything else whose length is its number of batches.
        epochs: How often the loop goes over it.
        accumulation: Batches whose gradients are added up for one step.
        drop_last: Whether batches that are left over at the end of an epoch take no step.

    Raises:
        SpecError: The loader does not know its length, or a number is not a count of at least 1.

    >>> total_steps([["batch"]] * 10, epochs=3, accumulation=4)
    9
    >>> total_steps([["batch"]] * 10, epochs=3, accumulation=4, drop_last=True)
    6
    """
    counts: dict[str, Any] = {"epochs": epochs, "accumulation": accumulation}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SpecError(f"{name}: {count!r} is not a whole number of at least 1")
    try:
        batches = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an IterableDataset
        batches = None
    if batches is None:
        raise SpecError(
            f"loader: {type(loader).__name__} does not know how many batches it has; count them, "
            "and give total_steps= as a number"
        )
    an_epoch = batches // accumulation if drop_last else -(-batches // accumulation)
    if not an_epoch:
        raise SpecError(
            f"loader: {batches} batches make no optimiser step with accumulation={accumulation}; "
            "give more data, or a smaller accumulation"
        )
    return an_epoch * epochs
