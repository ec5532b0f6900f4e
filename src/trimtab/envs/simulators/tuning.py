"""The best learning rate of a simulated task: a grid of reference runs, all at once.

Starts are counted from the rate whose reference runs end best on validation, over a grid
and several seeds. For one task that is about a hundred whole runs: as single runs minutes, as one
batch of a compiled program seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.simulators.family import Family

DECADES: tuple[float, ...] = tuple(float(decade) for decade in np.linspace(-2.5, 2.5, 32))
"""The grid around a task's usual rate, as powers of ten."""

SEEDS: tuple[int, ...] = (970_001, 970_002, 970_003)
"""Seeds of initialisation and data order that nothing but this grid uses."""

_RUNS_MEASURED_TOGETHER = 16  # a whole split of so many transformers still fits the cache


def best_rate(rates: Sequence[float], losses: np.ndarray) -> float:
    """Return the rate with the lowest mean loss; a loss that is not finite rules a rate out.

    Args:
        rates: G learning rates.
        losses: (G, S), one column a seed.
    """
    mean = np.where(np.isfinite(losses), losses, np.inf).mean(axis=1)
    return float(rates[int(np.argmin(mean))])


def grid_losses(
    family: Family,
    bucket: int,
    task_key: np.ndarray,
    run_keys: np.ndarray,
    rates: Sequence[float],
    total_steps: int,
) -> np.ndarray:
    """Return (G, S) float64: the best validation loss of every reference run.

    A run is what ``trimtab run --policy none`` trains, validated at the usual rhythm; it ends at
    its first loss that is not finite, and what was best before counts.

    Args:
        family: To be traced by JAX, or in plain NumPy, with the learning rate first.
        bucket: Shape bucket of the task.
        task_key: (2,) uint32.
        run_keys: (S, 2) uint32, one a seed.
        rates: G learning rates.
        total_steps: Of each run.
    """
    ends = window_ends(ControlSpec(), total_steps)
    reference = reference_multipliers("warmup-linear", total_steps).astype(np.float32)
    first = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    steps = (ends - first).astype(np.int32)
    rest = [item.default for item in family.hyperparameters[1:]]
    values = np.array([[rate, *rest] for rate in rates], np.float32)
    if getattr(family, "array", "jax") == "numpy":
        task = (family, bucket, family.draw(bucket, task_key))
        losses = [
            [_one_by_one(*task, key, each, reference, first, steps) for key in run_keys]
            for each in values
        ]
        return np.array(losses, np.float64)
    whole: Any = family  # every family is hashable, which the protocol cannot say
    program = _program(whole, bucket)
    found = program(family.bank(bucket), task_key, run_keys, values, reference, first, steps)
    return np.asarray(found, np.float64)


def _one_by_one(
    family: Family,
    bucket: int,
    draw: Any,
    run_key: np.ndarray,
    values: np.ndarray,
    reference: np.ndarray,
    first: np.ndarray,
    steps: np.ndarray,
) -> float:
    with np.errstate(all="ignore"):
        bank = family.bank(bucket)
        state = family.start(bucket, bank, draw, run_key)
        best = float(family.evaluate(bucket, bank, draw, state, "validation")[0])
        for begin, count in zip(first, steps, strict=True):
            state, metrics = family.advance(
                bucket, bank, draw, state, values, reference, begin, count, count
            )
            loss = float(family.evaluate(bucket, bank, draw, state, "validation")[0])
            if metrics.finite < 1 or not np.isfinite(loss):
                break
            best = min(best, loss)
    return best


@lru_cache(maxsize=8)
def _program(family: Family, bucket: int) -> Any:
    """Return the compiled grid of a shape bucket, for any task, rates and seeds."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from trimtab.envs.simulators.batch import advance_many, evaluate_many

    chunk = min(family.evaluation_chunk, _RUNS_MEASURED_TOGETHER)

    @jax.jit
    def program(
        bank: Any, task_key: Any, run_keys: Any, values: Any, reference: Any, first: Any, steps: Any
    ) -> Any:
        n_rates, n_seeds = values.shape[0], run_keys.shape[0]
        n_runs = n_rates * n_seeds

        def each(leaf: Any) -> Any:
            return jnp.broadcast_to(leaf, (n_runs, *leaf.shape))

        draw = family.draw(bucket, task_key)
        draws = jax.tree.map(each, draw)
        begun = jax.vmap(lambda key: family.start(bucket, bank, draw, key))(run_keys)
        # (S, ...) -> (G * S, ...), the seeds of a rate side by side
        states = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * n_rates), begun)
        every, schedules = jnp.repeat(values, n_seeds, axis=0), each(reference)

        def losses_of(states: Any) -> Any:
            split = "validation"
            return evaluate_many(family, bucket, bank, draws, states, split, chunk=chunk)[0]

        def window(carry: Any, place: Any) -> Any:
            states, best, alive = carry
            begin, count = (jnp.full(n_runs, number, jnp.int32) for number in place)
            metrics: Metrics
            states, metrics = advance_many(
                family, bucket, bank, draws, states, every, schedules, begin, count
            )
            loss = losses_of(states)
            alive = alive & (metrics.finite > 0) & jnp.isfinite(loss)
            return (states, jnp.where(alive, jnp.minimum(best, loss), best), alive), None

        initial = (states, losses_of(states), jnp.ones(n_runs, bool))
        (_, best, _), _ = lax.scan(window, initial, (first, steps))
        return best.reshape(n_rates, n_seeds)

    return program
