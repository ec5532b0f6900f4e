"""Where a PyTorch loop keeps its hyperparameters besides the learning rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.adapters.actuators import (
    KINDS_FOUND,
    KINDS_THAT_ARE_READ,
    Actuator,
    Search,
    Steerable,
    SteeredValue,
    find,
)
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.proofs import Replay
from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter

KINDS_IN_A_LOOP: tuple[str, ...] = (*KINDS_FOUND, "adapter_scale")
"""The kinds that are found in a loop of the user's own; others by `SteeredValue`."""

_DROPOUT_NAME = re.compile(r"drop(out|_?prob|_?path|_?rate|_?p$)")


@dataclass
class Place:
    """One spot where a value is kept: a parameter group, a module, the clipping norm.

    Attributes:
        start: Value on entry; the place keeps its distance from the hyperparameter's start.
        read: Returns what stands there now.
        write: Puts a value there.
        owner: What reads it, for `trimtab.adapters.torch.proofs.Proofs`: a ``Replay`` of it, or a
            `SteeredValue`; None where we or the optimiser read it.
    """

    start: float
    read: Callable[[], float]
    write: Callable[[float], None]
    owner: Any = None


# Where each kind is kept.


def _group_places(optimizer: torch.optim.Optimizer, key: str, first: int = 0) -> Iterator[Place]:
    """Yield one place for each group that has a positive value; a zero was switched off."""
    for index, group in enumerate(optimizer.param_groups[first:], start=first):
        start = _first(group.get(key))
        if start is not None and float(start) > 0:
            yield Place(float(start), *_group_entry(optimizer, index, key))


def _group_entry(
    optimizer: torch.optim.Optimizer, index: int, key: str
) -> tuple[Callable[[], float], Callable[[float], None]]:
    # The group is looked up each time, for load_state_dict makes new ones.
    def read() -> float:
        return float(_first(optimizer.param_groups[index][key]))

    def write(value: float) -> None:
        group = optimizer.param_groups[index]
        held = group[key]
        if isinstance(_first(held), torch.Tensor):
            _first(held).fill_(value)
        else:
            group[key] = (value, *held[1:]) if key == "betas" else value

    return read, write


def join_groups(
    actuators: Iterable[Actuator | None], optimizer: torch.optim.Optimizer, first: int
) -> None:
    """Let what writes parameter groups write those from ``first`` on as well."""
    for actuator in actuators:
        if actuator is not None and actuator.item.kind in _GROUP_KEYS:
            actuator.places += _group_places(optimizer, _GROUP_KEYS[actuator.item.kind], first)


def _first(held: Any) -> Any:
    """Return a group's setting; of its betas the first."""
    return held[0] if isinstance(held, tuple | list) else held


def _attribute(owner: Any, name: str, reader: Any = None) -> Place:
    """Return the place of an attribute that is a number."""

    def read() -> float:
        return float(getattr(owner, name))

    return Place(read(), read, lambda value: setattr(owner, name, value), owner=reader)


def _module_places(
    modules: Iterable[nn.Module], names_of: Callable[[nn.Module], Iterable[str]]
) -> Iterator[Place]:
    for module in modules:
        for name in names_of(module):
            yield _attribute(module, name, Replay(module))


def _config_places(model: nn.Module) -> Iterator[Place]:
    """Yield dropout rates of a model's ``config``, which it may read at each forward pass."""
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items() if hasattr(config, "__dict__") else ()):
        if _DROPOUT_NAME.search(name) and isinstance(value, float) and 0 < value < 1:
            yield _attribute(config, name, Replay(model))


def _scaling_places(model: nn.Module) -> Iterator[Place]:
    """Yield how strongly each LoRA layer's adapters are added."""
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "lora_A"):
            for adapter, value in scaling.items():
                if isinstance(value, int | float) and value > 0:
                    yield Place(float(value), *_item_entry(scaling, adapter), owner=Replay(module))


def _item_entry(
    table: dict[Any, Any], key: Any
) -> tuple[Callable[[], float], Callable[[float], None]]:
    return (lambda: float(table[key])), (lambda value: table.__setitem__(key, value))


