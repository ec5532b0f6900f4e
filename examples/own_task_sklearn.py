"""A task of one's own in scikit-learn, steered by ``trimtab run own_task_sklearn.py:make``."""

import copy

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from trimtab import Metrics, hyperparameter

X, Y = load_digits(return_X_y=True)
ROWS = {"train": slice(900), "validation": slice(900, 1300), "test": slice(1300, None)}


class Run:
    """One training run: it trains some steps at given values, evaluates, and can be put back."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.model = SGDClassifier(loss="log_loss", learning_rate="constant", random_state=seed)
        self.train(np.arange(32), 1e-9)  # so that there are weights to measure

    def train(self, batch, lr):
        """Do one step of gradient descent."""
        self.model.set_params(eta0=lr).partial_fit(X[batch] / 16, Y[batch], classes=range(10))

    def loss(self, rows):
        """Return the mean loss of some rows."""
        return log_loss(Y[rows], self.model.predict_proba(X[rows] / 16), labels=range(10))

    def advance(self, values, steps):
        """Train some steps at the given values, and return what their losses tell."""
        losses = []
        for lr in values["lr"]:  # one value a step
            batch = self.random.integers(900, size=32)
            losses.append(self.loss(batch))  # before the step that it belongs to
            self.train(batch, lr)
            if not np.isfinite(self.model.coef_).all():
                losses[-1] = np.inf
                break
        validation = self.evaluate("validation")["loss"]
        return Metrics.from_losses(losses, val_loss=validation, examples=32 * steps)

    def evaluate(self, split):
        """Return the loss on a split, and how many examples it has."""
        if not np.isfinite(self.model.coef_).all():
            return {"loss": np.inf, "examples": 0}
        return {"loss": self.loss(ROWS[split]), "examples": len(Y[ROWS[split]])}

    def snapshot(self):
        """Return the state of weights and optimiser."""
        return copy.deepcopy(self.model)

    def restore(self, snapshot):
        """Put that state back; the order of data goes on."""
        self.model = copy.deepcopy(snapshot)


class Digits:
    """A linear classifier learns to tell ten digits apart; the loss is watched on validation."""

    name, total_steps, monitor, mode = "own/digits-sklearn", 150, "loss", "min"
    hyperparameters = (hyperparameter("lr", 1e-2),)

    def start(self, *, seed):
        """Return a fresh run; the seed moves initialisation and data order only."""
        return Run(seed)


make = Digits  # what the command line calls
