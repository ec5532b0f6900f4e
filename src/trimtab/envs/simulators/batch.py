"""Many simulated runs in lockstep: start, train a window, keep the best, put it back.

Meta-training, the vector environment and evaluation drive the same compiled programs. A batch is
spread over all devices that JAX shows (one a core), run by run, without communication between them;
measured on two cores, 64-32-32-10 network, batch 32, that is worth a factor of 2. ``jax.vmap`` over
hundreds of runs would stream every run's weights through main memory at every step. Advancing a
chunk of runs through its whole window before the next chunk begins keeps them in cache, which is
worth another 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.envs.simulators.family import Family, put_back

CHUNK = 16
"""Runs that are advanced together; must divide the number of runs, else all are one chunk."""

_EACH, _ALL = P("runs"), P()


class Runs(NamedTuple):
    """A batch of B runs; every array has B in front.

    Attributes:
        draw: Task properties.
        state: Weights and optimiser now.
        best: The same where validation was best.
    """

    draw: Any
    state: Any
    best: Any


def advance_many(
    family: Family,
    variant: int,
    bank: Any,
    draws: Any,
    states: Any,
    values: jax.Array,
    references: jax.Array,
    first_step: jax.Array,
    n_steps: jax.Array,
    *,
    chunk: int = CHUNK,
) -> tuple[Any, Metrics]:
    """Advance N runs, equal to ``vmap`` of `Family.advance` but faster.

    Args:
        family: Whose runs they are.
        variant: Shape bucket of all of them.
        bank: Of the variant.
        draws: Leaves (N, ...).
        states: Leaves (N, ...).
        values: (N, H) float32.
        references: (N, max_total_steps) float32.
        first_step: (N,) int32.
        n_steps: (N,) int32.
        chunk: Runs at a time.
    """

    def group(item: tuple[Any, ...]) -> tuple[Any, Metrics]:
        longest = item[-1].max()

        def one(
            draw: Any, state: Any, values: Any, reference: Any, first: Any, n: Any
        ) -> tuple[Any, Metrics]:
            return family.advance(variant, bank, draw, state, values, reference, first, n, longest)

        return jax.vmap(one)(*item)

    batch = (draws, states, values, references, first_step, n_steps)
    return _in_chunks(group, batch, chunk)


def evaluate_many(
    family: Family,
    variant: int,
    bank: Any,
    draws: Any,
    states: Any,
    split: str,
    *,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return (N,) losses and accuracies of N runs on one split.

    Args:
        family: As for `advance_many`, which the others are, too.
        variant: Shape bucket.
        bank: Of the variant.
        draws: Of the tasks.
        states: Of the runs.
        split: As in `Family.evaluate`.
        chunk: Runs at a time; None: the family's ``evaluation_chunk``.
    """

    def group(item: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(lambda draw, state: family.evaluate(variant, bank, draw, state, split))(
            *item
        )

    return _in_chunks(group, (draws, states), family.evaluation_chunk if chunk is None else chunk)


def _in_chunks(group: Any, batch: Any, chunk: int) -> Any:
    n_runs = jax.tree.leaves(batch)[0].shape[0]
    if n_runs <= chunk or n_runs % chunk:
        return group(batch)
    shape = (n_runs // chunk, chunk)
    pieces = jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), batch)
    done = lax.map(group, pieces)
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (n_runs, *leaf.shape[2:])), done)


def values_at(start: Any, offset: Any, items: Sequence[Hyperparameter], xp: Any) -> Any:
    """Return (..., H) float32 values at offsets from their start, as the session computes them.

    Args:
        start: (..., H) start values in each hyperparameter's own unit.
        offset: (..., H) coordinates relative to the start.
        items: The H hyperparameters.
        xp: ``numpy`` or ``jax.numpy``.
    """
    columns = []
    for h, item in enumerate(items):
        base, moved = start[..., h], offset[..., h]
        if item.scale == "log":
            columns.append(base * xp.float32(10.0) ** moved)
            continue
        if item.scale == "complement":
            value = 1.0 - (1.0 - base) * xp.float32(10.0) ** -moved
        else:
            value = base + moved * xp.float32(item.high - item.low)
        columns.append(xp.where(moved == 0, base, xp.clip(value, item.low, item.high)))
    return xp.stack(columns, axis=-1).astype(np.float32)


