"""The sizes that a task comes in, and what a list of tasks shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter

__all__ = ["ListedTask", "Variant", "describe_task", "find_variant", "steered_by"]


@dataclass(frozen=True)
class Variant:
    """One size of a task.

    Attributes:
        steps: Optimiser steps of a whole run.
        batch_size: Training examples a step.
        seconds: Cost of a whole run with 21 validations on one quiet core, what is cached at hand.
        tuned_lr: Best learning rate of the reference schedule, as far as it is known.
        examples: How many examples are used of all four splits together; None for all.
        size: Pixels of a side, tokens of a text or units of a layer, as the task says.
    """

    steps: int
    batch_size: int
    seconds: float
    tuned_lr: float
    examples: int | None = None
    size: int = 0


class ListedTask(Protocol):
    """What `describe_task` reads from a task.

    Attributes:
        name: Its registered name.
        kind: What sort of task it is.
        metric: What is reported first.
        licence: Of data and weights.
        notice: A sentence that whoever runs it has to read, or an empty one.
        variant: The size that it has now.
        hyperparameters: What can be steered.
        manual: The documented recipe.
    """

    name: str
    kind: str
    metric: str
    licence: str
    notice: str
    variant: str
    hyperparameters: tuple[Hyperparameter, ...]
    manual: Mapping[str, Any]


def find_variant(variants: Mapping[str, Variant], name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in variants:
        raise unknown_name("variant", name, variants)
    return variants[name]


def steered_by(manual: Mapping[str, Any]) -> tuple[Hyperparameter, ...]:
    """Return a hyperparameter for each value of a recipe, which is its default."""
    return tuple(hyperparameter(name, value) for name, value in manual["values"].items())


def describe_task(task: ListedTask, variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Return what a list of tasks shows of one, as JSON-able data."""
    variant = variants[task.variant]
    names: Sequence[str] = list(variants)
    return {
        "name": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "licence": task.licence,
        "notice": task.notice,
        "variant": task.variant,
        "variants": names,
        "seconds": variant.seconds,
        "total_steps": variant.steps,
        "batch_size": variant.batch_size,
        "size": variant.size,
        "tuned_lr": variant.tuned_lr,
        "hyperparameters": [item.to_dict() for item in task.hyperparameters],
        "manual": dict(task.manual),
    }
