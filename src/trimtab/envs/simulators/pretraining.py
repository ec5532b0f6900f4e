"""Banks of pretrained networks: what simulated fine-tuning starts from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from trimtab.envs.simulators.datasets import MAX_CLASSES
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import Pool
from trimtab.envs.simulators.networks import Architecture
from trimtab.envs.simulators.random_numbers import mixed

_BATCH = 64


def pretrained(
    architecture: Architecture, variant: int, pool: Pool, networks: int = 0
) -> jax.Array:
    """Return (N, P) float32: networks trained with Adam on regrouped labels of the data sets.

    Network i sees data set ``i % n_sets``, with classes regrouped at random and its own learning
    rate and number of steps, so that some are good starts and some are poor. Seeds are fixed.

    Args:
        architecture: What is trained.
        variant: Its shape.
        pool: Data sets.
        networks: About how many (a multiple of the data sets, one each at least); 0: as
            documented.
    """
    n_sets = len(pool.rows.sizes)
    wanted = networks or distributions()["network"]["bank_size"]
    size = max(wanted // n_sets, 1) * n_sets
    keys = jax.random.split(jax.random.fold_in(jax.random.key(20), variant), size)
    sets = jnp.arange(size, dtype=jnp.int32) % n_sets
    longest = int(10.0 ** distributions()["network"]["pretrain_steps_log10"][1])

    def train(rows: jax.Array, labels: jax.Array) -> jax.Array:
        def one(key: jax.Array, data_set: jax.Array) -> jax.Array:
            return _one(architecture, variant, pool, rows, labels, key, data_set, longest)

        return jax.vmap(one)(keys, sets)

    rows, labels = jnp.asarray(pool.rows.inputs), jnp.asarray(pool.rows.labels)
    return jax.block_until_ready(jax.jit(train)(rows, labels))


def _one(
    architecture: Architecture,
    variant: int,
    pool: Pool,
    rows: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    data_set: jax.Array,
    longest: int,
) -> jax.Array:
    table = distributions()["network"]
    keys = jax.random.split(key, 5)
    layout = architecture.layout(variant)
    start = jnp.asarray(pool.rows.starts)[data_set]
    size = jnp.asarray(pool.rows.sizes)[data_set].astype(jnp.uint32)
    n_groups = jax.random.randint(keys[0], (), 2, MAX_CLASSES + 1, jnp.int32)
    grouping = jax.random.permutation(keys[1], MAX_CLASSES).astype(jnp.int32) % n_groups
    lr = jnp.float32(10.0) ** jax.random.uniform(
        keys[2], (), jnp.float32, *table["pretrain_lr_log10"]
    )
    steps = jnp.float32(10.0) ** jax.random.uniform(
        keys[3], (), jnp.float32, *table["pretrain_steps_log10"]
    )
    weights = jnp.full(_BATCH, 1.0 / _BATCH, jnp.float32)
    params = layout.join(architecture.initial(variant, keys[4]), jnp)
    seed = jax.random.bits(keys[4], (), jnp.uint32)

    def loss_of(params: jax.Array, step: jax.Array) -> jax.Array:
        code = mixed(seed + step.astype(jnp.uint32))
        place = mixed(code + jnp.arange(_BATCH, dtype=jnp.uint32)) % size
        row = start + place.astype(jnp.int32)
        scores = architecture.logits(variant, layout.split(params), rows[row], weights, None)
        logs = jax.nn.log_softmax(scores)
        target = jax.nn.one_hot(grouping[labels[row]], MAX_CLASSES, dtype=jnp.float32)
        return -(target * logs).sum() / _BATCH

    def turn(
        step: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        params, first, second = carry
        gradient = jax.grad(loss_of)(params, step)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient * gradient
        rate = jnp.where(step < steps, lr, 0.0)
        return params - rate * first / (jnp.sqrt(second) + 1e-8), first, second

    empty = jnp.zeros_like(params)
    return lax.fori_loop(0, longest, turn, (params, empty, empty))[0]
