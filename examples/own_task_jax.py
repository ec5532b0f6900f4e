"""A task of one's own in plain JAX, steered by ``trimtab run own_task_jax.py:make``."""

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from trimtab import Metrics, hyperparameter

X, Y = load_digits(return_X_y=True)
ROWS = {"train": slice(900), "validation": slice(900, 1300), "test": slice(1300, None)}
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)


@jax.jit
def loss_of(weights, x, y):
    """Return the mean loss of a batch."""
    scores = jax.nn.relu(x / 16 @ weights[0]) @ weights[1]
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()


@jax.jit
def train(weights, state, x, y, lr):
    """Do one step of Adam; return its loss as well."""
    state = state._replace(hyperparams={"learning_rate": lr})
    loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
    updates, state = ADAM.update(gradients, state)
    return optax.apply_updates(weights, updates), state, loss


class Run:
    """One training run: it trains some steps at given values, evaluates, and can be put back."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        draw = self.random.standard_normal
        self.weights = [np.float32(draw((64, 32)) / 8), np.float32(draw((32, 10)) / 6)]
        self.state = ADAM.init(self.weights)

    def advance(self, values, steps):
        """Train some steps at the given values, and return what their losses tell."""
        losses = []
        for lr in values["lr"]:  # one value a step
            batch = self.random.integers(900, size=32)
            trained = train(self.weights, self.state, X[batch], Y[batch], lr)
            self.weights, self.state, loss = trained
            losses.append(float(loss))
            if not np.isfinite(losses[-1]):
                break
        validation = self.evaluate("validation")["loss"]
        return Metrics.from_losses(losses, val_loss=validation, examples=32 * steps)

    def evaluate(self, split):
        """Return the loss on a split, and how many examples it has."""
        x, y = X[ROWS[split]], Y[ROWS[split]]
        return {"loss": float(loss_of(self.weights, x, y)), "examples": len(y)}

    def snapshot(self):
        """Return the state of weights and optimiser."""
        return self.weights, self.state  # arrays of JAX never change

    def restore(self, snapshot):
        """Put that state back; the order of data goes on."""
        self.weights, self.state = snapshot


class Digits:
    """A small network learns to tell ten digits apart; the loss is watched on validation."""

    name, total_steps, monitor, mode = "own/digits-jax", 150, "loss", "min"
    hyperparameters = (hyperparameter("lr", 1e-2),)

    def start(self, *, seed):
        """Return a fresh run; the seed moves initialisation and data order only."""
        return Run(seed)


make = Digits  # what the command line calls
