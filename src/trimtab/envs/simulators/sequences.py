"""Synthetic text: token sequences whose class is the Markov chain that wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from trimtab.core.errors import unknown_name
from trimtab.envs.simulators.datasets import Rows

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
