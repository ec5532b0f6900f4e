"""Keras classifiers whose inputs lie in memory: pretrained once, with a new head for each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.tasks.data.batches import ShuffledBatches, run_seeds
from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_versions
from trimtab.tasks.data.scores import classification_scores
from trimtab.tasks.keras.run import KerasRun, KerasSetup, require_tensorflow
from trimtab.tasks.variants import Pretraining, SizedTask

KERAS_PACKAGES: Mapping[str, str] = {"keras": "keras", "sklearn": "scikit-learn"}

NetworkMaker = Callable[[int, int], Any]
"""Makes a built model of (n_classes, seed); its last layer is the head, with kernel and bias."""


@dataclass(frozen=True)
class LabelledArrays:
    """Examples in memory and who may see them.

    Attributes:
        inputs: (n, ...) float32.
        labels: (n,) int64, class of each.
        splits: For each split its rows, (n_split,) int64.
    """

    inputs: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]


def pretrained_body(
    name: str,
    inputs: Mapping[str, object],
    make: NetworkMaker,
    data: LabelledArrays,
    *,
    pretraining: Pretraining,
    n_classes: int,
    defaults: Mapping[str, float],
) -> list[np.ndarray]:
    """Return the weights of a trained network without its head, from the cache if they are there.

    Args:
        name: Start of the cache file's name.
        inputs: Everything that the weights depend on; the pretraining and versions are added.
        make: Makes the network.
        data: With the splits ``train`` and ``validation``, of labels below ``n_classes``.
        pretraining: How long and how fast.
        n_classes: Classes of the pretraining.
        defaults: Values of the other hyperparameters.
    """

    def build() -> dict[str, np.ndarray]:
        run = KerasRun(
            _setup(
                make(n_classes, pretraining.seed),
                data,
                n_classes=n_classes,
                batch_size=pretraining.batch_size,
                defaults=defaults,
                order_seed=pretraining.seed,
            )
        )
        progress = np.arange(pretraining.steps) / pretraining.steps
        rates = pretraining.lr * 0.5 * (1.0 + np.cos(math.pi * progress))
        run.advance({"lr": rates}, pretraining.steps)
        body = run.model.get_weights()[:-2]
        return {f"weight.{place:03d}": np.asarray(array) for place, array in enumerate(body)}

    versions = package_versions({"keras": "keras"}) | {"pretraining": pretraining}
    arrays = cached_arrays(name, {**inputs, **versions}, build)
    return [arrays[key] for key in sorted(arrays)]


class KerasClassification(SizedTask):
    """A classifier in Keras, which says what it is made of.

    Its runs are made of ``_network(n_classes, seed)``, ``_body`` (the pretrained weights without a
    head), ``_data`` and ``_n_classes``.
    """

    _n_classes: int

    def start(self, *, seed: int) -> KerasRun:
        """Return a fresh run; the seed moves the head's initialisation, data order and dropout.

        Args:
            seed: 0 or more.

        Raises:
            MissingDependencyError: The data, Keras or TensorFlow is not installed.
            AdapterError: Keras runs on another backend than TensorFlow.
        """
        return KerasRun(self.setup(seed=seed))

    def setup(self, *, seed: int) -> KerasSetup:
        """Return what a run of this seed is made of, for a training loop of one's own.

        Raises:
            MissingDependencyError: The data, Keras or TensorFlow is not installed.
            AdapterError: Keras runs on another backend than TensorFlow.
        """
        require_tensorflow(self.name)
        return fine_tuning_setup(
            self._network,
            self._body,
            self._data,
            n_classes=self._n_classes,
            batch_size=self.batch_size,
            defaults=self.manual["values"],
            seed=seed,
        )

    def _network(self, n_classes: int, seed: int) -> Any:
        raise NotImplementedError

    @property
    def _body(self) -> list[np.ndarray]:
        raise NotImplementedError

    @property
    def _data(self) -> LabelledArrays:
        raise NotImplementedError


def fine_tuning_setup(
    make: NetworkMaker,
    body: list[np.ndarray],
    data: LabelledArrays,
    *,
    n_classes: int,
    batch_size: int,
    defaults: Mapping[str, float],
    seed: int,
) -> KerasSetup:
    """Return what a fresh run is made of: the pretrained body, and a new head near zero.

    Args:
        make: Makes the network.
        body: Weights without the head.
        data: With all four splits.
        n_classes: Classes of the fine-tuning.
        batch_size: Training examples a step.
        defaults: Values of the hyperparameters.
        seed: Moves the head, the order of data and dropout.
    """
    seeds = run_seeds(seed)
    model = make(n_classes, seeds.noise)
    *_, kernel, bias = model.get_weights()
    drawn = np.random.default_rng(seeds.weights).normal(0.0, 0.01, kernel.shape)
    model.set_weights([*body, drawn.astype(np.float32), np.zeros_like(bias)])
    return _setup(
        model,
        data,
        n_classes=n_classes,
        batch_size=batch_size,
        defaults=defaults,
        order_seed=seeds.order,
    )


def _setup(
    model: Any,
    data: LabelledArrays,
    *,
    n_classes: int,
    batch_size: int,
    defaults: Mapping[str, float],
    order_seed: int,
) -> KerasSetup:
    import keras

    def evaluate(predict: Callable[[np.ndarray], np.ndarray], split: str) -> dict[str, float]:
        rows = data.splits[split]
        parts = [predict(data.inputs[rows[at : at + 512]]) for at in range(0, len(rows), 512)]
        return classification_scores(np.concatenate(parts), data.labels[rows])

    optimizer = keras.optimizers.AdamW(
        learning_rate=defaults["lr"],
        weight_decay=defaults["weight_decay"],
        beta_1=defaults["beta1"],
        global_clipnorm=defaults["clip"],
    )
    spared = [weight for weight in model.trainable_variables if len(weight.shape) <= 1]
    optimizer.exclude_from_weight_decay(var_list=spared)
    return KerasSetup(
        model=model,
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.0),
        inputs=data.inputs,
        targets=np.eye(n_classes, dtype=np.float32)[np.minimum(data.labels, n_classes - 1)],
        rows=data.splits["train"],
        batches=ShuffledBatches(len(data.splits["train"]), batch_size, seed=order_seed),
        evaluate=evaluate,
        defaults=defaults,
        splits=tuple(data.splits),
    )
