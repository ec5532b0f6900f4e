"""One run of one real task through each adapter, in its framework's own way.

A PyTorch loop, Transformers' ``Trainer``, Lightning's ``Trainer``, ``model.fit`` of Keras on
TensorFlow; the test split is read once, at the end.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

__all__ = ["TASKS", "UNSTEERED", "Unit", "run_unit"]

TASKS: Mapping[str, str] = {
    "torch": "tabular/letters",
    "transformers": "text/reuters",
    "lightning": "vision/animals",
    "keras-tensorflow": "keras/digits",
}
UNSTEERED = "none"


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        adapter: Which framework trains.
        variant: Size of the task.
        policy: A policy's name, or ``"none"``.
        factor: Start of the learning rate over the task's tuned one.
        seed: Of the run.
    """

    adapter: str
    variant: str
    policy: str
    factor: float
    seed: int


def _in_torch(task: Any, unit: Unit, steer: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    from trimtab.adapters.torch import TorchController

    run = task.start(seed=unit.seed)
    setup, optimizer = run.setup, _adamw(run.model, task, unit)
    controller = TorchController(
        optimizer,
        total_steps=task.total_steps,
        validate=lambda: run.evaluate("validation"),
        model=run.model,
        clip=setup.defaults["clip"],
        **steer,
    )
    with controller:
        run.model.train()
        for _ in range(task.total_steps):
            loss = setup.loss(run.model, next(setup.batches), setup.defaults)
            loss.backward()
            controller.step(loss)
    return controller.summary, run.evaluate("test")


def _in_transformers(
    task: Any, unit: Unit, steer: Mapping[str, Any]
) -> tuple[Any, dict[str, float]]:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from trimtab.adapters.transformers import TrimtabCallback

    run = task.start(seed=unit.seed)
    setup = run.setup

    class Rows(torch.nn.Module):  # type: ignore[misc]
        """The task's network as ``Trainer`` wants it: examples in, a dict with the loss out."""

        def __init__(self) -> None:
            super().__init__()
            self.network = run.model

        def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            """Return the loss of some training examples."""
            return {"loss": setup.loss(self.network, rows.numpy(), setup.defaults)}

    class Order(torch.utils.data.IterableDataset):  # type: ignore[misc]
        """Indices of training examples, in the order of the task."""

        def __iter__(self) -> Iterator[dict[str, int]]:
            return ({"rows": int(row)} for batch in setup.batches for row in batch)

    callback = TrimtabCallback(validate=lambda: run.evaluate("validation"), **steer)
    model = Rows()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=task.total_steps,
        per_device_train_batch_size=task.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=max(1, task.total_steps // 20),
        max_grad_norm=setup.defaults["clip"],
        seed=unit.seed,
        remove_unused_columns=False,
        label_names=[],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Order(),
        optimizers=(_adamw(run.model, task, unit), None),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for the table
    trainer.train()
    return callback.summary, run.evaluate("test")


def _in_lightning(task: Any, unit: Unit, steer: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    import lightning.pytorch as lightning
    import torch

    from trimtab.adapters.lightning import TrimtabCallback

    run = task.start(seed=unit.seed)
    setup = run.setup

    class Module(lightning.LightningModule):  # type: ignore[misc]
        """The task's network and loss."""

        def __init__(self) -> None:
            super().__init__()
            self.network = run.model

        def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
            """Return the mean loss of some training examples."""
            loss: torch.Tensor = setup.loss(self.network, batch.numpy(), setup.defaults)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Return the optimiser that is steered."""
            return _adamw(self.network, task, unit)

    batches = [torch.from_numpy(next(setup.batches)) for _ in range(task.total_steps)]
    callback = TrimtabCallback(
        validate=lambda: run.evaluate("validation"),
        total_steps=task.total_steps,
        **(dict(steer) | {"reference": "warmup-linear"}),
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=setup.defaults["clip"],
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    return callback.summary, run.evaluate("test")


def _in_keras(task: Any, unit: Unit, steer: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    import keras

    from trimtab.adapters.keras import TrimtabCallback

    keras.utils.set_random_seed(unit.seed)  # the order of data in fit
    setup = task.setup(seed=unit.seed)
    model = setup.model
    setup.optimizer.learning_rate = task.tuned_lr * unit.factor
    model.compile(optimizer=setup.optimizer, loss=setup.loss)

    def measured(split: str) -> dict[str, float]:
        return dict(setup.evaluate(lambda x: np.asarray(model.predict_on_batch(x)), split))

    callback = TrimtabCallback(validate=lambda: measured("validation"), **steer)
    train = setup.rows
    model.fit(
        setup.inputs[train],
        setup.targets[train],
        batch_size=task.batch_size,
        epochs=-(-task.total_steps * task.batch_size // len(train)),
        callbacks=[callback],
        verbose=0,
    )
    return callback.summary, measured("test")


_ADAPTERS: Mapping[str, Callable[[Any, Unit, Mapping[str, Any]], tuple[Any, dict[str, float]]]] = {
    "torch": _in_torch,
    "transformers": _in_transformers,
    "lightning": _in_lightning,
    "keras-tensorflow": _in_keras,
}


def _adamw(model: Any, task: Any, unit: Unit) -> Any:
    """Return AdamW at the unit's start and the recipe's other values."""
    import torch

    from trimtab.tasks.torch.run import decay_groups

    values = task.manual["values"]
    groups = decay_groups(model)
    for group in groups:
        group["weight_decay"] = values["weight_decay"] if group.pop("decay") else 0.0
    return torch.optim.AdamW(groups, lr=task.tuned_lr * unit.factor)


def run_unit(unit: Unit) -> dict[str, Any]:
    """Make one run and return it as a row of JSON."""
    import warnings

    from trimtab.core.errors import TrimtabWarning
    from trimtab.core.registry import make_task

    warnings.simplefilter("ignore", TrimtabWarning)
    task: Any = make_task(TASKS[unit.adapter], variant=unit.variant)
    begun = time.perf_counter()
    steer = {"policy": None if unit.policy == UNSTEERED else unit.policy, "seed": unit.seed}
    summary, test = _ADAPTERS[unit.adapter](task, unit, steer)
    return asdict(unit) | {
        "task": task.name,
        "test": test,
        "validation": summary.best.get("loss"),
        "rollbacks": summary.rollbacks,
        "diverged": bool(summary.diverged),
        "seconds": time.perf_counter() - begun,
    }
