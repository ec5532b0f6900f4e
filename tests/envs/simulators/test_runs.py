from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.simulators.given import (
    advanced,
    all_started,
    drawn,
    draws,
    family,
    pick,
    raw_bank,
    rest,
    started,
    tuned_rate,
)
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.envs.simulators.batch import advance_many, evaluate_many
from trimtab.envs.simulators.descent import State
from trimtab.envs.simulators.draws import EVENT_KINDS

LR = ("lr",)
QUIET = {"hyperparameters": LR, "events": False}


@pytest.fixture(scope="module")
def run():
    made = family(**QUIET)
    bank = raw_bank(made, 0)
    draw = drawn(made, 1)
    return made, bank, draw, started(made, bank, draw)


def _same(one, two, tolerance=0.0):
    return all(
        np.allclose(a, b, rtol=tolerance, atol=tolerance * float(np.abs(a).max()))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_equal_keys_give_equal_runs(run):
    made, bank, draw, state = run
    again = started(made, bank, draw)
    other = started(made, bank, draw, 3)
    values = [tuned_rate(made, draw)]

    one = advanced(made, bank, draw, state, values)
    assert _same(one[0], advanced(made, bank, draw, again, values)[0])
    assert not _same(one[0], advanced(made, bank, draw, other, values)[0])


def test_two_windows_make_one_long_window(run):
    made, bank, draw, state = run
    values = [tuned_rate(made, draw)]

    whole, _ = advanced(made, bank, draw, state, values, n=7)
    part, _ = advanced(made, bank, draw, state, values, n=3)
    part, _ = advanced(made, bank, draw, part, values, first=3, n=4)

    if isinstance(whole, State):  # how far it has come is measured once a window
        part = part._replace(travel=whole.travel)
    assert _same(whole, part)


def test_metrics_describe_the_steps_of_the_window(run):
    made, bank, draw, state = run
    values = [tuned_rate(made, draw)]
    losses, states = [], [state]
    for step in range(5):
        new, metrics = advanced(made, bank, draw, states[-1], values, first=step, n=1)
        losses.append(float(metrics.train_loss))
        states.append(new)
        assert np.isnan(metrics.grad_cosine)
        assert np.isnan(metrics.train_loss_change)
        assert float(metrics.train_loss_std) == 0

    _, metrics = advanced(made, bank, draw, state, values, n=5)

    assert float(metrics.train_loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics.train_loss_first) == pytest.approx(losses[0], rel=1e-6)
    assert float(metrics.train_loss_std) == pytest.approx(np.std(losses), rel=1e-3)
    change = np.mean(losses[3:]) - np.mean(losses[:2])
    assert float(metrics.train_loss_change) == pytest.approx(change, rel=1e-3, abs=1e-7)
    moved = np.linalg.norm(states[5].params - states[4].params)
    ratio = moved / np.linalg.norm(states[4].params) * float(draw.ratio)
    assert float(metrics.update_ratio) == pytest.approx(ratio, rel=1e-3)
    assert (float(metrics.steps), float(metrics.charge)) == (5.0, 160.0)
    assert -1 <= float(metrics.grad_cosine) <= 1


def test_runs_of_other_lengths_in_the_batch_change_nothing(run):
    made, bank, draw, state = run
    rate = tuned_rate(made, draw)
    lengths = jnp.array([1, 2, 4, 6], jnp.int32)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), (draw, state))

    many, metrics = jax.jit(partial(advance_many, made, 0), static_argnames="chunk")(
        bank, *batch, jnp.full((4, 1), rate), jnp.ones((4, 400)), jnp.zeros(4, jnp.int32), lengths
    )

    for index, length in enumerate(lengths):
        alone, told = advanced(made, bank, draw, state, [rate], n=int(length))
        assert _same(alone, pick(many, index), 1e-5)
        assert _same(told.train_loss, metrics.train_loss[index], 1e-5)
        if length > 1:
            assert _same(told.grad_cosine, metrics.grad_cosine[index], 1e-4)


def test_chunks_change_nothing(run):
    made, bank, _, _ = run
    each = [drawn(made, index, seed) for seed in (1, 2) for index in range(4)]
    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    states = all_started(made, bank, tasks)
    rates = jax.vmap(partial(tuned_rate, made))(tasks)[:, None]
    given = (rates, jnp.ones((8, 400)), jnp.zeros(8, jnp.int32), jnp.full(8, 4, jnp.int32))

    whole, chunked = (
        jax.jit(partial(advance_many, made, 0, chunk=chunk))(bank, tasks, states, *given)
        for chunk in (8, 2)
    )
    assert _same(whole[0], chunked[0], 1e-5)
    losses = [
        evaluate_many(made, 0, bank, tasks, whole[0], "validation", chunk=chunk)[0]
        for chunk in (8, 4)
    ]
    assert _same(*losses, 1e-5)


