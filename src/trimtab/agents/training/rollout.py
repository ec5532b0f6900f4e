"""Whole steered runs on the simulators, thousands at a time: what agents learn from.

A decision is the very same `observe` and `apply` as in a live run, traced by JAX and batched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.policy_network import act
from trimtab.core.carry import Carry, begin, entry_of
from trimtab.core.control import Values, apply, no_action, observe
from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import WIDEST_START, ControlSpec, window_ends
from trimtab.envs.simulators.batch import Programs, values_at
from trimtab.envs.simulators.family import OPTIMISERS

STEERING = "mean"
"""How a policy answers in use; see `trimtab.agents.training.policy_network.act`."""

PAD = 65
"""Decisions of the longest run that the compiled control programs hold, plus one."""

BATCH_SIZE = 32
"""Training examples of a simulated step, where the batch size is not steered."""

MAX_STEPS = 2048
"""Steps of the longest simulated run."""


class Decided(NamedTuple):
    """One decision of B runs.

    Attributes:
        observation: (B, n) float32, what was seen.
        action: (B, H + 1) int32.
        log_probability: (B,) of the action under the policy that took it.
        reward: (B,) float32 earned by the decision before it.
        is_best: (B,) 1 where the window before it ended at the best validation loss so far.
        values: What came of the action, each field with B in front.
        held: (B,) 1 where the fallback held the last multiplier.
    """

    observation: Any
    action: Any
    log_probability: Any
    reward: Any
    is_best: Any
    values: Values
    held: Any


@lru_cache(maxsize=32)
def decision_program(spec: ControlSpec, mode: str) -> Callable[..., Any]:
    """Return the jitted batch of one decision: observe, act, apply.

    It is ``(parameters, carry, metrics, hidden, key, mode_input) -> (carry, hidden, Decided)``,
    with B in front of carry, metrics and the policy's memory ``hidden``.

    Args:
        spec: What is steered.
        mode: See `rollout`; ``mode_input`` is that of this decision.
    """
    idle = jnp.asarray(no_action(spec), jnp.int32)

    def observed(carry: Carry, metrics: Metrics) -> Any:
        return observe(spec, carry, metrics, jnp)

    def applied(carry: Carry, action: Any) -> Any:
        return apply(spec, carry, action, jnp)

    @jax.jit
    def decide(
        parameters: Any, carry: Carry, metrics: Metrics, hidden: Any, key: Any, mode_input: Any
    ) -> Any:
        carry, observation, reward = jax.vmap(observed)(carry, metrics)
        is_best = carry.is_best
        log_probability = jnp.zeros(observation.shape[0])
        action = jnp.broadcast_to(idle, (observation.shape[0], *idle.shape))
        held = jnp.zeros(observation.shape[0])
        if mode in ("sample", "greedy", "mean", "shuffled"):
            seen = observation[mode_input] if mode == "shuffled" else observation
            action, log_probability, hidden = act(
                parameters, seen, hidden, key, STEERING if mode == "shuffled" else mode
            )
            if "novelty_mean" in parameters:
                held = _is_novel(parameters, seen)
                action = jnp.where(held[:, None] > 0, idle, action)
        carry, values, _ = jax.vmap(applied)(carry, action)
        if mode == "fixed":
            offset = jnp.clip(mode_input, carry.low_offset, carry.high_offset)
            carry = carry._replace(offset=offset)
            values = values._replace(offset=offset)
        decision = Decided(observation, action, log_probability, reward, is_best, values, held)
        return carry, hidden, decision

    return decide


def _is_novel(parameters: Any, seen: jax.Array) -> jax.Array:
    """Return (B,) float32, 1 where the policy has never seen the like of an observation."""
    mean, scale = parameters["novelty_mean"], parameters["novelty_scale"]
    distance = (seen[:, : mean.shape[0]] - mean[None, :]) / scale[None, :]
    return ((distance**2).mean(-1) > parameters["novelty_limit"]).astype(jnp.float32)


@lru_cache(maxsize=8)
def closing_program(spec: ControlSpec) -> Callable[..., Any]:
    """Return the jitted batch of the observation that no decision follows.

    It is ``(carry, metrics) -> (carry, observation, reward)``.
    """

    def one(carry: Carry, metrics: Metrics) -> Any:
        return observe(spec, carry, metrics, jnp)

    return jax.jit(jax.vmap(one))


class Episodes(NamedTuple):
    """A batch of B finished runs of K decisions; NumPy arrays.

    Attributes:
        observation: (K, B, n) float32, what was seen at each decision.
        action: (K, B, H + 1) int32, or float32 where moves are the policy's mean.
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
        rollbacks: (B,) forced by the guard, with a cut.
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


