from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.simulators import reference_steps as slow
from tests.envs.simulators.given import drawn, family, raw_bank, started, tuned_rate

OFFERED = ("lr", "weight_decay", "momentum", "label_smoothing")
STEP = 3
COUPLED = 0.1

CASES = [
    ("simulated/mlp", 0, "sgd", {}),
    ("simulated/mlp", 1, "adam", {}),
    ("simulated/mlp", 2, "adamw", {}),
    ("simulated/mlp", 9, "sgd", {}),
    ("simulated/mlp", 11, "adam", {}),
    ("simulated/mlp", 3, "rmsprop", {"loss": "squared-error"}),
    ("simulated/mlp", 4, "adam", {"loss": "margin"}),
    ("simulated/transformer", 1, "adamw", {}),
    ("simulated/cnn", 0, "sgd", {}),
]


def _task(made, variant, optimiser, **changes):
    """Return bank, task and a run some steps under way, all with odd moments and weights."""
    bank = raw_bank(made, variant)
    draw = drawn(made, 2, seed=9, variant=variant)
    draw = draw._replace(frozen=jnp.float32(0), **changes)
    state = started(made, bank, draw, 3, variant)
    noise = jax.random.normal(jax.random.key(4), (2, state.params.shape[0]))
    state = state._replace(
        params=state.params + 0.1 * noise[0] / draw.scale,
        first=noise[1] * 0.1,
        second=0.1 + noise[0] ** 2,
        updates=jnp.int32(7),
    )
    rate = tuned_rate(made, draw) * (30.0 if optimiser == "sgd" else 100.0)
    return bank, draw, state, np.float32(rate)


def _compiled(made, variant, bank, draw, state, values):
    @jax.jit
    def window(bank, state, values):
        one = jnp.int32(1)
        return made.advance(variant, bank, draw, state, values, jnp.ones(9), STEP, one, one)

    return window(bank, state, jnp.asarray(values, jnp.float32))


def _logits(made, variant, tensors, inputs, factors):
    architecture = made.architecture
    if made.name == "simulated/cnn":
        return slow.convolution_logits(tensors, inputs)
    if made.name == "simulated/transformer":
        return slow.transformer_logits(architecture.shapes[variant], tensors, inputs)
    return slow.perceptron_logits(architecture.shapes[variant], tensors, inputs, factors)


def _inputs(made, rows, draw):
    scale = np.hypot(draw.gain[0], draw.turn[0])
    if made.name == "simulated/cnn":
        return scale * rows + draw.shift[0]
    if made.name == "simulated/transformer":
        moved = (rows + int(np.round(np.abs(draw.shift[0]) / scale * 8))) % 16
        return moved.astype(int)
    return draw.gain * rows + draw.turn * np.roll(rows, 32, axis=1) + draw.shift


def _loss(made, variant, bank, draw, state, smoothing, factors):
    """Return the training loss of a step, a function of (P,) weights of the network in float64."""
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), draw)
    places = slow.batch_places(int(state.seed), STEP, 32, int(draw.n_train))
    rows = np.asarray(draw.rows)[places]
    inputs = _inputs(made, np.asarray(bank.rows)[rows].astype(np.float64), exact)
    labels = np.asarray(draw.labels)[places]
    base = made.architecture.layout(variant).split(np.asarray(made._base(bank, draw), np.float64))
    layout, classes = made.layout(variant), int(draw.classes)

    def loss(weights):
        trained = layout.split(weights)
        tensors = {key: trained.get(key, value) for key, value in base.items()}
        for key in base:
            if f"{key}.down" in trained:
                tensors[key] = base[key] + trained[f"{key}.down"] @ trained[f"{key}.up"]
        logits = _logits(made, variant, tensors, inputs, factors)
        return float(exact.loss_scale) * slow.classification_loss(
            logits, labels, classes, smoothing, made.options.loss
        )

    return loss


def _scales(made, variant, draw):
    of_tensor = np.asarray(draw.scale, np.float64) * np.asarray(draw.tensor_scale, np.float64)
    return of_tensor[made.layout(variant).tensor_of_element]


