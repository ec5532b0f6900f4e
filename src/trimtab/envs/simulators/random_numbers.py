"""Random numbers by counting, the same in NumPy and under JAX.

A number is a hash of (seed, stream, position): any of them can be had at any time in any order, so
nothing has to be carried along, and restoring a snapshot does not change what comes next. JAX's
cryptographic generators cost more than a training step of a tiny network; these do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)
# Primes above every training-set size: multiplying by one permutes the positions modulo n.
_PRIMES = np.asarray(
    [
        *(4099, 4591, 5237, 5939, 6619, 7321, 8011, 8719, 9433),
        *(10159, 10883, 11587, 12301, 13007, 13709, 14423, 15131, 15823),
    ],
    np.uint32,
)


def mixed(value: Any) -> Any:
    """Return uint32 hashes of uint32 values; every input bit reaches every output bit.

    Source: the "lowbias32" finaliser of C. Wellons' hash prospector (public domain).
    """
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
    start = mixed(seed + np.uint32((stream * 0x85EBCA6B) & 0xFFFFFFFF))
    bits = mixed(mixed(positions * _GOLDEN + start) + start)
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
    return mixed(mixed(words[:1] + _GOLDEN) + words[1:2])


def uniform_hash(seed: Any, stream: int, shape: tuple[int, ...]) -> Any:
    """Return float32 numbers in [0, 1) of ``shape``, hashed once, under JAX.

    Args:
        seed: () uint32.
        stream: Tells apart several arrays drawn under one seed.
        shape: Of the result.
    """
    import jax.numpy as jnp

    size = int(np.prod(shape))
    positions = jnp.arange(size, dtype=jnp.uint32) * _GOLDEN
    start = mixed(seed + np.uint32((stream * 0x85EBCA6B) & 0xFFFFFFFF))
    bits = mixed(positions + start)
    return ((bits >> 8).astype(jnp.float32) * np.float32(2.0**-24)).reshape(shape)


def batch_positions(seed: Any, step: Any, batch: Any, n_slots: int, n_train: Any) -> Any:
    """Return which training samples make up a batch: each sample once an epoch, in a new order.

    Args:
        seed: () uint32, the run's data order.
        step: () int32, optimiser step of the whole run.
        batch: () int32, batch size; positions from ``batch`` on are to be masked by the caller.
        n_slots: Static length of the result.
        n_train: () int32, size of the training set, below 4,099.

    Returns:
        (n_slots,) int32 in [0, n_train).
    """
    import jax.numpy as jnp

    n = n_train.astype(jnp.uint32)
    element = (step * batch + jnp.arange(n_slots, dtype=jnp.int32)).astype(jnp.uint32)
    epoch, place = element // n, element % n
    code = mixed(seed + epoch * _GOLDEN)
    prime = jnp.asarray(_PRIMES)[(code >> 8) % np.uint32(len(_PRIMES))]
    return ((prime * place + code % np.uint32(8192)) % n).astype(jnp.int32)
