"""``simulated/transformer``: fine-tuning of tiny transformers on synthetic text.

The text is token sequences whose class is the Markov chain that wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.core.errors import unknown_name
from trimtab.envs.simulators.datasets import MAX_CLASSES, Rows
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Draw, Pool
from trimtab.envs.simulators.families.supervised import SupervisedFamily
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.networks import (
    Architecture,
    Dropout,
    Layout,
    Tensor,
    dropped,
    layer_norm,
)

LENGTH = 8
VOCABULARY = 16
_SAMPLES = 2400

# name -> (classes, sharpness of the transitions: higher is easier)
CHAINS: dict[str, tuple[int, float]] = {
    "chain-0": (10, 2.5),
    "chain-1": (6, 2.0),
    "chain-2": (4, 1.5),
    "chain-3": (8, 3.0),
    "chain-4": (10, 2.0),
    "chain-5": (5, 1.5),
}
"""Every set of sequences."""


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


@cache
def _chain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 8) int32 tokens and (n,) int32 classes."""
    if name not in CHAINS:
        raise unknown_name("set of sequences", name, CHAINS)
    n_classes, sharpness = CHAINS[name]
    random = np.random.default_rng(3000 + list(CHAINS).index(name))
    common = random.normal(size=(VOCABULARY, VOCABULARY))
    own = random.normal(size=(n_classes, VOCABULARY, VOCABULARY))
    scores = np.exp(common[None] + sharpness * own)
    ends = np.cumsum(scores / scores.sum(-1, keepdims=True), axis=-1)
    classes = random.integers(n_classes, size=_SAMPLES)
    tokens = np.empty((_SAMPLES, LENGTH), np.int32)
    tokens[:, 0] = random.integers(VOCABULARY, size=_SAMPLES)
    for place in range(1, LENGTH):
        chance = random.random((_SAMPLES, 1))
        below = ends[classes, tokens[:, place - 1]] < chance
        tokens[:, place] = np.minimum(below.sum(1), VOCABULARY - 1)
    return tokens, classes.astype(np.int32)


def stacked_chains(names: Sequence[str]) -> Rows:
    """Return the named sets one below the other; ``inputs`` (R, 8) int32.

    Raises:
        UnknownNameError: There is no such set.
    """
    sets = [_chain(name) for name in names]
    sizes = np.full(len(sets), _SAMPLES, np.int32)
    return Rows(
        np.concatenate([tokens for tokens, _ in sets]),
        np.concatenate([classes for _, classes in sets]),
        np.arange(len(sets), dtype=np.int32) * _SAMPLES,
        sizes,
        np.asarray([CHAINS[name][0] for name in names], np.int32),
    )


def _pool(held_out: bool) -> Pool:
    """Return the sets of sequences and the optimisers, mostly Adam and AdamW."""
    table = distributions()["transformer"]
    which = "held_out" if held_out else "training"
    return Pool(
        stacked_chains(table[f"{which}_sets"]),
        tuple(table[f"{which}_shares"]),
        tuple(distributions()["optimiser"]["names"]),
        tuple(table["optimiser_shares"]),
    )


def _inputs(rows: jax.Array, draw: Draw) -> jax.Array:
    """Return (B, 8) int32 tokens; where features would be shifted, their names move on."""
    scale = jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)
    moved = jnp.round(jnp.abs(draw.shift[0]) / scale * 8.0).astype(jnp.int32)
    return (rows + moved) % VOCABULARY


def _logits(
    size: Size,
    tensors: Mapping[str, jax.Array],
    inputs: jax.Array,
    weights: jax.Array,
    dropout: Dropout | None,
) -> jax.Array:
    del weights
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
    architecture = Architecture(
        sizes,
        _layout,
        _logits,
        _pool,
        _inputs,
        options.adapter_rank,
        gain=1.0,
        has_embeddings=True,
    )
    return SupervisedFamily("simulated/transformer", architecture, options)
