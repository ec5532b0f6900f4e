"""What is read from a Lightning ``Trainer``, and stands in a module's methods for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.utils.checkpoint import checkpoint

from trimtab.adapters.snapshots import is_out_of_memory
from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.memory import parts_of
from trimtab.adapters.torch.state import random_state, restore_random_state
from trimtab.core.directions import direction_of_metric
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell


def steered_index(trainer: Any, asked: int | None) -> int:
    """Return the index of the steered optimiser.

    Raises:
        AdapterError: There is no such one, or it is not said which.
    """
    there = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(there)) if there else "none"
    if asked is None:
        if len(there) == 1:
            return 0
        raise AdapterError(
            f"optimizer=None: the module has {len(there)} optimisers ({listed}); say which one is "
            "steered, such as TrimtabCallback(optimizer=0)"
        )
    if asked not in range(len(there)):
        raise AdapterError(f"optimizer={asked!r}: the module has {listed}; give one of these")
    return asked


def check_strategy(trainer: Any) -> None:
    """Raise unless each process holds all weights.

    Raises:
        AdapterError: The strategy spreads them.
    """
    name = type(trainer.strategy).__name__
    if any(word in name for word in ("FSDP", "DeepSpeed", "ModelParallel", "XLA")):
        raise AdapterError(
            f"strategy: {name} spreads the weights over processes, and they cannot be kept or put "
            "back here; train with data parallelism ('ddp'), or leave this callback out; in a loop "
            "of your own TorchController takes fully_shard (FSDP2)"
        )


def scheduler_period(trainer: Any, configs: Sequence[Any], *, manual: bool) -> int:
    """Return how many optimiser steps there are between two steps of the scheduler.

    In manual optimisation the module steps it, and once an optimiser step is assumed.
    """
    if not configs or manual:
        return 1
    config = configs[0]
    if config.interval == "step":
        return int(config.frequency)
    accumulated = max(int(trainer.accumulate_grad_batches), 1)
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return 1
    return int(config.frequency) * math.ceil(int(batches) / accumulated)


def clipping_place(trainer: Any) -> Place | None:
    """Return where Lightning keeps the norm at which it clips; None if it does not clip by norm."""
    algorithm = str(trainer.gradient_clip_algorithm or "norm").lower()
    if not trainer.gradient_clip_val or not algorithm.endswith("norm"):
        return None

    def write(value: float) -> None:
        trainer.gradient_clip_val = value

    def read() -> float:
        return float(trainer.gradient_clip_val)

    return Place(read(), read, write)


def clips_as(trainer: Any, module: Any, optimizer: Any) -> Callable[[float], None]:
    """Return a function that clips the gradients as Lightning would at a norm."""

    def clip(norm: float) -> None:
        kept, trainer.gradient_clip_val = trainer.gradient_clip_val, norm
        try:
            module.configure_gradient_clipping(
                optimizer,
                gradient_clip_val=norm,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
        finally:
            trainer.gradient_clip_val = kept

    return clip


def announced_steps(trainer: Any, given: int | None) -> int:
    """Return the steps of the steered optimiser.

    Raises:
        AdapterError: Lightning does not know them, or counts several optimisers together.
    """
    if given is not None:
        return given
    if len(trainer.optimizers) > 1:
        raise AdapterError(
            f"total_steps=None with {len(trainer.optimizers)} optimisers: Lightning counts the "
            "steps of all of them; give TrimtabCallback(total_steps=...) for the steered one"
        )
    if not math.isfinite(trainer.num_training_batches) and trainer.max_steps == -1:
        data = type(getattr(trainer.train_dataloader, "dataset", trainer.train_dataloader)).__name__
        raise AdapterError(
            f"total_steps=None: the training data ({data}) have no length, so max_epochs does not "
            "tell how many steps there are; set max_steps of the Trainer, or "
            "TrimtabCallback(total_steps=...)"
        )
    steps = trainer.estimated_stepping_batches
    if changes_its_course(trainer) and math.isfinite(trainer.num_training_batches):
        steps = _steps_by_epoch(trainer)
    if not math.isfinite(steps) or steps < 1:
        raise AdapterError(
            f"total_steps: Lightning expects {steps} steps; set max_steps or max_epochs of the "
            "Trainer, or TrimtabCallback(total_steps=...)"
        )
    return int(steps)


def changes_its_course(trainer: Any) -> bool:
    """Return whether a callback changes the accumulation, the schedulers or the epochs on the way.

    Lightning's own count of steps is wrong then.
    """
    kinds = (GradientAccumulationScheduler, StochasticWeightAveraging)
    return any(isinstance(one, kinds) for one in trainer.callbacks)


def averages_weights(trainer: Any) -> str:
    """Return the name of the callback whose averaged weights a fit leaves; "" for none."""
    kinds = (WeightAveraging, StochasticWeightAveraging)
    found = [type(one).__name__ for one in trainer.callbacks if isinstance(one, kinds)]
    return found[0] if found else ""


def _steps_by_epoch(trainer: Any) -> float:
    """Return the optimiser steps of all epochs, each with its accumulation."""
    epochs, scheduler = int(trainer.max_epochs), None
    for one in trainer.callbacks:
        if isinstance(one, StochasticWeightAveraging):
            epochs = one._max_epochs  # it adds one, for batch normalisation, that trains nothing
        if isinstance(one, GradientAccumulationScheduler):
            scheduler = one
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if epochs == -1:
        return most
    steps, batches = 0, int(trainer.num_training_batches)
    for epoch in range(epochs):
        parts = trainer.accumulate_grad_batches
        if scheduler is not None:
            parts = scheduler.get_accumulate_grad_batches(epoch)
        steps += math.ceil(batches / parts)
    return min(steps, most)


class Capture:
    """Takes what a module logs for itself, while it is entered; nothing reaches Lightning.

    What the module gathers meanwhile, in metric objects, lists, dicts and numbers of its own, is as
    before afterwards, for its next validation epoch would count it.

    Args:
        module: A ``LightningModule``.

    Attributes:
        directions: Which way each metric object that was logged says it gets better, by name.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._logged: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self.directions: dict[str, str | None] = {}

    def __enter__(self) -> Capture:
        """Stand in for the module's ``log`` and ``log_dict``."""
        self._gathered = _Gathered(self._module)
        # In the instance only, and past nn.Module's own bookkeeping.
        object.__setattr__(self._module, "log", self._log)
        object.__setattr__(self._module, "log_dict", self._log_all)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the module as it was."""
        object.__delattr__(self._module, "log")
        object.__delattr__(self._module, "log_dict")
        self._gathered.put_back()

    def measure(self, batch: Any, index: int) -> Mapping[str, Any]:
        """Return one batch's values: what ``validation_step`` logs, and its loss as ``"loss"``."""
        self._logged = {}
        returned = self._module.validation_step(batch, index)
        values = dict(self._logged)
        if isinstance(returned, Mapping):
            values |= {name: v for name, v in returned.items() if _is_number(v)}
        elif _is_number(returned):
            values["loss"] = returned
        return values

    def computed(self) -> dict[str, float]:
        """Return the metric objects that were logged, over all batches."""
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            values[name] = float(metric.compute())
        self._metrics = {}
        return values

    def _log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        if callable(getattr(value, "compute", None)):
            self._metrics[name] = value
            self.directions[name] = direction_of_metric(value)
        elif _is_number(value):
            self._logged[name] = value

    def _log_all(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self._log(name, value, *args, **kwargs)


class _Gathered:
    """What a module has gathered by now.

    Args:
        module: Whose own attributes, and those of metric objects in it, are kept.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        one: Any
        for one in module.modules():
            if one is not module and not _is_metric(one):
                continue
            held = vars(one)
            self._kept.append((held, {n: _copied(v) for n, v in held.items() if _is_own(n, v)}))
            if _is_metric(one):
                one.reset()  # what is measured begins at nothing

    def put_back(self) -> None:
        """Let the module hold that again, in the same lists and dicts where it had some."""
        for held, kept in self._kept:
            for name, value in kept.items():
                now = held.get(name)
                if isinstance(value, list) and isinstance(now, list):
                    now[:] = value
                elif isinstance(value, dict) and isinstance(now, dict):
                    now.clear()
                    now.update(value)
                else:
                    held[name] = value


_BOOKKEEPING = frozenset(vars(LightningModule())) | {"log", "log_dict", "training_step"}


def _is_metric(module: Any) -> bool:
    return hasattr(module, "_defaults") and callable(getattr(module, "reset", None))


def _is_own(name: str, value: Any) -> bool:
    gathers = value is None or isinstance(value, list | dict | int | float | str | torch.Tensor)
    return gathers and name not in _BOOKKEEPING


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return {k: _copied(v) for k, v in value.items()} if type(value) is dict else value


def validation_batches(trainer: Any, given: Any, module: Any) -> Callable[[], Iterable[Any]]:
    """Return what gives the batches to validate on, each time from the beginning.

    Raises:
        AdapterError: There are none, or the module has no ``validation_step``.
    """
    if type(module).validation_step is LightningModule.validation_step:
        raise AdapterError(
            f"validation: {type(module).__name__} has no validation_step, and steering needs a "
            "validation loss after each window; write one, or give TrimtabCallback(validate=...)"
        )
    data = trainer.val_dataloaders if given is None else given
    if data is None:
        raise AdapterError(
            "validation_data=None, and the fit has no validation data; give "
            "TrimtabCallback(validation_data=...), or val_dataloaders= to fit"
        )
    if isinstance(data, Iterator):
        raise AdapterError(
            f"validation_data: {type(data).__name__} can be walked only once; give a DataLoader or "
            "a list of batches"
        )
    if given is not None or not isinstance(data, list | tuple):
        return lambda: data
    loaders = list(data)
    return lambda: (batch for loader in loaders for batch in loader)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


class StepInParts:
    """Stands in the place of a module's ``training_step`` in automatic optimisation.

    Lightning clears gradients between the forward and the backward pass, so the parts of a batch
    cannot be done one after the other. Instead each part's activations are dropped and computed
    again in the backward pass, so that one part's are held at a time. A step whose forward pass
    runs out of memory is rolled back (buffers, random state) and done again in twice as many
    parts, and so are later ones. In the backward pass the error is the user's to see.

    Args:
        module: A ``LightningModule``.
        told: Called with how often a batch was done again.
    """

    def __init__(self, module: Any, told: Callable[[int], None]) -> None:
        self.parts, self.retries = 1, 0
        self._module, self._told = module, told
        self._step = module.training_step

        @wraps(self._step)  # Lightning looks at its signature
        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self._training_step(*args, **kwargs)

        # In the instance only, and past nn.Module's own bookkeeping.
        object.__setattr__(module, "training_step", training_step)

    def release(self) -> None:
        """Give the module its own step back."""
        if "training_step" in vars(self._module):
            object.__delattr__(self._module, "training_step")

    def _training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        state = random_state()
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._module.buffers()]
        while True:
            cut = parts_of(batch, self.parts)
            try:
                if len(cut) == 1:
                    return self._step(batch, *args, **kwargs)
                return torch.stack([self._part(p, s, args, kwargs) for p, s in cut]).sum()
            except Exception as error:
                if not is_out_of_memory(error) or len(parts_of(batch, 2 * self.parts)) == len(cut):
                    raise
                said = str(error).partition("\n")[0]
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)
            restore_random_state(state)
            self.parts, self.retries = 2 * self.parts, self.retries + 1
            self._told(self.retries)
            tell(
                f"memory ran out ({said}); the batch is done again in {self.parts} parts, and so "
                "are those that follow"
            )

    def _part(self, part: Any, share: float, args: Any, kwargs: Any) -> torch.Tensor:
        def loss() -> torch.Tensor:
            outputs = self._step(part, *args, **kwargs)
            value = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            return torch.as_tensor(value)

        contexts = lambda: (nullcontext(), Capture(self._module))  # noqa: E731 - logs once
        result: torch.Tensor = checkpoint(loss, use_reentrant=False, context_fn=contexts)
        return result * share
