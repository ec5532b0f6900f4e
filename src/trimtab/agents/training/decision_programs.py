"""One decision of many runs at once, compiled.

It is the very same `observe` and `apply` as in a live run, traced by JAX and batched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trimtab.agents.training.policy_network import act
from trimtab.core.carry import Carry
from trimtab.core.control import Values, apply, no_action, observe
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec

__all__ = ["STEERING", "Decided", "closing_program", "decision_program"]

STEERING = "mean"
"""How a policy answers in use; see `trimtab.agents.training.policy_network.act`."""


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

    It is ``(parameters, carry, metrics, hidden, key, aside) -> (carry, hidden, Decided)``, with B
    in front of carry, metrics and the policy's memory ``hidden``.

    Args:
        spec: What is steered.
        mode: See `trimtab.agents.training.rollout.rollout`; ``aside`` is that of this decision.
    """
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
                held = _is_novel(parameters, seen)
                action = jnp.where(held[:, None] > 0, idle, action)
        carry, values, _ = jax.vmap(applied)(carry, action)
        if mode == "fixed":
            offset = jnp.clip(aside, carry.low_offset, carry.high_offset)
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
