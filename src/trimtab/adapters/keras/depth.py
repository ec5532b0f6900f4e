"""Learning rates that shrink toward a Keras model's input, and layers that stand still.

An optimiser's update is done layer by layer, each with the learning rate times its layer's factor.
The factors stand in a variable that the compiled step reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.keras.variables import plain_variable


class LayerRates:
    """What the learning rate is multiplied by in each layer that has weights of its own.

    With d layers, layer i = 0..d-1 counted from the input gets ``decay ** (d - 1 - i)``, and 0 if
    it is among the ``round(frozen * d)`` first ones; the last layer is never frozen. Weight decay
    shrinks alike. A frozen layer's weights keep every bit; the optimiser's moments of them and the
    statistics of normalisation go on.

    Source: layer-wise decay as in Howard and Ruder, "Universal Language Model Fine-tuning" (ACL
    2018), section 3.2.

    Args:
        model: The model, with its weights made.

    Attributes:
        decay: Ratio from one layer to the one before; 1 for none.
        frozen: Share of the layers that stand still, from the input on; 0 for none.
        freezes: Whether a layer may ever be frozen.
        variable: (d,) float32, the factors; None before `make`.
        reads: How often a step has read them.
    """

    def __init__(self, model: Any) -> None:
        own = [layer._trainable_variables for layer in model._flatten_layers() if layer.trainable]
        groups = [list(weights) for weights in own if len(weights)]
        self._place = {id(v): place for place, weights in enumerate(groups) for v in weights}
        self.n_layers = len(groups)
        self.decay, self.frozen, self.freezes = 1.0, 0.0, False
        self.variable: Any = None
        self.reads = 0
        self._inside: int | None = None

    def factors(self) -> np.ndarray:
        """Return the factor of each layer, (d,) float64."""
        from_output = np.arange(self.n_layers - 1, -1, -1)
        factors = np.asarray(self.decay**from_output, np.float64)
        factors[: min(round(self.frozen * self.n_layers), self.n_layers - 1)] = 0.0
        return factors

    def make(self) -> None:
        """Begin to hold the factors in a variable."""
        if self.variable is None:
            self.variable = plain_variable(
                self.factors().astype(np.float32), "float32", "trimtab_layer_rates"
            )

    def write(self, name: str, value: float) -> None:
        """Set ``layer_decay`` or ``frozen_depth``."""
        if name == "layer_decay":
            self.decay = value
        else:
            self.frozen = value
        if self.variable is not None:
            self.variable.assign(self.factors().astype(np.float32))

    def scaled(self, rate: Any) -> Any:
        """Return a learning rate as the layer whose decay is being applied has it."""
        return rate if self._inside is None else rate * self._factor(self._inside, rate)

    def methods(self, cls: Any) -> dict[str, Callable[..., None]]:
        """Return what stands in the place of an optimiser's methods.

        Args:
            cls: The optimiser's own class, whose methods do the work.
        """

        def apply_weight_decay(owner: Any, variables: Sequence[Any]) -> None:
            if owner.weight_decay is None:
                return
            for place, at in self._by_layer(variables):
                decaying = [variables[i] for i in at if owner._use_weight_decay(variables[i])]
                self._inside = place
                try:
                    if decaying:
                        cls._apply_weight_decay(owner, decaying)
                finally:
                    self._inside = None

        def update(owner: Any, gradients: Any, variables: Sequence[Any], rate: Any) -> None:
            from keras import ops

            for place, at in self._by_layer(variables):
                layer, factor = [variables[i] for i in at], self._factor(place, rate)
                before = [ops.copy(variable.value) for variable in layer] if self.freezes else []
                cls._backend_update_step(owner, [gradients[i] for i in at], layer, rate * factor)
                # What the moments keep of earlier steps would move a layer that stands still.
                for variable, old in zip(layer, before, strict=False):
                    variable.assign(ops.where(factor > 0, variable.value, old))

        return {"_apply_weight_decay": apply_weight_decay, "_backend_update_step": update}

    def _factor(self, place: int, rate: Any) -> Any:
        from keras import ops

        self.reads += 1
        return ops.cast(ops.convert_to_tensor(self.variable)[place], rate.dtype)

    def _by_layer(self, variables: Sequence[Any]) -> Iterator[tuple[int, list[int]]]:
        """Yield each layer with the places of its variables; unknown ones learn as the last."""
        places = [self._place.get(id(variable), self.n_layers - 1) for variable in variables]
        for place in sorted(set(places)):
            yield place, [i for i, other in enumerate(places) if other == place]
