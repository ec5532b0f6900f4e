"""One steered run in a PyTorch loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Unpack

import torch
from torch import nn

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.options import (
    RunKeywords,
    RunOptions,
    check_total_steps,
    takes_run_keywords,
)
from trimtab.adapters.torch.actuators import wants_depth
from trimtab.adapters.torch.assembly import steer
from trimtab.adapters.torch.averages import Averages
from trimtab.adapters.torch.checks import check_loss, check_model, check_optimizers
from trimtab.adapters.torch.distributed import Processes
from trimtab.adapters.torch.followed_rates import OfLoop
from trimtab.adapters.torch.guarded_training import Batch
from trimtab.adapters.torch.memory import MicroBatches
from trimtab.adapters.torch.schedules import make_rates
from trimtab.adapters.torch.several import Several, parts_of
from trimtab.adapters.torch.step_hooks import StepHooks, check_hooks
from trimtab.adapters.torch.stepper import Stepper
from trimtab.adapters.torch.wrappers import Accumulation, unwrapped
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError
from trimtab.core.spec import ControlSpec
from trimtab.rescue.events import Event


@takes_run_keywords
class TorchController:
    """Steers the hyperparameters of a training loop while it runs.

    `step` stands in the place of ``optimizer.step()``, ``zero_grad()`` and ``scheduler.step()``:

    .. code-block:: python

        with TorchController(
            optimizer, total_steps=1000, validate=validate, model=model
        ) as controller:
            for x, y in batches:
                loss = loss_fn(model(x), y)
                loss.backward()
                controller.step(loss)

    ``validate()`` runs when the block is entered and after each window, ``decisions + 1`` times.
    Random state (Python, NumPy, torch), buffers and the modules' modes are put back after it.

    A loss that is not finite ends its window at once and takes the run back to its best weights
    with a lower learning rate; so does a validation loss that explodes. Batches and random state
    go on, and lost steps count. The fourth time the best weights are put back for good, the values
    are frozen, and the loop goes on. With the policy off (``policy=None``) and with ``watch_only``
    nothing of this happens: the weights are bit for bit those of the plain loop.

    Args:
        optimizer: One ``torch.optim.Optimizer`` that steps without a closure, also as Accelerate
            or Fabric return it; or a list of several, such as ``[muon, adamw]``, which step in
            that order under one multiplier, with one validation and one snapshot. Each group's
            ``lr`` on entry, times its ``lr_scale`` if it has one, is its peak; ratios between
            groups are kept.
        total_steps: How often `step` will be called. Further steps stay at the last values.
        validate: Returns the validation loss, or a dict of floats that holds ``monitor``.
        model: Whose weights and buffers are snapshotted (several: ``nn.ModuleList``).
        hyperparameters: Names or `Hyperparameter` objects of these kinds: ``lr``,
            ``weight_decay`` (groups at 0 stay at 0), ``momentum``, ``beta1``, ``dropout`` (modules
            and attention floats; a compiled model is compiled again for each new rate),
            ``label_smoothing`` (of ``loss_fn`` or a module of the model), ``clip``,
            ``layer_decay`` and ``frozen_depth`` (see ``layers``), ``adapter_scale`` (LoRA). Starts
            are what stands in the loop. Or a `SteeredValue` that the loop reads: augmentation,
            mix-up, batch size, EMA decay. Each is proven to be used, or refused, before the first
            update.
        reference: ``"warmup-linear"``, ``"cosine"``, ``"one-cycle"``, ``"constant"``, a function
            of progress in [0, 1), or the optimiser's own scheduler, also one of timm, ignite or
            Accelerate (of several optimisers a list, at most one for each). It is then stepped
            here and nowhere else: once per ``reference_every`` optimiser steps; a
            ``ReduceLROnPlateau`` instead with the monitored value, after the validation that ends
            a window (not after the first one).
        reference_every: Optimiser steps between two steps of that scheduler: the steps of an epoch
            for one that counts epochs.
        clip: Norm at which gradients are clipped; None for no clipping.
        scaler: The loop's ``torch.amp.GradScaler``; it is unscaled, stepped and updated here. One
            that Accelerate or Fabric keeps is found by itself.
        loss_fn: The loss module, where ``label_smoothing`` is steered.
        layers: Modules from the input to the output, where depth is steered; None to take the
            model's longest stack.
        averaged: Averages of the weights that the loop keeps (``AveragedModel``, timm's
            ``ModelEmaV3``, torch-ema, a module, or an object or dict with their tensors; one or
            several): kept and put back with the model, their counters too. A rollback does not
            reach those that are not named. ``validate`` decides whether model or average is
            measured. Update them after `step`.
        **options: `trimtab.adapters.options.RunOptions`.

    Where several processes train together (``DistributedDataParallel``, Accelerate), each makes a
    controller; the first one validates, decides and records, and the others apply what it says.
    Under ``fully_shard`` (FSDP2) all call ``validate()``, which needs their parts of the weights,
    and the first one's value counts; each saves its own `state_dict`.

    Attributes:
        optimizer: The optimiser; of several, what holds the groups of all and steps them.
        model: The model.

    Raises:
        AdapterError: Something handed over cannot be steered as it is.
        SpecError: A number or a start value is out of range.
        UnknownNameError: A policy, reference, hyperparameter or place has no such name.
        PolicyFileError: The policy's file cannot be read as one.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        total_steps: int,
        validate: Callable[[], float | Mapping[str, float]],
        model: nn.Module,
        hyperparameters: Iterable[Steerable] = ("lr",),
        reference: Any = "warmup-linear",
        reference_every: int = 1,
        clip: float | None = None,
        scaler: Any = None,
        loss_fn: nn.Module | None = None,
        layers: Sequence[nn.Module] | None = None,
        averaged: Any = (),
        **options: Unpack[RunKeywords],
    ) -> None:
        chosen = RunOptions(hyperparameters=hyperparameters, reference=reference, **options)
        steps = check_total_steps(total_steps)
        optimizers = check_optimizers(optimizer)
        check_model(model)
        self.optimizer = optimizers[0] if len(optimizers) == 1 else Several(optimizers)
        self.model = model
        inner = unwrapped(self.optimizer)
        self._accumulation = Accumulation(self.optimizer)
        self._stepper = Stepper(inner, model, clip=clip, scaler=scaler, stepped=self.optimizer)
        self._memory = MicroBatches(model)
        self._processes = processes = Processes()
        self._rates = make_rates(inner, reference, steps, reference_every)
        self._driver = steer(
            chosen,
            stepper=self._stepper,
            model=model,
            rates=self._rates,
            total_steps=steps,
            validate=validate,
            processes=processes,
            clipping=self._stepper.clipping(),
            loss_fn=loss_fn,
            layers=layers,
            averages=Averages(averaged, model),
        )
        self._run, self._statistics = self._driver.run, self._driver.statistics
        self._clips = clip is not None
        divided = wants_depth(chosen.hyperparameters)
        self._is_plain = self._stepper.scaler is None and not divided and processes.count == 1
        if self._accumulation.is_possible or self._driver.guard is not None:
            self._is_plain = False
        self._hooks: StepHooks | None = None

    @classmethod
    def attach(
        cls,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        validate: Callable[[], float | Mapping[str, float]],
        model: nn.Module,
        reference: Any = "warmup-linear",
        **settings: Any,
    ) -> TorchController:
        """Return a controller for a loop that is not the user's own (ignite, skorch, fastai).

        ``optimizer.step()``, ``zero_grad()`` and the scaler's calls stay where they are; inside
        the ``with`` block each step of the optimiser is steered as `step` steers it, bit for bit:

        .. code-block:: python

            with TorchController.attach(
                optimizer, total_steps=1000, validate=validate, model=model
            ) as controller:
                loss_fn = controller.watch(loss_fn)
                create_supervised_trainer(model, optimizer, loss_fn).run(loader, max_epochs=5)

        Losses come through `watch` or `tell`; of several between two steps the mean is taken. A
        loop that hands a closure to ``step`` needs neither. A scheduler that the loop steps is
        followed with ``reference=None``, and else overruled, which is told.

        Args:
            optimizer: What the loop steps. A trainer that makes one when it begins has to be told
                to make it first (``net.initialize()``, ``learn.create_opt()``).
            total_steps: How often the loop will step it.
            validate: Returns the validation loss, or a dict of floats that holds ``monitor``.
            model: Whose weights and buffers are snapshotted.
            reference: As for `TorchController` (a scheduler is then stepped here, and not by the
                loop); or None to follow the learning rates that the loop writes itself: they are
                multiplied for the moment of the step and put back.
            **settings: The other arguments of `TorchController`. With ``clip`` gradients are
                clipped right before the step; ``scaler`` is the loop's own, whose left out steps
                count.

        Raises:
            AdapterError: The optimiser calls no hooks at its step, or something else handed over
                cannot be steered as it is.
            SpecError: A number or a start value is out of range.
        """
        for one in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
            check_hooks(unwrapped(one))
        self = cls(
            optimizer,
            total_steps=total_steps,
            validate=validate,
            model=model,
            reference=OfLoop() if reference is None else reference,
            **settings,
        )
        self._is_plain = False
        self._hooks = StepHooks(
            parts_of(self._stepper.optimizer),
            driver=self._driver,
            stepper=self._stepper,
            rates=self._rates,
            processes=self._processes,
            model=model,
        )
        return self

    # What a loop calls.

    def __enter__(self) -> TorchController:
        """Validate, take the first decision, and write the first values.

        Raises:
            MetricError: ``validate()`` fails or gives nothing to steer by.
            StoreError: The store cannot be opened.
        """
        self._run.start()
        if self._hooks is not None:
            self._hooks.register()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Finish the record; put the best weights back unless an error leaves the block."""
        if kind is None:
            self._close()
        else:
            self._let_go()
            self._driver.finish("failed" if issubclass(kind, Exception) else "stopped")

    def step(self, loss: torch.Tensor | float) -> None:
        """Do one optimiser step with the gradients that are there, and whatever is due after it.

        With gradient accumulation this is called once per optimiser step, after the last backward
        pass. It clips and unscales, steps the optimiser (through the scaler), clears the gradients
        and moves on to the next values; where a window ends it validates and decides.

        Args:
            loss: Mean loss of the step, one number, not scaled.

        Raises:
            AdapterError: The run is closed, the loss is not one number, or, at the first step, a
                hyperparameter is not used; or it steers a loop that steps the optimiser itself.
        """
        # An ordinary step goes a short way that touches few objects: after a training step of 5 ms
        # all are out of the processor's caches, and the long way was measured to take 11 us more.
        statistics = self._statistics
        losses = statistics.losses
        if len(losses) < statistics.ordinary_until and self._is_plain:
            value = loss.item() if isinstance(loss, torch.Tensor) else float(loss)
            if isfinite(value):
                losses.append(value)
                rates, optimizer = self._rates, self.optimizer
                if not rates.intact():
                    self._driver.tell_overwritten()
                if self._clips:
                    self._stepper.update()
                else:
                    optimizer.step()
                optimizer.zero_grad()
                rates.advance()
                return
        if self._hooks is not None:
            raise AdapterError(
                "step(loss): this controller was made by attach and steers at optimizer.step(); "
                "call tell(loss) before that, or make it by TorchController(...)"
            )
        driver = self._driver
        if self._accumulation.gathers(loss):
            return
        loss = self._accumulation.mean(loss)
        if driver.at_window_start:
            check_loss(loss)
            self._run.start()
        if self._clips or not self._is_plain:
            self._update(loss)
        elif driver.before_update(loss):
            self.optimizer.step()
        self.optimizer.zero_grad()
        driver.after_update()

    def watch(self, loss_fn: Any, loss_of: Callable[[Any], Any] | None = None) -> Any:
        """Return a loss function for the loop, after `attach`: its training losses are taken in.

        Losses are of training where gradients are on and the model is in training mode. A module
        is returned itself, with a hook until the block is left; another function in a wrapper that
        has its attributes.

        Args:
            loss_fn: Returns the mean loss of a batch or micro-batch, undivided; or a mapping that
                holds it as ``"loss"``, an object that has it as ``loss``, or a tuple that begins
                with it. A model that computes its own loss will do.
            loss_of: Returns the loss in what ``loss_fn`` returns, where it is something else.

        Raises:
            AdapterError: The controller was not made by `attach`, or ``loss_fn`` cannot be called.
        """
        return self._attached("watch(loss_fn)").watch(loss_fn, loss_of)

    def tell(self, loss: torch.Tensor | float) -> None:
        """Take in a training loss before ``optimizer.step()``, after `attach`.

        Args:
            loss: Mean loss of a batch or micro-batch, one number, neither scaled nor divided by the
                number of micro-batches.

        Raises:
            AdapterError: The controller was not made by `attach`, or the loss is not one number.
        """
        self._attached("tell(loss)").tell(loss)

    def backward(self, loss_of: Callable[[Any], torch.Tensor], batch: Any) -> torch.Tensor:
        """Do a batch's forward and backward pass, in smaller parts where memory runs out.

        ``loss = controller.backward(lambda b: loss_fn(model(b[0]), b[1]), (x, y))`` stands in the
        place of computing the loss and ``loss.backward()``; then comes ``controller.step(loss)``.
        A batch that runs out of memory is rolled back and done again in twice as many parts, and
        so are later ones; ``summary.memory_retries`` counts. One that fits is done as without this.
        Of several processes each would cut for itself, so there the error is left to the user.

        Args:
            loss_of: Returns the mean loss of a batch, or of a part of it.
            batch: Tensors, or mappings and sequences of them, with examples in front.

        Raises:
            RuntimeError: Memory ran out with one example a part.
        """
        scaler = self._stepper.scaler
        self._driver.note_batch(Batch(loss_of, batch, None))

        def done(part: Any, share: float) -> torch.Tensor:
            loss = loss_of(part)
            weighted = loss if share == 1.0 else loss * share
            (weighted if scaler is None else scaler.scale(weighted)).backward()
            return weighted.detach()

        if self._processes.count > 1:
            return done(batch, 1.0)
        loss = self._memory.run(batch, done)
        self._run.record_memory_retries(self._memory.retries)
        return loss

    def close(self) -> Summary:
        """End the run as leaving the block does, early or not, and return the summary."""
        self._run.end_is_meant = True
        self._close()
        return self.summary

    def _close(self) -> None:
        if self._hooks is not None:
            self._hooks.tell_unused()
            if not self._driver.steps and not self.summary.spent_steps:
                self._run.end_is_meant = True  # that nothing was stepped has been told
        self._let_go()
        self._driver.finish()

    @property
    def summary(self) -> Summary:
        """The run so far: ``best``, ``schedule``, ``decisions``, ``spent_steps``, ``rollbacks``."""
        session = self._run.session
        return Summary() if session is None else session.summary

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        return self._run.monitor

    @property
    def mode(self) -> str | None:
        """Which way it gets better, ``"min"`` or ``"max"``; None until a validation shows it."""
        return self._run.mode

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation, with the coming window's values written.

        What it raises leaves the loop there. None calls nothing any more.
        """
        self._run.after_validation = call or (lambda: None)

    @property
    def events(self) -> list[Event]:
        """What was rescued so far, in order; each has a `sentence`."""
        return self._driver.events

    @property
    def spec(self) -> ControlSpec:
        """The `ControlSpec` of this run; its hyperparameters' defaults are the starts."""
        return self._run.spec

    @property
    def values(self) -> dict[str, float]:
        """Each hyperparameter's value at the coming step, reference included."""
        return self._run.values()

    @property
    def snapshot_bytes(self) -> int:
        """Size of one snapshot, 0 for none; also told in the log ``trimtab`` at the beginning."""
        return self._run.snapshots.bytes

    def _attached(self, call: str) -> StepHooks:
        if self._hooks is None:
            raise AdapterError(
                f"{call}: this controller steers at step(loss); make it by "
                "TorchController.attach(...) for a loop that steps the optimiser itself"
            )
        return self._hooks

    def _let_go(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()

    def _update(self, loss: torch.Tensor | float) -> None:
        """Do the update of a step that is scaled, clipped, divided by depth, or one of several."""
        driver = self._driver
        if driver.looks_at_gradients:
            self._stepper.unscale()
        if driver.before_update(self._processes.mean(loss)):
            driver.divide_groups()
            self._stepper.update()
            driver.rejoin_groups()
        else:
            self._stepper.skip()

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process, at any step.

        Tensors and plain values only, so that ``torch.load(..., weights_only=True)`` reads it. It
        holds the best snapshot and the adopted scheduler; the model's, the optimiser's and the
        scaler's own states are saved by the user.

        Raises:
            AdapterError: The run has not begun.
        """
        return self._run.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, before the first `step`; best before the block is entered.

        Load the model, the optimiser and the scaler first, from the same moment.

        Raises:
            AdapterError: Steps were done already, or the state is of other hyperparameters.
            SpecError: The state is of another spec or number of steps.
        """
        self._run.load_state_dict(state)
