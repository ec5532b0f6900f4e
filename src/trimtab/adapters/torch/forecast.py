"""What a scheduler is going to do, found out on a copy of it."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import numpy as np
import torch

from trimtab.adapters.torch.scheduler_forms import name_of
from trimtab.core.errors import AdapterError


def is_spent_early(rates: np.ndarray) -> bool:
    """Return whether rates all but vanish in the first half of a run, once they had their peak.

    That is below 1e-6 of it for more than a hundredth of that half, or once below 1e-12: with
    restarts a cosine comes near 0 for single steps.

    Args:
        rates: (T, groups) of all steps.
    """
    peaks = rates.max(axis=0)
    if not (peaks > 0).any():
        return False  # it is refused anyway
    shares = (rates[:, peaks > 0] / peaks[peaks > 0]).max(axis=1, initial=0.0)
    half = shares[: len(shares) // 2]
    after = half[int((shares >= 1 - 1e-6).argmax()) :]
    return bool((after < 1e-12).any() or (after < 1e-6).sum() > len(half) / 100)


SPENT = (
    "reference: the scheduler {name} leaves less than a millionth of the learning rate's peak in "
    "the first half of the run, for it is stepped every {every} optimiser steps; if it counts "
    "epochs,"
)
"""The warning that it has come to nothing early; `IN_EPOCHS` or other advice follows."""
IN_EPOCHS = " pass reference_every= the optimiser steps of an epoch"

_CYCLED = ("momentum", "betas", "weight_decay")


def _stand_in(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimiser of one weight a group that holds the same settings."""
    groups = optimizer.param_groups
    dummy = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in groups], lr=0.1)
    for mine, theirs in zip(dummy.param_groups, groups, strict=True):
        settings = {key: value for key, value in theirs.items() if key != "params"}
        mine.update(copy.deepcopy(settings))
    dummy.defaults = dict(getattr(optimizer, "defaults", {}))
    return dummy


def forecast(
    optimizer: torch.optim.Optimizer, scheduler: Any, total_steps: int, by_metric: bool
) -> tuple[np.ndarray | None, frozenset[str]]:
    """Return (T, groups) rates from a copy of the scheduler, and which other keys it changes.

    None stands for a scheduler whose future is not known: it goes by a metric, or cannot be
    copied. The scheduler itself and its optimiser are left alone.

    Args:
        optimizer: The scheduler's optimiser.
        scheduler: Stands before step 0.
        total_steps: Optimiser steps of the run, T.
        by_metric: Whether it goes by a metric.

    Raises:
        AdapterError: The scheduler fails before the run's last step.
    """
    if by_metric:
        return None, frozenset()
    try:
        dummy = _stand_in(optimizer)
        owner = getattr(scheduler, "optimizer", optimizer)
        twin = copy.deepcopy(scheduler, {id(optimizer): dummy, id(owner): dummy})
    except Exception as error:  # noqa: BLE001 - any scheduler of the user's own
        logging.getLogger("trimtab").info(
            "the scheduler %s cannot be copied (%s); its future stays unknown to the policy",
            name_of(scheduler),
            error,
        )
        return None, frozenset()
    table = np.empty((total_steps, len(dummy.param_groups)), np.float64)
    first = [{key: group.get(key) for key in _CYCLED} for group in dummy.param_groups]
    cycled: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(total_steps):
            table[step] = [float(group["lr"]) for group in dummy.param_groups]
            try:
                twin.step()
            except Exception as error:
                raise AdapterError(
                    f"reference: the scheduler {name_of(scheduler)} fails at step "
                    f"{step + 1} of {total_steps} ({error}); make it for total_steps={total_steps} "
                    "optimiser steps"
                ) from error
            for group, settings in zip(dummy.param_groups, first, strict=True):
                cycled |= {key for key in _CYCLED if group.get(key) != settings[key]}
    return table, frozenset(cycled)
