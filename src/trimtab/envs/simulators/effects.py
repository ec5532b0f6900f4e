"""What hyperparameters do to a training step, as the numbers that `descend` works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.envs.simulators.descent import Effects
from trimtab.envs.simulators.draws import Draw
from trimtab.envs.simulators.family import OPTIMISERS
from trimtab.envs.simulators.layouts import Layout

Interpreter = Callable[[Layout, Draw, jax.Array, Mapping[str, jax.Array]], Effects]
"""(layout, task, (P,) scales of the weights, values by name) -> effects."""

_COUPLED = np.float32(0.1)  # a decay inside the gradient is this much weaker than a decoupled one


def usual_hyperparameters() -> tuple[Hyperparameter, ...]:
    """Return what every supervised family offers, the learning rate first."""
    return (
        hyperparameter("lr", 1e-3),
        hyperparameter("weight_decay", 1e-2),
        hyperparameter("momentum", 0.9, high=0.99),
        hyperparameter("dropout", 0.0),
        hyperparameter("label_smoothing", 0.0),
        hyperparameter("clip", 10.0, low=1e-2, high=1e3),
        hyperparameter("batch_size", 32.0, low=8.0, high=64.0),
        hyperparameter("layer_decay", 1.0),
        hyperparameter("frozen_depth", 0.0),
    )


def usual_effects(
    layout: Layout, draw: Draw, scales: jax.Array, values: Mapping[str, jax.Array]
) -> Effects:
    """Return the effects of the hyperparameters of `usual_hyperparameters`; absent ones rest.

    Args:
        layout: Of the trainable tensors, P weights.
        draw: The task, whose hidden factors enter here.
        scales: (P,) float32, a of w = a v.
        values: () float32 each; ``"lr"`` has to be there.
    """

    def value(name: str, rest: float | jax.Array) -> jax.Array:
        return jnp.asarray(values.get(name, rest), jnp.float32)

    depth = layout.n_layers - 1
    height = (depth - layout.layer_of_element).astype(np.float32)
    lowest = jnp.round(value("frozen_depth", draw.frozen) * depth)
    trained = layout.layer_of_element.astype(np.float32) >= lowest
    decay = value("weight_decay", 1e-2) * draw.decay_factor * layout.decays
    return Effects(
        lr=values["lr"] * draw.lr_factor,
        rate=jnp.where(trained, value("layer_decay", 1.0) ** height, 0.0),
        decay=task_decay(draw, scales, decay),
        decay_lr=draw.scale,
        momentum=value("momentum", 0.9),
        dropout=jnp.full(layout.n_layers, value("dropout", 0.0), jnp.float32),
        smoothing=value("label_smoothing", 0.0),
        clip=value("clip", 1.0),
        batch=jnp.round(value("batch_size", 32.0)).astype(jnp.int32),
    )


def task_decay(draw: Draw, scales: jax.Array, decay: jax.Array) -> jax.Array:
    """Return (P,) decay as it acts on v: inside the gradient, or apart from it for AdamW.

    The gradient of ``k d |w|^2 / 2`` with w = a v is ``k d a^2 v``, times the loss's scale.
    """
    decoupled = draw.optimiser == OPTIMISERS.index("adamw")
    return jnp.where(decoupled, decay, decay * (_COUPLED * draw.loss_scale * scales**2))
