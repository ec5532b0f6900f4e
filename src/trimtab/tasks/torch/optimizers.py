"""The optimisers that a task in PyTorch offers by name, as a static choice of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.static_choice import StaticChoice
from trimtab.tasks.torch.run import ParameterGroups, adamw

__all__ = ["OFFERED_OPTIMIZERS", "OptimizerMaker", "optimizer_maker"]

OptimizerMaker = Callable[[ParameterGroups], torch.optim.Optimizer]
"""Makes an optimiser from parameter groups."""

_USUAL_MOMENTUM = 0.9


def _adam(groups: ParameterGroups) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True)


_PLAIN: Mapping[str, OptimizerMaker] = {"adamw": adamw, "adam": _adam}
_NAMES = (*_PLAIN, "sgd")

OFFERED_OPTIMIZERS = (
    StaticChoice("optimizer", options=_NAMES),
    StaticChoice("momentum", 0.5, 0.99, parent="optimizer", parent_options=("sgd",)),
)
"""What tasks offer: AdamW, Adam (decay in the gradient), or SGD with a momentum of its own."""


def optimizer_maker(
    optimizer: str | OptimizerMaker, momentum: float | None = None
) -> OptimizerMaker:
    """Return what makes the optimiser that was asked for.

    Args:
        optimizer: ``"adamw"``, ``"adam"``, ``"sgd"``, or what makes another one.
        momentum: Of SGD, in [0, 1); None for 0.9.

    Raises:
        UnknownNameError: There is no optimiser of that name.
        SpecError: A momentum was given for another optimiser than SGD, or is out of range.
    """
    if isinstance(optimizer, str) and optimizer not in _NAMES:
        raise unknown_name("optimizer", optimizer, _NAMES)
    if momentum is not None and optimizer != "sgd":
        raise SpecError(
            f"momentum: {momentum!r} is for optimizer='sgd', not {optimizer!r}; leave it out, or "
            "choose sgd"
        )
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer in _PLAIN:
        return _PLAIN[optimizer]
    chosen = _USUAL_MOMENTUM if momentum is None else momentum
    if not 0 <= chosen < 1:
        raise SpecError(f"momentum: {chosen!r} is not in [0, 1); give a number such as 0.9")

    def sgd(groups: ParameterGroups) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"momentum": chosen, "fused": True}
        return torch.optim.SGD(groups, **settings)

    return sgd
