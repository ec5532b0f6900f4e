"""The sizes that a task comes in, its documented recipe, and what a list of tasks shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter


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


def recipe(
    source: str, *, lr: float = 1e-3, dropout: float = 0.1, reference: str = "cosine"
) -> dict[str, Any]:
    """Return a documented recipe for AdamW with its customary values.

    Args:
        source: Where rate, dropout and schedule come from.
        lr: Peak learning rate.
        dropout: Rate of the dropout layers.
        reference: Name of the schedule.
    """
    values = {
        "lr": lr,
        "weight_decay": 1e-2,
        "beta1": 0.9,
        "dropout": dropout,
        "label_smoothing": 0.0,
        "clip": 1.0,
    }
    return {"values": values, "reference": reference, "source": source}


class SizedTask:
    """What every task here tells of itself, in one of its sizes.

    A task sets the attributes that its class knows, and has a ``start``.

    Attributes:
        name: Its registered name.
        variant: The size that it has.
        hyperparameters: What can be steered, at the recipe's values; all of them act.
        total_steps: Optimiser steps of a whole run.
        batch_size: Training examples a step.
        monitor: ``"loss"``, which is what is minimised: of a classification the log-loss in nats,
            with which accuracy and macro-F1 are measured.
        mode: ``"min"``.
        kind: What sort of task it is.
        metric: What is reported first.
        licence: Of data and weights.
        notice: What whoever runs the task has to read; empty where there is nothing.
        seconds: A whole run with 21 validations on one quiet core, what is cached at hand.
        tuned_lr: The learning rate that starts are counted from; found on a coarse grid, often for
            ``small`` only, as the comment beside a task's variants says.
        manual: The documented recipe: values, reference schedule, source.
        variants: Its sizes.
    """

    name: str
    monitor = "loss"
    mode = "min"
    kind: str
    metric = "log-loss"
    licence: str
    notice = ""
    manual: Mapping[str, Any]
    variants: Mapping[str, Variant]

    def __init__(self, variant: str = "default") -> None:
        """Describe the task; nothing is loaded before ``start``.

        Raises:
            UnknownNameError: There is no such variant.
        """
        self._settings = find_variant(self.variants, variant)
        self.variant = variant
        self.total_steps = self._settings.steps
        self.batch_size = self._settings.batch_size
        self.seconds = self._settings.seconds
        self.tuned_lr = self._settings.tuned_lr
        self.hyperparameters = steered_by(self.manual)

    def describe(self) -> dict[str, Any]:
        """Return what a list of tasks shows, as JSON-able data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "metric": self.metric,
            "licence": self.licence,
            "notice": self.notice,
            "variant": self.variant,
            "variants": list(self.variants),
            "seconds": self.seconds,
            "total_steps": self.total_steps,
            "batch_size": self.batch_size,
            "size": self._settings.size,
            "tuned_lr": self.tuned_lr,
            "hyperparameters": [item.to_dict() for item in self.hyperparameters],
            "manual": dict(self.manual),
        }


@dataclass(frozen=True)
class Pretraining:
    """How a network is pretrained: AdamW, cosine decay to zero, gradients clipped to norm 1.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples a step.
        lr: Learning rate of the first step.
        seed: Of initialisation, order of data and dropout.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int = 0
