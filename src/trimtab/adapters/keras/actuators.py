"""Where a Keras model keeps what it trains by besides its learning rate, and how a step reads it.

Under TensorFlow and JAX a Python number is compiled into the training step, where a new value
would be lost without a word. There each value is kept in a variable that the step reads, so that a
decision costs no compilation. Under PyTorch the step reads the number itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.adapters.actuators import (
    KINDS_FOUND,
    Actuator,
    Search,
    Steerable,
    SteeredValue,
    find,
)
from trimtab.adapters.keras.depth import LayerRates
from trimtab.adapters.keras.variables import (
    AttributePatch,
    array_of,
    held_variable,
    is_compiled_backend,
)
from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter

KINDS_IN_KERAS: tuple[str, ...] = (*KINDS_FOUND, "ema_decay")
"""The kinds that are found in a Keras model; others by `SteeredValue`."""

_KINDS_OF_ONES_OWN = ("augmentation", "mixup", "adapter_scale", "other")
_CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")


@dataclass
class Value:
    """One setting: a variable under a compiling backend, a number otherwise.

    Attributes:
        owner: The optimiser, layer or loss that has it.
        name: Name of the attribute.
        start: Value on entry.
        held: The variable; None for a number.
        number: The number, where there is no variable.
        reads: Returns how often a step has read it; None before it is installed.
    """

    owner: Any
    name: str
    start: float
    held: Any = None
    number: float = math.nan
    reads: Callable[[], int] | None = None

    def make(self) -> None:
        """Begin to hold the start."""
        self.number = self.start
        if isinstance(self.owner, LayerRates):
            self.owner.make()
        elif is_compiled_backend():
            self.held = held_variable(self.start, f"trimtab_{self.name}")

    def supply(self) -> Any:
        """Return what Keras is to read."""
        return self.number if self.held is None else self.held

    def tensor(self) -> Any:
        """Return what code of the user's own is to read inside a step."""
        if self.held is None:
            return self.number
        from keras import ops

        return ops.convert_to_tensor(self.held)

    def write(self, value: float) -> None:
        """Put a value there."""
        self.number = value
        if isinstance(self.owner, LayerRates):
            self.owner.write(self.name, value)
        elif self.held is not None:
            self.held.assign(np.float32(value))

    def read(self) -> float:
        """Return the value there."""
        return self.number if self.held is None else float(array_of(self.held))


def unread(actuator: Actuator) -> str:
    """Return what to tell if no training step has read the value, or an empty string."""
    if any(value.reads is not None and value.reads() for value in actuator.places):
        return ""
    where = type(actuator.places[0].owner).__name__
    return (
        f"{actuator.item.name}: the training step does not read it from {where}, so steering it "
        "changes nothing; leave it out of hyperparameters=, or let the step use that object "
        "(a step compiled before steering began keeps the old value)"
    )


# Where each kind is kept.


def _positive(owner: Any, name: str) -> Iterator[Value]:
    value = getattr(owner, name, None)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        yield Value(owner, name, float(value))


def _dropouts(model: Any) -> Iterator[Value]:
    for layer in model._flatten_layers():
        if _is_known_dropout(layer):
            yield from _positive(layer, "rate")


def _smoothings(losses: Any) -> Iterator[Value]:
    import keras

    for loss in keras.tree.flatten(losses):
        kwargs = getattr(loss, "_fn_kwargs", None)
        if isinstance(loss, keras.losses.Loss) and kwargs and "label_smoothing" in kwargs:
            yield Value(loss, "label_smoothing", float(kwargs["label_smoothing"]))


def _values(kind: str, optimizer: Any, model: Any, losses: Any, layers: LayerRates) -> list[Value]:
    if kind in ("layer_decay", "frozen_depth"):
        start = 1.0 if kind == "layer_decay" else 0.0
        layers.freezes |= kind == "frozen_depth"
        return [Value(layers, kind, start)] if layers.n_layers > 1 else []
    if kind == "ema_decay":
        return list(_positive(optimizer, "ema_momentum")) if optimizer.use_ema else []
    if kind == "dropout":
        return list(_dropouts(model))
    if kind == "label_smoothing":
        return list(_smoothings(losses))
    if kind == "clip":
        return [value for name in _CLIPS for value in _positive(optimizer, name)]
    return list(_positive(optimizer, {"beta1": "beta_1"}.get(kind, kind)))