def fair_lr(programs: Programs, runs: Any, centre: Mapping[str, float] | None = None) -> np.ndarray:
    """Return (B,) usual learning rates, divided by the factor that a task hides.

    Args:
        programs: Programs of the runs' family.
        runs: B runs that were prepared.
        centre: Decades above the usual rate at which a fair one lies, by optimiser.

    Raises:
        UnknownNameError: ``centre`` names no optimiser.
    """
    for name in centre or ():
        if name not in OPTIMISERS:
            raise unknown_name("optimiser", name, OPTIMISERS)
    usual = np.asarray(programs.default_lr(runs))
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


def _within(carry: Carry, ranges: np.ndarray | None) -> Carry:
    """Return the memory of B runs whose learning rates stay within ranges; see `rollout`."""
    is_lr = np.asarray(carry.is_lr) > 0  # (B, H)
    ends = np.array([-WIDEST_START, WIDEST_START], np.float32)
    ends = np.broadcast_to(ends, (len(is_lr), 2)) if ranges is None else ranges
    low = np.where(is_lr, ends[:, :1], np.asarray(carry.low_offset)).astype(np.float32)
    high = np.where(is_lr, ends[:, 1:], np.asarray(carry.high_offset)).astype(np.float32)
    entry = jnp.asarray(entry_of(low, high, np) * is_lr)
    ramps = (np.asarray(carry.front) > 0) & (np.asarray(carry.guarded) > 0)
    offset = entry * jnp.asarray(ramps, jnp.float32)[:, None]
    same = dict.fromkeys(("offset", "offset_best", "offset_highest", "offset_safe"), offset)
    bounds = {"low_offset": jnp.asarray(low), "high_offset": jnp.asarray(high)}
    return carry._replace(**bounds, **same, entry=entry)


def columns_of(spec: ControlSpec, offered: Sequence[Hyperparameter]) -> list[int]:
    """Return where the spec's hyperparameters stand among those that a family offers."""
    names = [item.name for item in offered]
    return [names.index(item.name) for item in spec.hyperparameters]


def initial_carry(spec: ControlSpec, total_steps: int, size: int, guarded: bool) -> Carry:
    """Return the memory of ``size`` runs that have not begun, padded to `PAD` decisions."""
    reference = reference_multipliers("warmup-linear", total_steps)
    carry = begin(spec, total_steps, reference=reference, guarded=guarded, pad_to=PAD)
    return Carry(*(jnp.broadcast_to(jnp.asarray(x), (size, *np.shape(x))) for x in carry))


@dataclass(frozen=True)
class _Setup:
    """What holds for B runs from the first window to the last.

    Attributes:
        programs: Compiled programs of a family's variant.
        spec: What is steered.
        total_steps: Of each run.
        guarded: Whether the guard acts.
        starts: (B, H) float32, of all hyperparameters that the family has.
        steered: Which of the H the spec's are.
        shown: (B,) float32 examples that each validation is charged with.
        missing: (B,) 1 where gradient statistics are withheld, or None.
        reference_loss: (K + 1, B) validation losses of the reference runs, or None.
        ranges: (B, 2) offsets of the ends of learning rates' ranges, or None.
    """

    programs: Programs
    spec: ControlSpec
    total_steps: int
    guarded: bool
    starts: np.ndarray
    steered: Sequence[int]
    shown: np.ndarray
    missing: np.ndarray | None
    reference_loss: np.ndarray | None = None
    ranges: np.ndarray | None = None


class _Course(NamedTuple):
    """What B runs went through.

    Attributes:
        decisions: K of them.
        alive: K times (B,), see `Episodes`.
        val_loss: K + 1 times (B,).
        runs: As they ended.
        carry: As it was at the last decision.
        metrics: Of the last window, which no decision has seen.
        steps: (B,) int64 steps done.
    """

    decisions: list[Decided]
    alive: list[np.ndarray]
    val_loss: list[Any]
    runs: Any
    carry: Carry
    metrics: Metrics
    steps: np.ndarray


