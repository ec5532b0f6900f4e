from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.simulators.given import draws, family, pick, raw_bank, started, tuned_rate
from trimtab.envs.simulators import reference_steps as slow

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
    ("simulated/transformer", 1, "adamw", {}),
    ("simulated/cnn", 0, "sgd", {}),
]


def _logits(made, variant, tensors, inputs):
    architecture = made.architecture
    if made.name == "simulated/mlp":
        return slow.perceptron_logits(architecture.shapes[variant], tensors, inputs)
    if made.name == "simulated/cnn":
        return slow.convolution_logits(tensors, inputs)
    return slow.transformer_logits(architecture.sizes[variant], tensors, inputs)


def _inputs(made, rows, draw):
    scale = np.hypot(draw.gain[0], draw.turn[0])
    if made.name == "simulated/cnn":
        return scale * rows + draw.shift[0]
    if made.name == "simulated/transformer":
        return (rows + int(np.round(np.abs(draw.shift[0]) / scale * 8))) % 16
    return draw.gain * rows + draw.turn * np.roll(rows, 32, axis=1) + draw.shift


@pytest.mark.parametrize(("name", "variant", "optimiser", "options"), CASES)
def test_compiled_step_agrees_with_the_obvious_one(name, variant, optimiser, options):
    made = family(name, hyperparameters=OFFERED, optimisers=(optimiser,), events=False, **options)
    bank = raw_bank(made, variant)
    draw = pick(draws(made, 4, seed=9, variant=variant), 2)._replace(frozen=jnp.float32(0))
    state = started(made, bank, draw, 3, variant)
    size = state.params.shape[0]
    noise = jax.random.normal(jax.random.key(4), (2, size))
    state = state._replace(
        params=state.params + 0.1 * noise[0] / draw.scale,
        first=noise[1] * 0.1,
        second=0.1 + noise[0] ** 2,
        updates=jnp.int32(7),
    )
    rate = tuned_rate(made, draw) * (30.0 if optimiser == "sgd" else 100.0)
    values = np.array([rate, 0.02, 0.8, 0.1], np.float32)

    window = jax.jit(
        lambda bank, state, values: made.advance(
            variant, bank, draw, state, values, jnp.ones(9), STEP, jnp.int32(1), jnp.int32(1)
        )
    )
    new, metrics = window(bank, state, jnp.asarray(values))

    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), draw)
    places = slow.batch_places(int(state.seed), STEP, 32, int(draw.n_train))
    rows = np.asarray(draw.rows)[places]
    inputs = _inputs(made, np.asarray(bank.rows)[rows].astype(np.float64), exact)
    if name == "simulated/transformer":
        inputs = inputs.astype(int)
    labels = np.asarray(draw.labels)[places]
    layout = made.layout(variant)
    scales = np.asarray(exact.scale * exact.tensor_scale[layout.tensor_of_element])
    base = made.architecture.layout(variant).split(np.asarray(made._base(bank, draw), np.float64))

    def loss_of(params):
        trained = layout.split(params * scales)
        tensors = {key: trained.get(key, value) for key, value in base.items()}
        for key in base:
            if f"{key}.down" in trained:
                low_rank = trained[f"{key}.down"] @ trained[f"{key}.up"]
                tensors[key] = base[key] + low_rank
        logits = _logits(made, variant, tensors, inputs)
        mean = slow.classification_loss(logits, labels, int(draw.classes), 0.1, made.options.loss)
        return float(exact.loss_scale) * mean

    params = np.asarray(state.params, np.float64)
    elements = np.random.default_rng(0).choice(size, min(40, size), replace=False)
    # relative steps: weights of a strongly scaled network are tiny
    slopes = slow.numeric_gradient(lambda w: loss_of(w / scales), params * scales, elements)
    gradient = slopes * scales[elements]
    decay = 0.02 * float(draw.decay_factor) * layout.decays[elements].astype(np.float64)
    inside = COUPLED * float(exact.loss_scale) * scales[elements] ** 2
    expected = slow.optimiser_step(
        optimiser,
        params[elements],
        gradient,
        (
            np.asarray(state.first, np.float64)[elements],
            np.asarray(state.second, np.float64)[elements],
            7,
        ),
        lr=float(values[0]) * float(exact.lr_factor),
        momentum=0.8,
        coupled_decay=np.zeros(len(elements)) if optimiser == "adamw" else decay * inside,
        decoupled_decay=decay * float(exact.scale) if optimiser == "adamw" else 0.0 * decay,
    )

    assert float(metrics.train_loss) == pytest.approx(loss_of(params), rel=1e-5)
    moved = np.asarray(new.params)[elements]
    assert np.linalg.norm(moved - expected) < 1e-5 * np.linalg.norm(expected)
