"""Proximal policy optimisation of the recurrent token policy, on whole undiscounted runs.

Schulman et al., 2017 (arXiv 1707.06347), with generalised advantage estimation (Schulman et al.,
2016, arXiv 1506.02438) at discount 1; advantages are divided by the spread of returns among a
run's siblings, so that every task weighs the same whatever its losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trimtab.agents.training.policy_network import evaluate_actions, value


@dataclass(frozen=True)
class PPOSettings:
    """Settings of the update; the defaults are those of the shipped policy.

    Attributes:
        learning_rate: Of Adam for policy and critic, at the start; it falls linearly to a tenth.
        clip: Of the probability ratio.
        gae_lambda: Of generalised advantage estimation.
        entropy: Weight of the entropy bonus at the start; it falls linearly to a tenth.
        epochs: Passes over a batch.
        minibatches: Parts of a batch, split by run.
        max_grad_norm: Global norm at which gradients are clipped.
        spread_floor: Nats added to the siblings' spread of returns before dividing by it.
    """

    learning_rate: float = 7e-4
    clip: float = 0.2
    gae_lambda: float = 0.95
    entropy: float = 0.01
    epochs: int = 4
    minibatches: int = 4
    max_grad_norm: float = 0.5
    spread_floor: float = 0.1


class Learner(NamedTuple):
    """Everything that learning changes.

    Attributes:
        policy: The policy's arrays.
        critic: The critic's arrays.
        moments: State of the optimiser.
        average: Polyak average of the policy's arrays, which is what is shipped.
    """

    policy: Any
    critic: Any
    moments: Any
    average: Any


def optimiser(settings: PPOSettings) -> optax.GradientTransformation:
    """Return Adam with clipped gradients; the rate is given at each update."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm), optax.scale_by_adam(eps=1e-5)
    )


def advantages(
    reward: np.ndarray, predicted: np.ndarray, alive: np.ndarray, gae_lambda: float
) -> np.ndarray:
    """Return (K, B) undiscounted advantages; nothing follows a run's last living decision.

    Args:
        reward: (K, B) earned by each decision.
        predicted: (K, B) value before each decision.
        alive: (K, B) 1 for decisions that were made.
        gae_lambda: Weight of longer returns, in [0, 1].

    Source: Schulman et al., 2016, eq. 16, with discount 1.
    """
    after = np.concatenate([predicted[1:] * alive[1:], np.zeros_like(predicted[:1])])
    error = (reward + after - predicted) * alive
    result = np.zeros_like(error)
    running = np.zeros_like(error[0])
    for k in reversed(range(len(error))):
        following = alive[k + 1] if k + 1 < len(error) else np.zeros_like(running)
        running = error[k] + gae_lambda * following * running
        result[k] = running
    return result


@lru_cache(maxsize=8)
def _step(settings: PPOSettings) -> Callable[..., Any]:
    transform = optimiser(settings)

    def loss(trained: Any, batch: dict[str, Any], entropy_weight: Any) -> Any:
        policy, critic = trained
        log_probability, entropy = evaluate_actions(policy, batch["observation"], batch["action"])
        alive = batch["alive"]
        count = jnp.maximum(alive.sum(), 1.0)
        difference = log_probability - batch["log_probability"]
        ratio = jnp.exp(difference)
        clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
        gain = jnp.minimum(ratio * batch["advantage"], clipped * batch["advantage"])
        error = value(critic, batch["critic_inputs"]) - batch["target"]
        fit = optax.huber_loss(error, delta=1.0)
        total = (-gain + fit - entropy_weight * entropy) * alive
        kl = ((ratio - 1.0) - difference) * alive
        aux = {
            "kl": kl.sum() / count,
            "entropy": (entropy * alive).sum() / count,
            "value_error": (fit * alive).sum() / count,
        }
        return total.sum() / count, aux

    @jax.jit
    def step(trained: Any, moments: Any, batch: Any, rate: Any, entropy_weight: Any) -> Any:
        gradient, aux = jax.grad(loss, has_aux=True)(trained, batch, entropy_weight)
        change, moments = transform.update(gradient, moments)
        trained = jax.tree.map(lambda p, c: p - rate * c, trained, change)
        return trained, moments, aux

    return step


def update(
    learner: Learner,
    settings: PPOSettings,
    batch: dict[str, np.ndarray],
    *,
    seed: int | tuple[int, ...],
    remaining: float,
    polyak: float = 0.99,
) -> tuple[Learner, dict[str, float]]:
    """Return the learner after some epochs over a batch of whole runs, and what it saw.

    Args:
        learner: Before.
        settings: Of the update.
        batch: ``observation`` (K, B, n), ``action`` (K, B, H + 1), ``log_probability``,
            ``advantage``, ``target``, ``alive`` (K, B) and ``critic_inputs`` (K, B, m).
        seed: Of the order of minibatches.
        remaining: Share of training left, 1 at the start; scales rate and entropy to a tenth.
        polyak: Weight of the old average.
    """
    step = _step(settings)
    scale = 0.1 + 0.9 * remaining
    rate = jnp.float32(settings.learning_rate * scale)
    entropy = jnp.float32(settings.entropy * scale)
    trained, moments = (learner.policy, learner.critic), learner.moments
    generator = np.random.default_rng(seed)
    size = batch["reward"].shape[1] if "reward" in batch else batch["alive"].shape[1]
    seen: dict[str, Any] = {}
    for _ in range(settings.epochs):
        for part in np.array_split(generator.permutation(size), settings.minibatches):
            piece = {name: jnp.asarray(array[:, part]) for name, array in batch.items()}
            trained, moments, seen = step(trained, moments, piece, rate, entropy)
    policy, critic = trained
    average = jax.tree.map(lambda a, p: polyak * a + (1 - polyak) * p, learner.average, policy)
    return Learner(policy, critic, moments, average), {k: float(v) for k, v in seen.items()}
