"""What a run draws from its seed: new weights, noise, and the order of its data (NumPy only)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.errors import SpecError


class RunSeeds(NamedTuple):
    """The independent seeds of one run: new weights, order of data, dropout."""

    weights: int
    order: int
    noise: int


def run_seeds(seed: int) -> RunSeeds:
    """Return the seeds that a run of this seed uses; the seed is 0 or more."""
    return RunSeeds(*(int(word) for word in np.random.SeedSequence(seed).generate_state(3)))


class ShuffledBatches:
    """Endless batches of indices: every epoch a new order, incomplete last batches left out.

    It belongs to the run, not to the weights: restoring a snapshot does not turn it back.

    Attributes:
        batch_size: Examples a batch; may be changed at any time.
    """

    def __init__(self, n_examples: int, batch_size: int, *, seed: int) -> None:
        """Shuffle ``n_examples`` in a stream that ``seed`` fixes.

        Raises:
            SpecError: ``batch_size`` is not in 1..n_examples.
        """
        if not 1 <= batch_size <= n_examples:
            raise SpecError(
                f"batch_size: {batch_size} is not in 1..{n_examples}, the number of training "
                "examples; choose one of these"
            )
        self.batch_size = batch_size
        self._n_examples = n_examples
        self._generator = np.random.default_rng(seed)
        self._order = np.empty(0, np.int64)
        self._at = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """Return the next batch's indices, (batch_size,) int64."""
        size = min(int(self.batch_size), self._n_examples)
        if self._at + size > len(self._order):
            self._order = self._generator.permutation(self._n_examples)
            self._at = 0
        chosen = self._order[self._at : self._at + size]
        self._at += size
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return where the order stands, as plain data and a (n_examples,) int64 array."""
        return {
            "generator": self._generator.bit_generator.state,
            "order": self._order.copy(),
            "at": self._at,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._generator.bit_generator.state = state["generator"]
        self._order = np.array(state["order"], np.int64)
        self._at, self.batch_size = int(state["at"]), int(state["batch_size"])
