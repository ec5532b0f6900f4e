"""A task of one's own, steered by ``trimtab run own_task.py:make``: reading digits."""

import torch
from sklearn.datasets import load_digits

from trimtab import hyperparameter
from trimtab.tasks.data.batches import ShuffledBatches
from trimtab.tasks.data.splits import stratified_splits
from trimtab.tasks.torch.run import TorchRun, TorchSetup


class Digits:
    """A small network learns to tell ten digits apart; the loss is watched on validation."""

    name, total_steps, monitor, mode = "own/digits", 120, "loss", "min"
    hyperparameters = (hyperparameter("lr", 3e-3), hyperparameter("weight_decay", 1e-2))

    def start(self, *, seed):
        """Return a fresh run; the seed moves initialisation and data order only."""
        images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
        shares = {"train": 0.4, "validation": 0.2, "selection": 0.2, "test": 0.2}
        rows = stratified_splits(digits.numpy(), shares, seed=0, examples=images.numpy())
        torch.manual_seed(seed)
        layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        model = torch.nn.Sequential(*layers)

        def loss(model, batch, _values, split="train"):
            chosen = rows[split][batch]
            return torch.nn.functional.cross_entropy(model(images[chosen].float()), digits[chosen])

        def evaluate(model, split):
            return {"loss": loss(model, ..., {}, split).item(), "examples": len(rows[split])}

        batches = ShuffledBatches(len(rows["train"]), 32, seed=seed)
        defaults = {item.name: item.default for item in self.hyperparameters}
        return TorchRun(TorchSetup(model, loss, batches, evaluate, defaults, seed=seed))


make = Digits  # what the command line calls
