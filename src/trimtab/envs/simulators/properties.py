"""Hidden properties of a task as numbers for a critic."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from trimtab.envs.simulators.datasets import MAX_CLASSES
from trimtab.envs.simulators.draws import Draw
from trimtab.envs.simulators.family import OPTIMISERS

PROPERTIES: tuple[str, ...] = (
    "log10 training samples / 3",
    "log10 validation samples / 3",
    "label noise",
    "noisy validation labels",
    "log10 imbalance",
    "classes / 10",
    "adam",
    "adamw",
    "sgd",
    "rmsprop",
    "log10 hidden learning-rate factor",
    "log10 hidden decay factor",
    "log10 loss scale / 2",
    "log10 weight scale / 2",
    "log10 input scale",
    "frozen depth",
    "pretrained on the same inputs",
    "event ahead",
    "log10 event step / 3",
)
"""What each element of `property_vector` is."""


def property_vector(draw: Draw) -> jax.Array:
    """Return (19,) float32, named by `PROPERTIES`: what a policy may not see and a critic may."""

    def decades(value: jax.Array, per: float = 1.0) -> jax.Array:
        return jnp.log10(value.astype(jnp.float32)) / per

    one_hot = jax.nn.one_hot(draw.optimiser, len(OPTIMISERS), dtype=jnp.float32)
    happens = (draw.event > 0).astype(jnp.float32)
    return jnp.stack(
        [
            decades(draw.n_train, 3.0),
            decades(draw.n_validation, 3.0),
            draw.noise,
            draw.noisy_validation,
            decades(draw.imbalance),
            draw.classes.astype(jnp.float32) / MAX_CLASSES,
            *(one_hot[index] for index in range(len(OPTIMISERS))),
            decades(draw.lr_factor),
            decades(draw.decay_factor),
            decades(draw.loss_scale, 2.0),
            decades(draw.scale, 2.0),
            decades(jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)),
            draw.frozen,
            draw.same_set,
            happens,
            happens * decades(draw.event_step, 3.0),
        ]
    )
