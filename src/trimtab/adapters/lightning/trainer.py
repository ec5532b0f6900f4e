"""What is read from a Lightning ``Trainer``: its optimisers, steps, schedulers and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.adapters.torch.actuators import Place
from trimtab.core.errors import AdapterError

__all__ = [
    "announced_steps",
    "check_strategy",
    "clipping_place",
    "clips_as",
    "scheduler_period",
    "steered_index",
]


def steered_index(trainer: Any, asked: int | None) -> int:
    """Return the index of the steered optimiser.

    Raises:
        AdapterError: There is no such one, or it is not said which.
    """
    there = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(there)) if there else "none"
    if asked is None:
        if len(there) == 1:
            return 0
        raise AdapterError(
            f"optimizer=None: the module has {len(there)} optimisers ({listed}); say which one is "
            "steered, such as TrimtabCallback(optimizer=0)"
        )
    if asked not in range(len(there)):
        raise AdapterError(f"optimizer={asked!r}: the module has {listed}; give one of these")
    return asked


def check_strategy(trainer: Any) -> None:
    """Raise unless each process holds all weights.

    Raises:
        AdapterError: The strategy spreads them.
    """
    name = type(trainer.strategy).__name__
    if any(word in name for word in ("FSDP", "DeepSpeed", "ModelParallel", "XLA")):
        raise AdapterError(
            f"strategy: {name} spreads the weights over processes, and they cannot be kept or put "
            "back here; train with data parallelism ('ddp'), or steer without a policy"
        )


def scheduler_period(trainer: Any, configs: Sequence[Any], *, manual: bool) -> int:
    """Return how many optimiser steps there are between two steps of the scheduler.

    In manual optimisation the module steps it, and once an optimiser step is assumed.
    """
    if not configs or manual:
        return 1
    config = configs[0]
    if config.interval == "step":
        return int(config.frequency)
    accumulated = max(int(trainer.accumulate_grad_batches), 1)
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return 1
    return int(config.frequency) * math.ceil(int(batches) / accumulated)


def clipping_place(trainer: Any) -> Place | None:
    """Return where Lightning keeps the norm at which it clips; None if it does not clip by norm."""
    algorithm = str(trainer.gradient_clip_algorithm or "norm").lower()
    if not trainer.gradient_clip_val or not algorithm.endswith("norm"):
        return None

    def write(value: float) -> None:
        trainer.gradient_clip_val = value

    def read() -> float:
        return float(trainer.gradient_clip_val)

    return Place(read(), read, write)


def clips_as(trainer: Any, module: Any, optimizer: Any) -> Callable[[float], None]:
    """Return a function that clips the gradients as Lightning would at a norm."""

    def clip(norm: float) -> None:
        kept, trainer.gradient_clip_val = trainer.gradient_clip_val, norm
        try:
            module.configure_gradient_clipping(
                optimizer,
                gradient_clip_val=norm,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
        finally:
            trainer.gradient_clip_val = kept

    return clip


def announced_steps(trainer: Any, given: int | None) -> int:
    """Return the steps of the steered optimiser.

    Raises:
        AdapterError: Lightning does not know them, or counts several optimisers together.
    """
    if given is not None:
        return given
    if len(trainer.optimizers) > 1:
        raise AdapterError(
            f"total_steps=None with {len(trainer.optimizers)} optimisers: Lightning counts the "
            "steps of all of them; give TrimtabCallback(total_steps=...) for the steered one"
        )
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise AdapterError(
            f"total_steps: Lightning expects {steps} steps; set max_steps or max_epochs of the "
            "Trainer, or TrimtabCallback(total_steps=...)"
        )
    return int(steps)