def _first_carry(setup: _Setup) -> Carry:
    """Return the memory of the runs before their first validation."""
    spec, steps = setup.spec, setup.total_steps
    carry = initial_carry(spec, steps, len(setup.starts), setup.guarded)
    carry = bounded(carry, spec.hyperparameters, setup.starts[:, setup.steered])
    if spec.version > 1:
        carry = _within(carry, setup.ranges)
    if spec.reward == "cost-aware":
        validations = len(window_ends(spec, steps)) + 1
        whole = np.float32(BATCH_SIZE * steps) + validations * setup.shown
        carry = carry._replace(budget=jnp.asarray(whole, jnp.float32))
    return carry


def _first_metrics(val_loss: jax.Array) -> Metrics:
    """Return what is known before step 1: the validation loss (B,)."""
    nothing = jnp.full(len(val_loss), np.nan, jnp.float32)
    return Metrics(*[nothing] * len(Metrics._fields))._replace(
        val_loss=val_loss, steps=nothing * 0 + 0, charge=nothing * 0, finite=jnp.ones(len(val_loss))
    )


def padded_reference(total_steps: int, first: int = 0, shape: str = "warmup-linear") -> jax.Array:
    """Return a reference's multipliers as the programs take them, (MAX_STEPS,) float32.

    Args:
        total_steps: Of the run.
        first: Steps already spent; the reference covers what is left.
        shape: Its name.
    """
    schedule = np.zeros(MAX_STEPS, np.float32)
    schedule[first:total_steps] = reference_multipliers(shape, total_steps - first)
    return jnp.asarray(schedule)


def _values_in_force(setup: _Setup, values: Values) -> jax.Array:
    """Return (B, H) float32 values of all hyperparameters after a decision."""
    starts, steered = setup.starts, setup.steered
    current = starts.copy()
    current[:, steered] = values_at(
        starts[:, steered], np.asarray(values.offset), setup.spec.hyperparameters, np
    )
    return jnp.asarray(current)


def _as_told(setup: _Setup, metrics: Metrics, window: int) -> Metrics:
    """Return what a window's metrics tell a decision: some is added, some withheld."""
    metrics = metrics._replace(charge=metrics.charge + setup.shown)
    if setup.reference_loss is not None:
        metrics = metrics._replace(reference_loss=jnp.asarray(setup.reference_loss[window + 1]))
    if setup.missing is not None:
        gone = jnp.where(jnp.asarray(setup.missing) > 0, jnp.nan, 1.0)
        metrics = metrics._replace(
            grad_norm=metrics.grad_norm * gone,
            grad_cosine=metrics.grad_cosine * gone,
            update_ratio=metrics.update_ratio * gone,
            alignment=metrics.alignment * gone,
            alignment_mean=metrics.alignment_mean * gone,
            distance_ratio=metrics.distance_ratio * gone,
            straightness=metrics.straightness * gone,
        )
    return metrics


def _steer(
    setup: _Setup,
    parameters: Any,
    runs: Any,
    val_loss: jax.Array,
    *,
    seed: int,
    mode: str,
    mode_input: Any,
) -> _Course:
    """Take the prepared runs to their end; see `rollout` for what it shares."""
    spec, size = setup.spec, len(setup.starts)
    reference = padded_reference(setup.total_steps)
    carry, metrics = _first_carry(setup), _first_metrics(val_loss)
    width = parameters["token_b"].shape[0] if parameters else 1
    hidden = jnp.zeros((size, len(spec.hyperparameters), width), jnp.float32)
    decide, key = decision_program(spec, mode), jax.random.key(seed)
    done = np.zeros(size, np.int64)
    is_alive = np.ones(size, np.float32)
    decisions: list[Decided] = []
    alive: list[np.ndarray] = []
    losses = [val_loss]
    for k, end in enumerate(window_ends(spec, setup.total_steps)):
        key, sub = jax.random.split(key)
        extra = mode_input[k] if mode == "fixed" else mode_input
        carry, hidden, decision = decide(
            parameters, carry, metrics, hidden, sub, jnp.asarray(0 if extra is None else extra)
        )
        is_alive = is_alive * (1 - np.asarray(carry.terminated))
        decisions.append(decision)
        alive.append(is_alive)
        values = decision.values
        current, steps = _values_in_force(setup, values), np.maximum(end - done, 1)
        runs, metrics = setup.programs.window(
            runs, decision.is_best, values.restore, current, reference, done, steps
        )
        metrics = _as_told(setup, metrics, k)
        done = done + np.asarray(metrics.steps, np.int64)
        losses.append(metrics.val_loss)
    return _Course(decisions, alive, losses, runs, carry, metrics, done)


