"""Hands on a PyTorch loop's hyperparameters besides the learning rate: written and read back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.proofs import Replay
from trimtab.adapters.torch.values import KINDS_THAT_ARE_READ, SteeredValue
from trimtab.core.errors import AdapterError, unknown_name
from trimtab.core.hyperparameters import KINDS, Hyperparameter, hyperparameter, moved_value

KINDS_IN_A_LOOP: tuple[str, ...] = (
    "lr",
    "weight_decay",
    "momentum",
    "beta1",
    "dropout",
    "label_smoothing",
    "clip",
    "layer_decay",
    "frozen_depth",
    "adapter_scale",
)
"""The kinds that are found in a loop of the user's own; others by `SteeredValue`."""

_DROPOUT_NAME = re.compile(r"drop(out|_?prob|_?path|_?rate|_?p$)")


@dataclass(frozen=True)
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


class Actuator:
    """Writes one hyperparameter into all its places, and reads it back.

    Attributes:
        item: The hyperparameter; its start is that of the first place.
        places: Where it is written.
    """

    def __init__(self, item: Hyperparameter, places: list[Place]) -> None:
        self.item = item
        self.places = places

    def write(self, offset: float) -> str:
        """Write the value at an offset; return what was not taken, or an empty string."""
        for place in self.places:
            wanted = moved_value(self.item, place.start, offset)
            if place.read() != wanted:
                place.write(wanted)
            held = place.read()
            if not math.isclose(held, wanted, rel_tol=1e-6, abs_tol=1e-12):
                return (
                    f"{self.item.name}: {wanted:g} was written and {held:g} stands there; whatever "
                    "holds it does not take new values, so leave it out of hyperparameters="
                )
        return ""

    def starts(self) -> list[float]:
        """Return the start of each place, for `begin_at`."""
        return [place.start for place in self.places]

    def begin_at(self, item: Hyperparameter, starts: Iterable[float]) -> None:
        """Take over the hyperparameter and the starts of a run that goes on."""
        self.item = item
        self.places = [
            replace(place, start=float(start))
            for place, start in zip(self.places, starts, strict=True)
        ]


# Where each kind is kept.


def _group_places(optimizer: torch.optim.Optimizer, key: str) -> Iterator[Place]:
    """Yield one place for each group that has a positive value; a zero was switched off."""
    for index, group in enumerate(optimizer.param_groups):
        start = group.get(key)
        if start is not None and float(start) > 0:
            yield Place(float(start), *_group_entry(optimizer, index, key))


def _group_entry(
    optimizer: torch.optim.Optimizer, index: int, key: str
) -> tuple[Callable[[], float], Callable[[float], None]]:
    # The group is looked up each time, for load_state_dict makes new ones.
    def read() -> float:
        return float(optimizer.param_groups[index][key])

    def write(value: float) -> None:
        group = optimizer.param_groups[index]
        if isinstance(group[key], torch.Tensor):
            group[key].fill_(value)
        else:
            group[key] = value

    return read, write


def _beta_places(optimizer: torch.optim.Optimizer) -> Iterator[Place]:
    for index, group in enumerate(optimizer.param_groups):
        betas = group.get("betas")
        if betas is not None and float(betas[0]) > 0:
            yield Place(float(betas[0]), *_beta_entry(optimizer, index))


def _beta_entry(
    optimizer: torch.optim.Optimizer, index: int
) -> tuple[Callable[[], float], Callable[[float], None]]:
    def read() -> float:
        return float(optimizer.param_groups[index]["betas"][0])

    def write(value: float) -> None:
        group = optimizer.param_groups[index]
        if isinstance(group["betas"][0], torch.Tensor):
            group["betas"][0].fill_(value)
        else:
            group["betas"] = (value, *group["betas"][1:])

    return read, write


def _module_places(
    modules: Iterable[nn.Module], names_of: Callable[[nn.Module], Iterable[str]]
) -> Iterator[Place]:
    for module in modules:
        for name in names_of(module):
            entry = _module_entry(module, name)
            yield Place(float(getattr(module, name)), *entry, owner=Replay(module))


def _config_places(model: nn.Module) -> Iterator[Place]:
    """Yield dropout rates of a model's ``config``, which it may read at each forward pass."""
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items() if hasattr(config, "__dict__") else ()):
        if _DROPOUT_NAME.search(name) and isinstance(value, float) and 0 < value < 1:
            yield Place(value, *_module_entry(config, name), owner=Replay(model))


def _scaling_places(model: nn.Module) -> Iterator[Place]:
    """Yield how strongly each LoRA layer's adapters are added."""
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "lora_A"):
            for adapter, value in scaling.items():
                if isinstance(value, int | float) and value > 0:
                    entry = _item_entry(scaling, adapter)
                    yield Place(float(value), *entry, owner=Replay(module))


def _item_entry(
    table: dict[Any, Any], key: Any
) -> tuple[Callable[[], float], Callable[[float], None]]:
    return (lambda: float(table[key])), (lambda value: table.__setitem__(key, value))