def test_good_rate_learns_and_huge_rate_ruins():
    made = family(**QUIET)
    bank = made.bank(0)
    tasks = draws(made, 32)
    states = all_started(made, bank, tasks)
    rates = jax.vmap(partial(tuned_rate, made))(tasks)[:, None]
    measure = jax.jit(partial(evaluate_many, made, 0), static_argnames="split")
    train = jax.jit(partial(advance_many, made, 0))
    steps = (jnp.ones((32, 400)), jnp.zeros(32, jnp.int32), jnp.full(32, 100, jnp.int32))
    before, _ = measure(bank, tasks, states, split="test")

    good, told = train(bank, tasks, states, rates, *steps)
    after, accuracy = measure(bank, tasks, good, split="test")
    assert float(told.finite.min()) == 1.0
    assert float(jnp.median(after / before)) < 0.8
    assert float((after < before).mean()) > 0.8
    assert float(accuracy.mean()) > float((1 / tasks.classes).mean()) + 0.2

    wild, _ = train(bank, tasks, states, rates * 1e4, *steps)
    ruined, _ = measure(bank, tasks, wild, split="test")
    assert float((~(ruined < before)).mean()) > 0.9  # nan counts


def test_nan_event_ends_the_window_and_leaves_the_weights():
    made = family(hyperparameters=LR)
    bank = raw_bank(made, 0)
    draw = drawn(made, 1)._replace(
        event=jnp.int32(EVENT_KINDS.index("nan")), event_step=jnp.int32(3)
    )
    state = started(made, bank, draw)
    values = [tuned_rate(made, draw)]

    new, metrics = advanced(made, bank, draw, state, values, n=8)
    before, _ = advanced(made, bank, draw, state, values, n=3)
    assert (float(metrics.finite), float(metrics.steps)) == (0.0, 4.0)
    assert np.isnan(metrics.train_loss)
    assert _same(new.params, before.params)

    _, metrics = advanced(made, bank, draw, new, values, first=8, n=4)
    assert float(metrics.finite) == 1.0


@pytest.mark.parametrize("kind", ["corrupted-batch", "label-flip", "gradient-spike"])
def test_events_act_from_their_step_on(kind):
    made = family(hyperparameters=LR)
    bank = raw_bank(made, 0)
    calm = drawn(made, 1)._replace(event=jnp.int32(0), event_step=jnp.int32(3))
    hit = calm._replace(event=jnp.int32(EVENT_KINDS.index(kind)))
    state = started(made, bank, calm)
    values = [tuned_rate(made, calm)]

    for n, same in ((3, True), (4, False)):
        one, _ = advanced(made, bank, calm, state, values, n=n)
        two, _ = advanced(made, bank, hit, state, values, n=n)
        assert _same(one.params, two.params) is same


def test_every_offered_hyperparameter_acts():
    made = family(events=False)
    bank = raw_bank(made, 0)
    draw = drawn(made, 1)._replace(frozen=jnp.float32(0), clip=jnp.float32(0.3))
    state = started(made, bank, draw)
    usual = rest(made)
    usual[0] = float(tuned_rate(made, draw))
    changed = {"lr": usual[0] * 2, "weight_decay": 0.5, "momentum": 0.5, "dropout": 0.3}
    changed |= {"label_smoothing": 0.2, "clip": 0.05, "batch_size": 16.0, "layer_decay": 0.5}
    changed |= {"frozen_depth": 0.6}

    reached, _ = advanced(made, bank, draw, state, usual)
    for index, item in enumerate(made.hyperparameters):
        values = usual.copy()
        values[index] = changed[item.name]
        other, metrics = advanced(made, bank, draw, state, values)
        assert not _same(reached.params, other.params), item.name
        if item.name == "batch_size":
            assert float(metrics.charge) == 5 * 16
        if item.name == "frozen_depth":
            frozen = made.layout(0).layer_of_element == 0
            assert _same(other.params[frozen], state.params[frozen])


def test_reparameterised_network_learns_the_same_function(run):
    made, bank, draw, _ = run
    draw = draw._replace(optimiser=jnp.int32(2), scale=jnp.float32(1.0))
    larger = draw._replace(scale=jnp.float32(8.0))
    losses = []
    for task in (draw, larger):
        state = started(made, bank, task)
        state, _ = advanced(made, bank, task, state, [tuned_rate(made, task)])
        losses.append(float(made.evaluate(0, bank, task, state, "test")[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_forget_clears_the_optimiser_only(run):
    made, bank, draw, state = run
    new, _ = advanced(made, bank, draw, state, [tuned_rate(made, draw)])
    cleared = made.forget(new)
    assert _same(cleared.params, new.params)
    assert float(jnp.abs(cleared.first).max()) == 0 == int(cleared.updates)


def test_low_rank_adapters_train_few_weights():
    made = family(adapter_rank=1, **QUIET)
    assert made.layout(0).size < made.architecture.layout(0).size / 4
    names = [tensor.name for tensor in made.layout(0).tensors]
    assert names == [
        "0.weight.down", "0.weight.up", "1.weight.down", "1.weight.up", "head.weight", "head.bias"
    ]  # fmt: skip


def test_unknown_split_and_variant_are_refused(run):
    made, bank, draw, state = run
    with pytest.raises(UnknownNameError, match="'training'"):
        made.evaluate(0, bank, draw, state, "training")
    with pytest.raises(SpecError, match=r"99 is outside 0\.\.11"):
        made.bank(99)
