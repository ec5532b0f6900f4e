"""What is read from a Transformers ``Trainer``: its arguments, wrappers, checkpoints and losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.memory import MicroBatches
from trimtab.adapters.torch.proofs import Replay
from trimtab.adapters.torch.state import read_state
from trimtab.core.directions import direction_of
from trimtab.core.errors import AdapterError

STATE_FILE = "trimtab.safetensors"
"""Name of the file in a checkpoint's folder."""


def unwrapped(optimizer: Any) -> tuple[Any, Any]:
    """Return PyTorch's optimiser inside Accelerate's, and the gradient scaler beside it."""
    scaler = getattr(optimizer, "scaler", None)
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer, scaler


def unscale(scaler: Any, optimizer: Any) -> None:
    """Divide the gradients by the scaler's factor, unless Trainer did so to clip them."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def check_arguments(args: Any, *, asks_trainer: bool, by_metric: bool) -> None:
    """Raise unless this training can be steered; nothing is trained yet.

    Raises:
        AdapterError: Says what has to change.
    """
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        which = "deepspeed" if getattr(args, "deepspeed", None) else "fsdp"
        raise AdapterError(
            f"{which}: weights are spread over processes, and cannot be kept or put back here; "
            "train with data parallelism (DDP), or without this callback"
        )
    if getattr(args, "restore_callback_states_from_checkpoint", False):
        raise AdapterError(
            "restore_callback_states_from_checkpoint=True: it makes a new callback that knows "
            "nothing of its data; leave it at False, this callback resumes by itself"
        )
    if not asks_trainer:
        return
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "no":
        raise AdapterError(
            "eval_strategy='no': Trainer does not evaluate, and steering needs a validation loss "
            "after each window; give TrimtabCallback(validation_data=...), set eval_strategy and "
            "eval_dataset, or use steer(trainer), which takes a few examples of eval_dataset"
        )
    if by_metric:
        raise AdapterError(
            "lr_scheduler_type: the scheduler goes by Trainer's evaluations, and steering by all "
            "of the same data would cost as much again; give TrimtabCallback(validation_data=...), "
            "or use steer(trainer)"
        )


def direction_asked(args: Any, monitor: str) -> str | None:
    """Return which way Trainer was told that the monitored value gets better, or None.

    Trainer takes whatever does not end in ``loss`` for something that rises, where nothing was
    said; a name that is known to fall is not believed to do so.
    """
    name, greater = getattr(args, "metric_for_best_model", None), args.greater_is_better
    if (
        name is None
        or greater is None
        or name.removeprefix("eval_") != monitor.removeprefix("eval_")
    ):
        return None
    return "min" if not greater or direction_of(monitor) == "min" else "max"


def saved_state(args: Any, state: Any, callback: str) -> dict[str, Any]:
    """Return the steering's state in the checkpoint that Trainer goes on from.

    Trainer does not say which folder that is. So it is looked for where ``args`` says, under the
    output folder, and where it was written; the name kept in ``trainer_state.json`` proves it.

    Args:
        args: Trainer's arguments.
        state: Trainer's state, as read from the checkpoint.
        callback: Class name under which the state was kept.

    Raises:
        AdapterError: There is none, or it is of another moment.
    """
    step = state.global_step
    known = (state.stateful_callbacks or {}).get(callback)
    known = known.get("attributes", {}) if isinstance(known, dict) else {}
    name = known.get("saved_state")
    if name is None:
        raise AdapterError(
            f"resume_from_checkpoint: the checkpoint of step {step} holds no state of this "
            "callback; resume from one that was written with it, or give "
            "TrimtabCallback(resume='fresh') to steer the steps that are left (resume='extend' "
            "needs a state)"
        )
    given = getattr(args, "resume_from_checkpoint", None)
    folders = [Path(given)] if isinstance(given, str) and given not in ("True", "False") else []
    folders += [Path(args.output_dir) / f"checkpoint-{step}", Path(known["saved_in"])]
    for folder in folders:
        path = folder / STATE_FILE
        if path.is_file():
            kept, found = read_state(path)
            if found == name:
                return kept
    raise AdapterError(
        f"resume_from_checkpoint: no {STATE_FILE} of step {step} in "
        f"{', '.join(str(folder) for folder in folders)}; say where the checkpoint is with "
        "TrainingArguments(resume_from_checkpoint=...) as well"
    )


class StepLoss:
    """Collects the losses of an optimiser step's micro-batches, each with its true weight.

    How Trainer weighs micro-batches depends on the model, the number of tokens and its version.
    So the weight is not guessed: it is the gradient that arrives at the loss in the backward
    pass, divided by the gradient scaler's factor.

    Attributes:
        comes_from_trainer: Whether somebody hands losses to `take`; else they are read from what
            the model returns.
    """

    def __init__(self) -> None:
        self.comes_from_trainer = False
        self._parts: list[_Part] = []
        self._handle: Any = None
        self._scaler: Any = None

    def begin(self, model: nn.Module, scaler: Any) -> None:
        """Listen to a model's losses, unless they come from the trainer."""
        self.end()
        self._scaler = scaler
        if not self.comes_from_trainer:
            self._handle = model.register_forward_hook(self._after_forward)

    def end(self) -> None:
        """Stop listening."""
        self._parts = []
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def take(self, loss: Any) -> None:
        """Take in a micro-batch's loss; what is not going to be trained on is passed over."""
        if isinstance(loss, torch.Tensor) and loss.requires_grad and torch.is_grad_enabled():
            part = _Part(loss.detach().clone())
            loss.register_hook(part.take_weight)
            self._parts.append(part)

    def count(self) -> int:
        """Return how many losses were taken for the coming step."""
        return len(self._parts)

    def rewind(self, count: int) -> None:
        """Forget the losses of a batch that is done again."""
        del self._parts[count:]

    def step(self) -> torch.Tensor:
        """Return the mean loss of the step that is about to be done, and forget it.

        Raises:
            AdapterError: No loss was seen.
        """
        parts, self._parts = self._parts, []
        weighted = [part.weighted() for part in parts if part.weight is not None]
        if not weighted:
            raise AdapterError(
                "the loss that Trainer trains on is not what the model returns (label smoothing, "
                "compute_loss_func, or a compute_loss of your own); use "
                "TrimtabCallback(...).attach(trainer) in the place of callbacks=[...]"
            )
        total = torch.stack(weighted).sum()
        return total if self._scaler is None else total / float(self._scaler.get_scale())

    def _after_forward(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        del inputs
        if not model.training:
            return
        if isinstance(outputs, Mapping):
            self.take(outputs.get("loss"))
        elif isinstance(outputs, tuple) and outputs and isinstance(outputs[0], torch.Tensor):
            self.take(outputs[0] if outputs[0].numel() == 1 else None)


class _Part:
    """One micro-batch's loss and, after its backward pass, its weight in the step."""

    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss
        self.weight: torch.Tensor | None = None

    def take_weight(self, gradient: torch.Tensor) -> None:
        self.weight = gradient.detach().clone()

    def weighted(self) -> torch.Tensor:
        assert self.weight is not None
        return (self.loss.double() * self.weight.double()).sum()


class Attachment:
    """Stands around a trainer's ``compute_loss`` and ``training_step``.

    Args:
        trainer: The trainer; one process, or memory that runs out is left to the user.
        losses: Takes each loss that is trained on.

    Attributes:
        memory: Cuts batches that run out of memory.
    """

    def __init__(self, trainer: Any, losses: StepLoss) -> None:
        self._trainer, self._losses = trainer, losses
        self._replay = Replay(None, trainer.model)
        self.memory = MicroBatches(trainer.model)
        self._compute, self._train = trainer.compute_loss, trainer.training_step

        @wraps(self._compute)
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            return self._compute_loss(*args, **kwargs)

        @wraps(self._train)
        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            return self._training_step(*args, **kwargs)

        trainer.compute_loss, trainer.training_step = compute_loss, training_step

    def smoothing(self) -> Place | None:
        """Return where Trainer keeps label smoothing; None if it smooths nothing."""
        smoother = getattr(self._trainer, "label_smoother", None)
        if smoother is None:
            return None

        def write(value: float) -> None:
            smoother.epsilon = value

        def read() -> float:
            return float(smoother.epsilon)

        return Place(read(), read, write, owner=self._replay)

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self._replay.waits and torch.is_grad_enabled() and not self._replay.was_called:
            kept, named = _copied(args), _copied(kwargs)
            self._replay.remember(lambda: self._compute(*_copied(kept), **_copied(named)))
        result = self._compute(*args, **kwargs)
        self._losses.take(result[0] if isinstance(result, tuple) else result)
        return result

    def _training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, *args: Any
    ) -> torch.Tensor:
        trainer, seen = self._trainer, self._losses.count()
        if trainer.accelerator.num_processes > 1:
            return self._train(model, inputs, num_items_in_batch, *args)  # type: ignore[no-any-return]

        def backward(part: Any, share: float) -> torch.Tensor:
            whole = getattr(trainer, "current_gradient_accumulation_steps", None)
            if share < 1.0 and whole is not None and not self._is_scaled(num_items_in_batch):
                trainer.current_gradient_accumulation_steps = whole / share
            try:
                return self._train(model, part, num_items_in_batch, *args)  # type: ignore[no-any-return]
            finally:
                if whole is not None:
                    trainer.current_gradient_accumulation_steps = whole

        return self.memory.run(inputs, backward, lambda: self._losses.rewind(seen))

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Return whether a loss is a sum over the batch's items divided by their number."""
        trainer = self._trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or trainer.compute_loss_func is not None)


def _copied(given: Any) -> Any:
    """Return arguments whose mappings are copies, for Trainer takes the labels out of them."""
    if isinstance(given, Mapping):
        return {key: _copied(value) for key, value in given.items()}
    return tuple(_copied(value) for value in given) if isinstance(given, tuple) else given
