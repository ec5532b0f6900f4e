"""Architectures that `SupervisedFamily` fine-tunes, and the pieces that they share.

The tensors of a network lie in one flat vector, each with its name and place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.random_numbers import uniform_hash


@dataclass(frozen=True)
class Tensor:
    """One named array of a network.

    Attributes:
        name: Unique within its layout, such as ``"0.weight"``.
        shape: Of the array.
        layer: Depth from the input, 0 first; the head has the highest.
        decays: Whether weight decay acts on it (matrices yes; biases and norms no).
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    decays: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Layout:
    """The order in which tensors lie in a flat vector.

    Attributes:
        tensors: In order.
    """

    tensors: tuple[Tensor, ...]

    @cached_property
    def size(self) -> int:
        """Length P of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def n_layers(self) -> int:
        """Number of layers, the head included."""
        return 1 + max(tensor.layer for tensor in self.tensors)

    @cached_property
    def tensor_of_element(self) -> np.ndarray:
        """(P,) int32: index of the tensor that each element belongs to."""
        sizes = [tensor.size for tensor in self.tensors]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    @cached_property
    def layer_of_element(self) -> np.ndarray:
        """(P,) int32: layer that each element belongs to."""
        layers = np.asarray([tensor.layer for tensor in self.tensors], np.int32)
        return np.asarray(layers[self.tensor_of_element])

    @cached_property
    def decays(self) -> np.ndarray:
        """(P,) float32: 1 where weight decay acts, else 0."""
        flags = np.asarray([tensor.decays for tensor in self.tensors], np.float32)
        return np.asarray(flags[self.tensor_of_element])

    def split(self, flat: Any) -> dict[str, Any]:
        """Return the tensors of a flat (P,) vector by name."""
        named, start = {}, 0
        for tensor in self.tensors:
            named[tensor.name] = flat[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        return named

    def join(self, named: Mapping[str, Any], xp: Any = np) -> Any:
        """Return the flat (P,) vector of tensors by name; the inverse of `split`."""
        return xp.concatenate([named[tensor.name].reshape(-1) for tensor in self.tensors])


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


class Dropout(NamedTuple):
    """Dropout of one step: ``rates`` (L,) float32, one a layer; ``seed`` () uint32."""

    rates: jax.Array
    seed: jax.Array


Logits = Callable[[Any, Mapping[str, jax.Array], jax.Array, jax.Array, Dropout | None], jax.Array]
"""``(shape, tensors, inputs, weights, dropout) -> (B, 10) float32 scores``.

``tensors`` are those of the whole network, ``inputs`` (B, ...) those of `Architecture.inputs`,
``weights`` (B,) float32 are 1 for samples in use, else 0 (batch statistics heed them), and
``dropout`` is of the step, None where nothing is dropped.
"""


@dataclass(frozen=True)
class Architecture:
    """A kind of network in several shapes, as pure functions of named tensors; hashable.

    Attributes:
        shapes: One a variant, hashable.
        layout_of: Shape -> the tensors of the whole network, ``"head.weight"`` and ``"head.bias"``
            last.
        logits_of: See `Logits`.
        pool_of: Whether data are held out -> the data sets and optimisers that tasks are drawn
            from.
        inputs: ``(rows, draw) ->`` what the network gets for (B, ...) rows of the data sets, as
            the task bends it.
        rank: Above 0, overrides every shape's ``adapter_rank``.
        gain: Variance of a random matrix's elements times its inputs.
        has_embeddings: Whether the rows of the first layer's matrices are looked up, not summed
            over.
    """

    shapes: tuple[Any, ...]
    layout_of: Callable[[Any], Layout]
    logits_of: Logits
    pool_of: Callable[[bool], Pool]
    inputs: Callable[[jax.Array, Draw], jax.Array]
    rank: int = 0
    gain: float = 2.0
    has_embeddings: bool = False

    @property
    def n_variants(self) -> int:
        """Number of shapes."""
        return len(self.shapes)

    def pool(self, *, held_out: bool) -> Pool:
        """Return the data sets and optimisers that tasks are drawn from."""
        return self.pool_of(held_out)

    def layout(self, variant: int) -> Layout:
        """Return the tensors of the whole network."""
        return self.layout_of(self.shapes[variant])

    def adapter_rank(self, variant: int) -> int:
        """Return the rank of the adapters that are trained in place of the matrices; 0: none."""
        return self.rank or getattr(self.shapes[variant], "adapter_rank", 0)

    def initial(self, variant: int, key: jax.Array) -> dict[str, jax.Array]:
        """Return random tensors to be pretrained: normal matrices, gains 1, biases 0."""
        tensors = {}
        for index, tensor in enumerate(self.layout(variant).tensors):
            if len(tensor.shape) == 2:
                own = jax.random.fold_in(key, index)
                value = fan_in_normal(own, tensor.shape, self.gain)
                if self.has_embeddings and tensor.layer == 0:
                    value = value * np.float32(0.3 * np.sqrt(tensor.shape[0]))
            else:
                value = jnp.full(tensor.shape, float(tensor.name.endswith("gain")), jnp.float32)
            tensors[tensor.name] = value
        return tensors

    def logits(self, variant: int, *arguments: Any) -> jax.Array:
        """Return (B, 10) float32 scores of a variant; see `Logits` for the arguments."""
        return self.logits_of(self.shapes[variant], *arguments)


def dropped(values: jax.Array, layer: int, dropout: Dropout | None) -> jax.Array:
    """Return values with a share of them zeroed and the others scaled up (inverted dropout)."""
    if dropout is None:
        return values
    rate = dropout.rates[layer]
    keep = uniform_hash(dropout.seed, layer, values.shape) >= rate
    return jnp.where(keep, values * (1.0 / (1.0 - rate)), 0.0)


def layer_norm(values: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """Return values normalised over the last axis (Ba et al. 2016), epsilon 1e-5."""
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    shape = (1,) * (values.ndim - 1) + gain.shape
    return centred * jax.lax.rsqrt(variance + 1e-5) * gain.reshape(shape) + bias.reshape(shape)


def merged(
    base: Mapping[str, jax.Array], trained: Mapping[str, jax.Array], rank: int
) -> dict[str, jax.Array]:
    """Return the network's tensors: base ones replaced, or moved by low-rank adapters.

    Source: Hu et al. 2022, eq. 3, with scaling 1 (the hidden learning-rate factor stands in).
    """
    tensors = {name: trained.get(name, value) for name, value in base.items()}
    if rank:
        for name in base:
            if f"{name}.down" in trained:
                delta = trained[f"{name}.down"] @ trained[f"{name}.up"]
                tensors[name] = base[name] + delta.reshape(base[name].shape)
    return tensors


def fan_in_normal(key: jax.Array, shape: tuple[int, ...], gain: float = 2.0) -> jax.Array:
    """Return normal weights of variance gain / inputs (He et al. 2015 for gain 2)."""
    n_inputs = int(np.prod(shape[:-1]))
    return jax.random.normal(key, shape, jnp.float32) * np.float32(np.sqrt(gain / n_inputs))
