"""What happens to a simulated run from outside: bad batches, flipped labels, spikes, NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import EVENT_KINDS, Draw
from trimtab.envs.simulators.random_numbers import mixed, uniform_hash

_EVENT_STREAM = np.uint32(0x27D4EB2F)
_AUGMENTATION_STREAM = np.uint32(0x165667B1)


def augmentation(draw: Draw, seed: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return float32 noise of ``shape`` for the inputs of one step.

    Uniform with standard deviation ``s`` times the inputs' own scale; the task hides s, uniform
    between 0 and `most_noise` of the distributions.

    Args:
        draw: The task.
        seed: () uint32, the run's data order.
        step: () int32.
        shape: Of the inputs.
    """
    most = np.float32(distributions()["augmented"]["most_noise"])
    share = mixed(draw.network).astype(jnp.float32) * np.float32(2.0**-32)
    scale = jnp.sqrt((draw.gain**2 + draw.turn**2).mean())
    code = mixed(seed ^ mixed(step.astype(jnp.uint32) + _AUGMENTATION_STREAM))
    noise = (uniform_hash(code, 1, shape) - 0.5) * np.float32(np.sqrt(12.0))
    return share * most * scale * noise


def disturbed_batch(
    draw: Draw,
    inputs: jax.Array,
    labels: jax.Array,
    place: jax.Array,
    code: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return inputs and labels after corrupted-batch and label-flip events.

    A corrupted batch (three steps) has random labels and features five times too large; from a
    label flip on, three training samples in ten have the next class for good.

    Args:
        draw: The task.
        inputs: (B, ...).
        labels: (B,) int32.
        place: (B,) int32, which training samples they are.
        code: () uint32, random code of the step.
        step: () int32.
    """
    table = distributions()["events"]
    since = step - draw.event_step
    corrupt = (draw.event == EVENT_KINDS.index("corrupted-batch")) & (since >= 0)
    corrupt = corrupt & (since < table["corrupted_steps"])
    flips = (draw.event == EVENT_KINDS.index("label-flip")) & (since >= 0)
    number = uniform_hash(code ^ _EVENT_STREAM, 0, labels.shape)
    wrong = (number * draw.classes.astype(jnp.float32)).astype(jnp.int32)
    most = np.uint32(table["flipped_share"] * 2**32)
    chosen = mixed(place.astype(jnp.uint32) + np.uint32(77)) < most
    labels = jnp.where(flips & chosen, (labels + 1) % draw.classes, labels)
    labels = jnp.where(corrupt, jnp.minimum(wrong, draw.classes - 1), labels)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        inputs = inputs * jnp.where(corrupt, np.float32(table["corrupted_scale"]), 1.0)
    return inputs, labels


def disturbed_gradient(
    draw: Draw, loss: jax.Array, gradient: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return loss and gradient after gradient-spike and NaN events, each at one step."""
    now = step == draw.event_step
    spike = now & (draw.event == EVENT_KINDS.index("gradient-spike"))
    broken = now & (draw.event == EVENT_KINDS.index("nan"))
    factor = jnp.where(spike, np.float32(distributions()["events"]["spike"]), 1.0)
    return jnp.where(broken, jnp.nan, loss), gradient * factor
