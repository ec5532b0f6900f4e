"""What every family of simulated fine-tuning runs offers, and the options it is made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics

EVALUATION_CHUNK = 128
"""Runs that are evaluated together, where a family does not say otherwise."""

SPLITS: tuple[str, ...] = ("validation", "selection", "test")
"""What `Family.evaluate` knows, apart from the training samples."""

OPTIMISERS: tuple[str, ...] = ("adam", "adamw", "sgd", "rmsprop")
"""Every optimiser, in the order of its code in a draw."""

LOSSES: tuple[str, ...] = ("cross-entropy", "squared-error", "margin")
"""Every training loss; what is reported on the splits is the same."""


@dataclass(frozen=True)
class FamilyOptions:
    """How a family differs from its default; hashable, fixed at compile time.

    Attributes:
        hyperparameters: Names that are offered, ``"lr"`` first; None: all of the family. What is
            not offered rests (no dropout, no smoothing, no clipping, batches of 32, usual decay
            and momentum) and costs no time.
        held_out: Draw from the data sets and widths that training never sees.
        loss: One of `LOSSES`.
        optimisers: Draw the optimiser uniformly from these; empty: the documented shares.
        adapter_rank: Above 0, every variant is fine-tuned through adapters of this rank.
        events: Whether corrupted batches, label flips, gradient spikes and NaN may happen.
        augmented: Give every training step fresh noise on its inputs, of a strength that the task
            hides, and spread the scales of tensors wider: runs that optimisation limits, not data.
        clean: Draw tasks with right labels, all the training samples that there are, and mostly
            data that can be told apart: runs that end at a small share of their first loss.
        slow_head: Let the new head's weights move less at each step than the others', by a factor
            that the task hides: runs that show little at first, at the right rate too.
        uneven: Scale each input by a factor of its own that the task hides; networks were
            pretrained without. With ``slow_head`` runs begin still more slowly. For families whose
            inputs are features, and not with ``augmented``, whose noise has one scale.
        networks: Pretrained networks a variant; 0: as documented.

    Raises:
        SpecError: A value is not allowed.
        UnknownNameError: An optimiser or loss is not known.
    """

    hyperparameters: tuple[str, ...] | None = None
    held_out: bool = False
    loss: str = "cross-entropy"
    optimisers: tuple[str, ...] = ()
    adapter_rank: int = 0
    events: bool = True
    augmented: bool = False
    clean: bool = False
    slow_head: bool = False
    uneven: bool = False
    networks: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        for name in self.optimisers:
            if name not in OPTIMISERS:
                raise unknown_name("optimiser", name, OPTIMISERS)
        if not 0 <= self.adapter_rank <= 16:
            raise SpecError(
                f"adapter_rank: {self.adapter_rank} is outside 0..16; use 0 for the family's own"
            )
        if self.uneven and self.augmented:
            raise SpecError(
                "uneven: True does not go with augmented, whose noise has one scale; choose one"
            )
        if self.networks < 0:
            raise SpecError(
                f"networks: {self.networks} is below 0; give a number, or 0 for the usual one"
            )
        if self.hyperparameters is not None and self.hyperparameters[:1] != ("lr",):
            raise SpecError(
                f"hyperparameters: {self.hyperparameters!r} does not begin with 'lr'; put it first"
            )


@runtime_checkable
class Family(Protocol):
    """Simulated fine-tuning runs drawn from documented distributions.

    Every method is a pure function of one run, to be batched by ``jax.vmap``; ``variant`` is a
    Python int that fixes all shapes. Draws and states are named tuples of float32, int32 and
    uint32 arrays. A state holds the optimiser's moments, which `forget` clears.

    Attributes:
        name: Such as ``"simulated/mlp"``.
    """

    name: str

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Those that act, the learning rate first."""
        ...

    @property
    def n_variants(self) -> int:
        """Number of shape buckets (architectures)."""
        ...

    @property
    def evaluation_chunk(self) -> int:
        """Runs that are best evaluated together: their activations on a split fit the cache."""
        ...

    def bank(self, variant: int) -> Any:
        """Return pretrained networks and data, built once a process."""
        ...

    def draw(self, variant: int, key: Any) -> Any:
        """Return a task's properties, each from its own key."""
        ...

    def start(self, variant: int, bank: Any, draw: Any, key: Any) -> Any:
        """Return the state before the first step; the key moves initialisation and data order."""
        ...

    def advance(
        self,
        variant: int,
        bank: Any,
        draw: Any,
        state: Any,
        values: Any,
        reference: Any,
        first_step: Any,
        n_steps: Any,
        max_steps: Any,
    ) -> tuple[Any, Metrics]:
        """Train up to ``n_steps`` optimiser steps.

        Args:
            variant: Shape bucket.
            bank: From `bank`.
            draw: From `draw`.
            state: From `start` or `advance`.
            values: (H,) float32, one value a hyperparameter in its own unit; the learning rate
                before the reference schedule.
            reference: (max_total_steps,) float32, multiplier of the learning rate at each step.
            first_step: () int32, steps of the run before this window.
            n_steps: () int32, steps of this window, at least 1.
            max_steps: () int32, at least ``n_steps``, the same for all runs of a batch.

        Returns:
            The new state and the window's metrics without validation losses. On a loss that is
            not finite the run stops there with its last weights, and ``finite`` is 0.
        """
        ...

    def evaluate(
        self, variant: int, bank: Any, draw: Any, state: Any, split: str
    ) -> tuple[Any, Any]:
        """Return (loss, accuracy) on ``"validation"``, ``"selection"`` or ``"test"``."""
        ...

    def properties(self, draw: Any) -> Any:
        """Return (n,) float32 of hidden task properties near unit scale, for a critic."""
        ...

    def default_lr(self, draw: Any) -> Any:
        """Return () float32: the usual peak rate for this optimiser and scale of weights."""
        ...

    def forget(self, state: Any) -> Any:
        """Return the state with the optimiser's moments cleared."""
        ...


def put_back(best: Any, state: Any) -> Any:
    """Return the best state as a restore puts it in the place of another one.

    How far a run has come, a field ``travel`` where there is one, is not undone by that.
    """
    travel = getattr(state, "travel", None)
    return best if travel is None else best._replace(travel=travel)
