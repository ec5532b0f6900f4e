"""Hands on what a Keras model trains by, besides its learning rate: found, written, proved.

Under TensorFlow and JAX a Python number is compiled into the training step, where a new value
would be lost without a word. There each value is kept in a variable that the step reads, so that a
decision costs no compilation. Under PyTorch the step reads the number itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trimtab.adapters.keras.depth import LayerRates
from trimtab.adapters.keras.dropout import dropout_call, is_known_dropout
from trimtab.adapters.keras.values import SteeredValue
from trimtab.adapters.keras.variables import Takeover, array_of, held_variable, is_compiled_backend
from trimtab.core.errors import AdapterError, unknown_name
from trimtab.core.hyperparameters import KINDS, Hyperparameter, hyperparameter, moved_value

KINDS_IN_KERAS: tuple[str, ...] = (
    "lr",
    "weight_decay",
    "momentum",
    "beta1",
    "dropout",
    "label_smoothing",
    "clip",
    "layer_decay",
    "frozen_depth",
    "ema_decay",
)
"""The kinds of hyperparameters that are found in a Keras model; others by `SteeredValue`."""

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


class Actuator:
    """Writes one hyperparameter into all its places.

    Attributes:
        item: The hyperparameter.
        values: Its places.
    """

    def __init__(self, item: Hyperparameter, values: list[Value]) -> None:
        self.item, self.values = item, values

    def write(self, offset: float) -> str:
        """Write the value at an offset; return what was not taken, or an empty string."""
        for value in self.values:
            wanted = moved_value(self.item, value.start, offset)
            value.write(wanted)
            held = value.read()
            if not math.isclose(held, wanted, rel_tol=1e-6, abs_tol=1e-12):
                return f"{self.item.name}: {wanted:g} was written and {held:g} stands there"
        return ""

    def unread(self) -> str:
        """Return what to tell if no training step has read the value, or an empty string."""
        if any(value.reads is not None and value.reads() for value in self.values):
            return ""
        where = type(self.values[0].owner).__name__
        return (
            f"{self.item.name}: the training step does not read it from {where}, so steering it "
            "changes nothing; leave it out of hyperparameters=, or let the step use that object "
            "(a step compiled before steering began keeps the old value)"
        )

    def starts(self) -> list[float]:
        """Return the start of each place, for `begin_at`."""
        return [value.start for value in self.values]

    def begin_at(self, item: Hyperparameter, starts: Iterable[float]) -> None:
        """Take over the hyperparameter and the starts of a run that goes on."""
        self.item = item
        for value, start in zip(self.values, starts, strict=True):
            value.start = float(start)


# Where each kind is kept.


def _positive(owner: Any, name: str) -> Iterator[Value]:
    value = getattr(owner, name, None)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        yield Value(owner, name, float(value))


def _dropouts(model: Any) -> Iterator[Value]:
    for layer in model._flatten_layers():
        if is_known_dropout(layer):
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


def find_hyperparameters(
    wanted: Iterable[str | Hyperparameter | SteeredValue],
    *,
    optimizer: Any,
    model: Any,
    losses: Any,
    learning_rate: float,
) -> tuple[list[Hyperparameter], list[Actuator | None]]:
    """Return each hyperparameter with its start in this model, and what writes it.

    Learning rates have no actuator (None): they are looked up inside the step.

    Args:
        wanted: Names of kinds, or objects, whose start is replaced by what stands in the model, or
            values of the user's own, which keep theirs.
        optimizer: The inner optimiser.
        model: The model.
        losses: The model's losses: one, or a nest of them.
        learning_rate: The reference's peak.

    Raises:
        AdapterError: A hyperparameter cannot be steered here, or is asked for twice.
        UnknownNameError: A name is no hyperparameter.
        SpecError: A start is outside the hyperparameter's bounds.
    """
    items: list[Hyperparameter] = []
    actuators: list[Actuator | None] = []
    layers = LayerRates(model)
    one = isinstance(wanted, str | Hyperparameter | SteeredValue)
    entries: list[Any] = [wanted] if one else list(wanted)
    for entry in entries:
        if isinstance(entry, SteeredValue):
            item, values = entry.item, [Value(entry, "value", entry.item.default)]
        else:
            kind = entry.kind if isinstance(entry, Hyperparameter) else entry
            if kind not in KINDS_IN_KERAS:
                raise _refusal(entry)
            values = [] if kind == "lr" else _values(kind, optimizer, model, losses, layers)
            if not values and kind != "lr":
                names = {"optimizer": type(optimizer).__name__, "model": type(model).__name__}
                raise AdapterError(f"{kind}: {_MISSING[kind].format(**names)}")
            item = _starting(entry, values[0].start if values else learning_rate)
        if item.kind in (other.kind for other in items if other.kind != "other"):
            raise AdapterError(
                f"hyperparameters: {item.kind!r} is asked for twice; name each kind once"
            )
        items.append(item)
        actuators.append(Actuator(item, values) if values else None)
    if not items:
        raise AdapterError("hyperparameters: () is empty; name at least one, such as ('lr',)")
    return items, actuators


def _starting(entry: str | Hyperparameter, start: float) -> Hyperparameter:
    return hyperparameter(entry, start) if isinstance(entry, str) else replace(entry, default=start)


def _refusal(item: str | Hyperparameter) -> AdapterError | LookupError:
    name = item if isinstance(item, str) else item.name
    kind = item if isinstance(item, str) else item.kind
    if kind not in KINDS:
        return unknown_name("hyperparameter", str(name), KINDS_IN_KERAS)
    return AdapterError(
        f"hyperparameters: {name!r} (kind {kind!r}) cannot be steered by name in Keras: "
        f"{_INSTEAD[str(kind)]}. By name there are {', '.join(KINDS_IN_KERAS)}"
    )


class _Carrier:
    """Brings a variable into a JAX step, which sees only what the model lists as its state.

    Random generators are listed there and are not among the weights that a file holds.
    """

    carries_steered_value = True

    def __init__(self, state: Any) -> None:
        self.state = state


@dataclass
class Hands:
    """Everything that is laid on a model for a run, and taken off again after it.

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
    _takeovers: list[Takeover] = field(default_factory=list)
    _carriers: list[_Carrier] = field(default_factory=list)

    def make(self) -> tuple[list[Any], dict[str, Callable[[], Any]]]:
        """Lay hands on layers and losses; return what the optimiser's takeover has to supply."""
        for value in self.values:
            value.make()
        for owner in {id(v.owner): v.owner for v in self.values}.values():
            if isinstance(owner, LayerRates):
                self.layers = owner
            elif owner is not self.optimizer:
                self._take_over(owner, [v for v in self.values if v.owner is owner])
        inside = [v for v in self.values if v.owner is self.optimizer]
        held = [v.held for v in inside if v.held is not None]
        return held, {v.name: v.supply for v in inside}

    def attend(self, takeover: Takeover) -> None:
        """Count how often the optimiser's settings are read."""
        for value in self.values:
            if value.owner is self.optimizer:
                value.reads = _reading(takeover, value.name)
            elif isinstance(value.owner, LayerRates | SteeredValue):
                value.reads = _own_reading(value.owner)

    def release(self) -> None:
        """Take the hands off: every object has its own values again."""
        for takeover in reversed(self._takeovers):
            takeover.release()
        generators = self.model._seed_generators
        for carrier in self._carriers:
            if carrier in generators:
                generators.remove(carrier)
        for value in self.values:
            if isinstance(value.owner, SteeredValue):
                value.owner.attach(None)
        self._takeovers, self._carriers = [], []

    def forget_reads(self) -> None:
        """Count the readings of the training step alone, from now on."""
        for takeover in self._takeovers:
            takeover.reads = dict.fromkeys(takeover.reads, 0)
        for value in self.values:
            if isinstance(value.owner, LayerRates | SteeredValue):
                value.owner.reads = 0

    def _take_over(self, owner: Any, values: list[Value]) -> None:
        (value,) = values
        if isinstance(owner, SteeredValue):
            owner.attach(value)
            self._carry(value)
            return
        if value.name == "rate":
            methods = {} if value.held is None else {"call": dropout_call}
            takeover = Takeover(owner, {"rate": value.supply}, methods)
            value.reads = _reading(takeover, "rate")
        else:
            arguments = dict(owner._fn_kwargs)
            takeover = Takeover(
                owner, {"_fn_kwargs": lambda: arguments | {value.name: value.supply()}}
            )
            value.reads = _reading(takeover, "_fn_kwargs")
        self._takeovers.append(takeover)
        self._carry(value)

    def _carry(self, value: Value) -> None:
        if value.held is not None:
            self._carriers.append(_Carrier(value.held))
            self.model._seed_generators.append(self._carriers[-1])


def _reading(takeover: Takeover, name: str) -> Callable[[], int]:
    return lambda: takeover.reads.get(name, 0)


def _own_reading(owner: LayerRates | SteeredValue) -> Callable[[], int]:
    return lambda: owner.reads
