"""What callbacks of trainers built on PyTorch share: their keywords, and the steering behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.adapters.snapshots import Snapshots
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.torch.actuators import Place, find_actuators, wants_depth
from trimtab.adapters.torch.checks import check_model, check_optimizer, check_total_steps
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.distributed import Processes, RankZeroController, RankZeroValidation
from trimtab.adapters.torch.proofs import Proofs
from trimtab.adapters.torch.schedules import FollowedRates
from trimtab.adapters.torch.snapshots import TrainingState
from trimtab.adapters.torch.state import left_as_it_was
from trimtab.adapters.torch.steering import Stepper, TorchDriver
from trimtab.adapters.torch.values import SteeredValue
from trimtab.adapters.validation import Validates, Validation
from trimtab.core.decision import RunInfo
from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter


@dataclass(frozen=True)
class CallbackOptions:
    """The keywords that every callback takes; `TorchController` says what they mean.

    Attributes:
        hyperparameters: Names or `Hyperparameter` objects.
        decisions: Number of decisions.
        policy: Name or path of a policy, a `Controller`, or None to switch it off.
        reference: A name or a function of progress; None to follow the trainer's own scheduler.
        monitor: Key of the watched value.
        mode: ``"min"`` or ``"max"``.
        keep_best: Whether the best weights are put back at the end.
        snapshots: ``"memory"``, ``"cpu"``, ``"disk"`` or ``"none"``.
        seed: Of the policy.
        store: Database URL or SQLite file; None keeps no record.
        log_to: Trackers that are told as well.
        watch_only: Propose and record, but never change anything.
        layers: Modules from the input to the output, where depth is steered.
    """

    hyperparameters: Iterable[str | Hyperparameter | SteeredValue]
    decisions: int
    policy: Any
    reference: str | Callable[[float], float] | None
    monitor: str
    mode: str
    keep_best: bool
    snapshots: str
    seed: int
    store: str | None
    log_to: str | Iterable[str] | None
    watch_only: bool
    layers: Sequence[nn.Module] | None = None


def steer(
    options: CallbackOptions,
    *,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rates: FollowedRates,
    total_steps: int,
    validate: Callable[[], float | Mapping[str, float]],
    clipping: Place | None,
    scaler: Any,
    processes: Processes,
    smoothing: Place | None = None,
) -> TorchDriver:
    """Return what drives a run whose optimiser is stepped by a trainer.

    Where several processes train together, the first one validates, decides and records.

    Args:
        options: The callback's keywords.
        optimizer: The inner PyTorch optimiser.
        model: The inner model, without wrappers for several processes.
        rates: Follows the trainer's scheduler.
        total_steps: Optimiser steps of the run.
        validate: Returns a loss, or a dict of floats.
        clipping: Where the trainer keeps its clipping norm; None if it clips nothing.
        scaler: The trainer's gradient scaler, or None.
        processes: Who trains together.
        smoothing: Where the trainer keeps label smoothing, or None.

    Raises:
        AdapterError: Something cannot be steered as it is.
        SpecError: A number or a start value is out of range.
        UnknownNameError: A policy, reference, hyperparameter or place has no such name.
        PolicyFileError: The policy's file cannot be read as one.
    """
    from trimtab.defaults import controller_for

    steps = check_total_steps(total_steps)
    check_optimizer(optimizer)
    check_model(model)
    wanted = options.hyperparameters
    depth = DepthRates(optimizer, model, options.layers) if wants_depth(wanted) else None
    items, actuators = find_actuators(
        wanted,
        optimizer=optimizer,
        model=model,
        learning_rate=rates.starts[rates.lead],
        clipping=clipping,
        smoothing=smoothing,
        depth=depth,
        cycled=rates.cycled,
    )
    spec, policy = controller_for(options.policy, items, decisions=options.decisions)
    validation: Validates = Validation(
        validate, lambda: left_as_it_was(model), monitor=options.monitor, mode=options.mode
    )
    if processes.count > 1:
        policy = RankZeroController(policy, spec, processes)
        validation = RankZeroValidation(validation, processes)
    reference = options.reference
    info = RunInfo(
        task=type(model).__name__,
        spec=spec,
        total_steps=steps,
        policy=policy.name,
        reference=reference if isinstance(reference, str) else _name_of(reference),
        seed=options.seed,
        monitor=options.monitor,
        mode=options.mode,
        watch_only=options.watch_only,
        log_to=options.log_to if processes.is_main_process else None,
    )
    run = SteeredRun(
        info,
        policy,
        multipliers=rates.multipliers,
        actuators=actuators,
        validation=validation,
        snapshots=Snapshots(
            options.snapshots,
            TrainingState(model, optimizer, scaler, (rates.snapshot, rates.restore)),
            needed=not options.watch_only and (options.keep_best or policy.guarded),
        ),
        keep_best=options.keep_best,
        store=options.store if processes.is_main_process else None,
    )
    return TorchDriver(
        run,
        stepper=Stepper(optimizer, model, scaler=scaler),
        rates=rates,
        proofs=Proofs(actuators, optimizer, depth),
        depth=depth,
    )


def _name_of(reference: Any) -> str:
    return "trainer" if reference is None else str(getattr(reference, "__name__", "function"))


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Take the gradients away, so that the trainer's next step of the optimiser does nothing."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = None


def examples_in(batch: Any) -> int:
    """Return how many examples a batch holds: the length of the first tensor in it, or 1."""
    tensor = next(_tensors(batch), None)
    return 1 if tensor is None or tensor.dim() == 0 else len(tensor)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; mappings become dicts."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(on_device(value, device) for value in batch)
    return batch


@torch.no_grad()
def mean_over_batches(
    model: nn.Module,
    batches: Iterable[Any],
    measure: Callable[[Any, int], Mapping[str, Any]],
    device: torch.device,
) -> dict[str, float]:
    """Return each measured value's mean over all examples, with the model in evaluation mode.

    Args:
        model: Whose mode is set; whoever calls puts it back.
        batches: An iterable that can be walked again each time.
        measure: Takes a batch and its index, returns the batch's mean of each value.
        device: Where batches go.

    Raises:
        AdapterError: There is no batch.
    """
    model.eval()
    totals: dict[str, float] = {}
    examples = 0
    for index, batch in enumerate(batches):
        moved = on_device(batch, device)
        n_here = examples_in(moved)
        examples += n_here
        for name, value in measure(moved, index).items():
            totals[name] = totals.get(name, 0.0) + float(value) * n_here
    if not examples:
        raise AdapterError("validation_data: it holds no batch; give at least one")
    return {name: total / examples for name, total in totals.items()}
