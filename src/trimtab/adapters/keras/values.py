"""A number of one's own that a Keras layer, loss or data pipeline reads, and that is steered."""

from __future__ import annotations

from typing import Any

from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter


class SteeredValue:
    """A number that is read by code of one's own: how strong an augmentation is, how much is mixed.

    .. code-block:: python

        class Noise(keras.layers.Layer):
            def call(self, x, training=False):
                return x + strength() * keras.random.normal(x.shape) if training else x

        strength = SteeredValue("augmentation", 0.1)
        steer = TrimtabCallback(validation, hyperparameters=("lr", strength))

    Called inside a layer or a loss it gives a tensor that the compiled step reads anew each time,
    so a new value costs no compilation. ``float(strength)`` is for Python code: a ``PyDataset`` or
    a generator, which Keras may ask for some batches ahead. Outside a steered run both give the
    start.

    Args:
        item: Name of a kind, such as ``"augmentation"``, ``"mixup"`` or ``"adapter_scale"``; any
            other name is of the kind ``"other"``. Or a `Hyperparameter` of one of these kinds.
        start: Where it stands at first; None for the kind's usual value.

    Attributes:
        item: The hyperparameter; its default is the start.
        reads: How often it was read since a run began.

    Raises:
        AdapterError: The kind is one that the adapter finds in the model by itself.
        SpecError: The start is out of bounds.
    """

    def __init__(self, item: str | Hyperparameter, start: float | None = None) -> None:
        made = hyperparameter(item, start) if isinstance(item, str) else item
        if isinstance(item, Hyperparameter) and start is not None:
            made = item.starting_at(start)
        if made.kind not in ("augmentation", "mixup", "adapter_scale", "other"):
            raise AdapterError(
                f"{made.name}: the kind {made.kind!r} is found in the model, or cannot be steered "
                "in Keras; a value of one's own is augmentation, mixup, adapter_scale or other"
            )
        self.item = made
        self.reads = 0
        self._source: Any = None

    def __call__(self) -> Any:
        """Return the value as a step reads it: a tensor in a steered run, else a number."""
        if self._source is None:
            return self.item.default
        from keras import ops

        self.reads += 1
        supplied = self._source.supply()
        return supplied if isinstance(supplied, float) else ops.convert_to_tensor(supplied)

    def __float__(self) -> float:
        if self._source is None:
            return float(self.item.default)
        self.reads += 1
        return float(self._source.number)

    def attach(self, source: Any) -> None:
        """Begin to give what a `trimtab.adapters.keras.actuators.Value` holds; None to end."""
        self._source, self.reads = source, 0
