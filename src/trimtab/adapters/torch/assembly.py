"""A steered PyTorch run, put together: the same for a loop of one's own and for trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from trimtab.adapters.options import RunOptions
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.torch.actuators import Place, find_actuators, wants_depth
from trimtab.adapters.torch.averages import Averages
from trimtab.adapters.torch.checks import check_weights
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.distributed import Processes, RankZeroController, RankZeroValidation
from trimtab.adapters.torch.first_steps import FirstSteps
from trimtab.adapters.torch.proofs import Proofs
from trimtab.adapters.torch.schedules import Rates
from trimtab.adapters.torch.several import parts_of
from trimtab.adapters.torch.sharding import holds_shards
from trimtab.adapters.torch.snapshots import TrainingState
from trimtab.adapters.torch.state import left_as_it_was
from trimtab.adapters.torch.steering import TorchDriver
from trimtab.adapters.torch.step_guard import StepGuard
from trimtab.adapters.torch.stepper import Stepper
from trimtab.adapters.validation import Validates, Validation
from trimtab.core.errors import AdapterError


def steer(
    options: RunOptions,
    *,
    stepper: Stepper,
    model: nn.Module,
    rates: Rates,
    total_steps: int,
    validate: Callable[[], float | Mapping[str, float]],
    processes: Processes,
    clipping: Place | None,
    smoothing: Place | None = None,
    loss_fn: nn.Module | None = None,
    layers: Sequence[nn.Module] | None = None,
    told: Callable[[str], str | None] | None = None,
    averages: Averages | None = None,
) -> TorchDriver:
    """Return what drives a run that has not begun.

    Where several processes train together, the first one validates, decides and records.

    Args:
        options: What the user asked for.
        stepper: The inner optimiser and its gradient scaler.
        model: The inner model, without wrappers for several processes.
        rates: Writes the learning rates.
        total_steps: Optimiser steps of the run.
        validate: Returns a loss, or a dict of floats.
        processes: Who trains together.
        clipping: Where the clipping norm is kept; None if nothing is clipped.
        smoothing: Where a trainer keeps label smoothing, or None.
        loss_fn: Where label smoothing is kept, if not inside the model.
        layers: Modules from the input to the output, where depth is steered.
        told: Returns which way a measured value gets better, where metric objects may tell.
        averages: Averages of the weights; None where they are a trainer's affair.

    Raises:
        AdapterError: Something cannot be steered as it is.
        SpecError: A number or a start value is out of range.
        UnknownNameError: A policy, hyperparameter or place has no such name.
        PolicyFileError: The policy's file cannot be read as one.
    """
    optimizer, wanted = stepper.optimizer, options.hyperparameters
    check_weights(optimizer, model)
    depth = DepthRates(optimizer, model, layers) if wants_depth(wanted) else None
    items, actuators = find_actuators(
        wanted,
        optimizer=optimizer,
        model=model,
        learning_rate=rates.starts[rates.lead],
        loss_fn=loss_fn,
        clipping=clipping,
        smoothing=smoothing,
        depth=depth,
        cycled=rates.cycled,
    )
    spec, policy = options.controller(items)
    if processes.count > 1:
        policy = RankZeroController(policy, spec, processes)
    if not processes.is_main_process:
        options = replace(options, store=None, log_to=None)
    info = options.run_info(
        spec,
        task=type(model).__name__,
        total_steps=total_steps,
        policy=policy.name,
        reference=_name_of(options.reference),
    )
    clock = rates.snapshot, rates.restore
    snapshots, kept = options.snapshots_of(
        TrainingState(model, optimizer, stepper.scaler, clock, averages), policy
    )
    run = SteeredRun(
        info,
        policy,
        multipliers=rates.multipliers,
        actuators=actuators,
        validation=_validation(options, validate, model, processes, averages, told),
        snapshots=snapshots,
        kept=kept,
        keep_best=options.keeps_best,
        store=options.store,
        after_restore=(lambda: None) if averages is None else averages.tell_of_others,
    )
    proofs = Proofs(
        actuators,
        optimizer,
        depth,
        lr=options.moves and any(item.kind == "lr" for item in items),
    )
    return TorchDriver(
        run,
        stepper=stepper,
        rates=rates,
        proofs=proofs,
        depth=depth,
        actuators=actuators,
        guard=_guard_of(options, stepper, model, processes),
        first=FirstSteps(
            parts_of(optimizer), scaled=stepper.scaler is not None, alone=processes.count == 1
        ),
        alone=processes.count == 1,
    )


def _validation(
    options: RunOptions,
    validate: Callable[[], float | Mapping[str, float]],
    model: nn.Module,
    processes: Processes,
    averages: Averages | None,
    told: Callable[[str], str | None] | None,
) -> Validates:
    """Return the validation, which the first of several processes makes for all."""
    validation = Validation(
        validate,
        lambda: left_as_it_was(model if averages is None else averages.beside_model()),
        monitor=options.monitor,
        mode=options.mode,
        told=told,
    )
    if processes.count == 1:
        return validation
    return RankZeroValidation(validation, processes, together=holds_shards(model))


def _guard_of(
    options: RunOptions, stepper: Stepper, model: nn.Module, processes: Processes
) -> StepGuard | None:
    if not options.rescues or options.watch_only:
        return None
    if processes.count > 1 or holds_shards(model):
        raise AdapterError(
            "policy='guard': it guards one process with whole weights; choose a policy, or None"
        )
    place = "cpu" if options.snapshots == "none" else options.snapshots
    return StepGuard(
        stepper, model, act=options.act, on_giving_up=options.on_giving_up, snapshots=place
    )


def _name_of(reference: Any) -> str:
    """Return what the record calls a reference; None stands for a trainer's own scheduler."""
    if reference is None or isinstance(reference, str):
        return reference or "trainer"
    if isinstance(reference, list | tuple):
        return ", ".join(map(_name_of, reference))
    return str(getattr(reference, "__name__", type(reference).__name__))
