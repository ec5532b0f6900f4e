"""A callback that steers the hyperparameters of a Lightning ``Trainer`` while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from torch import nn

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.lightning.trainer import (
    Capture,
    StepInParts,
    announced_steps,
    averages_weights,
    changes_its_course,
    check_strategy,
    clipping_place,
    clips_as,
    scheduler_period,
    steered_index,
    validation_batches,
)
from trimtab.adapters.options import RunKeywords, RunOptions, takes_run_keywords
from trimtab.adapters.torch.proofs import ClipProof
from trimtab.adapters.torch.state import random_state, restore_random_state
from trimtab.adapters.torch.trainer import (
    Course,
    SteeredTraining,
    drop_gradients,
    mean_over_batches,
    unscaled,
)
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell
from trimtab.rescue.events import Event


@takes_run_keywords
class TrimtabCallback(Callback):
    """Steers a Lightning ``Trainer``: ``Trainer(callbacks=[TrimtabCallback()])``.

    Schedulers from ``configure_optimizers`` stay with Lightning and are followed: the learning
    rate is multiplied for the moment of the optimiser's step, and put back before they step. With
    the policy off (``policy=None``) the weights are bit for bit those of Lightning alone.

    A loss that is not finite ends its window without an update, and the run goes back to its best
    weights with a lower learning rate; so does an exploding validation loss. Batches, schedulers
    that count steps and random state go on. Lightning's checkpoints hold the state of the steering
    and the random state, so ``fit(ckpt_path=...)`` goes on with the same decisions. Where several
    processes train together, the first one validates and decides, and the others apply.

    In automatic optimisation and one process, a step whose forward pass runs out of memory is done
    again in twice as many parts (see `trimtab.adapters.lightning.trainer.StepInParts`), and so are
    later ones; ``summary.memory_retries`` counts.

    **Validation** happens before step 1 and after each window, ``decisions + 1`` times, on the
    validation data of the fit unless others are given, and apart from Lightning's own: the
    module's ``validation_step`` is called on each batch, and what it returns or logs is averaged
    over examples. Nothing of that reaches loggers or other callbacks. ``monitor`` is a name that it
    logs, or ``"loss"`` for what it returns (or else logs as ``"val_loss"``).

    Args:
        hyperparameters: Names or `Hyperparameter` objects of the kinds ``lr``, ``weight_decay``
            (groups at 0 stay at 0), ``momentum``, ``beta1``, ``dropout`` (modules and
            attention floats), ``label_smoothing`` (a loss module inside the model), ``clip``
            (``gradient_clip_val``, by norm), ``layer_decay``, ``frozen_depth``,
            ``adapter_scale`` (LoRA); or a `SteeredValue` that your data or module read. Each is
            proven to be used before the first update, or refused.
        reference: A name or a function of progress, in the place of the schedulers; None to
            follow them, or a constant rate where there are none.
        optimizer: Index of the optimiser that is steered, where the module has several.
        total_steps: Steps of that optimiser; None to ask Lightning, which counts the steps of all
            together.
        layers: Modules from the input to the output, where depth is steered; None to take the
            model's longest stack.
        resume: How ``fit(ckpt_path=...)`` is gone on from: ``"same"`` with the same decisions,
            which needs the same number of steps; ``"extend"`` with the values in force and what
            was learned, over more (or fewer) steps; ``"fresh"`` as a run of its own over the steps
            that are left, also where the checkpoint was made without this callback.
        **options: `trimtab.adapters.options.RunOptions`.
        validation_data: A ``DataLoader`` or another iterable of batches, in the place of the
            fit's.
        validate: A function in its place, which returns a loss or a dict of floats.

    Raises:
        AdapterError: Both ``validation_data`` and ``validate`` are given.
    """

    def __init__(
        self,
        *,
        hyperparameters: Iterable[Steerable] = ("lr",),
        reference: str | Callable[[float], float] | None = None,
        optimizer: int | None = None,
        total_steps: int | None = None,
        layers: Sequence[nn.Module] | None = None,
        resume: str = "same",
        validation_data: Any = None,
        validate: Callable[[], float | Mapping[str, float]] | None = None,
        **options: Unpack[RunKeywords],
    ) -> None:
        self._training = SteeredTraining(
            RunOptions(hyperparameters=hyperparameters, reference=reference, **options),
            validation_data=validation_data,
            validate=validate,
            layers=layers,
            begun_by="trainer.fit(...)",
            resume=resume,
        )
        self._which, self._total_steps = optimizer, total_steps
        self._optimizer: torch.optim.Optimizer | None = None
        self._scaler: Any = None
        self._loaded = False  # the fit goes on from a checkpoint
        self._saved: Mapping[str, Any] | None = None  # of the checkpoint that the fit goes on from
        self._losses: list[torch.Tensor] = []
        self._directions: dict[str, str | None] = {}  # that logged metric objects tell
        self._manual = False
        self._pending = False  # the optimiser was stepped, and steering not yet told so
        self._handle: Any = None
        self._in_parts: StepInParts | None = None  # stands in the module's training_step
        self._trainer: Any = None
        self._given_clip: float | None = None
        self._clip_proof: ClipProof | None = None

    @property
    def summary(self) -> Summary:
        """The run so far: ``best``, ``schedule``, ``decisions``, ``spent_steps``, ``rollbacks``."""
        return self._training.summary

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        return self._training.options.monitor

    @property
    def mode(self) -> str | None:
        """Which way it gets better, ``"min"`` or ``"max"``; None until a validation shows it."""
        return self._training.mode

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation, with the coming window's values written.

        What it raises leaves the training there; `end` comes before that. None calls nothing.
        """
        self._training.after_validation(call)

    def end(self) -> None:
        """End the run in mid-training as its last step would: the best weights are back.

        For a function of `after_validation`, which then raises what ends the training.
        """
        self._training.run.end_is_meant = True
        self._leave(None)

    @property
    def events(self) -> list[Event]:
        """What was rescued in the latest run, in order; each has a `sentence`."""
        return self._training.events

    # Events, in the order of a fit.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand before the monitors of the learning rate, so that they log the one that is used."""
        del pl_module, stage
        others = [callback for callback in trainer.callbacks if callback is not self]
        monitors = [i for i, one in enumerate(others) if isinstance(one, LearningRateMonitor)]
        if monitors and trainer.callbacks.index(self) > monitors[0]:
            # A new list, since Lightning is walking along the old one.
            trainer.callbacks = [*others[: monitors[0]], self, *others[monitors[0] :]]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Put back the random state of a run that goes on, before the data are shuffled."""
        del trainer, pl_module
        if self._saved is not None and self._training.resume != "fresh":
            restore_random_state(self._saved["random"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what is there, validate and take the first decision, or go on with a saved run.

        Raises:
            AdapterError: This training cannot be steered as it is.
            MetricError: The validation fails or gives nothing to steer by.
        """
        self._leave("stopped")
        optimizer = trainer.optimizers[steered_index(trainer, self._which)]
        self._optimizer = optimizer
        self._manual = not pl_module.automatic_optimization
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        check_strategy(trainer)
        course = self._course(trainer)
        configs = [
            config
            for config in trainer.lr_scheduler_configs
            if getattr(config.scheduler, "optimizer", optimizer) is optimizer
        ]
        rates = self._training.follow(
            optimizer,
            [config.scheduler for config in configs],
            scheduler_period(trainer, configs, manual=self._manual),
            known=not changes_its_course(trainer),
        )
        self._trainer, self._given_clip = trainer, trainer.gradient_clip_val
        run = self._training.begin(
            optimizer=optimizer,
            model=pl_module,
            rates=rates,
            total_steps=course.total_steps,
            validate=self._validation(trainer, pl_module),
            clipping=clipping_place(trainer),
            scaler=self._scaler,
            told=self._directions.get if self._training.validate is None else None,
        )
        self._clip_proof = ClipProof(run.spec)
        self._handle = optimizer.register_step_post_hook(self._after_step)
        if not self._manual and self._training.processes.count == 1:
            self._in_parts = StepInParts(pl_module, self._count_retries)
        self._losses, self._pending = [], False
        options, averaging = self._training.options, averages_weights(trainer)
        if averaging and options.keeps_best and not options.watch_only:
            tell(_YIELDS.format(callback=averaging))
        course.begin(run)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the coming step's rates, for those who log them."""
        del pl_module, batch, batch_idx
        if trainer.fit_loop._skip_backward:  # statistics of batch normalisation are measured
            return
        self._training.rates.write()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """Take in a micro-batch's loss, weighted as it is trained on."""
        del trainer, pl_module
        value = loss.detach().double().sum()
        self._losses.append(unscaled(value, self._scaler) if self._scaler else value)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Look at the step's loss and gradients, and write its values.

        Raises:
            AdapterError: No loss went through Lightning's backward pass, or a hyperparameter is
                not used.
        """
        losses, self._losses = self._losses, []
        others = self._optimizer is None or optimizer is not self._optimizer
        if others or trainer.fit_loop._skip_backward:
            return
        if self._pending:  # a step that a gradient scaler left out
            self._tell()
        if not losses:
            raise AdapterError(
                "no loss was seen before the optimiser's step; in manual optimisation use "
                "self.manual_backward(loss)"
            )
        loss = self._training.processes.mean(torch.stack(losses).sum())
        goes_on = self._training.driver.before_update(loss)
        self._pending = True
        if self._scaler is not None and not self._gradients_are_finite():
            self._training.rates.put_back()  # the scaler leaves the step out; schedulers do step
            return
        if not goes_on:
            drop_gradients(optimizer)
        elif self._clip_proof is not None and self._clip_proof.open:
            weights = [weight for group in self._groups() for weight in group["params"]]
            self._clip_proof.prove(weights, clips_as(trainer, pl_module, optimizer))
        self._training.rates.write()
        self._training.driver.divide_groups()  # the step goes through its groups after this event

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on to the next step; at the end of a window validate, decide, roll back."""
        del trainer, pl_module, outputs, batch, batch_idx
        if self._pending:
            self._tell()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the record, and put the best weights back, unless others are left as averaged."""
        del pl_module
        if self._training.is_open and averages_weights(trainer):
            self._training.run.leave_weights()
        self._leave(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the record of a fit that was interrupted or failed."""
        del trainer, pl_module
        self._leave("failed" if isinstance(exception, Exception) else "stopped")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End a run that was left open."""
        del trainer, pl_module, stage
        self._leave("stopped")

    # Lightning's checkpoints.

    @property
    def state_key(self) -> str:
        """Under which name a checkpoint holds the state; one for each optimiser that is named."""
        if self._which is None:
            return type(self).__qualname__
        return str(self._generate_state_key(optimizer=self._which))

    @property
    def _legacy_state_key(self) -> Any:
        return type(self).__qualname__  # of version 0.1, whichever the optimiser

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on: tensors and plain values."""
        if not self._training.is_open or self._training.run.session is None:
            return {}
        return {"steering": self._training.state_dict(), "random": random_state()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Remember that the fit goes on from a checkpoint."""
        del trainer, pl_module, checkpoint
        self._loaded = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` when the fit begins."""
        self._saved = state_dict or None

    # Inside.

    def _course(self, trainer: Any) -> Course:
        """Return which of the fit's steps the run goes over, and forget the checkpoint."""
        total = announced_steps(trainer, self._total_steps)
        done = trainer.global_step // max(len(trainer.optimizers), 1)
        saved, self._saved = self._saved, None
        loaded, self._loaded = self._loaded, False
        if saved is not None:
            state = saved["steering"]
            done = int(state["session"]["steps_done"]) + int(state["position"])
            done += int(state.get("begun_at", 0))
            return self._training.course_of(total, done, lambda: state)
        if not loaded and self._total_steps is not None:
            done = 0  # of another fit of this trainer, and the steps of this one were given
        return self._training.course_of(total, done, _no_state if loaded else None)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Follow PyTorch's optimiser: put the schedulers' rates back right after its step."""
        del optimizer, args, kwargs
        self._training.driver.rejoin_groups()
        self._training.rates.put_back()
        if self._manual and self._pending:  # there may be another step in this batch
            self._tell()

    def _tell(self) -> None:
        self._pending = False
        self._training.driver.rejoin_groups()
        self._training.driver.after_update()

    def _count_retries(self, count: int) -> None:
        self._training.run.record_memory_retries(count)

    def _gradients_are_finite(self) -> bool:
        gradients = [w.grad for g in self._groups() for w in g["params"] if w.grad is not None]
        if not gradients:
            return True
        norms = torch._foreach_norm(gradients)
        return bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())

    def _groups(self) -> list[dict[str, Any]]:
        return [] if self._optimizer is None else self._optimizer.param_groups

    def _validation(self, trainer: Any, module: Any) -> Callable[[], Any]:
        """Return what validates: the user's function, or ``validation_step`` over the data."""
        if self._training.validate is not None:
            return self._training.validate
        batches = validation_batches(trainer, self._training.validation_data, module)

        def validate() -> dict[str, float]:
            with trainer.precision_plugin.val_step_context(), Capture(module) as capture:
                means = mean_over_batches(module, batches(), capture.measure, module.device)
                means |= capture.computed()
            self._directions.update(capture.directions)
            if "loss" not in means and "val_loss" in means:
                means["loss"] = means["val_loss"]
            return means

        return validate

    def _leave(self, status: str | None) -> None:
        """End the run that is open, if there is one, and give back what was borrowed."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._in_parts is not None:
            self._in_parts.release()
            self._in_parts = None
        if self._training.leave():
            self._trainer.gradient_clip_val = self._given_clip
            self._training.driver.finish(status)


_YIELDS = (
    "keep_best: {callback} leaves its averaged weights at the end of the fit, and so the best ones "
    "are not put back; keep_best=False says the same"
)


def _no_state() -> Mapping[str, Any]:
    raise AdapterError(
        "ckpt_path: the checkpoint holds no state of this callback; resume from one that was "
        "written with it, or give TrimtabCallback(resume='fresh') to steer the steps that are left "
        "(resume='extend' needs a state)"
    )