def _stepped(optimiser, draw, state, scales, elements, gradient, *, lr, decay, momentum):
    """Return the weights of some elements after the step; ``decay`` (n,) as the task has it."""
    inside = COUPLED * float(draw.loss_scale) * scales[elements] ** 2
    moments = (np.asarray(state.first, np.float64), np.asarray(state.second, np.float64))
    return slow.optimiser_step(
        optimiser,
        np.asarray(state.params, np.float64)[elements],
        gradient,
        (moments[0][elements], moments[1][elements], 7),
        lr=lr * float(draw.lr_factor),
        momentum=momentum,
        coupled_decay=0.0 * decay if optimiser == "adamw" else decay * inside,
        decoupled_decay=decay * float(draw.scale) if optimiser == "adamw" else 0.0 * decay,
    )


@pytest.mark.parametrize(("name", "variant", "optimiser", "options"), CASES, ids=str)
def test_compiled_step_agrees_with_the_obvious_one(name, variant, optimiser, options):
    made = family(name, hyperparameters=OFFERED, optimisers=(optimiser,), events=False, **options)
    bank, draw, state, rate = _task(made, variant, optimiser)

    new, metrics = _compiled(made, variant, bank, draw, state, [rate, 0.02, 0.8, 0.1])

    layout, scales = made.layout(variant), _scales(made, variant, draw)
    loss = _loss(made, variant, bank, draw, state, 0.1, ())
    weights = np.asarray(state.params, np.float64) * scales
    elements = np.random.default_rng(0).choice(layout.size, min(40, layout.size), replace=False)
    # relative steps: weights of a strongly scaled network are tiny
    gradient = slow.numeric_gradient(loss, weights, elements) * scales[elements]
    decay = 0.02 * float(draw.decay_factor) * layout.decays[elements].astype(np.float64)
    expected = _stepped(
        *(optimiser, draw, state, scales, elements, gradient),
        lr=float(rate),
        decay=decay,
        momentum=0.8,
    )
    assert float(metrics.train_loss) == pytest.approx(loss(weights), rel=1e-5)
    moved = np.asarray(new.params)[elements]
    assert np.linalg.norm(moved - expected) < 1e-5 * np.linalg.norm(expected)


def test_compiled_step_of_the_wide_family_agrees_with_the_obvious_one():
    made = family("simulated/wide", optimisers=("adamw",), events=False)
    one = jnp.float32(1)
    plain = {"clip": one, "loss_scale": one, "scale": one, "network": jnp.uint32(3)}
    bank, draw, state, rate = _task(made, 1, "adamw", **plain)
    generator = np.random.default_rng(1)
    offered = {item.name: item for item in made.hyperparameters}
    values = {name: float(item.default) for name, item in offered.items()}
    for name, item in offered.items():
        spread = 0.3 * generator.random() if item.kind == "dropout" else 0.0
        values[name] = spread or values[name] * generator.uniform(0.5, 1.0)
    values |= {"lr": float(rate), "label_smoothing": 0.1}

    names = list(offered)
    acting = {names[place] for place in slow.acting_places(3, len(names), 8)}
    now = {name: values[name] if name in acting else offered[name].default for name in offered}
    layout, scales = made.layout(1), _scales(made, 1, draw)
    rates = [now[f"dropout.{layer}"] for layer in range(layout.n_layers)]
    factors = slow.dropout_factors(int(state.seed), STEP, rates, 32, [16] * layout.n_layers)
    loss = _loss(made, 1, bank, draw, state, now["label_smoothing"], factors)
    weights = np.asarray(state.params, np.float64) * scales
    everywhere = np.arange(layout.size)
    gradient = slow.numeric_gradient(loss, weights, everywhere) * scales
    state = state._replace(clip_unit=np.float32(0.5 / now["clip"] * np.linalg.norm(gradient)))
    layer = layout.layer_of_element
    decay = np.array([now[f"decay.{i}"] for i in range(layout.n_layers)])[layer] * layout.decays
    expected = _stepped(
        *("adamw", draw, state, scales, everywhere, gradient * 0.5),
        lr=now["lr"] * np.array([now[f"rate.{i}"] for i in range(layout.n_layers)])[layer],
        decay=decay * now["weight_decay"] * float(draw.decay_factor),
        momentum=now["momentum"],
    )
    new, metrics = _compiled(made, 1, bank, draw, state, list(values.values()))

    assert {"clip", "rate.1", "decay.2", "dropout.1"} < acting
    assert float(metrics.train_loss) == pytest.approx(loss(weights), rel=1e-5)
    moved = np.asarray(new.params)
    assert np.linalg.norm(moved - expected) < 1e-5 * np.linalg.norm(expected)
