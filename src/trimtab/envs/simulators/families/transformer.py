"""``simulated/transformer``: fine-tuning of tiny transformers on synthetic text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.simulators.datasets import MAX_CLASSES
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.families.supervised import SupervisedFamily
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.layouts import Layout, Tensor
from trimtab.envs.simulators.networks import Dropout, dropped, fan_in_normal, layer_norm
from trimtab.envs.simulators.sequences import LENGTH, VOCABULARY, stacked_chains


@dataclass(frozen=True)
class Size:
    """One size of transformer: encoder blocks with layer norm in front of each part.

    Attributes:
        width: Of the residual stream.
        n_blocks: Attention and feed-forward pairs.
        n_heads: Of the attention.
        adapter_rank: Above 0: matrices stay, low-rank adapters are trained.
    """

    width: int
    n_blocks: int = 1
    n_heads: int = 2
    adapter_rank: int = 0


SIZES: tuple[Size, ...] = (Size(16), Size(16, 2), Size(32), Size(16, adapter_rank=4))
"""Sizes that policies are trained on."""

HELD_OUT_SIZES: tuple[Size, ...] = (Size(24), Size(24, 2, 3))
"""Sizes of `FamilyOptions.held_out`."""


@cache
def _layout(size: Size) -> Layout:
    width = size.width
    tensors = [
        Tensor("token", (VOCABULARY, width), 0),
        Tensor("position", (LENGTH, width), 0, decays=False),
    ]
    for block in range(size.n_blocks):
        for name, shape in (
            ("attend.gain", (width,)),
            ("attend.shift", (width,)),
            ("query", (width, width)),
            ("key", (width, width)),
            ("value", (width, width)),
            ("mix", (width, width)),
            ("feed.gain", (width,)),
            ("feed.shift", (width,)),
            ("up", (width, 2 * width)),
            ("up.bias", (2 * width,)),
            ("down", (2 * width, width)),
            ("down.bias", (width,)),
        ):
            tensors.append(Tensor(f"{block}.{name}", shape, block + 1, decays=len(shape) == 2))
    head = size.n_blocks + 1
    tensors.append(Tensor("last.gain", (width,), head, decays=False))
    tensors.append(Tensor("last.shift", (width,), head, decays=False))
    tensors.append(Tensor("head.weight", (width, MAX_CLASSES), head))
    tensors.append(Tensor("head.bias", (MAX_CLASSES,), head, decays=False))
    return Layout(tuple(tensors))


@dataclass(frozen=True)
class Transformers:
    """Tiny transformers; an `Architecture`.

    Attributes:
        sizes: One a variant.
        rank: Above 0, overrides every size's adapter rank.
    """

    sizes: tuple[Size, ...] = SIZES
    rank: int = 0

    @property
    def n_variants(self) -> int:
        """Number of sizes."""
        return len(self.sizes)

    def pool(self, *, held_out: bool) -> Pool:
        """Return the sets of sequences and the optimisers, mostly Adam and AdamW."""
        table = distributions()["transformer"]
        which = "held_out" if held_out else "training"
        return Pool(
            stacked_chains(table[f"{which}_sets"]),
            tuple(table[f"{which}_shares"]),
            tuple(distributions()["optimiser"]["names"]),
            tuple(table["optimiser_shares"]),
        )

    def inputs(self, rows: jax.Array, draw: Draw) -> jax.Array:
        """Return (B, 8) int32 tokens; where features would be shifted, their names move on."""
        scale = jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)
        moved = jnp.round(jnp.abs(draw.shift[0]) / scale * 8.0).astype(jnp.int32)
        return (rows + moved) % VOCABULARY

    def layout(self, variant: int) -> Layout:
        """Return the tensors of the whole network."""
        return _layout(self.sizes[variant])

    def adapter_rank(self, variant: int) -> int:
        """Return the rank of the trained adapters; 0: the matrices themselves are trained."""
        return self.rank or self.sizes[variant].adapter_rank

    def initial(self, variant: int, key: jax.Array) -> dict[str, jax.Array]:
        """Return random tensors: normal of variance 1 / inputs, gains 1, biases 0."""
        tensors = {}
        for index, tensor in enumerate(self.layout(variant).tensors):
            if len(tensor.shape) == 2:
                value = fan_in_normal(jax.random.fold_in(key, index), tensor.shape, 1.0)
                if tensor.layer == 0:  # rows are looked up, not summed over
                    value = value * np.float32(0.3 * np.sqrt(tensor.shape[0]))
            else:
                value = jnp.full(tensor.shape, float(tensor.name.endswith("gain")), jnp.float32)
            tensors[tensor.name] = value
        return tensors

    def logits(
        self,
        variant: int,
        tensors: Mapping[str, jax.Array],
        inputs: jax.Array,
        weights: jax.Array,
        dropout: Dropout | None,
    ) -> jax.Array:
        """Return (B, 10) float32 scores; see `Architecture.logits`."""
        del weights
        size = self.sizes[variant]
        one_hot = jax.nn.one_hot(inputs, VOCABULARY, dtype=jnp.float32)
        stream = one_hot @ tensors["token"] + tensors["position"][None]  # (B, T, width)
        for block in range(size.n_blocks):
            own = {
                name.removeprefix(f"{block}."): value
                for name, value in tensors.items()
                if name.startswith(f"{block}.")
            }
            seen = layer_norm(stream, own["attend.gain"], own["attend.shift"])
            stream = stream + dropped(_attention(seen, own, size.n_heads), block, dropout)
            seen = layer_norm(stream, own["feed.gain"], own["feed.shift"])
            inner = jax.nn.relu(seen @ own["up"] + own["up.bias"][None, None])
            fed = inner @ own["down"] + own["down.bias"][None, None]
            stream = stream + dropped(fed, block + 1, dropout)
        pooled = layer_norm(stream.mean(1), tensors["last.gain"], tensors["last.shift"])
        return pooled @ tensors["head.weight"] + tensors["head.bias"][None]


def _attention(stream: jax.Array, own: Mapping[str, jax.Array], n_heads: int) -> jax.Array:
    """Return (B, T, width): scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""
    batch, length, width = stream.shape
    shape = (batch, length, n_heads, width // n_heads)
    query, key, value = ((stream @ own[name]).reshape(shape) for name in ("query", "key", "value"))
    scores = jnp.einsum("bthk,bshk->bhts", query, key) * np.float32((width // n_heads) ** -0.5)
    share = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bhts,bshk->bthk", share, value)
    return mixed.reshape(batch, length, width) @ own["mix"]


def transformer_family(options: FamilyOptions) -> SupervisedFamily:
    """Return ``simulated/transformer`` with options."""
    sizes = HELD_OUT_SIZES if options.held_out else SIZES
    architecture = Transformers(sizes, options.adapter_rank)
    return SupervisedFamily("simulated/transformer", architecture, options)