def _dropout_names(module: nn.Module) -> list[str]:
    """Return the attributes that hold a module's dropout rates, of those above 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        names = ["p"]
    elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        names = ["dropout"]
    else:  # floats that an attention layer hands to a function at each forward pass
        names = [name for name in vars(module) if _DROPOUT_NAME.search(name)]
    values = {name: getattr(module, name) for name in names}
    return [name for name, value in values.items() if isinstance(value, float) and 0 < value < 1]


def _smoothing_names(module: nn.Module) -> list[str]:
    name = "label_smoothing"
    return [name] if isinstance(getattr(module, name, None), int | float) else []


# Finding them.

_MISSING = {
    "weight_decay": "no parameter group of {optimizer} has a weight_decay above 0; "
    "give it one to start from, such as 0.01",
    "momentum": "no parameter group of {optimizer} has a momentum above 0; "
    "give it one to start from, such as 0.9, or steer 'beta1' for Adam-like optimisers",
    "beta1": "no parameter group of {optimizer} has betas; use an Adam-like optimiser, "
    "or steer 'momentum'",
    "dropout": "the model {model} has no dropout layer with a rate above 0; "
    "add one to start from, such as nn.Dropout(0.1)",
    "label_smoothing": "neither loss_fn= nor the model {model} has a label_smoothing; pass "
    "loss_fn=nn.CrossEntropyLoss(label_smoothing=0.05) and use that very object in the loop",
    "clip": "clip=None: nothing is clipped; pass clip=1.0 to start from there",
    "layer_decay": "no depth is known here; give layers=[...] from the input to the output",
    "frozen_depth": "no depth is known here; give layers=[...] from the input to the output",
    "adapter_scale": "the model {model} has no LoRA layer with a scaling above 0; wrap it with "
    "peft.get_peft_model, or give SteeredValue('adapter_scale', 1.0) and read it in your layer",
}
_GROUP_KEYS = {"momentum": "momentum", "beta1": "betas", "weight_decay": "weight_decay"}


def _places(
    kind: str,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    loss_fn: nn.Module | None,
    clipping: Place | None,
    smoothing: Place | None,
    depth: DepthRates | None,
) -> list[Place]:
    if kind in _GROUP_KEYS:
        return list(_group_places(optimizer, _GROUP_KEYS[kind]))
    if kind == "dropout":
        found = list(_module_places(model.modules(), _dropout_names))
        return found or list(_config_places(model))
    if kind == "label_smoothing":
        modules = [*(loss_fn.modules() if loss_fn is not None else ()), *model.modules()]
        found = list(_module_places(dict.fromkeys(modules), _smoothing_names))
        return found if smoothing is None else [smoothing, *found]
    if kind == "adapter_scale":
        return list(_scaling_places(model))
    if kind in ("layer_decay", "frozen_depth"):
        return [] if depth is None else [_attribute(depth, kind)]
    return [] if clipping is None else [clipping]


def _refusal(name: str, kind: str) -> str:
    choose = f"choose from {', '.join(KINDS_IN_A_LOOP)}"
    if kind in KINDS_THAT_ARE_READ:
        return (
            "stands in code of your own, where it cannot be found; read a "
            f"SteeredValue({name!r}) of trimtab.adapters.torch.values there and give that object "
            f"here, or {choose}"
        )
    return f"cannot be steered in a loop of one's own; {choose}"


def wants_depth(wanted: Iterable[Any]) -> bool:
    """Return whether a kind is asked for that needs to know the model's layers."""
    return any(getattr(e, "kind", e) in ("layer_decay", "frozen_depth") for e in wanted)


def find_actuators(
    wanted: Iterable[Steerable],
    *,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    learning_rate: float,
    loss_fn: nn.Module | None = None,
    clipping: Place | None = None,
    smoothing: Place | None = None,
    depth: DepthRates | None = None,
    cycled: frozenset[str] = frozenset(),
) -> tuple[list[Hyperparameter], list[Actuator | None]]:
    """Return each hyperparameter with its start, and what writes it; errors are those of `find`.

    Args:
        wanted: Names of kinds, or objects.
        optimizer: The optimiser.
        model: The model.
        learning_rate: The leading group's peak.
        loss_fn: Where label smoothing is kept, if not inside the model.
        clipping: Where the clipping norm is kept; None if nothing is clipped.
        smoothing: Where a trainer keeps label smoothing, or None.
        depth: What divides the optimiser's groups by depth, or None.
        cycled: Keys of the parameter groups that the adopted scheduler changes itself.
    """

    def places(kind: str) -> list[Place]:
        if _GROUP_KEYS.get(kind) in cycled:
            raise AdapterError(
                f"hyperparameters: {kind!r} is changed by the adopted scheduler as well; switch "
                "that off there (cycle_momentum=False), or leave it out here"
            )
        return _places(kind, optimizer, model, loss_fn, clipping, smoothing, depth)

    search = Search(KINDS_IN_A_LOOP, places, _own_place, _MISSING, _refusal)
    return find(wanted, search, optimizer=optimizer, model=model, lr=learning_rate)


def _own_place(value: SteeredValue) -> Place:
    return Place(value.item.default, value.held, value.hold, owner=value)
