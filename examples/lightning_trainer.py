"""Fine-tune a small network with Lightning, steered from a bad start: one callback."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from trimtab.adapters.lightning import TrimtabCallback


def points(n, seed):
    """Return points in eight dimensions and which side of a curved surface they lie on."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long())


class Classifier(LightningModule):
    """Learns the side."""

    def __init__(self):
        super().__init__()
        hidden, out = torch.nn.Linear(8, 64), torch.nn.Linear(64, 2)
        self.net = torch.nn.Sequential(hidden, torch.nn.ReLU(), out)

    def training_step(self, batch, _index):
        """Return the loss of a batch."""
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step  # what it returns is watched as "loss"

    def configure_optimizers(self):
        """Return the optimiser that is steered."""
        return torch.optim.AdamW(self.parameters(), lr=3e-5)  # a hundred times too low


torch.manual_seed(0)
steering = TrimtabCallback(reference="warmup-linear")
trainer = Trainer(max_epochs=4, callbacks=[steering], logger=False, enable_checkpointing=False)
trainer.fit(Classifier(), DataLoader(points(2048, 0), 32), DataLoader(points(512, 1), 256))
print("best:", steering.summary.best, "rollbacks:", steering.summary.rollbacks)
