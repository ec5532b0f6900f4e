"""One window of gradient descent on a flat vector of weights, with its statistics.

What hyperparameters do to a step is told in numbers that `descend` works with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.envs.simulators.draws import Draw
from trimtab.envs.simulators.family import OPTIMISERS
from trimtab.envs.simulators.networks import Layout

BETA2 = {"adam": 0.999, "adamw": 0.999, "sgd": 0.0, "rmsprop": 0.99}
EPSILON = 1e-8
_ADAM, _ADAMW, _SGD, _RMSPROP = range(len(OPTIMISERS))


class Travel(NamedTuple):
    """How far a run has come; a restore of the best weights leaves it alone.

    Attributes:
        origin: (P,) float32, weights before step 1.
        sum: (P,) float32, sum of the unit gradients at the windows' ends, each weighted by the
            path of its window.
        pull: () float32, sum of their products with the way back, weighted likewise.
        most: () float32, sum of the lengths of the way back, weighted likewise.
        path: () float32, length of the path so far.
    """

    origin: jax.Array
    sum: jax.Array
    pull: jax.Array
    most: jax.Array
    path: jax.Array

    @classmethod
    def begin(cls, params: jax.Array) -> Travel:
        """Return that of a run at its first weights (P,)."""
        zero = jnp.float32(0)
        return cls(params, jnp.zeros_like(params), zero, zero, zero)


class State(NamedTuple):
    """A run in progress.

    Attributes:
        params: (P,) float32, trainable weights divided by the task's scales.
        first: (P,) float32, first moment or momentum buffer.
        second: (P,) float32, second moment.
        updates: () int32, since the moments were cleared.
        clip_unit: () float32, norm of the first gradient; 0 before the first step.
        seed: () uint32, data order and dropout.
        travel: How far it has come.
    """

    params: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array
    clip_unit: jax.Array
    seed: jax.Array
    travel: Travel


class Effects(NamedTuple):
    """What the hyperparameters of a window come to; P weights, L layers.

    Attributes:
        lr: () float32, hidden factor included, before the reference schedule.
        rate: (P,) float32, factor of the learning rate of each weight; 0 is frozen.
        decay: (P,) float32, weight decay of each weight.
        decay_lr: () float32, turns lr into the rate at which decoupled decay acts.
        momentum: () float32, momentum or beta1.
        dropout: (L,) float32.
        smoothing: () float32, label smoothing.
        clip: () float32, largest gradient norm in units of the first gradient's.
        batch: () int32, batch size.
    """

    lr: jax.Array
    rate: jax.Array
    decay: jax.Array
    decay_lr: jax.Array
    momentum: jax.Array
    dropout: jax.Array
    smoothing: jax.Array
    clip: jax.Array
    batch: jax.Array


class Optimiser(NamedTuple):
    """Numbers that make one formula Adam, AdamW, SGD or RMSprop; each () float32.

    Attributes:
        gain: Weight of a new gradient in the first moment.
        momentum: Weight of the old first moment.
        beta2: Weight of the old second moment.
        adaptive: 1 if the step is divided by the root of the second moment.
        corrects: 1 if the moments' bias is corrected (Kingma and Ba 2015, algorithm 1).
        decoupled: 1 if decay acts on the weights directly (Loshchilov and Hutter 2019).
    """

    gain: jax.Array
    momentum: jax.Array
    beta2: jax.Array
    adaptive: jax.Array
    corrects: jax.Array
    decoupled: jax.Array

    @classmethod
    def of(cls, code: jax.Array, momentum: jax.Array) -> Optimiser:
        """Return the numbers for a code of `OPTIMISERS` and a momentum (beta1)."""
        adam = ((code == _ADAM) | (code == _ADAMW)).astype(jnp.float32)
        rmsprop = (code == _RMSPROP).astype(jnp.float32)
        return cls(
            gain=1.0 - adam * momentum,
            momentum=momentum * (1.0 - rmsprop),
            beta2=adam * BETA2["adam"] + rmsprop * BETA2["rmsprop"],
            adaptive=adam + rmsprop,
            corrects=adam,
            decoupled=(code == _ADAMW).astype(jnp.float32),
        )


def direction(
    optimiser: Optimiser, gradient: jax.Array, state: State
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the step direction and the new first and second moments, each (P,)."""
    first = optimiser.momentum * state.first + optimiser.gain * gradient
    second = optimiser.beta2 * state.second + (1.0 - optimiser.beta2) * gradient * gradient
    count = (state.updates + 1).astype(jnp.float32)
    corrects = optimiser.corrects > 0
    bias1 = jnp.where(corrects, 1.0 - optimiser.momentum**count, 1.0)
    bias2 = jnp.where(corrects, 1.0 - optimiser.beta2**count, 1.0)
    root = jnp.sqrt(second * (1.0 / bias2)) + EPSILON
    scaled = first * (1.0 / bias1)
    return jnp.where(optimiser.adaptive > 0, scaled / root, scaled), first, second


