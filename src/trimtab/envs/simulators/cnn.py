"""``simulated/cnn``: fine-tuning of tiny convolutional networks on 8 x 8 digits.

Policies are never trained on this family: it is kept for the ring of unseen kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from trimtab.envs.simulators.datasets import MAX_CLASSES, stacked
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.layouts import Layout, Tensor
from trimtab.envs.simulators.networks import Dropout, dropped, fan_in_normal
from trimtab.envs.simulators.supervised import SupervisedFamily

__all__ = ["CHANNELS", "Convolutions", "cnn_family"]

CHANNELS: tuple[tuple[int, int], ...] = ((8, 16), (6, 12))
"""Channels of the two convolutions, one pair a variant."""

_SIDE = 8


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


@dataclass(frozen=True)
class Convolutions:
    """Two 3 x 3 convolutions with ReLU and 2 x 2 pooling, then a head; an `Architecture`.

    Attributes:
        channels: One pair a variant.
        rank: Above 0: adapters of this rank are trained in place of the kernels.
    """

    channels: tuple[tuple[int, int], ...] = CHANNELS
    rank: int = 0

    @property
    def n_variants(self) -> int:
        """Number of shapes."""
        return len(self.channels)

    def pool(self, *, held_out: bool) -> Pool:
        """Return the digits, the only images, and the usual optimisers."""
        del held_out
        optimiser = distributions()["optimiser"]
        return Pool(
            stacked(["digits"]), (1.0,), tuple(optimiser["names"]), tuple(optimiser["shares"])
        )

    def inputs(self, rows: jax.Array, draw: Draw) -> jax.Array:
        """Return (B, 64) pixels, scaled and brightened as the task says; never turned."""
        scale = jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)
        return scale * rows + draw.shift[0]

    def layout(self, variant: int) -> Layout:
        """Return the tensors of the whole network."""
        return _layout(self.channels[variant])

    def adapter_rank(self, variant: int) -> int:
        """Return the rank of the trained adapters; 0: the kernels themselves are trained."""
        del variant
        return self.rank

    def initial(self, variant: int, key: jax.Array) -> dict[str, jax.Array]:
        """Return random tensors: He weights, biases 0."""
        return {
            tensor.name: fan_in_normal(jax.random.fold_in(key, index), tensor.shape)
            if tensor.decays
            else jnp.zeros(tensor.shape, jnp.float32)
            for index, tensor in enumerate(self.layout(variant).tensors)
        }

    def logits(
        self,
        variant: int,
        tensors: Mapping[str, jax.Array],
        inputs: jax.Array,
        weights: jax.Array,
        dropout: Dropout | None,
    ) -> jax.Array:
        """Return (B, 10) float32 scores; see `Architecture.logits`."""
        del variant, weights
        image = inputs.reshape(-1, _SIDE, _SIDE, 1)
        for layer in (0, 1):
            kernel, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
            image = jax.nn.relu(_patches(image) @ kernel + bias[None, None, None])
            batch, side, _, channels = image.shape
            # (B, s, s, c) -> (B, s/2, s/2, c)
            image = image.reshape(batch, side // 2, 2, side // 2, 2, channels).mean((2, 4))
            image = dropped(image, layer, dropout)
        flat = image.reshape(image.shape[0], -1)
        return flat @ tensors["head.weight"] + tensors["head.bias"][None]


def _patches(image: jax.Array) -> jax.Array:
    """Return (B, s, s, 9 c): every pixel's 3 x 3 surroundings, zeros outside, rows first.

    A convolution with weights of its own in every run of a batch compiles to a slow loop on CPUs;
    as a matrix product of patches it is fast.
    """
    side = image.shape[1]
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    return jnp.concatenate(around, axis=-1)


def cnn_family(options: FamilyOptions) -> SupervisedFamily:
    """Return ``simulated/cnn`` with options."""
    return SupervisedFamily("simulated/cnn", Convolutions(CHANNELS, options.adapter_rank), options)
