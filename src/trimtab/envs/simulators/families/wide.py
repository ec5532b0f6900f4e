"""``simulated/wide``: 32 hyperparameters are offered, 8 of them act, and nobody says which.

A residual network of eight hidden layers and a head. Besides five values of the whole run every
layer has a factor of the learning rate, a factor of the weight decay, and a dropout rate. The
learning rate always acts; seven more are drawn with the task. The others rest at their default
whatever they are set to.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.envs.simulators.descent import Effects, task_decay
from trimtab.envs.simulators.draws import Draw
from trimtab.envs.simulators.families.mlp import Shape, perceptrons
from trimtab.envs.simulators.families.supervised import SupervisedFamily
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.networks import Layout
from trimtab.envs.simulators.random_numbers import mixed

N_ACTING = 8
"""How many of the offered hyperparameters act in a task, the learning rate included."""

_HIDDEN = 8
_SHAPES = (
    Shape((16,) * _HIDDEN, "relu", "layer", residual=True, drops_before_head=True),
    Shape((16,) * _HIDDEN, "tanh", residual=True, drops_before_head=True),
)
_HELD_OUT = (Shape((24,) * _HIDDEN, "gelu", "layer", residual=True, drops_before_head=True),)


def wide_hyperparameters() -> tuple[Hyperparameter, ...]:
    """Return all 32, the learning rate first."""
    layers = range(_HIDDEN + 1)
    return (
        hyperparameter("lr", 1e-3),
        hyperparameter("weight_decay", 1e-2),
        hyperparameter("momentum", 0.9, high=0.99),
        hyperparameter("label_smoothing", 0.0),
        hyperparameter("clip", 10.0, low=1e-2, high=1e3),
        *(hyperparameter(f"rate.{i}", 1.0, kind="other", low=0.01, high=100.0) for i in layers),
        *(
            hyperparameter(f"decay.{i}", 1.0, kind="weight_decay", low=0.01, high=100.0)
            for i in layers
        ),
        *(hyperparameter(f"dropout.{i}", 0.0, kind="dropout") for i in layers),
    )


_ALL = wide_hyperparameters()


def acting(draw: Draw) -> jax.Array:
    """Return (32,) bool: which hyperparameters act in a task; always 8, the first among them."""
    code = mixed(draw.network ^ np.uint32(0x51ED270B))
    ranks = mixed(code + jnp.arange(len(_ALL), dtype=jnp.uint32) * np.uint32(0x9E3779B9)) >> 1
    ranks = ranks.at[0].set(np.uint32(0))
    place = (ranks[None, :] < ranks[:, None]).sum(1)
    return place < N_ACTING


def wide_effects(
    layout: Layout, draw: Draw, scales: jax.Array, values: Mapping[str, jax.Array]
) -> Effects:
    """Return the effects of `wide_hyperparameters`; see `effects.usual_effects`."""
    acts = acting(draw)
    now = {
        item.name: jnp.where(acts[index], values.get(item.name, item.default), item.default)
        for index, item in enumerate(_ALL)
    }

    def by_layer(name: str) -> jax.Array:
        return jnp.stack([now[f"{name}.{layer}"] for layer in range(layout.n_layers)])

    of_element = layout.layer_of_element
    decay = now["weight_decay"] * by_layer("decay")[of_element]
    return Effects(
        lr=now["lr"] * draw.lr_factor,
        rate=by_layer("rate")[of_element],
        decay=task_decay(draw, scales, decay * draw.decay_factor * layout.decays),
        decay_lr=draw.scale,
        momentum=now["momentum"],
        dropout=by_layer("dropout"),
        smoothing=now["label_smoothing"],
        clip=now["clip"],
        batch=jnp.int32(32),
    )


def wide_family(options: FamilyOptions) -> SupervisedFamily:
    """Return ``simulated/wide`` with options."""
    shapes = _HELD_OUT if options.held_out else _SHAPES
    return SupervisedFamily(
        "simulated/wide",
        perceptrons(shapes, options.adapter_rank),
        options,
        offered=_ALL,
        interpret=wide_effects,
    )
