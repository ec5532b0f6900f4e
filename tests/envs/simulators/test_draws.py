from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.simulators.given import drawn, draws, family, pick
from trimtab.core.errors import SpecError
from trimtab.envs.simulators.draws import PROPERTIES, SLOTS
from trimtab.envs.simulators.families.registry import FAMILIES, make_family
from trimtab.envs.simulators.families.supervised import augmentation, pretrained
from trimtab.envs.simulators.families.wide import acting
from trimtab.envs.simulators.family import FamilyOptions

pytestmark = pytest.mark.usefixtures("quick_compiling")

N = 1500


@pytest.fixture(scope="module")
def many():
    return draws(family(), N)


@pytest.mark.parametrize("name", FAMILIES)
def test_properties_of_tasks_are_not_correlated(name):
    many = draws(family(name), N, seed=1 + FAMILIES.index(name))
    # what the noise of labels, or a set's size, forces is left out
    free = {
        "data_set": many.data_set,
        "lr_factor": np.log(many.lr_factor),
        "decay_factor": np.log(many.decay_factor),
        "loss_scale": np.log(many.loss_scale),
        "scale": np.log(many.scale),
        "tensor_scale": np.log(many.tensor_scale[:, 0]),
        "ratio": np.log(many.ratio),
        "clip": np.log(many.clip),
        "noise": many.noise,
        "imbalance": np.log(many.imbalance),
        "head_scale": many.head_scale,
        "frozen": many.frozen,
        "same_set": many.same_set,
        "network": many.network % 27,
        "optimiser": many.optimiser == 2,
        "event": many.event > 0,
        "event_step": np.log(many.event_step),
        "shift": many.shift[:, 0] / np.hypot(many.gain[:, 0], many.turn[:, 0]),
        "input_scale": np.log(np.hypot(many.gain[:, 0], many.turn[:, 0])),
        "angle": many.turn[:, 0] / many.gain[:, 0] > 0,
    }
    if name == "simulated/wide":
        free["acting"] = jax.vmap(acting)(many)[:, 5]
    free = {key: np.asarray(value, np.float64) for key, value in free.items()}
    free = {key: value for key, value in free.items() if value.std() > 0}  # a single data set
    assert len(free) >= 19
    table = np.stack(list(free.values()))
    correlation = np.corrcoef(table) - np.eye(len(free))

    # about 200 pairs: the largest has a standard score below 4.2 in 99.5 % of all tries
    worst = np.unravel_index(np.abs(correlation).argmax(), correlation.shape)
    assert np.abs(correlation).max() < 4.2 / np.sqrt(N), [list(free)[i] for i in worst]


def test_splits_share_no_sample(many):
    tasks = jax.tree.map(np.asarray, many)
    for index in range(200):
        task = pick(tasks, index)
        used = []
        for split, (first, _) in SLOTS.items():
            count = int(getattr(task, f"n_{split}"))
            used.append(np.asarray(task.rows[first : first + count]))
        rows = np.concatenate(used)
        assert len(np.unique(rows)) == len(rows)


def test_counts_are_within_the_slots(many):
    for split, (_, slots) in SLOTS.items():
        counts = np.asarray(getattr(many, f"n_{split}"))
        assert counts.min() >= 1
        assert counts.max() <= slots
    assert np.asarray(many.n_validation).min() >= 20


def test_labels_are_classes_of_the_task(many):
    assert np.all(np.asarray(many.labels) >= 0)
    assert np.all(np.asarray(many.labels) < np.asarray(many.classes)[:, None])
    assert set(np.asarray(many.classes).tolist()) == set(range(2, 11))


def test_label_noise_spares_selection_and_test(many):
    noisy = np.asarray(many.noise) > 0.3
    labels, rows = np.asarray(many.labels), np.asarray(many.rows)
    base = family().architecture.pool(held_out=False).rows.labels
    first = SLOTS["selection"][0]
    for index in np.flatnonzero(noisy)[:10]:
        # the same original class has one new class everywhere in selection and test
        pairs = {
            (int(old), int(new))
            for old, new in zip(base[rows[index, first:]], labels[index, first:], strict=True)
        }
        assert len(pairs) == len({old for old, _ in pairs})


def test_equal_keys_draw_equal_tasks():
    one, two = draws(family(), N, seed=4), draws(family(), N, seed=4)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_task_does_not_depend_on_the_variant():
    for index in range(3):
        one, two = (drawn(family(), index, seed=4, variant=variant) for variant in (0, 2))
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.lr_factor, two.lr_factor)


def test_held_out_sets_and_widths_never_train():
    made, held = family(), family(held_out=True)
    widths = {w for shape in made.architecture.shapes for w in shape.widths}
    held_widths = {w for shape in held.architecture.shapes for w in shape.widths}
    assert not widths & held_widths
    seen = {row.tobytes() for row in made.architecture.pool(held_out=False).rows.inputs}
    kept = {row.tobytes() for row in made.architecture.pool(held_out=True).rows.inputs}
    assert not seen & kept


def test_properties_have_names_and_unit_scale(many):
    vectors = np.asarray(jax.vmap(family().properties)(many))
    assert vectors.shape == (N, len(PROPERTIES))
    assert np.isfinite(vectors).all()
    assert np.abs(vectors).max() < 2.5


