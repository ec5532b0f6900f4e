"""``simulated/cnn``: fine-tuning of tiny convolutional networks on 8 x 8 digits.

Policies are never trained on this family: it is kept for the ring of unseen kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp

from trimtab.envs.simulators.datasets import MAX_CLASSES, stacked
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.families.supervised import SupervisedFamily
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.networks import Architecture, Dropout, Layout, Tensor, dropped

CHANNELS: tuple[tuple[int, int], ...] = ((8, 16), (6, 12))
"""Channels of the two convolutions, one pair a variant."""

_SIDE = 8
_TAPS = tuple((i, j) for i in range(3) for j in range(3))


@cache
def _layout(channels: tuple[int, int]) -> Layout:
    first, second = channels
    return Layout(
        (
            Tensor("0.weight", (9, first), 0),
            Tensor("0.bias", (first,), 0, decays=False),
            Tensor("1.weight", (9 * first, second), 1),
            Tensor("1.bias", (second,), 1, decays=False),
            Tensor("head.weight", (4 * second, MAX_CLASSES), 2),
            Tensor("head.bias", (MAX_CLASSES,), 2, decays=False),
        )
    )


def _pool(held_out: bool) -> Pool:
    """Return the digits, the only images, and the usual optimisers."""
    del held_out
    optimiser = distributions()["optimiser"]
    return Pool(stacked(["digits"]), (1.0,), tuple(optimiser["names"]), tuple(optimiser["shares"]))


def _inputs(rows: jax.Array, draw: Draw) -> jax.Array:
    """Return (B, 64) pixels, scaled and brightened as the task says; never turned."""
    scale = jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)
    return scale * rows + draw.shift[0]


def _logits(
    channels: tuple[int, int],
    tensors: Mapping[str, jax.Array],
    inputs: jax.Array,
    weights: jax.Array,
    dropout: Dropout | None,
) -> jax.Array:
    """Return the scores of two 3 x 3 convolutions with ReLU, then a head.

    The first has stride 2 and a border of zeros (8 x 8 pixels become 4 x 4), the second neither
    (4 x 4 become 2 x 2).
    """
    del channels, weights
    image = jnp.pad(inputs.reshape(-1, _SIDE, _SIDE, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for layer, stride in enumerate((2, 1)):  # (B, 10, 10, 1) -> (B, 4, 4, c) -> (B, 2, 2, c')
        kernel, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        image = dropped(_convolved(image, kernel, bias, stride), layer, dropout)
    flat = image.reshape(image.shape[0], -1)
    return flat @ tensors["head.weight"] + tensors["head.bias"][None]


def _convolved(image: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int) -> jax.Array:
    """Return the (B, t, t, c') ReLU of a 3 x 3 convolution of a (B, s, s, c) image.

    A convolution with weights of its own in every run of a batch compiles to a slow loop on CPUs;
    as a matrix product of patches, (B t t, 9 c) by (9 c, c'), it is fast.
    """
    reach = image.shape[1] - 2
    around = [image[:, i : i + reach : stride, j : j + reach : stride] for i, j in _TAPS]
    patches = jnp.concatenate(around, axis=-1)
    batch, side = patches.shape[:2]
    made = jax.nn.relu(patches.reshape(batch * side * side, -1) @ kernel + bias[None])
    return made.reshape(batch, side, side, -1)


def cnn_family(options: FamilyOptions) -> SupervisedFamily:
    """Return ``simulated/cnn`` with options."""
    architecture = Architecture(CHANNELS, _layout, _logits, _pool, _inputs, options.adapter_rank)
    # the patches of 4 runs' 256 images fit a core's cache; 16 runs took 1.6 times as long each
    return SupervisedFamily("simulated/cnn", architecture, options, evaluation_chunk=4)