class _Window(NamedTuple):
    """What a window gathers; ``gradient`` is that of the last step but one.

    ``together`` is the sum of the last two gradients, ``pull`` its product with the way back to
    the run's first weights, and ``away2`` the square of that way.
    """

    origin: jax.Array
    total: jax.Array
    squares: jax.Array
    halves: jax.Array
    steps: jax.Array
    finite: jax.Array
    gradient: jax.Array
    norm2: jax.Array
    previous2: jax.Array
    product: jax.Array
    update2: jax.Array
    weight2: jax.Array
    together: jax.Array
    together2: jax.Array
    pull: jax.Array
    away2: jax.Array


def _empty_window(size: int) -> _Window:
    zero = jnp.float32(0)
    return _Window(
        origin=zero,
        total=zero,
        squares=zero,
        halves=zero,
        steps=jnp.int32(0),
        finite=jnp.bool_(True),
        gradient=jnp.zeros(size, jnp.float32),
        norm2=zero,
        previous2=zero,
        product=zero,
        update2=zero,
        weight2=zero,
        together=jnp.zeros(size, jnp.float32),
        together2=zero,
        pull=zero,
        away2=zero,
    )


class _Rule(NamedTuple):
    """How the steps of a window change the weights.

    Attributes:
        effects: Of the hyperparameters.
        optimiser: Whose formula is followed.
        coupled: (P,) float32, weight decay that joins the gradient.
        reference: (max_total_steps,) float32.
        clips: Whether gradients are clipped at all.
        clip_factor: Factor of the clipping unit.
    """

    effects: Effects
    optimiser: Optimiser
    coupled: jax.Array
    reference: jax.Array
    clips: bool
    clip_factor: jax.Array


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.dot(left, right)


