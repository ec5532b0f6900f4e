"""Random numbers by counting, the same in NumPy and under JAX.

A number is a hash of (seed, stream, position): any of them can be had at any time in any order, so
nothing has to be carried along, and restoring a snapshot does not change what comes next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)


def _mixed(value: Any) -> Any:
    """Return uint32 hashes: the "lowbias32" finaliser of C. Wellons' hash prospector."""
    value = value ^ (value >> np.uint32(16))
    value = value * np.uint32(0x7FEB352D)
    value = value ^ (value >> np.uint32(15))
    value = value * np.uint32(0x846CA68B)
    return value ^ (value >> np.uint32(16))


def uniform(seed: Any, stream: int, positions: Any) -> Any:
    """Return (n,) float32 numbers in (0, 1).

    Args:
        seed: (1,) uint32.
        stream: Tells apart what is drawn under one seed.
        positions: (n,) uint32.
    """
    start = _mixed(seed + np.uint32((stream * 0x85EBCA6B) & 0xFFFFFFFF))
    bits = _mixed(_mixed(positions * _GOLDEN + start) + start)
    return ((bits >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)


def normal(seed: Any, stream: int, positions: Any, xp: Any) -> Any:
    """Return (n,) standard normal float32 numbers, by Box and Muller; see `uniform`."""
    first = uniform(seed, stream, positions)
    second = uniform(seed, stream + 1000, positions)
    radius = xp.sqrt(np.float32(-2.0) * xp.log(first))
    return radius * xp.cos(np.float32(2.0 * np.pi) * second)


def seed_of(key: Any, xp: Any) -> Any:
    """Return a (1,) uint32 seed for a key of two uint32 words, such as ``jax.random.PRNGKey``."""
    words = xp.asarray(key)
    if words.dtype != np.uint32:  # a typed key of JAX
        import jax

        words = jax.random.key_data(key)
    return _mixed(_mixed(words[:1] + _GOLDEN) + words[1:2])
