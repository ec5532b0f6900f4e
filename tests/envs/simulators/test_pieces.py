from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.simulators.reference_steps import batch_places
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.envs.simulators.datasets import DATA_SETS, data_set
from trimtab.envs.simulators.distributions import distributions, distributions_hash
from trimtab.envs.simulators.families.registry import FAMILIES, make_family
from trimtab.envs.simulators.families.transformer import CHAINS, stacked_chains
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.networks import Layout, Tensor
from trimtab.envs.simulators.random_numbers import batch_positions, uniform_hash

LAYOUT = Layout((Tensor("a", (2, 3), 0), Tensor("b", (3,), 1, decays=False)))


def test_an_epoch_visits_every_sample_once():
    n_train = jnp.int32(96)
    places = [
        np.asarray(batch_positions(jnp.uint32(5), jnp.int32(step), jnp.int32(32), 32, n_train))
        for step in range(6)
    ]
    first, second = np.concatenate(places[:3]), np.concatenate(places[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(96))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(("seed", "step", "batch", "n"), [(1, 0, 32, 40), (2**32 - 1, 77, 8, 1100)])
def test_data_order_agrees_with_the_obvious_one(seed, step, batch, n):
    given = (jnp.uint32(seed), jnp.int32(step), jnp.int32(batch))
    found = np.asarray(batch_positions(*given, 32, jnp.int32(n)))[:batch]
    assert found.tolist() == batch_places(seed, step, batch, n)


def test_hashed_numbers_are_uniform_and_streams_differ():
    one = np.asarray(uniform_hash(jnp.uint32(3), 0, (100, 100)))
    two = np.asarray(uniform_hash(jnp.uint32(3), 1, (100, 100)))
    counts = np.histogram(one, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 4.5 * np.sqrt(900)
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.045


def test_layout_joins_what_it_splits():
    flat = np.arange(9.0)
    assert LAYOUT.join(LAYOUT.split(flat)).tolist() == flat.tolist()
    assert LAYOUT.layer_of_element.tolist() == [0] * 6 + [1] * 3
    assert LAYOUT.decays.tolist() == [1] * 6 + [0] * 3
    assert (LAYOUT.size, LAYOUT.n_layers) == (9, 2)


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_are_standardised_and_have_all_classes(name):
    table = data_set(name)
    assert table.inputs.shape == (len(table.labels), 64)
    assert table.inputs.dtype == np.float32
    assert np.abs(table.inputs).max() <= 6
    assert np.abs(table.inputs.mean(0)).max() < 0.05
    counts = np.bincount(table.labels, minlength=table.n_classes)
    assert counts.min() >= 10


def test_sequences_of_a_chain_are_tokens():
    rows = stacked_chains(tuple(CHAINS))
    assert rows.inputs.min() == 0
    assert rows.inputs.max() == 15
    assert rows.n_classes.tolist() == [classes for classes, _ in CHAINS.values()]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        data_set("digit")
    with pytest.raises(UnknownNameError, match="did you mean 'simulated/mlp'"):
        make_family("simulated/mpl")
    with pytest.raises(UnknownNameError, match="'chain-9'"):
        stacked_chains(["chain-9"])
    with pytest.raises(UnknownNameError, match="'learning_rate'"):
        make_family("simulated/mlp", FamilyOptions(hyperparameters=("lr", "learning_rate")))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"loss": "hinge"}, "'hinge'"),
        ({"optimisers": ("adagrad",)}, "'adagrad'"),
        ({"adapter_rank": -1}, "-1"),
        ({"hyperparameters": ("momentum", "lr")}, "momentum"),
    ],
)
def test_bad_options_are_refused(options, seen):
    with pytest.raises((SpecError, UnknownNameError), match=seen):
        FamilyOptions(**options)


def test_every_family_offers_the_learning_rate_first():
    for name in FAMILIES:
        made = make_family(name)
        assert made.hyperparameters[0].kind == "lr"
        assert made.name == name


def test_shares_match_their_names():
    data = distributions()["data"]
    assert len(data["training_sets"]) == len(data["training_shares"])
    assert len(data["held_out_sets"]) == len(data["held_out_shares"])
    assert not set(data["training_sets"]) & set(data["held_out_sets"])
    assert len(distributions_hash()) == 64
