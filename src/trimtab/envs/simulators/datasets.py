"""The small data sets that simulated runs are made of: real tables and random teachers.

Every set is standardised and zero-padded to 64 features. Real ones come with scikit-learn; the
others are drawn from fixed seeds: ``teacher-i`` (a random two-layer network labels Gaussian inputs
whose spectrum decays, so that the effective dimension varies) and ``clusters-i`` (Gaussian
clusters, several a class).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from trimtab.core.errors import MissingDependencyError, unknown_name

FEATURES = 64
MAX_CLASSES = 10
_SAMPLES = 2400

# name -> (effective dimension, hidden width of the teacher or clusters a class, class count)
_TEACHERS = {
    "teacher-0": (8, 16, 10),
    "teacher-1": (24, 32, 10),
    "teacher-2": (64, 32, 6),
    "teacher-3": (4, 24, 4),
    "teacher-4": (16, 24, 8),
    "teacher-5": (40, 48, 10),
}
_CLUSTERS = {
    "clusters-0": (12, 1, 10),
    "clusters-1": (32, 3, 10),
    "clusters-2": (6, 4, 5),
    "clusters-3": (20, 2, 8),
}
DATA_SETS: tuple[str, ...] = ("digits", "diabetes", "breast-cancer", "wine", *_TEACHERS, *_CLUSTERS)
"""Every name that `data_set` knows."""


class Table(NamedTuple):
    """One data set: ``inputs`` (n, 64) float32, ``labels`` (n,) int32, ``n_classes``."""

    inputs: np.ndarray
    labels: np.ndarray
    n_classes: int


class Rows(NamedTuple):
    """Several data sets in one array.

    Attributes:
        inputs: (R, 64) float32.
        labels: (R,) int32.
        starts: (S,) int32, first row of each set.
        sizes: (S,) int32, rows of each set.
        n_classes: (S,) int32.
    """

    inputs: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    n_classes: np.ndarray


def _standardised(inputs: np.ndarray, labels: np.ndarray) -> Table:
    spread = inputs.std(0)
    scaled = (inputs - inputs.mean(0)) / np.where(spread > 0, spread, 1.0)
    padded = np.zeros((len(inputs), FEATURES), np.float32)
    padded[:, : inputs.shape[1]] = np.clip(scaled, -6, 6)
    return Table(padded, labels.astype(np.int32), int(labels.max()) + 1)


def _teacher(dimension: int, width: int, n_classes: int, seed: int) -> Table:
    random = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(FEATURES) / dimension)
    turn = np.linalg.qr(random.normal(size=(FEATURES, FEATURES)))[0]
    codes = random.normal(size=(_SAMPLES, FEATURES)) * spectrum
    hidden = np.tanh(codes @ random.normal(size=(FEATURES, width)) * 1.5 / np.linalg.norm(spectrum))
    scores = hidden @ random.normal(size=(width, n_classes))
    scores -= scores.mean(0)  # no class takes all
    return _standardised(codes @ turn, scores.argmax(1))


def _clusters(dimension: int, per_class: int, n_classes: int, seed: int) -> Table:
    random = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(FEATURES) / dimension)
    centres = random.normal(size=(n_classes * per_class, FEATURES)) * spectrum
    member = random.integers(n_classes * per_class, size=_SAMPLES)
    spread = random.normal(size=(_SAMPLES, FEATURES)) * spectrum
    inputs = centres[member] + 0.9 * spread + 0.1 * random.normal(size=(_SAMPLES, FEATURES))
    return _standardised(inputs, member % n_classes)


def _real(name: str) -> Table:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"the data set {name!r} comes with scikit-learn, which is not installed; "
            "run pip install 'trimtab[learn]'"
        ) from error
    loaders = {
        "digits": datasets.load_digits,
        "diabetes": datasets.load_diabetes,
        "breast-cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
    }
    inputs, target = loaders[name](return_X_y=True)
    if name == "diabetes":  # a number to be predicted: its fifths are the classes
        target = np.digitize(target, np.quantile(target, [0.2, 0.4, 0.6, 0.8]))
    return _standardised(np.asarray(inputs, np.float64), np.asarray(target))


@cache
def data_set(name: str) -> Table:
    """Return a data set by name; the same arrays every time, not to be written to.

    Raises:
        UnknownNameError: There is no such set.
        MissingDependencyError: scikit-learn is needed and not installed.
    """
    if name in _TEACHERS:
        return _teacher(*_TEACHERS[name], seed=1000 + list(_TEACHERS).index(name))
    if name in _CLUSTERS:
        return _clusters(*_CLUSTERS[name], seed=2000 + list(_CLUSTERS).index(name))
    if name in DATA_SETS:
        return _real(name)
    raise unknown_name("data set", name, DATA_SETS)


def stacked(names: Sequence[str]) -> Rows:
    """Return the named sets one below the other."""
    tables = [data_set(name) for name in names]
    sizes = np.asarray([len(table.labels) for table in tables], np.int32)
    return Rows(
        np.concatenate([table.inputs for table in tables]),
        np.concatenate([table.labels for table in tables]),
        np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32),
        sizes,
        np.asarray([table.n_classes for table in tables], np.int32),
    )
