"""Whole steered runs on the simulators, thousands at a time: what agents learn from.

The decision is the very same `observe` and `apply` as in a live run, traced by JAX and batched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.policy_network import act
from trimtab.core.carry import Carry, begin
from trimtab.core.control import apply, observe
from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.session import no_action
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.simulators.batch import Programs, values_at
from trimtab.envs.simulators.family import OPTIMISERS

__all__ = [
    "BATCH_SIZE",
    "MAX_STEPS",
    "PAD",
    "STEERING",
    "Episodes",
    "bounded",
    "columns_of",
    "fair_lr",
    "initial_carry",
    "rollout",
]

STEERING = "mean"
"""How a policy answers in use; see `trimtab.agents.policy_network.act`."""

PAD = 65
"""Decisions of the longest run that the compiled control programs hold, plus one."""

BATCH_SIZE = 32
"""Training examples of a simulated step, where the batch size is not steered."""

MAX_STEPS = 2048
"""Steps of the longest simulated run."""


class Episodes(NamedTuple):
    """A batch of B finished runs of K decisions; NumPy arrays.

    Attributes:
        observation: (K, B, n) float32, what was seen at each decision.
        action: (K, B, H + 1) int32.
        log_probability: (K, B) of the action under the policy that took it.
        reward: (K, B) float32 earned by each decision.
        alive: (K, B) 1 while the run had not been given up.
        offset: (K, B, H) applied offsets.
        restored: (K, B) 1 where the best weights were put back.
        val_loss: (K + 1, B).
        best_val: (B,) best validation loss.
        selection_loss: (B,) of the best-on-validation weights.
        test_loss: (B,) likewise.
        test_accuracy: (B,) likewise.
        rollbacks: (B,) forced by the guard.
        diverged: (B,) 1 if given up (guarded) or if a divergence was met (unguarded).
        spent: (B,) steps done over the run's steps.
        novelty: (K, B) 1 where the fallback held the last multiplier.
        properties: (B, p) hidden properties of the tasks.
    """

    observation: np.ndarray
    action: np.ndarray
    log_probability: np.ndarray
    reward: np.ndarray
    alive: np.ndarray
    offset: np.ndarray
    restored: np.ndarray
    val_loss: np.ndarray
    best_val: np.ndarray
    selection_loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    rollbacks: np.ndarray
    diverged: np.ndarray
    spent: np.ndarray
    novelty: np.ndarray
    properties: np.ndarray


@lru_cache(maxsize=32)
def _decide(spec: ControlSpec, mode: str) -> Callable[..., Any]:
    """Return the jitted batch of one decision: observe, act, apply."""
    idle = jnp.asarray(no_action(spec), jnp.int32)

    def observed(carry: Carry, metrics: Metrics) -> Any:
        return observe(spec, carry, metrics, jnp)

    def applied(carry: Carry, action: Any) -> Any:
        return apply(spec, carry, action, jnp)

    @jax.jit
    def decide(
        parameters: Any, carry: Carry, metrics: Metrics, hidden: Any, key: Any, aside: Any
    ) -> Any:
        carry, observation, reward = jax.vmap(observed)(carry, metrics)
        is_best = carry.is_best
        log_probability = jnp.zeros(observation.shape[0])
        action = jnp.broadcast_to(idle, (observation.shape[0], *idle.shape))
        held = jnp.zeros(observation.shape[0])
        if mode in ("sample", "greedy", "mean", "shuffled"):
            seen = observation[aside] if mode == "shuffled" else observation
            action, log_probability, hidden = act(
                parameters, seen, hidden, key, STEERING if mode == "shuffled" else mode
            )
            if "novelty_mean" in parameters:
                n_global = parameters["novelty_mean"].shape[0]
                mean, scale = parameters["novelty_mean"], parameters["novelty_scale"]
                distance = (seen[:, :n_global] - mean[None, :]) / scale[None, :]
                held = ((distance**2).mean(-1) > parameters["novelty_limit"]).astype(jnp.float32)
                action = jnp.where(held[:, None] > 0, idle, action)
        carry, values, _ = jax.vmap(applied)(carry, action)
        if mode == "fixed":
            offset = jnp.clip(aside, carry.low_offset, carry.high_offset)
            carry = carry._replace(offset=offset)
            values = values._replace(offset=offset)
        return carry, hidden, observation, action, log_probability, reward, is_best, values, held

    return decide


@lru_cache(maxsize=8)
def _last(spec: ControlSpec) -> Callable[..., Any]:
    def one(carry: Carry, metrics: Metrics) -> Any:
        return observe(spec, carry, metrics, jnp)

    return jax.jit(jax.vmap(one))


def fair_lr(bucket: Programs, runs: Any, centre: Mapping[str, float] | None = None) -> np.ndarray:
    """Return (B,) usual learning rates, divided by the factor that a task hides.

    Args:
        bucket: Programs of the runs' family.
        runs: B runs that were prepared.
        centre: Decades above the usual rate at which a fair one lies, by optimiser.

    Raises:
        UnknownNameError: ``centre`` names no optimiser.
    """
    for name in centre or ():
        if name not in OPTIMISERS:
            raise unknown_name("optimiser", name, OPTIMISERS)
    usual = np.asarray(bucket.default_lr(runs))
    fair = usual / np.asarray(getattr(runs.draw, "lr_factor", np.ones(len(usual))))
    if centre and hasattr(runs.draw, "optimiser"):
        above = np.array([centre.get(name, 0.0) for name in OPTIMISERS])
        fair = fair * 10.0 ** above[np.asarray(runs.draw.optimiser)]
    return np.asarray(fair)


def bounded(carry: Carry, items: Sequence[Hyperparameter], starts: np.ndarray) -> Carry:
    """Return the memory of B runs with the bounds that their starts (B, H) leave them.

    A learning rate's bounds move with its start and stay as they are.
    """
    low, high = np.array(carry.low_offset), np.array(carry.high_offset)
    for h, item in enumerate(items):
        if item.kind != "lr":
            at = np.array([item.to_coordinate(float(value)) for value in starts[:, h]])
            low[:, h] = item.to_coordinate(item.low) - at
            high[:, h] = item.to_coordinate(item.high) - at
    return carry._replace(low_offset=jnp.asarray(low), high_offset=jnp.asarray(high))


def columns_of(spec: ControlSpec, offered: Sequence[Hyperparameter]) -> list[int]:
    """Return where the spec's hyperparameters stand among those that a family offers."""
    names = [item.name for item in offered]
    return [names.index(item.name) for item in spec.hyperparameters]


