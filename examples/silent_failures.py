"""Three settings that are changed in the middle of training, and silently ignored.

Each demonstration trains something tiny with a real framework, changes a setting the obvious way,
and measures what the training step really used. Then trimtab changes it, or refuses to.

    python examples/silent_failures.py            # all three; --json for machines
    python examples/silent_failures.py keras      # one: keras, transformers or lightning
"""

# The frameworks say which arguments a hook takes, used or not.
# ruff: noqa: ARG002

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STEPS, CHANGED_AT = 8, 4


@dataclass
class Demonstration:
    """What was asked of a framework at each step, and what it did; the same under trimtab."""

    title: str
    code: str
    asked: list[float]
    used: list[float]
    reason: str
    asked_by_trimtab: list[float] = field(default_factory=list)
    used_with_trimtab: list[float] = field(default_factory=list)
    refusal: str = ""


# --- Keras ------------------------------------------------------------------------------------


def keras_weight_decay() -> Demonstration:
    """Change ``optimizer.weight_decay`` inside ``fit``, with Keras on TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np

    from trimtab.adapters.keras import TrimtabCallback

    rate = 0.1

    class Flat(keras.losses.Loss):
        """A loss without a slope: weights move by their decay alone, which so can be measured."""

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return 1.0 + 0.0 * (y_pred - y_true)

    class Measure(keras.callbacks.Callback):
        """Measures the decay of each step, and changes it once."""

        def __init__(self, new: float | None = None) -> None:
            super().__init__()
            self.new, self.used = new, []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.new is not None and batch == CHANGED_AT:
                self.model.optimizer.weight_decay = self.new
            self.before = np.linalg.norm(self.model.get_weights()[0])

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            after = np.linalg.norm(self.model.get_weights()[0])
            self.used.append(float((1 - after / self.before) / rate))

    x, y = np.ones((STEPS, 4), "float32"), np.ones((STEPS, 1), "float32")

    def fit(*callbacks: Any) -> None:
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense(1, use_bias=False)
        model = keras.Sequential([keras.Input((4,)), dense])
        model.compile(keras.optimizers.SGD(rate, weight_decay=0.1), loss=Flat())
        model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=list(callbacks))

    plain, steered = Measure(new=0.5), Measure()
    fit(plain)
    steering = TrimtabCallback(
        (x, y),
        hyperparameters=("weight_decay",),
        policy="random",
        reference="constant",
        decisions=8,
        seed=1,
    )
    fit(steered, steering)
    return Demonstration(
        title="Keras on TensorFlow: weight decay",
        code=f"model.optimizer.weight_decay = 0.5  # before step {CHANGED_AT}",
        asked=[0.1] * CHANGED_AT + [0.5] * (STEPS - CHANGED_AT),
        used=plain.used,
        reason="The number became a constant when the training step was compiled.",
        asked_by_trimtab=[row["weight_decay"] for row in steering.summary.schedule],
        used_with_trimtab=steered.used,
    )


# --- Transformers -----------------------------------------------------------------------------


def transformers_learning_rate() -> Demonstration:
    """Set the learning rate once from a callback, under Transformers' ``constant`` schedule."""
    import torch
    import transformers

    from trimtab.adapters.transformers import TrimtabCallback

    class Line(torch.nn.Module):
        """Fits a line, and returns its loss as Transformers' models do."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, inputs: Any, labels: Any) -> dict[str, Any]:
            guess = self.layer(inputs)
            return {"loss": torch.nn.functional.mse_loss(guess, labels), "logits": guess}

    class SetOnce(transformers.TrainerCallback):
        """Does what people do."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == CHANGED_AT:
                for group in kwargs["optimizer"].param_groups:
                    group["lr"] = 5e-4

    points = [{"inputs": torch.ones(1), "labels": torch.ones(1)}] * STEPS
    usual = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}

    def train(callback: Any, folder: str) -> list[float]:
        torch.manual_seed(0)
        model, used = Line(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer.register_step_pre_hook(lambda it, *_: used.append(it.param_groups[0]["lr"]))
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                max_steps=STEPS,
                per_device_train_batch_size=1,
                lr_scheduler_type="constant",
                learning_rate=1e-3,
                logging_steps=1,
                **usual,
            ),
            train_dataset=points,
            callbacks=[callback],
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return used

    steering = TrimtabCallback(validation_data=points, policy="random", decisions=8, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        plain, steered = train(SetOnce(), folder), train(steering, folder)
    return Demonstration(
        title="Transformers: learning rate",
        code=f'optimizer.param_groups[0]["lr"] = 5e-4  # before step {CHANGED_AT}',
        asked=[1e-3] * CHANGED_AT + [5e-4] * (STEPS - CHANGED_AT),
        used=plain,
        reason="Even a constant schedule writes its own rate after every step.",
        asked_by_trimtab=[row["lr"] for row in steering.summary.schedule],
        used_with_trimtab=steered,
    )


# --- Lightning --------------------------------------------------------------------------------


def lightning_batch_size() -> Demonstration:
    """Change ``datamodule.batch_size`` between the epochs of a Lightning ``fit``."""
    import torch
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from trimtab.adapters.lightning import TrimtabCallback
    from trimtab.core.errors import TrimtabError

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Line(LightningModule):
        """Fits a line, and counts the examples of each step."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sizes = torch.nn.Linear(1, 1), []

        def training_step(self, batch: Any, _index: int) -> Any:
            self.sizes.append(float(len(batch[0])))
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    class Points(LightningDataModule):
        """Sixteen points."""

        batch_size = 4

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(16, 1)), self.batch_size)

    class Double(Callback):
        """Does what people do."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.datamodule.batch_size = 8

    def fit(callback: Any) -> list[float]:
        module = Line()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=STEPS // 4, callbacks=[callback], **quiet)
        trainer.fit(module, datamodule=Points())
        return module.sizes

    demonstration = Demonstration(
        title="Lightning: batch size",
        code=f"trainer.datamodule.batch_size = 8  # before step {CHANGED_AT}, between epochs",
        asked=[4] * CHANGED_AT + [8] * (STEPS - CHANGED_AT),
        used=fit(Double()),
        reason="The loader was built once, before the first epoch.",
    )
    steering = TrimtabCallback(
        hyperparameters=("batch_size",), policy="random", decisions=4, validate=lambda: 1.0
    )
    try:
        demonstration.used_with_trimtab = fit(steering)
        demonstration.asked_by_trimtab = [row["batch_size"] for row in steering.summary.schedule]
    except TrimtabError as refusal:
        demonstration.refusal = str(refusal)
    return demonstration


# --- showing ----------------------------------------------------------------------------------

DEMONSTRATIONS: dict[str, Callable[[], Demonstration]] = {
    "keras": keras_weight_decay,
    "transformers": transformers_learning_rate,
    "lightning": lightning_batch_size,
}


def was_used(asked: float, used: float) -> bool:
    """Whether a step used what was asked of it, to within what the measurement can tell."""
    return abs(used - asked) <= 0.01 * abs(asked)


def short(value: float) -> str:
    """Return a number in at most six characters: ``0.18``, ``1.8e-4``."""
    return (f"{value:.2g}" if value >= 0.01 else f"{value:.1e}").replace("e-0", "e-")


def numbers(asked: Sequence[float], used: Sequence[float]) -> Table:
    """Return a table of what was asked and what was used, step by step."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("step", style="dim", min_width=6)
    for step in range(len(used)):
        table.add_column(str(step), justify="right", min_width=6)
    pairs = list(zip(asked, used, strict=False))
    table.add_row("asked", *(short(wanted) for wanted, _ in pairs))
    styles = ["green" if was_used(*pair) else "bold red" for pair in pairs]
    shown = [Text(short(held), style) for (_, held), style in zip(pairs, styles, strict=True)]
    table.add_row("used", *shown)
    return table


def show(console: Console, it: Demonstration) -> None:
    """Print one demonstration."""
    console.rule(f"[bold]{it.title}", align="left")
    console.print(Text.assemble("\nYou write  ", (it.code, "cyan"), "\n"))
    console.print(numbers(it.asked, it.used))
    ignored = sum(not was_used(*pair) for pair in zip(it.asked, it.used, strict=False))
    console.print(f"\n[bold red]Ignored in {ignored} of {len(it.used)} steps,[/] without a word.")
    console.print(it.reason + "\n")
    if it.refusal:
        console.print("With trimtab: [bold green]refused before the first step.[/]\n")
        console.print(Text(it.refusal, style="italic"))
    else:
        console.print("With trimtab (moved at random, to be seen):\n")
        console.print(numbers(it.asked_by_trimtab, it.used_with_trimtab))
    console.print()


def main() -> None:
    """Run the demonstrations asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(DEMONSTRATIONS)
    parser.add_argument(
        "which",
        nargs="*",
        choices=[[], *DEMONSTRATIONS],
        metavar="which",
        help=f"{names}; all by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    logging.getLogger("trimtab").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    console, done = Console(stderr=arguments.json, highlight=False), {}
    for name in arguments.which or DEMONSTRATIONS:
        if importlib.util.find_spec(name) is None:
            console.print(f"{name} is not installed: left out")
            continue
        done[name] = DEMONSTRATIONS[name]()
        if not arguments.json:
            show(console, done[name])
    if arguments.json:
        print(json.dumps({name: asdict(it) for name, it in done.items()}))


if __name__ == "__main__":
    main()
