"""Keras classifiers whose inputs lie in memory: pretrained once, with a new head for each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from trimtab.tasks.data.batches import ShuffledBatches, run_seeds
from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_versions, require_packages
from trimtab.tasks.data.scores import classification_scores
from trimtab.tasks.data.splits import LabelledData
from trimtab.tasks.keras.run import KerasRun, KerasSetup, require_tensorflow
from trimtab.tasks.variants import Pretraining, SizedTask

KERAS_PACKAGES: Mapping[str, str] = {"keras": "keras", "sklearn": "scikit-learn"}


class KerasClassification(SizedTask):
    """A classifier in Keras, which is pretrained here once; a run gives it a new head.

    A task names its ``_packages``, ``_pretraining`` and numbers of classes, and says by
    ``_network(n_classes, seed)``, ``_data`` and ``_lessons`` what is trained on what;
    ``_depends_on`` holds all that moves the pretrained weights besides ``_pretraining`` and the
    packages' versions.
    """

    _packages: ClassVar[Mapping[str, str]]
    _pretraining: ClassVar[Pretraining]
    _n_classes: ClassVar[int]
    _n_pretraining_classes: ClassVar[int]

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
        require_packages(self.name, self._packages)
        seeds = run_seeds(seed)
        model = self._network(self._n_classes, seeds.noise)
        take_body(model, self._body, seed=seeds.weights)
        return classification_setup(
            model,
            self._data,
            n_classes=self._n_classes,
            batch_size=self.batch_size,
            defaults=self.manual["values"],
            order_seed=seeds.order,
        )

    def _network(self, n_classes: int, seed: int) -> Any:
        """Return a built model; its last layer is the head, with kernel and bias."""
        raise NotImplementedError

    @property
    def _data(self) -> LabelledData[np.ndarray]:
        raise NotImplementedError

    def _lessons(self) -> LabelledData[np.ndarray]:
        """Return what the pretraining learns from, with the splits train and validation."""
        raise NotImplementedError

    def _depends_on(self) -> dict[str, object]:
        raise NotImplementedError

    @cached_property
    def _body(self) -> list[np.ndarray]:
        """The pretrained weights but for the head's, from the cache if they are there."""
        inputs: dict[str, object] = {"format": 1, "pretraining": self._pretraining}
        inputs |= self._depends_on() | package_versions(self._packages)
        arrays = cached_arrays(self.name.replace("/", "-"), inputs, self._taught)
        return [arrays[key] for key in sorted(arrays)]

    def _taught(self) -> dict[str, np.ndarray]:
        """Pretrain a network and return its weights without the head's."""
        settings, n_classes = self._pretraining, self._n_pretraining_classes
        lessons, model = self._lessons(), self._network(n_classes, settings.seed)
        run = KerasRun(
            classification_setup(
                model,
                lessons,
                n_classes=n_classes,
                batch_size=settings.batch_size,
                defaults=self.manual["values"],
                order_seed=settings.seed,
            )
        )
        progress = np.arange(settings.steps) / settings.steps
        rates = settings.lr * 0.5 * (1.0 + np.cos(math.pi * progress))
        run.advance({"lr": rates}, settings.steps)
        body = run.model.get_weights()[:-2]
        return {f"weight.{place:03d}": np.asarray(array) for place, array in enumerate(body)}


def take_body(model: Any, body: list[np.ndarray], *, seed: int) -> None:
    """Give a model pretrained weights, and its last layer, the head, new ones near zero.

    Args:
        model: Built; its last two weights are the head's kernel and bias.
        body: Weights of all layers but the head.
        seed: Draws the head.
    """
    *_, kernel, bias = model.get_weights()
    drawn = np.random.default_rng(seed).normal(0.0, 0.01, kernel.shape)
    model.set_weights([*body, drawn.astype(np.float32), np.zeros_like(bias)])


def classification_setup(
    model: Any,
    data: LabelledData[np.ndarray],
    *,
    n_classes: int,
    batch_size: int,
    defaults: Mapping[str, float],
    order_seed: int,
) -> KerasSetup:
    """Return what a run is made of: cross-entropy, AdamW, and the model from now on.

    Args:
        model: Built; belongs to the run.
        data: With the splits that there are.
        n_classes: Outputs of the model.
        batch_size: Training examples a step.
        defaults: Values of the hyperparameters.
        order_seed: Moves the order of data.
    """
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