def _depth_places(kind: str, depth: DepthRates | None) -> Iterator[Place]:
    if depth is not None:
        yield Place(float(getattr(depth, kind)), *_module_entry(depth, kind))


def _module_entry(module: Any, name: str) -> tuple[Callable[[], float], Callable[[float], None]]:
    def read() -> float:
        return float(getattr(module, name))

    def write(value: float) -> None:
        setattr(module, name, value)

    return read, write


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
_CYCLED_BY = {"momentum": "momentum", "beta1": "betas", "weight_decay": "weight_decay"}


def _places(
    kind: str,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    loss_fn: nn.Module | None,
    clipping: Place | None,
    smoothing: Place | None,
    depth: DepthRates | None,
) -> list[Place]:
    if kind in ("weight_decay", "momentum"):
        return list(_group_places(optimizer, kind))
    if kind == "beta1":
        return list(_beta_places(optimizer))
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
        return list(_depth_places(kind, depth))
    return [] if clipping is None else [clipping]


def _refuse_kind(item: str | Hyperparameter) -> AdapterError | LookupError:
    name = item if isinstance(item, str) else item.name
    kind = item if isinstance(item, str) else item.kind
    if kind not in KINDS:
        return unknown_name("hyperparameter", str(name), KINDS_IN_A_LOOP)
    if kind in KINDS_THAT_ARE_READ:
        return AdapterError(
            f"hyperparameters: {name!r} (kind {kind!r}) stands in code of your own, where it "
            f"cannot be found; read a SteeredValue({str(name)!r}) of trimtab.adapters.torch.values "
            f"there and give that object here, or choose from {', '.join(KINDS_IN_A_LOOP)}"
        )
    return AdapterError(
        f"hyperparameters: {name!r} (kind {kind!r}) cannot be steered in a loop of one's own; "
        f"choose from {', '.join(KINDS_IN_A_LOOP)}"
    )


def entries_of(wanted: Any) -> list[Any]:
    """Return hyperparameters as a list that can be gone through twice; one alone is one entry."""
    return [wanted] if isinstance(wanted, str | Hyperparameter | SteeredValue) else list(wanted)


def wants_depth(wanted: Iterable[Any]) -> bool:
    """Return whether a kind is asked for that needs to know the model's layers."""
    return any(getattr(e, "kind", e) in ("layer_decay", "frozen_depth") for e in wanted)


def find_actuators(
    wanted: Iterable[str | Hyperparameter | SteeredValue],
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
    """Return each hyperparameter with its start in this loop, and what writes it.

    Learning rates have no actuator (None): the reference writes them at each step.

    Args:
        wanted: Names of kinds, or objects, whose start is replaced by what stands in the loop, or
            values of the user's own, which keep theirs.
        optimizer: The optimiser.
        model: The model.
        learning_rate: The leading group's peak.
        loss_fn: Where label smoothing is kept, if not inside the model.
        clipping: Where the clipping norm is kept; None if nothing is clipped.
        smoothing: Where a trainer keeps label smoothing, or None.
        depth: What divides the optimiser's groups by depth, or None.
        cycled: Keys of the parameter groups that the adopted scheduler changes itself.

    Raises:
        AdapterError: A hyperparameter cannot be steered in this loop, or is asked for twice.
        UnknownNameError: A name is no hyperparameter.
        SpecError: A start is outside the hyperparameter's bounds.
    """
    items: list[Hyperparameter] = []
    actuators: list[Actuator | None] = []
    for entry in entries_of(wanted):
        kind = entry.item.kind if isinstance(entry, SteeredValue) else getattr(entry, "kind", entry)
        if kind in (item.kind for item in items if item.kind != "other"):
            raise AdapterError(f"hyperparameters: {kind!r} is asked for twice; name each kind once")
        if isinstance(entry, SteeredValue):
            place = Place(entry.item.default, entry.held, entry.hold, owner=entry)
            items.append(entry.item)
            actuators.append(Actuator(entry.item, [place]))
            continue
        if kind not in KINDS_IN_A_LOOP:
            raise _refuse_kind(entry)
        if _CYCLED_BY.get(kind) in cycled:
            raise AdapterError(
                f"hyperparameters: {kind!r} is changed by the adopted scheduler as well; switch "
                "that off there (cycle_momentum=False), or leave it out here"
            )
        if kind == "lr":
            items.append(_starting(entry, learning_rate))
            actuators.append(None)
            continue
        places = _places(kind, optimizer, model, loss_fn, clipping, smoothing, depth)
        if not places:
            names = {"optimizer": type(optimizer).__name__, "model": type(model).__name__}
            raise AdapterError(f"{kind}: {_MISSING[kind].format(**names)}")
        items.append(_starting(entry, places[0].start))
        actuators.append(Actuator(items[-1], places))
    if not items:
        raise AdapterError("hyperparameters: () is empty; name at least one, such as ('lr',)")
    return items, actuators


def _starting(entry: str | Hyperparameter, start: float) -> Hyperparameter:
    return hyperparameter(entry, start) if isinstance(entry, str) else replace(entry, default=start)
