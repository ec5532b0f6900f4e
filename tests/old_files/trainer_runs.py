"""Tiny trainings by Transformers' and Lightning's Trainer: whole, or from a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers import Trainer as TransformersTrainer

from trimtab.adapters.lightning import TrimtabCallback as LightningCallback
from trimtab.adapters.transformers import TrimtabCallback as TransformersCallback

TRANSFORMERS = Path("transformers", "checkpoint-10")
LIGHTNING = Path("lightning", "epoch=1.ckpt")
STEERED: dict[str, Any] = {
    "policy": "random",
    "hyperparameters": ("lr", "weight_decay", "dropout", "clip"),
    "decisions": 6,
    "keep_best": False,
}


class Net(nn.Module):
    """A classifier that returns its loss, as models of Transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))

    def forward(
        self, inputs: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.body(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def _end(summary: Any, model: nn.Module) -> dict[str, Any]:
    return {
        "schedule": summary.schedule,
        "last": dict(summary.last),
        "weights": [weight.tolist() for weight in model.state_dict().values()],
    }


# Transformers.


def by_transformers(folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train with checkpoints in a folder, from one of them if it is given."""
    callback = TransformersCallback(validation_data=examples(32, seed=1), **STEERED)
    set_seed(99 if checkpoint else 42)  # a resumed run has the checkpoint's random state
    trainer = TransformersTrainer(
        model=Net(),
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=5,
            optim="adamw_torch",
            per_device_train_batch_size=4,
            max_steps=20,
            learning_rate=1e-2,
            weight_decay=0.1,
            log_level="error",
            remove_unused_columns=False,
            resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
        ),
        train_dataset=examples(48, seed=0),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _end(callback.summary, trainer.model)


def write_transformers() -> None:
    """Keep the checkpoint of the middle, without what no resumed run reads."""
    by_transformers(Path("all"))
    TRANSFORMERS.parent.mkdir(exist_ok=True)
    Path("all", TRANSFORMERS.name).rename(TRANSFORMERS)
    shutil.rmtree("all")
    (TRANSFORMERS / "training_args.bin").unlink()


# Lightning.


class Module(LightningModule):
    """Optimised by Lightning, with AdamW and a schedule of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(**batch)["loss"]

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.net(**batch)["loss"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2, weight_decay=0.1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 36)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine, "interval": "step"},
        }


def by_lightning(folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Fit with checkpoints in a folder, from one of them if it is given."""
    seed_everything(9 if checkpoint else 3, verbose=False)
    callback, module = LightningCallback(**STEERED), Module()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.5,
        callbacks=[callback, ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")],
    )
    training = DataLoader(examples(48, seed=0), batch_size=4, shuffle=True)
    validation = DataLoader(examples(32, seed=1), batch_size=16)
    trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    return _end(callback.summary, module.net)


def write_lightning() -> None:
    """Keep the checkpoint of the epoch before the last."""
    by_lightning(Path("all"))
    LIGHTNING.parent.mkdir(exist_ok=True)
    Path("all", LIGHTNING.name).rename(LIGHTNING)
    shutil.rmtree("all")
