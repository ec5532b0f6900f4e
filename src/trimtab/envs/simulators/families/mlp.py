"""``simulated/mlp``: fine-tuning of small fully connected networks of many shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from trimtab.envs.simulators.datasets import FEATURES, MAX_CLASSES, stacked
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.families.supervised import SupervisedFamily
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.networks import (
    ACTIVATIONS,
    Architecture,
    Dropout,
    Layout,
    Tensor,
    dropped,
    layer_norm,
)


@dataclass(frozen=True)
class Shape:
    """One shape of network.

    Attributes:
        widths: Of the hidden layers.
        activation: A name in `ACTIVATIONS`.
        norm: ``"none"``, ``"layer"``, or ``"batch"`` (statistics of the batch at hand, in
            evaluation of the split at hand).
        residual: Whether hidden layers after the first add to their input (equal widths).
        adapter_rank: Above 0: hidden matrices stay, low-rank adapters are trained.
        drops_before_head: Whether the head's layer has a dropout of its own, on its input.
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    norm: str = "none"
    residual: bool = False
    adapter_rank: int = 0
    drops_before_head: bool = False


SHAPES: tuple[Shape, ...] = (
    Shape((32, 32)),
    Shape((64,), "tanh"),
    Shape((16, 16, 16), "relu", "layer", residual=True),
    Shape((32,), "gelu", "layer"),
    Shape((64, 32)),
    Shape((32, 32, 32), "silu", "layer", residual=True),
    Shape((16, 16), "tanh"),
    Shape((32, 32), "relu", "batch"),
    Shape((40, 40), "gelu", residual=True),
    Shape((56, 40), "silu", "batch"),
    Shape((32, 32), "relu", adapter_rank=4),
    Shape((64, 32), "gelu", "layer", adapter_rank=2),
)
"""Shapes that policies are trained on; all inputs have 64 features, all heads 10 outputs."""

HELD_OUT_SHAPES: tuple[Shape, ...] = (
    Shape((24, 24)),
    Shape((48,), "tanh"),
    Shape((48, 24), "gelu", "layer"),
    Shape((24, 24, 24), "silu", "layer", residual=True),
    Shape((48, 48), "relu", "batch"),
    Shape((24, 24), "relu", adapter_rank=4),
)
"""Shapes of `FamilyOptions.held_out`: widths 24 and 48 only."""


@cache
def _layout(shape: Shape) -> Layout:
    tensors, before = [], FEATURES
    for index, width in enumerate(shape.widths):
        tensors.append(Tensor(f"{index}.weight", (before, width), index))
        tensors.append(Tensor(f"{index}.bias", (width,), index, decays=False))
        if shape.norm != "none":
            tensors.append(Tensor(f"{index}.gain", (width,), index, decays=False))
        before = width
    head = len(shape.widths)
    tensors.append(Tensor("head.weight", (before, MAX_CLASSES), head))
    tensors.append(Tensor("head.bias", (MAX_CLASSES,), head, decays=False))
    return Layout(tuple(tensors))


def _pool(held_out: bool) -> Pool:
    """Return the 64-feature data sets and the usual optimisers."""
    data, optimiser = distributions()["data"], distributions()["optimiser"]
    which = "held_out" if held_out else "training"
    return Pool(
        stacked(data[f"{which}_sets"]),
        tuple(data[f"{which}_shares"]),
        tuple(optimiser["names"]),
        tuple(optimiser["shares"]),
    )


def _inputs(rows: jax.Array, draw: Draw) -> jax.Array:
    """Return (B, 64) features scaled, turned in planes and shifted as the task says."""
    turned = draw.turn[None, :] * jnp.roll(rows, rows.shape[1] // 2, axis=1)
    return draw.gain[None, :] * rows + turned + draw.shift[None, :]


def _logits(
    shape: Shape,
    tensors: Mapping[str, jax.Array],
    inputs: jax.Array,
    weights: jax.Array,
    dropout: Dropout | None,
) -> jax.Array:
    activation = ACTIVATIONS[shape.activation]
    hidden = inputs
    for index in range(len(shape.widths)):
        bias = tensors[f"{index}.bias"]
        new = hidden @ tensors[f"{index}.weight"]
        if shape.norm == "layer":
            new = layer_norm(new, tensors[f"{index}.gain"], bias)
        elif shape.norm == "batch":
            new = _batch_norm(new, tensors[f"{index}.gain"], bias, weights)
        else:
            new = new + bias[None, :]
        new = dropped(activation(new), index, dropout)
        hidden = hidden + new if shape.residual and index else new
    if shape.drops_before_head:
        hidden = dropped(hidden, len(shape.widths), dropout)
    return hidden @ tensors["head.weight"] + tensors["head.bias"][None, :]


def _batch_norm(
    values: jax.Array, gain: jax.Array, bias: jax.Array, weights: jax.Array
) -> jax.Array:
    share = (weights / weights.sum())[None, :]
    centred = values - share @ values
    variance = share @ (centred * centred)
    return centred * jax.lax.rsqrt(variance + 1e-5) * gain[None, :] + bias[None, :]


def perceptrons(shapes: tuple[Shape, ...], rank: int = 0) -> Architecture:
    """Return fully connected networks on the 64-feature data sets.

    Args:
        shapes: One a variant.
        rank: Above 0, overrides every shape's adapter rank.
    """
    return Architecture(shapes, _layout, _logits, _pool, _inputs, rank)


def mlp_family(options: FamilyOptions) -> SupervisedFamily:
    """Return ``simulated/mlp`` with options."""
    shapes = HELD_OUT_SHAPES if options.held_out else SHAPES
    return SupervisedFamily("simulated/mlp", perceptrons(shapes, options.adapter_rank), options)