class Programs(NamedTuple):
    """The compiled programs of one shape bucket of a family.

    Attributes:
        prepare: ``(task_keys, run_keys) -> (Runs, validation loss (B,))``.
        window: ``(runs, keep, restore, values, reference, first, n) -> (Runs, Metrics)``:
            first keeps the state as the best where ``keep`` and puts the best back where
            ``restore`` (both (B,) float32), then trains ``n`` (B,) steps from step ``first`` (B,)
            at ``values`` (B, H), and validates.
        score: ``(runs, keep) -> (selection loss, test loss, test accuracy)`` of the best weights,
            (B,) each.
        properties: ``(runs) -> (B, p)`` hidden properties.
        default_lr: ``(runs) -> (B,)``.
    """

    prepare: Callable[..., Any]
    window: Callable[..., Any]
    score: Callable[..., Any]
    properties: Callable[..., Any]
    default_lr: Callable[..., Any]


def _choose(flag: Any, first: Any, second: Any) -> Any:
    """Return ``first`` where the () flag is set, else ``second``, over a whole state."""
    return jax.tree.map(lambda a, b: jnp.where(flag > 0, a, b), first, second)


def _spread(function: Callable[..., Any], inputs: Sequence[Any]) -> Callable[..., Any]:
    """Return a jitted function whose batch is split over the devices, padded to fit them."""
    devices = jax.devices()
    if len(devices) == 1:
        return jax.jit(function)
    mesh = Mesh(np.array(devices), ("runs",))
    split = jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=tuple(inputs), out_specs=_EACH, check_vma=False)
    )
    first = list(inputs).index(_EACH)

    def padded(*arguments: Any) -> Any:
        size = jax.tree.leaves(arguments[first])[0].shape[0]
        short = -size % len(devices)
        if not short:
            return split(*arguments)

        def grow(leaf: Any) -> Any:
            return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], short, axis=0)])

        grown = [
            jax.tree.map(grow, argument) if spec == _EACH else argument
            for argument, spec in zip(arguments, inputs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[:size], split(*grown))

    return padded


@lru_cache(maxsize=64)
def programs(family: Family, variant: int) -> Programs:
    """Return the programs of one variant of a family, compiled at their first call.

    The number of runs in a batch has to be a multiple of the number of devices.
    """
    bank = family.bank(variant)

    def prepare(bank: Any, task_keys: Any, run_keys: Any) -> Any:
        def one(task_key: Any, run_key: Any) -> Any:
            draw = family.draw(variant, task_key)
            state = family.start(variant, bank, draw, run_key)
            loss, _ = family.evaluate(variant, bank, draw, state, "validation")
            return Runs(draw, state, state), loss

        return jax.vmap(one)(task_keys, run_keys)

    def window(
        bank: Any,
        runs: Runs,
        keep: Any,
        restore: Any,
        values: Any,
        first: Any,
        steps: Any,
        reference: Any,
    ) -> Any:
        best = jax.vmap(_choose)(keep, runs.state, runs.best)
        state = jax.vmap(_choose)(restore, put_back(best, runs.state), runs.state)
        schedules = jnp.broadcast_to(reference, (steps.shape[0], *reference.shape))
        state, metrics = advance_many(
            family, variant, bank, runs.draw, state, values, schedules, first, steps
        )
        loss, _ = evaluate_many(family, variant, bank, runs.draw, state, "validation")
        return Runs(runs.draw, state, best), metrics._replace(val_loss=loss)

    def score(bank: Any, runs: Runs, keep: Any) -> Any:
        best = jax.vmap(_choose)(keep, runs.state, runs.best)
        selection, _ = evaluate_many(family, variant, bank, runs.draw, best, "selection")
        test, accuracy = evaluate_many(family, variant, bank, runs.draw, best, "test")
        return selection, test, accuracy

    compiled = {
        "prepare": _spread(prepare, (_ALL, _EACH, _EACH)),
        "window": _spread(window, (_ALL, *[_EACH] * 6, _ALL)),
        "score": _spread(score, (_ALL, _EACH, _EACH)),
    }

    def call_window(
        runs: Any, keep: Any, restore: Any, values: Any, reference: Any, first: Any, steps: Any
    ) -> Any:
        first, steps = jnp.asarray(first, jnp.int32), jnp.asarray(steps, jnp.int32)
        return compiled["window"](bank, runs, keep, restore, values, first, steps, reference)

    return Programs(
        prepare=lambda task_keys, run_keys: compiled["prepare"](bank, task_keys, run_keys),
        window=call_window,
        score=lambda runs, keep: compiled["score"](bank, runs, keep),
        properties=jax.jit(lambda runs: jax.vmap(family.properties)(runs.draw)),
        default_lr=jax.jit(lambda runs: jax.vmap(family.default_lr)(runs.draw)),
    )
