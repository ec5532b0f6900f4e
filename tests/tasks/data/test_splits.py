"""Splits are disjoint, stratified, free of duplicates and fixed by their seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import SpecError
from trimtab.tasks.data.splits import SPLITS, first_of_duplicates, stratified_splits

SHARES = {"train": 0.5, "validation": 0.15, "selection": 0.15, "test": 0.2}


@given(sizes=st.lists(st.integers(20, 90), min_size=2, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_splits_are_disjoint_and_stratified(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = stratified_splits(labels, SHARES, seed=seed)

    together = np.concatenate(list(parts.values()))
    assert tuple(parts) == SPLITS
    assert len(np.unique(together)) == len(together) == len(labels)
    for name, share in SHARES.items():
        for label, size in enumerate(sizes):
            assert abs(np.sum(labels[parts[name]] == label) - share * size) <= 1.0


def test_the_same_seed_gives_the_same_splits_and_another_gives_others() -> None:
    labels = np.arange(200) % 2
    first = stratified_splits(labels, SHARES, seed=1)
    again = stratified_splits(labels, SHARES, seed=1)
    other = stratified_splits(labels, SHARES, seed=2)

    for name in SHARES:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["train"], other["train"])


def test_copies_of_an_example_reach_no_split() -> None:
    examples = np.random.default_rng(0).integers(0, 255, (100, 4, 4), np.uint8)
    examples[50:] = examples[:50]
    parts = stratified_splits(np.arange(100) % 2, SHARES, seed=0, examples=examples)

    contents = [examples[row].tobytes() for rows in parts.values() for row in rows]
    assert len(contents) == len(set(contents)) == 50


def test_shape_and_type_distinguish_equal_bytes() -> None:
    zeros = [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int8)]

    assert first_of_duplicates([*zeros, zeros[0].copy()]).tolist() == [0, 1, 2]


def test_groups_stay_together() -> None:
    groups = np.repeat(np.arange(40), 5)
    parts = stratified_splits(groups % 2, SHARES, seed=0, groups=groups)

    owners = [set(groups[rows]) for rows in parts.values()]
    assert sum(len(owner) for owner in owners) == len(set.union(*owners)) == 40
    assert sum(len(rows) for rows in parts.values()) == 200


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 0.8, "test": 0.3}, "must be positive and sum to at most 1"),
        ({"train": 0.8, "test": 0.0}, "must be positive"),
        ({"train": 0.99, "test": 0.01}, "'test' gets none of 20 examples at 0.01"),
    ],
)
def test_shares_that_cannot_be_dealt_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        stratified_splits(np.arange(20) % 2, shares, seed=0)


def test_lengths_must_agree() -> None:
    with pytest.raises(SpecError, match="groups: 3 entries for 4 labels"):
        stratified_splits(np.zeros(4, int), {"train": 1.0}, seed=0, groups=np.zeros(3))