_MISSING = {
    "weight_decay": "{optimizer} has no weight_decay above 0, and Keras leaves decay out of a step "
    "without it; compile with one to start from, such as AdamW(weight_decay=0.01)",
    "momentum": "{optimizer} has no momentum above 0; give it one to start from, such as 0.9, or "
    "steer 'beta1' for Adam-like optimisers",
    "beta1": "{optimizer} has no beta_1; use an Adam-like optimiser, or steer 'momentum'",
    "dropout": "the model {model} has no Dropout or SpatialDropout layer with a rate above 0; "
    "dropout inside recurrent cells and layers of one's own is not steered",
    "label_smoothing": "no loss object of the model takes label_smoothing; compile with "
    "loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.05), for a name or a function "
    "has nothing to hold",
    "clip": "{optimizer} clips nothing; compile it with global_clipnorm=1.0 to start from there",
    "layer_decay": "the model {model} has fewer than two layers with trained weights; there is no "
    "depth to grade",
    "frozen_depth": "the model {model} has fewer than two layers with trained weights; there is "
    "nothing to freeze",
    "ema_decay": "{optimizer} averages no weights; compile it with use_ema=True and an "
    "ema_momentum above 0",
}
_INSTEAD = {
    "batch_size": "fit has cut the data into batches before it began; fit in several parts with "
    "initial_epoch=, or steer clip and lr",
    "augmentation": "Keras does not say where it stands; read SteeredValue('augmentation', 0.1) "
    "of trimtab.adapters.keras in your layer or data set, and give that object here",
    "mixup": "Keras does not say where it stands; read SteeredValue('mixup', 0.2) of "
    "trimtab.adapters.keras in your train_step or data set, and give that object here",
    "adapter_scale": "Keras does not say where it stands; read SteeredValue('adapter_scale', 1.0) "
    "of trimtab.adapters.keras in your layer, and give that object here",
    "other": "give a SteeredValue of trimtab.adapters.keras, which your code reads",
}


def find_actuators(
    wanted: Iterable[Steerable], *, optimizer: Any, model: Any, losses: Any, learning_rate: float
) -> tuple[list[Hyperparameter], list[Actuator | None]]:
    """Return each hyperparameter with its start, and what writes it; errors are those of `find`.

    Args:
        wanted: Names of kinds, or objects.
        optimizer: The inner optimiser.
        model: The model.
        losses: The model's losses: one, or a nest of them.
        learning_rate: The reference's peak.
    """
    layers = LayerRates(model)

    def places(kind: str) -> list[Value]:
        return _values(kind, optimizer, model, losses, layers)

    search = Search(KINDS_IN_KERAS, places, _own_value, _MISSING, _refusal)
    return find(wanted, search, optimizer=optimizer, model=model, lr=learning_rate)


def _own_value(given: SteeredValue) -> Value:
    item = given.item
    if item.kind not in _KINDS_OF_ONES_OWN:
        raise AdapterError(
            f"{item.name}: the kind {item.kind!r} is found in the model, or cannot be steered "
            "in Keras; a value of one's own is augmentation, mixup, adapter_scale or other"
        )
    return Value(given, "value", item.default)


def _refusal(_name: str, kind: str) -> str:
    return (
        f"cannot be steered by name in Keras: {_INSTEAD[kind]}. By name there are "
        f"{', '.join(KINDS_IN_KERAS)}"
    )


# Dropout whose rate is a variable: the law of Keras' own layers, without a new compilation.


def _is_known_dropout(layer: Any) -> bool:
    """Return whether a layer drops as ``Dropout`` or a ``SpatialDropout`` does, by Keras' code."""
    import keras

    if not isinstance(layer, keras.layers.Dropout):
        return False
    spatial = (
        keras.layers.SpatialDropout1D,
        keras.layers.SpatialDropout2D,
        keras.layers.SpatialDropout3D,
    )
    known = {keras.layers.Dropout.call, *(cls.call for cls in spatial)}
    return type(layer).call in known