LossAndGradient = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(params, seed, step) -> (loss, gradient), events included."""


def descend(
    loss_and_gradient: LossAndGradient,
    state: State,
    effects: Effects,
    optimiser_code: jax.Array,
    reference: jax.Array,
    first_step: jax.Array,
    n_steps: jax.Array,
    max_steps: jax.Array,
    *,
    clips: bool,
    clip_factor: jax.Array,
    ratio: jax.Array,
) -> tuple[State, Metrics]:
    """Train one window; see `Family.advance` for the arguments that it shares.

    A run with fewer steps than ``max_steps`` idles first, so that the last two turns of the loop
    are every run's last two steps: only there are gradient statistics taken.

    Args:
        loss_and_gradient: Of one step.
        state: Before the window.
        effects: Of the hyperparameters.
        optimiser_code: () int32, index into `OPTIMISERS`.
        reference: (max_total_steps,) float32.
        first_step: () int32.
        n_steps: () int32.
        max_steps: () int32.
        clips: Whether gradients are clipped at all.
        clip_factor: Factor of the clipping unit.
        ratio: Factor of the reported update-to-weight ratio.
    """
    optimiser = Optimiser.of(optimiser_code, effects.momentum)
    coupled = (1.0 - optimiser.decoupled) * effects.decay
    rule = _Rule(effects, optimiser, coupled, reference, clips, clip_factor)
    half = n_steps // 2

    def turn(i: jax.Array, carry: tuple[State, _Window]) -> tuple[State, _Window]:
        state, window = carry
        place = i - (max_steps - n_steps)
        step = first_step + jnp.maximum(place, 0)
        loss, gradient = loss_and_gradient(state.params, state.seed, step)
        active = (place >= 0) & window.finite
        sound = active & jnp.isfinite(loss)
        new, update = _stepped(rule, state, gradient, sound, step)
        window = _counted(window, loss, place, active, n_steps, half)

        def measured(window: _Window) -> _Window:
            together = gradient + jnp.where(n_steps > 1, window.gradient, 0.0)
            back = state.travel.origin - state.params
            return window._replace(
                gradient=gradient,
                previous2=window.norm2,
                norm2=_dot(gradient, gradient),
                product=_dot(gradient, window.gradient),
                update2=_dot(update, update),
                weight2=_dot(state.params, state.params),
                together=together,
                together2=_dot(together, together),
                pull=_dot(together, back),
                away2=_dot(back, back),
            )

        return new, lax.cond(i >= max_steps - 2, measured, lambda window: window, window)

    empty = _empty_window(state.params.shape[0])
    state, window = lax.fori_loop(0, max_steps, turn, (state, empty))
    metrics = _metrics(window, n_steps, half, effects.batch, ratio)
    travel, measured = _travelled(window, state.travel)
    return state._replace(travel=travel), metrics._replace(**measured)


def _travelled(window: _Window, travel: Travel) -> tuple[Travel, dict[str, jax.Array]]:
    """Return how far the run has come after a window, and what `Metrics` tells of it."""
    gradient, back = jnp.sqrt(window.together2), jnp.sqrt(window.away2)
    step = jnp.sqrt(window.update2)
    sound = window.finite & (gradient > 0) & (step > 0) & jnp.isfinite(step)
    path = jnp.where(sound, window.steps.astype(jnp.float32) * step, 0.0)
    unit = jnp.where(sound, 1.0 / gradient, 0.0)
    new = Travel(
        travel.origin,
        jnp.where(sound, travel.sum + (path * unit) * window.together, travel.sum),
        travel.pull + jnp.where(sound, path * unit * window.pull, 0.0),
        travel.most + path * jnp.where(sound, back, 0.0),
        travel.path + path,
    )
    known, missing = sound & (back > 0), jnp.float32(jnp.nan)
    per_weight = step / np.float32(np.sqrt(travel.origin.shape[0]))
    distance = new.pull / jnp.maximum(jnp.abs(new.sum).sum(), 1e-30)
    return new, {
        "alignment": jnp.where(known, jnp.clip(window.pull * unit / back, -1.0, 1.0), missing),
        "alignment_mean": jnp.where(known, new.pull / new.most, missing),
        "distance_ratio": jnp.where(known, distance / per_weight, missing),
        "straightness": jnp.where(known, back / new.path, missing),
    }


def _stepped(
    rule: _Rule, state: State, gradient: jax.Array, sound: jax.Array, step: jax.Array
) -> tuple[State, jax.Array]:
    """Return the state after a step, unchanged unless ``sound``, and the update (P,)."""
    effects, optimiser = rule.effects, rule.optimiser
    clip_unit = state.clip_unit
    pulled = gradient
    if rule.clips:
        norm = jnp.sqrt(_dot(gradient, gradient))
        clip_unit = jnp.where(sound & (clip_unit == 0), norm, clip_unit)
        most = effects.clip * rule.clip_factor * clip_unit
        pulled = gradient * jnp.minimum(1.0, most / jnp.maximum(norm, 1e-30))
    pulled = pulled + rule.coupled * state.params
    way, first, second = direction(optimiser, pulled, state)
    lr = effects.lr * rule.reference[step]
    shrink = optimiser.decoupled * lr * effects.decay_lr
    update = (lr * effects.rate) * way + (shrink * effects.rate * effects.decay) * state.params
    new = State(
        jnp.where(sound, state.params - update, state.params),
        jnp.where(sound, first, state.first),
        jnp.where(sound, second, state.second),
        state.updates + sound.astype(jnp.int32),
        clip_unit,
        state.seed,
        state.travel,
    )
    return new, update


def _counted(
    window: _Window,
    loss: jax.Array,
    place: jax.Array,
    active: jax.Array,
    n_steps: jax.Array,
    half: jax.Array,
) -> _Window:
    """Return the window with the loss of its step number ``place``, below 0 before it begins."""
    origin = jnp.where(place == 0, loss, window.origin)
    excess = jnp.where(active, loss - origin, 0.0)
    later = jnp.where(place >= n_steps - half, 1.0, 0.0)
    earlier = jnp.where(place < half, 1.0, 0.0)
    return window._replace(
        origin=origin,
        total=window.total + excess,
        squares=window.squares + excess * excess,
        halves=window.halves + excess * (later - earlier),
        steps=window.steps + active.astype(jnp.int32),
        finite=window.finite & (jnp.isfinite(loss) | (place < 0)),
    )


def _metrics(
    window: _Window, n_steps: jax.Array, half: jax.Array, batch: jax.Array, ratio: jax.Array
) -> Metrics:
    done = jnp.maximum(window.steps, 1).astype(jnp.float32)
    mean = window.total / done
    variance = jnp.maximum(window.squares / done - mean * mean, 0.0)
    whole = window.finite
    product = window.product / jnp.sqrt(window.norm2 * window.previous2)
    moved = jnp.sqrt(window.update2) / jnp.maximum(jnp.sqrt(window.weight2), 1e-30)
    missing = jnp.float32(jnp.nan)
    comparable = whole & (n_steps > 1) & (window.norm2 * window.previous2 > 0)
    change = window.halves / jnp.maximum(half, 1).astype(jnp.float32)
    return Metrics(
        train_loss=window.origin + mean,
        train_loss_first=window.origin,
        train_loss_change=jnp.where(whole & (half > 0), change, missing),
        train_loss_std=jnp.where(whole, jnp.sqrt(variance), missing),
        val_loss=missing,
        reward_loss=missing,
        reference_loss=missing,
        grad_norm=jnp.where(whole, jnp.sqrt(window.norm2), missing),
        grad_cosine=jnp.where(comparable, jnp.clip(product, -1.0, 1.0), missing),
        update_ratio=jnp.where(whole, moved * ratio, missing),
        steps=window.steps.astype(jnp.float32),
        charge=(window.steps * batch).astype(jnp.float32),
        finite=whole.astype(jnp.float32),
    )


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