def test_options_restrict_the_optimiser():
    made = family(optimisers=("rmsprop",))
    assert {int(drawn(made, 0, seed=seed).optimiser) for seed in range(20)} == {3}


def test_clean_tasks_have_right_labels_and_all_the_samples(many):
    clean = draws(family(clean=True), N)
    assert np.asarray(many.noise).max() > 0.3
    assert np.asarray(clean.noise).max() == 0
    assert np.asarray(clean.noisy_validation).max() == 0
    # what is asked for is the whole of the training slots, so only small sets give less
    assert np.median(np.asarray(clean.n_train)) > 2 * np.median(np.asarray(many.n_train))
    assert set(np.asarray(clean.data_set).tolist()) < set(np.asarray(many.data_set).tolist())


def test_clean_and_augmented_change_nothing_else_of_a_task(many):
    other = draws(family(augmented=True), N)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(other), strict=True)
    )
    clean = draws(family(clean=True), N)
    for name in ("optimiser", "lr_factor", "scale", "loss_scale", "network", "event_step"):
        assert np.array_equal(getattr(many, name), getattr(clean, name)), name


def test_augmented_steps_differ_on_the_same_samples_by_up_to_the_inputs_own_scale(many):
    task = pick(many, 0)
    one = np.asarray(augmentation(task, jnp.uint32(3), jnp.int32(5), (400, 64)))
    again = np.asarray(augmentation(task, jnp.uint32(3), jnp.int32(5), (400, 64)))
    later = np.asarray(augmentation(task, jnp.uint32(3), jnp.int32(6), (400, 64)))
    assert np.array_equal(one, again)
    assert abs(np.corrcoef(one.ravel(), later.ravel())[0, 1]) < 0.03
    shares = []
    for index in range(40):
        task = pick(many, index)
        scale = np.sqrt(np.mean(np.asarray(task.gain) ** 2 + np.asarray(task.turn) ** 2))
        noise = np.asarray(augmentation(task, jnp.uint32(1), jnp.int32(1), (50, 64)))
        shares.append(noise.std() / scale)
    assert max(shares) < 1.05
    assert min(shares) < 0.2
    assert 0.35 < np.mean(shares) < 0.65


def test_a_slow_head_moves_less_than_the_rest_by_a_hidden_factor(many):
    usual, slow = family(), family(slow_head=True)
    names = [tensor.name for tensor in usual.layout(0).tensors]
    factors = []
    for index in range(60):
        task = pick(many, index)
        before, after = (
            usual.layout(0).split(made._scales(made.layout(0), task)) for made in (usual, slow)
        )
        ratios = {name: np.asarray(after[name] / before[name]) for name in names}
        assert all(np.all(ratios[name] == 1) for name in names if not name.startswith("head."))
        head = np.concatenate([ratios[f"head.{kind}"].ravel() for kind in ("weight", "bias")])
        assert np.ptp(head) < 1e-6
        factors.append(float(head[0]))
    assert 10**-1.2 < min(factors) < 0.09
    assert 0.35 < max(factors) < 10**-0.3
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(draws(slow, N)), strict=True)
    )


def test_uneven_inputs_are_scaled_each_by_its_own_factor(many):
    uneven = draws(family(uneven=True), N)
    factors = np.log10(np.asarray(uneven.gain / many.gain))
    assert np.allclose(np.asarray(many.turn) * 10.0**factors, np.asarray(uneven.turn), atol=1e-6)
    assert np.allclose(np.asarray(many.shift) * 10.0**factors, np.asarray(uneven.shift), atol=1e-6)
    assert factors.max() <= 1e-6
    spreads = -factors.min(1)
    assert 2.2 < spreads.max() < 2.5
    assert spreads.min() < 0.3
    assert len(np.unique(factors[0].round(5))) == factors.shape[1]
    for name in set(many._fields) - {"gain", "turn", "shift"}:
        assert np.array_equal(getattr(many, name), getattr(uneven, name)), name


def test_augmented_families_spread_the_scales_of_tensors_wider(many):
    task = pick(many, 0)
    usual, wide = family(), family(augmented=True)
    layout = usual.layout(0)
    narrow = np.log(np.asarray(usual._scales(layout, task)))
    spread = np.log(np.asarray(wide._scales(layout, task)))
    assert np.allclose(
        spread - np.log(float(task.scale)), 3 * (narrow - np.log(float(task.scale))), atol=1e-4
    )


def test_uneven_inputs_are_refused_where_they_would_be_something_else():
    for name in ("simulated/cnn", "simulated/transformer"):
        with pytest.raises(SpecError, match=f"uneven: True is of no use to {name}"):
            make_family(name, FamilyOptions(uneven=True))
    with pytest.raises(SpecError, match="uneven: True does not go with augmented"):
        family(uneven=True, augmented=True)


def test_more_networks_make_a_bigger_bank():
    architecture = family().architecture
    pool = architecture.pool(held_out=False)
    n_sets = len(pool.rows.sizes)
    for asked, made in ((2 * n_sets + 3, 2 * n_sets), (1, n_sets)):  # a multiple of the data sets
        bank = jax.eval_shape(partial(pretrained, architecture, 0, pool, asked))
        assert bank.shape[0] == made
    with pytest.raises(SpecError, match="networks: -1 is below 0"):
        family(networks=-1)
