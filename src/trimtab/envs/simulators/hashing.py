"""Cheap counter-based random numbers for the inner loop of a simulated run.

The cryptographic generators of JAX cost more than a training step of a tiny network, so inside the
loop every number is a hash of (seed, step, position): stateless, the same on every backend, and
untouched by restoring a snapshot, because the step goes on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
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


def mixed(value: jax.Array) -> jax.Array:
    """Return uint32 hashes of uint32 values; every input bit reaches every output bit.

    Source: the "lowbias32" finaliser of C. Wellons' hash prospector (public domain).
    """
    value = value ^ (value >> 16)
    value = value * np.uint32(0x7FEB352D)
    value = value ^ (value >> 15)
    value = value * np.uint32(0x846CA68B)
    return value ^ (value >> 16)


def uniform_hash(seed: jax.Array, stream: int, shape: tuple[int, ...]) -> jax.Array:
    """Return float32 numbers in [0, 1) of ``shape``, a pure function of (seed, stream, position).

    Args:
        seed: () uint32.
        stream: Tells apart several arrays drawn under one seed.
        shape: Of the result.
    """
    size = int(np.prod(shape))
    positions = jnp.arange(size, dtype=jnp.uint32) * _GOLDEN
    start = mixed(seed + np.uint32((stream * 0x85EBCA6B) & 0xFFFFFFFF))
    bits = mixed(positions + start)
    return ((bits >> 8).astype(jnp.float32) * np.float32(2.0**-24)).reshape(shape)


def batch_positions(
    seed: jax.Array, step: jax.Array, batch: jax.Array, n_slots: int, n_train: jax.Array
) -> jax.Array:
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
    n = n_train.astype(jnp.uint32)
    element = (step * batch + jnp.arange(n_slots, dtype=jnp.int32)).astype(jnp.uint32)
    epoch, place = element // n, element % n
    code = mixed(seed + epoch * _GOLDEN)
    prime = jnp.asarray(_PRIMES)[(code >> 8) % np.uint32(len(_PRIMES))]
    return ((prime * place + code % np.uint32(8192)) % n).astype(jnp.int32)