def _dropout_call(layer: Any, inputs: Any, training: bool = False) -> Any:
    """Keep each entry with probability ``1 - rate``, divided by it; ``call`` of a steered layer.

    Args:
        layer: A layer that `_is_known_dropout`; its rate is a () float32 variable.
        inputs: (batch, ...) tensor.
        training: Whether anything is dropped.

    Source: Srivastava et al., 2014, with the scaling at training time that Keras has.
    """
    import keras

    if not training:
        return inputs
    ops = keras.ops
    shape = ops.shape(inputs)
    if hasattr(layer, "_get_noise_shape"):
        wanted = layer._get_noise_shape(inputs)
    else:
        wanted = layer.noise_shape or shape
    noise_shape = tuple(shape[i] if size is None else size for i, size in enumerate(wanted))
    drawn = keras.random.uniform(noise_shape, dtype="float32", seed=layer.seed_generator)
    keep = 1.0 - ops.convert_to_tensor(layer.rate)
    mask = ops.broadcast_to(drawn < keep, shape)
    # At a rate of 1 nothing is kept, and nothing may be divided by 0.
    scaled = inputs / ops.cast(ops.maximum(keep, 1e-6), inputs.dtype)
    return ops.where(mask, scaled, ops.zeros_like(inputs))


class _Carrier:
    """Brings a variable into a JAX step, which sees only what the model lists as its state.

    Random generators are listed there and are not among the weights that a file holds.
    """

    carries_steered_value = True

    def __init__(self, state: Any) -> None:
        self.state = state


@dataclass
class ModelPatches:
    """All that is put into a model for a run, and taken out again after it.

    Args:
        model: The model.
        optimizer: The inner optimiser.
        values: All steered settings besides the learning rate; none if they will never move.
        layers: Rates of single layers, where they are steered; known after `make`.
    """

    model: Any
    optimizer: Any
    values: list[Value]
    layers: LayerRates | None = None
    _patches: list[AttributePatch] = field(default_factory=list)
    _carriers: list[_Carrier] = field(default_factory=list)

    def make(self) -> tuple[list[Any], dict[str, Callable[[], Any]]]:
        """Patch layers and losses; return what the optimiser's own patch has to supply."""
        for value in self.values:
            value.make()
        for owner in {id(v.owner): v.owner for v in self.values}.values():
            if isinstance(owner, LayerRates):
                self.layers = owner
            elif owner is not self.optimizer:
                self._patch(owner, [v for v in self.values if v.owner is owner])
        inside = [v for v in self.values if v.owner is self.optimizer]
        held = [v.held for v in inside if v.held is not None]
        return held, {v.name: v.supply for v in inside}

    def track_reads(self, patch: AttributePatch) -> None:
        """Count how often the optimiser's settings are read."""
        for value in self.values:
            if value.owner is self.optimizer:
                value.reads = _reading(patch, value.name)
            elif isinstance(value.owner, LayerRates | SteeredValue):
                value.reads = _own_reading(value.owner)

    def release(self) -> None:
        """Give every object its own values again."""
        for patch in reversed(self._patches):
            patch.release()
        generators = self.model._seed_generators
        for carrier in self._carriers:
            if carrier in generators:
                generators.remove(carrier)
        for value in self.values:
            if isinstance(value.owner, SteeredValue):
                value.owner.attach(None)
        self._patches, self._carriers = [], []

    def forget_reads(self) -> None:
        """Count the readings of the training step alone, from now on."""
        for patch in self._patches:
            patch.reads = dict.fromkeys(patch.reads, 0)
        for value in self.values:
            if isinstance(value.owner, LayerRates | SteeredValue):
                value.owner.reads = 0

    def _patch(self, owner: Any, values: list[Value]) -> None:
        (value,) = values
        if isinstance(owner, SteeredValue):
            owner.attach(value)
            self._carry(value)
            return
        if value.name == "rate":
            methods = {} if value.held is None else {"call": _dropout_call}
            patch = AttributePatch(owner, {"rate": value.supply}, methods)
            value.reads = _reading(patch, "rate")
        else:
            arguments = dict(owner._fn_kwargs)
            patch = AttributePatch(
                owner, {"_fn_kwargs": lambda: arguments | {value.name: value.supply()}}
            )
            value.reads = _reading(patch, "_fn_kwargs")
        self._patches.append(patch)
        self._carry(value)

    def _carry(self, value: Value) -> None:
        if value.held is not None:
            self._carriers.append(_Carrier(value.held))
            self.model._seed_generators.append(self._carriers[-1])


def _reading(patch: AttributePatch, name: str) -> Callable[[], int]:
    return lambda: patch.reads.get(name, 0)


def _own_reading(owner: LayerRates | SteeredValue) -> Callable[[], int]:
    return lambda: owner.reads
