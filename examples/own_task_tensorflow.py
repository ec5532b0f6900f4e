"""A task of one's own in TensorFlow, steered by ``trimtab run own_task_tensorflow.py:make``."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from trimtab import Metrics, hyperparameter

X, Y = load_digits(return_X_y=True)
ROWS = {"train": slice(900), "validation": slice(900, 1300), "test": slice(1300, None)}


class Run:
    """One training run: it trains some steps at given values, evaluates, and can be put back."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)
        layers = keras.layers.Rescaling(1 / 16), keras.layers.Dense(32, "relu")
        self.model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10)])
        self.adam = keras.optimizers.Adam()
        self.adam.build(self.model.trainable_variables)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.train = tf.function(self.step)
        self.variables = [*self.model.variables, *self.adam.variables]

    def step(self, x, y):
        """Do one step of Adam, and return the loss before it."""
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x, training=True))
        weights = self.model.trainable_variables
        self.adam.apply(tape.gradient(loss, weights), weights)
        return loss

    def advance(self, values, steps):
        """Train some steps at the given values, and return what their losses tell."""
        losses = []
        for lr in values["lr"]:  # one value a step
            self.adam.learning_rate.assign(lr)
            batch = self.random.integers(900, size=32)
            losses.append(float(self.train(X[batch], Y[batch])))
            if not np.isfinite(losses[-1]):
                break
        validation = self.evaluate("validation")["loss"]
        return Metrics.from_losses(losses, val_loss=validation, examples=32 * steps)

    def evaluate(self, split):
        """Return the loss on a split, and how many examples it has."""
        x, y = X[ROWS[split]], Y[ROWS[split]]
        return {"loss": float(self.loss(y, self.model(x, training=False))), "examples": len(y)}

    def snapshot(self):
        """Return the state of weights and optimiser."""
        return [variable.numpy() for variable in self.variables]

    def restore(self, snapshot):
        """Put that state back; the order of data goes on."""
        for variable, value in zip(self.variables, snapshot, strict=True):
            variable.assign(value)


class Digits:
    """A small network learns to tell ten digits apart; the loss is watched on validation."""

    name, total_steps, monitor, mode = "own/digits-tensorflow", 150, "loss", "min"
    hyperparameters = (hyperparameter("lr", 1e-2),)

    def start(self, *, seed):
        """Return a fresh run; the seed moves initialisation and data order only."""
        return Run(seed)


make = Digits  # what the command line calls
