"""Dropout whose rate is a variable: the law of Keras' own layers, without a new compilation."""

from __future__ import annotations

from typing import Any


def is_known_dropout(layer: Any) -> bool:
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


def dropout_call(layer: Any, inputs: Any, training: bool = False) -> Any:
    """Keep each entry with probability ``1 - rate``, divided by it; ``call`` of a steered layer.

    Args:
        layer: A layer that `is_known_dropout`; its rate is a () float32 variable.
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
