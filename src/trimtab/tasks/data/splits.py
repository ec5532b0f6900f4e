"""Four disjoint, stratified splits of a data set, fixed by a seed, without duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from trimtab.core.errors import SpecError

SPLITS: tuple[str, ...] = ("train", "validation", "selection", "test")
"""Learned from; seen by the controller; the reward's, in development; reported only."""

Array = TypeVar("Array")


@dataclass(frozen=True)
class LabelledData(Generic[Array]):
    """Examples in memory and who may see them; arrays of NumPy or of the task's framework.

    Attributes:
        inputs: (n, ...) what the model is given, row by row.
        labels: (n,) int64, class of each.
        splits: For each split its rows, (n_split,) int64.
    """

    inputs: Array
    labels: Array
    splits: Mapping[str, np.ndarray]


def first_of_duplicates(examples: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the indices of examples whose content was not there before, in order.

    Args:
        examples: Arrays; two are duplicates when shape, dtype and every byte agree.

    Returns:
        (n_unique,) int64, increasing.
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    for index, example in enumerate(examples):
        array = np.ascontiguousarray(example)
        header = f"{array.shape}{array.dtype.str}".encode()
        digest = hashlib.sha256(header + array.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    return np.asarray(kept, np.int64)


def scaled_shares(
    shares: Mapping[str, float], n_examples: int, wanted: int | None
) -> dict[str, float]:
    """Return shares of all examples that use ``wanted`` of them in place of all that they name.

    Args:
        shares: Share of each split; see `stratified_splits`.
        n_examples: How many examples there are.
        wanted: How many are meant to be used if the shares sum to 1; None, or more than there
            are, leaves the shares as they are.

    >>> scaled_shares({"train": 0.5, "test": 0.5}, 100, 50)
    {'train': 0.25, 'test': 0.25}
    """
    scale = min(1.0, (wanted or n_examples) / n_examples)
    return {name: share * scale for name, share in shares.items()}


def splits_to_arrays(splits: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, np.ndarray]:
    """Return each split's rows, (n_split,) int64, under the name that a cache file gives them."""
    return {f"split.{name}": np.asarray(rows, np.int64) for name, rows in splits.items()}


def splits_from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows of the four splits out of what `splits_to_arrays` made of them."""
    return {name: arrays[f"split.{name}"] for name in SPLITS}


def stratified_splits(
    labels: np.ndarray,
    shares: Mapping[str, float],
    *,
    seed: int,
    examples: Sequence[np.ndarray] | np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return disjoint index sets in which every class has nearly the same share.

    Within each class the examples are shuffled and cut at the cumulated shares, so each split
    has each class's count right to within one. With ``groups`` whole groups are dealt instead of
    examples (cells of one module, crops of one photograph), and shares hold for groups.

    Args:
        labels: (n,) class of each example, integers or strings. With ``groups`` each group is
            counted in the class of its first example.
        shares: Share of each split, in the order in which they are dealt; positive, together at
            most 1. What is left over belongs to no split.
        seed: Fixes the splits; has nothing to do with a run's seed.
        examples: (n, ...) contents; later copies of the same content are left out before
            anything is dealt. None if that was done already.
        groups: (n,) group of each example, or None.

    Returns:
        For each split its sorted indices, (n_split,) int64.

    Raises:
        SpecError: Shares are not positive or sum to more than 1, lengths disagree, or a split
            would be empty.

    >>> parts = stratified_splits(np.array([0, 1] * 10), {"train": 0.5, "test": 0.5}, seed=0)
    >>> len(parts["train"]), int(np.sum(parts["train"] % 2))
    (10, 5)
    """
    labels = np.asarray(labels)
    _check(labels, shares, examples, groups)
    kept = np.arange(len(labels)) if examples is None else first_of_duplicates(examples)
    units = kept if groups is None else _first_of_each(np.asarray(groups), kept)
    generator = np.random.default_rng(seed)
    dealt: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    edges = np.concatenate([[0.0], np.cumsum(list(shares.values()))])
    for label in np.unique(labels[units]):
        members = generator.permutation(units[labels[units] == label])
        cuts = np.rint(edges * len(members)).astype(int)
        for name, start, stop in zip(shares, cuts[:-1], cuts[1:], strict=True):
            dealt[name].append(members[start:stop])
    result: dict[str, np.ndarray] = {}
    for name, parts in dealt.items():
        chosen = np.concatenate(parts)
        if groups is not None:
            chosen = kept[np.isin(np.asarray(groups)[kept], np.asarray(groups)[chosen])]
        if not len(chosen):
            raise SpecError(
                f"shares: {name!r} gets none of {len(units)} examples at {shares[name]:g}; "
                "give it a larger share"
            )
        result[name] = np.sort(chosen).astype(np.int64)
    return result


def _first_of_each(groups: np.ndarray, kept: np.ndarray) -> np.ndarray:
    _, first = np.unique(groups[kept], return_index=True)
    return np.asarray(kept[np.sort(first)])


def _check(
    labels: np.ndarray,
    shares: Mapping[str, float],
    examples: Sequence[np.ndarray] | np.ndarray | None,
    groups: np.ndarray | None,
) -> None:
    if labels.ndim != 1 or not len(labels):
        raise SpecError(f"labels: shape {labels.shape} is not (n,) with n at least 1")
    if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise SpecError(
            f"shares: {dict(shares)} must be positive and sum to at most 1; lower some of them"
        )
    for name, other in (("examples", examples), ("groups", groups)):
        if other is not None and len(other) != len(labels):
            raise SpecError(
                f"{name}: {len(other)} entries for {len(labels)} labels; give one for each"
            )