def _reference_loss(setup: _Setup, runs: Any, val_loss: jax.Array) -> np.ndarray:
    """Return (K + 1, B) validation losses of the same runs, steered by nobody."""
    spec = replace(setup.spec, reward="best-so-far")
    alone = replace(setup, spec=spec, guarded=False, missing=None)
    return _stacked(
        _steer(alone, {}, runs, val_loss, seed=0, mode="zero", mode_input=None).val_loss
    )


def _episodes(setup: _Setup, course: _Course) -> Episodes:
    """Return the runs as arrays, scored at their best weights."""
    carry, _, last_reward = closing_program(setup.spec)(course.carry, course.metrics)
    selection, test, accuracy = setup.programs.score(course.runs, carry.is_best)
    diverged = np.asarray(carry.terminated)
    if not setup.guarded:
        diverged = np.maximum(diverged, np.asarray(carry.divergences) > 0)
    decisions = course.decisions
    rewards = [one.reward for one in decisions[1:]] + [last_reward]
    val_loss = _stacked(course.val_loss)
    return Episodes(
        observation=_stacked([one.observation for one in decisions]),
        action=_stacked([one.action for one in decisions]),
        log_probability=_stacked([one.log_probability for one in decisions]),
        reward=_stacked(rewards),
        alive=np.stack(course.alive),
        offset=_stacked([one.values.offset for one in decisions]),
        restored=_stacked([one.values.restore for one in decisions]),
        val_loss=val_loss,
        best_val=np.nanmin(np.where(np.isfinite(val_loss), val_loss, np.nan), axis=0),
        selection_loss=np.asarray(selection),
        test_loss=np.asarray(test),
        test_accuracy=np.asarray(accuracy),
        rollbacks=np.asarray(carry.rollbacks),
        diverged=diverged.astype(np.float32),
        spent=course.steps / setup.total_steps,
        novelty=_stacked([one.held for one in decisions]),
        properties=np.asarray(setup.programs.properties(course.runs)),
    )


def _stacked(arrays: Sequence[Any]) -> np.ndarray:
    return np.stack([np.asarray(array) for array in arrays])


def rollout(
    programs: Programs,
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
    mode_input: Any = None,
    missing: np.ndarray | None = None,
    centre: Mapping[str, float] | None = None,
    columns: Sequence[int] | None = None,
    ranges: np.ndarray | None = None,
) -> Episodes:
    """Return B whole runs, each steered by the policy or by a control.

    With the reward ``relative`` a reference run from the same start is made for each first.

    Args:
        programs: Compiled programs of a family's variant.
        spec: What is steered, with its number of decisions.
        parameters: The policy's arrays, with ``novelty_*`` for the fallback to act.
        task_keys: (B,) keys of the tasks.
        run_keys: (B,) keys of initialisation and data order.
        start: Given fair learning rates (B,), hidden factors accounted for, the starts (B, H).
        total_steps: Steps of each run, at most `MAX_STEPS`.
        seed: Of the actions.
        mode: ``"sample"``, ``"greedy"`` or ``"mean"`` as in `act`, ``"zero"`` (no moves),
            ``"fixed"`` (offsets replayed from ``mode_input`` (K, B, H)) or ``"shuffled"`` (the
            observations of run ``mode_input[b]``).
        guarded: Whether the guard acts.
        mode_input: See ``mode``.
        missing: (B,) 1 where gradient statistics are withheld, as by trainers without them.
        centre: See `fair_lr`.
        columns: Which of the family's H hyperparameters the spec's are; the others stay at their
            start. None: the spec has them all.
        ranges: (B, 2) offsets from the start at which learning rates' ranges end, under version 2
            of the spec; None: `WIDEST_START` either way.
    """
    runs, val_loss = programs.prepare(task_keys, run_keys)
    starts = np.asarray(start(fair_lr(programs, runs, centre)), np.float32)
    validated = getattr(runs.draw, "n_validation", np.zeros(len(starts)))
    steered = list(range(starts.shape[1]) if columns is None else columns)
    shown = np.asarray(validated, np.float32) / 3  # forward passes only
    setup = _Setup(programs, spec, total_steps, guarded, starts, steered, shown, missing)
    setup = replace(setup, ranges=ranges)
    if spec.reward == "relative" and mode != "zero":
        setup = replace(setup, reference_loss=_reference_loss(setup, runs, val_loss))
    course = _steer(setup, parameters, runs, val_loss, seed=seed, mode=mode, mode_input=mode_input)
    return _episodes(setup, course)
