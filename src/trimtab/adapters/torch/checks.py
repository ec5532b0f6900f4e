"""Whether what a user's loop hands over can be steered; said before anything is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import MutableMapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.sharding import ADVICE, put_shards_back, why_refused
from trimtab.adapters.torch.wrappers import SecondStep, has_two_steps, unwrapped
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell


def check_optimizers(given: Any) -> list[Any]:
    """Return the optimisers that are handed over, one or a list of several, as they are stepped.

    Raises:
        AdapterError: One of them cannot be steered, or two hold the same weight.
    """
    if isinstance(given, dict | set | frozenset):
        raise AdapterError(
            f"optimizer: {len(given)} optimisers in a {type(given).__name__}, which has no order "
            "to step them in; give a list, such as [muon, adamw]"
        )
    optimizers = list(given) if isinstance(given, list | tuple) else [given]
    if not optimizers:
        raise AdapterError("optimizer: an empty list; give one optimiser, or [muon, adamw]")
    held: dict[int, int] = {}
    for index, optimizer in enumerate(optimizers):
        check_optimizer(optimizer)
        for weight in (w for group in optimizer.param_groups for w in group["params"]):
            if held.setdefault(id(weight), index) != index:
                raise AdapterError(
                    f"optimizer: a weight of shape {tuple(weight.shape)} is held by optimisers "
                    f"{held[id(weight)]} and {index} of the list; give each weight to one"
                )
    return [SecondStep(one) if has_two_steps(one) else one for one in optimizers]


def check_optimizer(optimizer: Any) -> None:
    """Raise unless this is one optimiser that steps without a closure.

    Raises:
        AdapterError: It is none at all, has no weights or no rate, or needs a closure.
    """
    refused = why_refused(None, unwrapped(optimizer)) or why_refused(None, optimizer)
    if refused:
        raise AdapterError(f"optimizer: {refused}, which cannot be kept or put back here; {ADVICE}")
    needed = ("param_groups", "state", "step", "zero_grad")
    missing = [name for name in needed if not hasattr(optimizer, name)]
    if missing:
        raise AdapterError(
            f"optimizer: {type(optimizer).__name__} has no {', '.join(missing)}; "
            "give a torch.optim.Optimizer"
        )
    step = getattr(type(optimizer), "step", optimizer.step)  # a wrapper may pass it on
    closure = inspect.signature(step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty
    if needs_closure or isinstance(optimizer, torch.optim.LBFGS):
        raise AdapterError(
            f"optimizer: {type(optimizer).__name__} evaluates the loss itself through a closure; "
            "such steps cannot be steered, so use one that steps on gradients, such as AdamW"
        )
    check_groups(unwrapped(optimizer))
    if not any(group["params"] for group in optimizer.param_groups):
        raise AdapterError("optimizer: it holds no weights; give it model.parameters()")


def check_groups(optimizer: Any) -> None:
    """Raise unless each parameter group is a dict that has weights and a rate.

    Raises:
        AdapterError: It has none, or the optimiser finds its rate itself.
    """
    name = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        if not isinstance(group, MutableMapping) or "params" not in group:
            raise AdapterError(
                f"optimizer: parameter group {index} of {name} is {type(group).__name__}, not a "
                "dict that holds 'params' and 'lr'; give an optimiser whose param_groups are those "
                "of torch.optim.Optimizer"
            )
        rate, finds_its_own = group.get("lr"), bool(group.get("relative_step"))
        is_number = isinstance(rate, Real) or (isinstance(rate, torch.Tensor) and rate.numel() == 1)
        if is_number and not finds_its_own:
            continue
        why = "it finds its rate itself" if rate is None or finds_its_own else "that is no number"
        advice = ", relative_step=False" if finds_its_own else ""
        raise AdapterError(
            f"lr: {rate!r} in parameter group {index} of {name}: {why}, and there is nothing to "
            f"steer; make it with a number, such as {name}(..., lr=1e-3{advice})"
        )


def check_model(model: Any) -> None:
    """Raise unless this is a module.

    Raises:
        AdapterError: It is something else, or spreads its weights in a way of its own.
    """
    if not isinstance(model, nn.Module):
        raise AdapterError(
            f"model: {type(model).__name__} is no torch.nn.Module; give the model that is trained "
            "(several: torch.nn.ModuleList([...]))"
        )
    refused = why_refused(model)
    if refused:
        raise AdapterError(f"model: {refused}, which cannot be kept or put back here; {ADVICE}")
    put_shards_back(model)


def check_weights(optimizer: Any, model: nn.Module) -> None:
    """Raise unless the optimiser trains the model; tell of weights that are not the model's.

    Args:
        optimizer: One optimiser, or several as one.
        model: Whose weights they should be.

    Raises:
        AdapterError: None of its weights is the model's, or the model's have no numbers.
    """
    mine = {id(weight) for weight in model.parameters()}
    empty = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if empty is not None:
        raise AdapterError(
            f"model: its weight {empty!r} is on the device 'meta', so it holds no numbers; load "
            "the weights onto a real device first, and make the optimiser from them"
        )
    groups = [list(group["params"]) for group in optimizer.param_groups]
    foreign = [
        f"{tuple(weight.shape)} in group {index}"
        for index, weights in enumerate(groups)
        for weight in weights
        if id(weight) not in mine
    ]
    count, name = sum(map(len, groups)), type(model).__name__
    if len(foreign) == count:
        raise AdapterError(
            f"optimizer: none of the {count} weights of {type(optimizer).__name__} is in the model "
            f"{name}, so nothing of it would be steered; make it from model.parameters() of this "
            "very model, after its weights were last replaced, and let it step them itself (an "
            "optimiser inside backward, such as GaLore's layer-wise one, cannot be steered)"
        )
    if foreign:
        listed = ", ".join(foreign[:_MOST_LISTED]) + (", ..." if foreign[_MOST_LISTED:] else "")
        tell(
            f"optimizer: {len(foreign)} of its {count} weights are not in the model {name} (shape "
            f"{listed}); they are steered and kept with it, but give all that is trained as "
            "model=torch.nn.ModuleList([...]) to have their buffers kept as well"
        )


_MOST_LISTED = 5


def check_clip(clip: Any) -> float | None:
    """Return the gradient norm to clip at.

    Raises:
        AdapterError: It is neither None nor a finite number above 0.
    """
    if clip is None:
        return None
    if not isinstance(clip, int | float) or not math.isfinite(clip) or clip <= 0:
        raise AdapterError(
            f"clip: {clip!r} is not a finite norm above 0; give one, or None to clip nothing"
        )
    return float(clip)


def check_scaler(scaler: Any) -> None:
    """Raise unless this is None or a gradient scaler.

    Raises:
        AdapterError: It is something else.
    """
    needed = ("step", "update", "unscale_", "state_dict", "load_state_dict")
    if scaler is not None and not all(hasattr(scaler, name) for name in needed):
        raise AdapterError(
            f"scaler: {type(scaler).__name__} is no gradient scaler; give a torch.amp.GradScaler"
        )


def check_every(every: Any) -> None:
    """Raise unless this is a whole number of optimiser steps.

    Raises:
        AdapterError: It is something else.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise AdapterError(
            f"reference_every: {every!r} is not a whole number of at least 1; give the optimiser "
            "steps between two steps of the scheduler, such as len(loader)"
        )


