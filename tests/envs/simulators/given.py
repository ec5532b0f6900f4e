"""What the simulators' tests share: banks without pretraining, and one task at a known rate."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.simulators.families.registry import make_family
from trimtab.envs.simulators.families.supervised import Bank
from trimtab.envs.simulators.family import FamilyOptions

# Of what only sets the scene: compiling it well takes longer than running it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@cache
def family(name: str = "simulated/mlp", **options: Any) -> Any:
    return make_family(name, FamilyOptions(**options))


@cache
def raw_bank(made: Any, variant: int) -> Bank:
    """Return a bank of untrained networks: compiled in no time, good enough for exact tests."""
    architecture = made.architecture
    pool = architecture.pool(held_out=made.options.held_out)
    layout = architecture.layout(variant)
    n_networks = 2 * len(pool.rows.sizes)
    keys = jax.random.split(jax.random.key(5), n_networks)

    def network(key: Any) -> Any:
        return layout.join(architecture.initial(variant, key), jnp)

    networks = jax.jit(jax.vmap(network), compiler_options=QUICK)(keys)
    return Bank(jnp.asarray(pool.rows.inputs), networks)


def draws(made: Any, n: int, seed: int = 1, variant: int = 0) -> Any:
    return _draw(made, variant)(jax.random.split(jax.random.key(seed), n))


@cache
def _draw(made: Any, variant: int) -> Any:
    return jax.jit(jax.vmap(partial(made.draw, variant)), compiler_options=QUICK)


def drawn(made: Any, index: int, seed: int = 1, variant: int = 0) -> Any:
    """Return one task of four, drawn operation by operation: all families share what these are."""
    return made.draw(variant, jax.random.split(jax.random.key(seed), 4)[index])


def pick(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def tuned_rate(made: Any, draw: Any) -> Any:
    """Return about the best learning rate: the usual one without the hidden factor."""
    return made.default_lr(draw) / draw.lr_factor


def rest(made: Any) -> np.ndarray:
    return np.array([item.default for item in made.hyperparameters], np.float32)


def advanced(
    made: Any, bank: Any, draw: Any, state: Any, values: Any, first: int = 0, n: int = 5
) -> Any:
    """Return one run's state and metrics after n steps at a constant reference."""
    return _advance(made)(
        bank, draw, state, jnp.asarray(values, jnp.float32), jnp.int32(first), jnp.int32(n)
    )


@cache
def _advance(made: Any) -> Any:
    def run(bank: Any, draw: Any, state: Any, values: Any, first: Any, n: Any) -> Any:
        return made.advance(0, bank, draw, state, values, jnp.ones(400), first, n, n)

    return jax.jit(run)


def started(made: Any, bank: Any, draw: Any, seed: int = 2, variant: int = 0) -> Any:
    """Return one run's state before its first step."""
    return _start(made, variant)(bank, draw, jax.random.key(seed))


@cache
def _start(made: Any, variant: int) -> Any:
    return jax.jit(partial(made.start, variant), compiler_options=QUICK)


def all_started(made: Any, bank: Any, tasks: Any) -> Any:
    """Return the states of N runs."""
    keys = jax.random.split(jax.random.key(0), len(tasks.classes))
    start = jax.vmap(partial(made.start, 0), in_axes=(None, 0, 0))
    return jax.jit(start, compiler_options=QUICK)(bank, tasks, keys)