def initial_carry(spec: ControlSpec, total_steps: int, size: int, guarded: bool) -> Carry:
    """Return the memory of ``size`` runs that have not begun, padded to `PAD` decisions."""
    reference = reference_multipliers("warmup-linear", total_steps)
    carry = begin(spec, total_steps, reference=reference, guarded=guarded, pad_to=PAD)
    return Carry(*(jnp.broadcast_to(jnp.asarray(x), (size, *np.shape(x))) for x in carry))


def rollout(
    bucket: Programs,
    spec: ControlSpec,
    parameters: Any,
    task_keys: jax.Array,
    run_keys: jax.Array,
    start: Callable[[Any], np.ndarray],
    total_steps: int,
    *,
    seed: int = 0,
    mode: str = "sample",
    guarded: bool = True,
    aside: Any = None,
    missing: np.ndarray | None = None,
    centre: Mapping[str, float] | None = None,
    columns: Sequence[int] | None = None,
) -> Episodes:
    """Return B whole runs, each steered by the policy or by a control.

    With the reward ``relative`` a reference run from the same start is made for each first.

    Args:
        bucket: Compiled programs of a family's variant.
        spec: What is steered, with its number of decisions.
        parameters: The policy's arrays, with ``novelty_*`` for the fallback to act.
        task_keys: (B,) keys of the tasks.
        run_keys: (B,) keys of initialisation and data order.
        start: Given fair learning rates (B,), hidden factors accounted for, the starts (B, H).
        total_steps: Steps of each run, at most `MAX_STEPS`.
        seed: Of the actions.
        mode: ``"sample"``, ``"greedy"`` or ``"mean"`` as in `act`, ``"zero"`` (no moves),
            ``"fixed"`` (offsets replayed from ``aside`` (K, B, H)) or ``"shuffled"`` (the
            observations of run ``aside[b]``).
        guarded: Whether the guard acts.
        aside: See ``mode``.
        missing: (B,) 1 where gradient statistics are withheld, as by trainers without them.
        centre: See `fair_lr`.
        columns: Which of the family's H hyperparameters the spec's are; the others stay at their
            start. None: the spec has them all.
    """
    size = len(task_keys)
    ends = window_ends(spec, total_steps)
    runs, val_loss = bucket.prepare(task_keys, run_keys)
    first_values = np.asarray(start(fair_lr(bucket, runs, centre)), np.float32)
    steered = list(range(first_values.shape[1]) if columns is None else columns)
    twin = None
    if spec.reward == "relative" and mode != "zero":
        twin = rollout(  # the reference from the same start, which nobody steers
            bucket,
            replace(spec, reward="best-so-far"),
            parameters,
            task_keys,
            run_keys,
            lambda _: first_values,
            total_steps,
            mode="zero",
            guarded=False,
            columns=columns,
        ).val_loss
    carry = initial_carry(spec, total_steps, size, guarded)
    carry = bounded(carry, spec.hyperparameters, first_values[:, steered])
    # Examples that each validation is charged with, and what a whole run costs.
    shown = np.asarray(getattr(runs.draw, "n_validation", np.zeros(size)), np.float32) / 3
    if spec.reward == "cost-aware":
        whole = np.float32(BATCH_SIZE * total_steps) + (len(ends) + 1) * shown
        carry = carry._replace(budget=jnp.asarray(whole, jnp.float32))
    schedule = np.zeros(MAX_STEPS, np.float32)
    schedule[:total_steps] = reference_multipliers("warmup-linear", total_steps)
    reference = jnp.asarray(schedule)
    width = parameters["token_b"].shape[0] if parameters else 1
    hidden = jnp.zeros((size, len(spec.hyperparameters), width), jnp.float32)
    decide, key = _decide(spec, mode), jax.random.key(seed)
    nothing = jnp.full(size, np.nan, jnp.float32)
    metrics = Metrics(*[nothing] * len(Metrics._fields))._replace(
        val_loss=val_loss, steps=nothing * 0 + 0, charge=nothing * 0, finite=jnp.ones(size)
    )
    done = np.zeros(size, np.int64)
    rows: list[tuple[Any, ...]] = []
    losses = [val_loss]
    alive = np.ones(size, np.float32)
    is_best = jnp.ones(size, jnp.float32)
    for k, end in enumerate(ends):
        key, sub = jax.random.split(key)
        extra = aside[k] if mode == "fixed" else aside
        carry, hidden, seen, action, log_probability, reward, is_best, values, held = decide(
            parameters, carry, metrics, hidden, sub, jnp.asarray(0 if extra is None else extra)
        )
        now = alive.copy()
        alive = alive * (1 - np.asarray(carry.terminated))
        rows.append((seen, action, log_probability, reward, now * alive, values, held))
        steps = np.maximum(end - done, 1)
        current = first_values.copy()
        current[:, steered] = values_at(
            first_values[:, steered], np.asarray(values.offset), spec.hyperparameters, np
        )
        runs, metrics = bucket.window(
            runs, is_best, values.restore, jnp.asarray(current), reference, done, steps
        )
        metrics = metrics._replace(charge=metrics.charge + shown)
        if twin is not None:
            metrics = metrics._replace(reference_loss=jnp.asarray(twin[k + 1]))
        if missing is not None:
            gone = jnp.where(jnp.asarray(missing) > 0, jnp.nan, 1.0)
            metrics = metrics._replace(
                grad_norm=metrics.grad_norm * gone,
                grad_cosine=metrics.grad_cosine * gone,
                update_ratio=metrics.update_ratio * gone,
            )
        done = done + np.asarray(metrics.steps, np.int64)
        losses.append(metrics.val_loss)
    carry, _, reward = _last(spec)(carry, metrics)
    selection, test, accuracy = bucket.score(runs, carry.is_best)
    earned = np.stack([np.asarray(row[3]) for row in rows[1:]] + [np.asarray(reward)])
    val = np.stack([np.asarray(loss) for loss in losses])
    terminated = np.asarray(carry.terminated)
    unguarded = (np.asarray(carry.divergences) > 0) if not guarded else np.zeros(size, bool)
    return Episodes(
        observation=np.stack([np.asarray(row[0]) for row in rows]),
        action=np.stack([np.asarray(row[1]) for row in rows]),
        log_probability=np.stack([np.asarray(row[2]) for row in rows]),
        reward=earned,
        alive=np.stack([row[4] for row in rows]),
        offset=np.stack([np.asarray(row[5].offset) for row in rows]),
        restored=np.stack([np.asarray(row[5].restore) for row in rows]),
        val_loss=val,
        best_val=np.nanmin(np.where(np.isfinite(val), val, np.nan), axis=0),
        selection_loss=np.asarray(selection),
        test_loss=np.asarray(test),
        test_accuracy=np.asarray(accuracy),
        rollbacks=np.asarray(carry.rollbacks),
        diverged=np.maximum(terminated, unguarded).astype(np.float32),
        spent=done / total_steps,
        novelty=np.stack([np.asarray(row[6]) for row in rows]),
        properties=np.asarray(bucket.properties(runs)),
    )