def check_loss(loss: Any, told: str = "step(loss)") -> None:
    """Raise unless this is one number.

    Args:
        loss: What was handed over.
        told: The call, in messages.

    Raises:
        AdapterError: It is something else.
    """
    if isinstance(loss, torch.Tensor):
        if loss.numel() != 1:
            raise AdapterError(
                f"{told}: a tensor of shape {tuple(loss.shape)}; give the mean loss of the "
                "step, one number"
            )
    elif not isinstance(loss, int | float):
        raise AdapterError(
            f"{told}: {loss!r} is no loss; give the mean loss of the step, one number"
        )


def lead_group(rates: Sequence[float]) -> int:
    """Return the first of an optimiser's parameter groups that learns at all.

    Args:
        rates: The groups' learning rates.

    Raises:
        AdapterError: One is not finite or below 0, or all are 0.
    """
    for index, rate in enumerate(rates):
        if not math.isfinite(rate) or rate < 0:
            raise AdapterError(
                f"lr: {rate!r} in parameter group {index} of the optimiser; "
                "give a finite learning rate above 0"
            )
    positive = [index for index, rate in enumerate(rates) if rate > 0]
    if not positive:
        raise AdapterError(
            "lr: 0.0 in every parameter group of the optimiser; "
            "give a learning rate above 0, for a multiplier of 0 stays 0"
        )
    return positive[0]
