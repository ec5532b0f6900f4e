"""What steering costs inside a trainer: Keras' ``fit`` and Transformers' ``Trainer``.

A task's network is trained twice by the same trainer, without and with the callback. Inside the
callback's events of a step, snapshots and validations are timed apart; what is left is steering, in
processor time of the thread. The difference between the two trainings' ordinary steps on the wall
(``paired``) holds besides what is not in an event, such as a learning rate that the compiled step
looks up; the trainings follow each other, so it is noisy. What happens once a run is not in a row:
hands laid on the model, a compilation, the first validation, the proof that each kind is used. In a
window's last two steps the callback clips in Trainer's place, once its gradients are measured; that
is Trainer's own work moved, and is timed apart as well.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.overhead_clock import Clock, Stopwatch, row, usual_mean
from trimtab.core.registry import make_task

__all__ = ["in_keras", "in_transformers"]

Train = Callable[[Any, Callable[[], None]], None]
"""Trains with a callback, or without one (None), and calls a function as each step begins."""


def in_keras(name: str, variant: str, policy: Any) -> dict[str, Any]:
    """Return the row of a Keras task, trained by ``fit`` on TensorFlow.

    Raises:
        TrimtabError: The task's data or packages are not there.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    from trimtab.adapters.keras import TrimtabCallback
    from trimtab.adapters.snapshots import Snapshots
    from trimtab.adapters.validation import Validation

    task: Any = make_task(name, variant=variant)

    def train(callback: Any, begins: Callable[[], None]) -> None:
        class Steps(keras.callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_begin(self, *_: Any, **__: Any) -> None:
                begins()

        keras.utils.set_random_seed(0)
        setup = task.setup(seed=0)
        model = setup.model
        setup.optimizer.learning_rate = task.tuned_lr
        model.compile(optimizer=setup.optimizer, loss=setup.loss)
        if callback is not None:
            callback._validate = lambda: dict(
                setup.evaluate(lambda x: np.asarray(model.predict_on_batch(x)), "validation")
            )
        model.fit(
            setup.inputs[setup.rows],
            setup.targets[setup.rows],
            batch_size=task.batch_size,
            epochs=-(-task.total_steps * task.batch_size // len(setup.rows)),
            callbacks=[Steps(), *([] if callback is None else [callback])],
            verbose=0,
        )
        begins()

    return _measured(
        name,
        "keras",
        train,
        TrimtabCallback(validate=dict, policy=policy),
        events=("on_train_batch_end",),
        apart=(
            (Snapshots, "keep", "snapshots"),
            (Snapshots, "restore", "snapshots"),
            (Validation, "later", "validation"),
        ),
    )


def in_transformers(name: str, variant: str, policy: Any) -> dict[str, Any]:
    """Return the row of a PyTorch task, trained by ``Trainer``.

    Raises:
        TrimtabError: The task's data or packages are not there.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from trimtab.adapters.snapshots import Snapshots
    from trimtab.adapters.transformers import TrimtabCallback
    from trimtab.adapters.validation import Validation

    task: Any = make_task(name, variant=variant)

    def train(callback: Any, begins: Callable[[], None]) -> None:
        class Steps(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                begins()

        run = task.start(seed=0)
        setup = run.setup

        class Rows(torch.nn.Module):
            """The task's network as ``Trainer`` wants it: examples in, a dict with the loss out."""

            def __init__(self) -> None:
                super().__init__()
                self.network = run.model

            def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"loss": setup.loss(self.network, rows.numpy(), setup.defaults)}

        class Order(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Iterator[dict[str, int]]:
                return ({"rows": int(one)} for batch in setup.batches for one in batch)

        if callback is not None:
            callback._training.validate = lambda: run.evaluate("validation")
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=Rows(),
                args=TrainingArguments(
                    output_dir=folder,
                    max_steps=task.total_steps,
                    per_device_train_batch_size=task.batch_size,
                    learning_rate=task.tuned_lr,
                    max_grad_norm=setup.defaults.get("clip", 1.0),
                    remove_unused_columns=False,
                    label_names=[],
                    use_cpu=True,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                ),
                train_dataset=Order(),
                callbacks=[Steps(), *([] if callback is None else [callback])],
            )
            trainer.remove_callback(PrinterCallback)  # standard output is for the table
            trainer.train()
        begins()

    return _measured(
        name,
        "transformers",
        train,
        TrimtabCallback(validate=dict, policy=policy),
        events=("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"),
        apart=(
            (Snapshots, "keep", "snapshots"),
            (Snapshots, "restore", "snapshots"),
            (Validation, "later", "validation"),
            (torch.nn.utils, "clip_grad_norm_", "clipping"),
        ),
    )


class _Events:
    """Times a callback's events, and apart what is called inside of them.

    Args:
        clock: Of the stopwatches.
        callback: Whose events are replaced by timed ones.
        names: Of these events.
    """

    def __init__(self, clock: Clock, callback: Any, names: Sequence[str]) -> None:
        self._inside, self._watch = False, Stopwatch(clock)
        self._apart: list[Stopwatch] = []
        for name in names:
            setattr(callback, name, self._watch.around(self._entered(getattr(callback, name))))

    @property
    def seconds(self) -> float:
        """Seconds in events so far, without what is timed apart."""
        return self._watch.seconds - sum(watch.seconds for watch in self._apart)

    def apart(self, watch: Stopwatch, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed by a stopwatch where an event calls it."""
        if watch not in self._apart:
            self._apart.append(watch)
        timed = watch.around(function)
        return lambda *arguments, **settings: (timed if self._inside else function)(
            *arguments, **settings
        )

    def _entered(self, event: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*arguments: Any, **settings: Any) -> Any:
            self._inside = True
            try:
                return event(*arguments, **settings)
            finally:
                self._inside = False

        return entered


def _measured(
    name: str,
    adapter: str,
    train: Train,
    callback: Any,
    *,
    events: Sequence[str],
    apart: Sequence[tuple[Any, str, str]],
) -> dict[str, Any]:
    """Train without and with the callback, and return the row.

    Args:
        name: Of the task.
        adapter: What steers.
        train: Trains.
        callback: The callback.
        events: Those of its methods that the trainer calls at each step.
        apart: Owner and name of each function that is no steering, and what it is instead.
    """
    plain: list[float] = []
    train(None, lambda: plain.append(perf_counter()))
    clock = Clock()
    clock.careful = True
    inside = _Events(clock, callback, events)
    watches = {what: Stopwatch(clock) for _, _, what in apart}
    steered: list[float] = []
    spent: list[float] = []

    def begins() -> None:
        steered.append(perf_counter())
        spent.append(inside.seconds)

    with ExitStack() as patched:
        for owner, name_there, what in apart:
            timed = inside.apart(watches[what], getattr(owner, name_there))
            patched.enter_context(mock.patch.object(owner, name_there, timed))
        train(callback, begins)
    rest = np.diff(spent)
    ends = [int(decision.step) for decision in callback.summary.decisions[1:]] + [len(rest)]
    # The first step of either training compiles, and a window's last holds a validation.
    usual = np.ones(len(rest), bool)
    usual[[0, *(end - 1 for end in ends), *(end - 2 for end in ends if end > 1)]] = False
    longer = (np.diff(steered) - np.diff(plain))[usual]
    return row(
        name,
        adapter,
        usual_mean(rest.tolist(), ends),
        steps=len(rest),
        a_step=float(np.median(np.diff(plain)[1:])),
        paired=float(np.median(longer)) if len(longer) else math.nan,
        keeping=watches["snapshots"],
        validating=watches["validation"],
    )
