"""Averages of the weights that a loop keeps beside its model: moving averages, SWA."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell

_DEEPEST = 4  # containers inside of one another

_KNOWN = frozenset(
    {"AveragedModel", "EMA", "EMAModel", "ExponentialMovingAverage", "ModelEMA", "ModelEma"}
    | {"ModelEmaV2", "ModelEmaV3"}
)
"""Classes of torch, timm, Ultralytics, torch-ema, ema-pytorch and diffusers."""


class _Leaf(NamedTuple):
    """A tensor or number of an average, and how to put another one in its place."""

    value: Any
    put: Callable[[Any], None] | None
    drop: Callable[[], None] | None


class Averages:
    """Averages that are kept and put back with the model that they follow.

    Of each object its tensors (parameters and buffers of a module; else those in its attributes,
    also in lists and dicts) and its counters (numbers among its attributes) are kept. Tensors are
    put back in place. What belongs to the model is left out.

    Args:
        given: One such object, or several: an ``AveragedModel``, timm's ``ModelEmaV3``, a module,
            a dict or list of tensors, or an object of a class of the user's own.
        model: The model.

    Attributes:
        modules: The modules among them.

    Raises:
        AdapterError: One of them holds no tensors of its own.
    """

    def __init__(self, given: Any, model: nn.Module) -> None:
        one = given is not None and not _is_several(given)
        self.objects = [given] if one else list(given or ())
        self._model = model
        for index, item in enumerate(self.objects):
            leaves = self._leaves_of(item)
            has_tensors = any(isinstance(leaf.value, torch.Tensor) for _, leaf in leaves)
            if not has_tensors and not _is_to_be_filled(item):
                raise AdapterError(
                    f"averaged: {type(item).__name__} at place {index} holds no tensors of its "
                    "own; give the average itself (an AveragedModel, a ModelEmaV3, the averaged "
                    "module, or an object or dict with its tensors)"
                )

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are averages, or that one holds."""
        own = _places(self._tensors_of_model())
        held = [value for one in self.objects for value in _held_by(one)]
        return [m for m in held if isinstance(m, nn.Module) and not _shares(m.parameters(), own)]

    def beside_model(self) -> nn.Module:
        """Return a module that holds the model and the averages: what a validation may touch."""
        return nn.ModuleList([self._model, *self.modules]) if self.modules else self._model

    def collect(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the live tensors by name, and the counters by name."""
        leaves = [(name, leaf.value) for name, leaf in self._leaves()]
        tensors = {n: value.detach() for n, value in leaves if isinstance(value, torch.Tensor)}
        return tensors, {n: value for n, value in leaves if not isinstance(value, torch.Tensor)}

    def put_back(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Put back what was collected; what is in a dict and was not then is taken out of it."""
        for name, (value, put, drop) in list(self._leaves()):
            if not isinstance(value, torch.Tensor):
                if name in numbers and put is not None:
                    put(numbers[name])
                continue
            kept = tensors.get(name)
            if kept is not None and kept.shape == value.shape:
                value.copy_(kept)
            elif kept is not None and put is not None:
                put(kept.to(value.device, copy=True))
            elif kept is None and drop is not None:
                drop()

    def tell_of_others(self) -> None:
        """Say that there are averages of such weights that nobody named: the first that is found.

        To be called where weights go back, for that is where it matters: the search goes through
        all objects of the process.
        """
        shapes = [weight.shape for weight in self._model.parameters()]
        named = _places([*self._tensors_of_model(), *self.collect()[0].values()])
        is_known: dict[type, bool] = {}
        for one in gc.get_objects():
            cls = type(one)
            if cls not in is_known:
                is_known[cls] = bool(_KNOWN & {base.__name__ for base in cls.__mro__})
            if is_known[cls] and [w.shape for w in _weights_of(one, named)] == shapes:
                tell(_NOT_NAMED.format(name=cls.__name__))
                return

    def _leaves(self) -> Iterator[tuple[str, _Leaf]]:
        for index, item in enumerate(self.objects):
            for name, leaf in self._leaves_of(item):
                yield f"averaged.{index}.{name}", leaf

    def _leaves_of(self, item: Any) -> Iterator[tuple[str, _Leaf]]:
        seen = own = _places(self._tensors_of_model())
        if isinstance(item, nn.Module):
            walk = _of_module(item, "module.", own)
        elif isinstance(item, dict | list | tuple):
            walk = _walk(item, "", own)
        else:
            walk = _walk(_attributes(item), "", own, of_object=True)
        for name, leaf in walk:
            if isinstance(leaf.value, torch.Tensor):
                place = _place(leaf.value)
                if place in seen:
                    continue
                seen = seen | {place}
            yield name, leaf

    def _tensors_of_model(self) -> list[torch.Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


def _is_several(given: Any) -> bool:
    if not isinstance(given, list | tuple | nn.ModuleList):
        return False
    return not given or not all(isinstance(one, torch.Tensor) for one in given)


def _is_to_be_filled(item: Any) -> bool:
    """Return whether an average may get its tensors at its first update."""
    held = [] if isinstance(item, nn.Module) else _attributes(item).values()
    return any(isinstance(value, dict | list) and not value for value in held)


def _attributes(item: Any) -> dict[str, Any]:
    held: dict[str, Any] = getattr(item, "__dict__", {})
    return held


def _held_by(item: Any) -> list[Any]:
    return [item, *_attributes(item).values()]


def _of_module(module: nn.Module, prefix: str, own: set[Any]) -> Iterator[tuple[str, _Leaf]]:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield prefix + name, _Leaf(tensor, None, None)
    yield from _walk(_attributes(module), prefix, own, of_object=True)


def _walk(
    inside: Any, prefix: str, own: set[Any], depth: int = _DEEPEST, *, of_object: bool = False
) -> Iterator[tuple[str, _Leaf]]:
    """Yield the tensors and numbers in a mapping or sequence, and in modules among them.

    Args:
        inside: Them; of an object its attributes.
        prefix: Of the names.
        own: Where the model's tensors lie; a module that holds one is the model.
        depth: How many containers deep to look.
        of_object: Whether these are attributes, which are never taken out.
    """
    pairs = inside.items() if isinstance(inside, dict) else enumerate(inside)
    for key, value in list(pairs):
        name = f"{prefix}{key}"
        if of_object and key in _OF_EVERY_MODULE:
            continue
        if isinstance(value, nn.Module):
            if not _shares(value.parameters(), own):
                yield from _of_module(value, f"{name}.", own)
        elif isinstance(value, dict | list | tuple) and depth:
            yield from _walk(value, f"{name}.", own, depth - 1)
        elif isinstance(value, torch.Tensor) or _is_number(value):
            put = None if isinstance(inside, tuple) else partial(inside.__setitem__, key)
            is_dict = isinstance(inside, dict) and not of_object
            yield name, _Leaf(value, put, partial(inside.__delitem__, key) if is_dict else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(tensor: torch.Tensor) -> Any:
    """Return where a tensor lies; two views of one place are one tensor."""
    with suppress(RuntimeError):
        if tensor.numel():
            return tensor.device, tensor.data_ptr(), tensor.shape
    return id(tensor)


def _places(tensors: Iterable[torch.Tensor]) -> set[Any]:
    return set(map(_place, tensors))


def _shares(tensors: Iterable[torch.Tensor], places: set[Any]) -> bool:
    return any(_place(tensor) in places for tensor in tensors)


def _weights_of(average: Any, others: set[Any]) -> list[torch.Tensor]:
    """Return the weights that an average holds, which are not among others; [] for none."""
    for value in _held_by(average):
        weights: list[torch.Tensor] = []
        if isinstance(value, nn.Module):
            weights = list(value.parameters())
        elif isinstance(value, list | tuple) and isinstance(next(iter(value), None), torch.Tensor):
            weights = list(value)
        if weights and not _shares(weights, others):
            return weights
    return []


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NOT_NAMED = (
    "averaged: the weights went back to the best ones, and a {name} of such weights did not, so it "
    "may hold what was undone; pass it as averaged= to have it kept and put back with them (if it "
    "belongs to another model, take no notice)"
)
