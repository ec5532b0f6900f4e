"""A callback that steers the hyperparameters of a Transformers ``Trainer`` while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import transformers
from torch import nn
from transformers.trainer_callback import ExportableState

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.options import RunKeywords, RunOptions, takes_run_keywords
from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.proofs import StandInNorm
from trimtab.adapters.torch.state import write_state
from trimtab.adapters.torch.trainer import SteeredTraining, drop_gradients
from trimtab.adapters.transformers.evaluation import (
    EvaluationSource,
    TrainerEvaluation,
    alone,
    calling_trainer,
    inner_trainer,
)
from trimtab.adapters.transformers.trainer import (
    STATE_FILE,
    Attachment,
    StepLoss,
    check_arguments,
    direction_asked,
    saved_state,
    unscale,
    unwrapped,
)
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell
from trimtab.rescue.events import Event


@takes_run_keywords
class TrimtabCallback(transformers.TrainerCallback, ExportableState):
    """Steers a ``Trainer``: ``Trainer(..., callbacks=[TrimtabCallback(validation_data=data)])``.

    The scheduler that Trainer insists on stays its own and is followed: the learning rate is
    multiplied for the moment of the optimiser's step, and put back before the scheduler steps. The
    ``learning_rate`` that is logged is the one that the step used. With the policy off
    (``policy=None``) the weights are bit for bit those of Trainer alone.

    A loss that is not finite, which Trainer hides, ends its window without an update, and the run
    goes back to its best weights with a lower learning rate; so does an exploding validation loss.
    Batches, the scheduler and random state go on. Checkpoints hold the state of the steering, so
    ``resume_from_checkpoint`` goes on with the same decisions. Where several processes train
    together, the first one validates and decides, and the others apply.

    **Validation** happens before step 1 and after each window, ``decisions + 1`` times, as
    ``trainer.evaluate()`` would do it, but outside its events: other callbacks, logs, the best
    metric and the best checkpoint hear nothing of it. Without ``validation_data`` or ``validate``
    it goes over the whole ``eval_dataset``; that needs an ``eval_strategy`` other than ``"no"`` and
    no scheduler that goes by the metric. `steer` takes a part of it, and needs neither.
    ``monitor`` is a key of what ``trainer.evaluate()`` returns, without its prefix ``eval_``.

    With ``load_best_model_at_end`` Trainer's choice of weights stands in the end, not ours.

    Args:
        validation_data: Whatever ``eval_dataset`` may be (unprepared columns and dicts of data sets
            too), or a ``DataLoader``.
        validate: A function in its place, which returns a loss or a dict of floats.
        hyperparameters: Names or `Hyperparameter` objects of the kinds ``lr``, ``weight_decay``
            (groups at 0 stay at 0), ``momentum``, ``beta1``, ``dropout`` (modules and
            attention floats), ``label_smoothing`` (``label_smoothing_factor``, with `attach`),
            ``clip`` (``max_grad_norm``), ``layer_decay``, ``frozen_depth``, ``adapter_scale``
            (LoRA); or a `SteeredValue` that your data or model read. Each is proven to be used
            before the first update, or refused.
        reference: A name or a function of progress, in the place of Trainer's scheduler; None to
            follow that.
        layers: Modules from the input to the output, where depth is steered; None to take the
            model's longest stack.
        resume: How ``resume_from_checkpoint`` is gone on from: ``"same"`` with the same decisions,
            which needs the same number of steps; ``"extend"`` with the values in force and what
            was learned, over more (or fewer) steps; ``"fresh"`` as a run of its own over the steps
            that are left, also where the checkpoint was made without this callback.
        **options: `trimtab.adapters.options.RunOptions`.

    Raises:
        AdapterError: Both ``validation_data`` and ``validate`` are given.
    """

    def __init__(
        self,
        *,
        validation_data: Any = None,
        validate: Callable[[], float | Mapping[str, float]] | None = None,
        hyperparameters: Iterable[Steerable] = ("lr",),
        reference: str | Callable[[float], float] | None = None,
        layers: Sequence[nn.Module] | None = None,
        resume: str = "same",
        **options: Unpack[RunKeywords],
    ) -> None:
        if validate is None and "monitor" in options:
            options["monitor"] = str(options["monitor"]).removeprefix("eval_")
        self._training = SteeredTraining(
            RunOptions(hyperparameters=hyperparameters, reference=reference, **options),
            validation_data=validation_data,
            validate=validate,
            layers=layers,
            begun_by="trainer.train()",
            resume=resume,
        )
        self._loss = StepLoss()
        self._attached: Attachment | None = None
        self._source: EvaluationSource | None = None  # of `steer`
        self._evaluate: Callable[[], Mapping[str, float]] | None = None
        self._trainer: Any = None
        self._args: Any = None
        self._state: Any = None
        self._control: Any = None
        self._used = 0.0  # learning rate of the last step, first group
        self._given_clip: float | None = None
        self._clip: float | None = None  # the norm at which Trainer clips now
        self._clips_here = False  # this step is clipped by us, after it was measured

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
        trainer = self._trainer
        if trainer is not None:  # as Trainer does for a trial of its own search
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)

    @property
    def events(self) -> list[Event]:
        """What was rescued in the latest run, in order; each has a `sentence`."""
        return self._training.events

    def attach(self, trainer: Any) -> TrimtabCallback:
        """Add this callback to a trainer and read the loss from its ``compute_loss``.

        Needed where the model does not return the loss that is trained: with
        ``label_smoothing_factor``, ``compute_loss_func`` or a ``compute_loss`` of one's own. In
        one process a batch that runs out of memory is then rolled back and done again in twice as
        many parts, and so are later ones; ``summary.memory_retries`` counts.
        """
        trainer = inner_trainer(trainer)
        self._attached = Attachment(trainer, self._loss)
        self._loss.comes_from_trainer = True
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    # Events, in the order of a run. Trainer hands over what is there as keywords.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check what is there, validate and take the first decision, or go on with a saved run.

        Raises:
            AdapterError: This training cannot be steered as it is.
            MetricError: The validation fails or gives nothing to steer by.
        """
        self._leave("stopped")  # Trainer starts again after a batch did not fit into memory
        self._trainer = trainer = calling_trainer(self)
        args = kwargs.get("st_args", args)  # SetFit hands over its own in these places
        model, scheduler = _model_in(kwargs), kwargs["lr_scheduler"]
        optimizer, scaler = unwrapped(kwargs["optimizer"])
        self._args, self._state, self._control = args, state, control
        # A checkpoint that was made without this callback has no room for its state.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        course = self._training.course_of(
            int(state.max_steps),
            int(state.global_step),
            lambda: saved_state(args, state, type(self).__name__),
        )
        rates = self._training.follow(optimizer, [] if scheduler is None else [scheduler])
        check_arguments(args, asks_trainer=self._asks_trainer, by_metric=rates.by_metric)
        options = self._training.options
        if args.load_best_model_at_end and options.keeps_best and not options.watch_only:
            tell(_YIELDS.format(metric=args.metric_for_best_model))
        self._given_clip = args.max_grad_norm
        self._clip = float(args.max_grad_norm) if args.max_grad_norm else None
        run = self._training.begin(
            optimizer=optimizer,
            model=model,
            rates=rates,
            total_steps=course.total_steps,
            validate=self._validation(trainer),
            clipping=None if self._clip is None else Place(self._clip, self._norm, self._set_norm),
            scaler=scaler,
            smoothing=None if self._attached is None else self._attached.smoothing(),
            told=lambda monitor: direction_asked(args, monitor),
        )
        alone = scaler is None and self._training.processes.count == 1
        self._stand_in = StandInNorm(run.spec, possible=alone)
        self._loss.begin(model, scaler)
        course.begin(run)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the clipping of a step whose gradients are measured."""
        del args, control
        driver, args = self._training.driver, self._args
        self._state = state
        self._clips_here = self._clip is not None and driver.measures_gradients
        if self._clip is not None:
            args.max_grad_norm = 0.0
            if not self._clips_here:
                args.max_grad_norm = self._stand_in.begin(_model_in(kwargs), self._clip)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the step's loss and gradients, and write its values."""
        del args, state, control
        optimizer, scaler = unwrapped(kwargs["optimizer"])
        args, model = self._args, _model_in(kwargs)
        self._clips_here |= self._stand_in.finish(model)
        loss = self._training.processes.mean(self._loss.step())
        if self._attached is not None:
            self._training.run.record_memory_retries(self._attached.memory.retries)
        if self._training.driver.measures_gradients and scaler is not None:
            unscale(scaler, optimizer)
        if not self._training.driver.before_update(loss) and scaler is None:
            drop_gradients(optimizer)  # a scaler leaves such a step out itself
        if self._clips_here:
            args.max_grad_norm = self._clip
            nn.utils.clip_grad_norm_(model.parameters(), float(self._clip or math.inf))
        self._used = self._training.rates.write()
        self._training.driver.divide_groups()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the scheduler's own rates back, and let Trainer log the one that was used."""
        del args, state, control
        self._training.driver.rejoin_groups()
        if not self._training.rates.by_metric:  # then Trainer logs what stands in the groups
            self._training.rates.put_back()
        self._let_log(kwargs["lr_scheduler"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Go on to the next step; at the end of a window validate, decide, roll back."""
        del args
        self._state, self._control = state, control
        self._training.rates.put_back()
        self._let_log(kwargs["lr_scheduler"])  # Transformers before 5 logs after this event
        self._training.driver.after_update()
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish the record, and put the best weights back, unless Trainer loaded its own."""
        del args, control, kwargs
        chosen = self._training.is_open and self._args.load_best_model_at_end
        if chosen and state.best_model_checkpoint is not None:
            self._training.run.leave_weights()
        self._leave(None)

    def state(self) -> dict[str, Any]:
        """Save the steering into the checkpoint that is being written; return what names it."""
        empty: dict[str, Any] = {"args": {}, "attributes": {}}
        if (
            not self._training.is_open
            or not self._control.should_save
            or self._args.save_only_model
        ):
            return empty  # Trainer also asks when it begins
        run = self._training.run
        folder = Path(self._args.output_dir) / f"checkpoint-{self._state.global_step}"
        if run.session is None or not folder.is_dir():
            return empty  # of a hyperparameter search, whose runs are not resumed
        try:
            name = write_state(folder / STATE_FILE, self._training.state_dict())
        except (OSError, AdapterError) as error:
            tell(f"checkpoint {folder.name}: steering cannot be resumed from it ({error})")
            return empty
        return {"args": {}, "attributes": {"saved_state": name, "saved_in": str(folder.resolve())}}

    # Inside.

    @property
    def _asks_trainer(self) -> bool:
        given = (self._source, self._training.validation_data, self._training.validate)
        return all(one is None for one in given)

    def _validation(self, trainer: Any) -> Callable[[], Any]:
        """Return what validates: the user's function, or the trainer's own way of evaluating."""
        self._evaluate = None
        if self._training.validate is not None:
            return self._training.validate
        if trainer is None:
            raise AdapterError(
                "validation: no Trainer called this event, so there is nobody to evaluate; give "
                "TrimtabCallback(validate=...)"
            )
        monitor = self._training.options.monitor
        if self._training.processes.count > 1:
            data = self._training.validation_data
            held = trainer.eval_dataset if data is None else data
            return alone(trainer, held if self._source is None else self._source.held(trainer))
        if self._source is not None:
            self._evaluate = self._source.evaluation(trainer, monitor)
        else:
            data = self._training.validation_data
            self._evaluate = TrainerEvaluation(trainer, data=data, monitor=monitor)
        return self._evaluate

    def _norm(self) -> float:
        return float(self._clip or 0.0)

    def _set_norm(self, value: float) -> None:
        self._clip = value

    def _let_log(self, scheduler: Any) -> None:
        if hasattr(scheduler, "_last_lr"):
            scheduler._last_lr = [self._used, *scheduler._last_lr[1:]]

    def _leave(self, status: str | None) -> None:
        """End the run that is open, if there is one, and give back what was borrowed."""
        self._loss.end()
        if not self._training.leave():
            return
        self._stand_in.end()
        self._args.max_grad_norm = self._given_clip
        self._training.driver.finish(status)


def _model_in(kwargs: Mapping[str, Any]) -> Any:
    """Return the model that an event is about; SetFit hands over its own in that place."""
    return kwargs.get("st_model", kwargs["model"])


_YIELDS = (
    "load_best_model_at_end=True: Trainer leaves the checkpoint that is best by {metric}, and so "
    "keep_best puts nothing back in the end; keep_best=False says the same"
)


def steer(trainer: Any, validation: Any = 200, **options: Any) -> TrimtabCallback:
    """Steer a trainer that was made: ``steer(trainer)``, then ``trainer.train()``.

    For Transformers' ``Trainer`` and its kin: TRL's (SFT, DPO), sentence-transformers', SetFit's
    (whose ``model_body`` is steered). The loss that is trained is read from its ``compute_loss``.
    The validation goes over a few examples, drawn once by the trainer's seed from its
    ``eval_dataset`` as it was prepared, and outside its events (see `TrimtabCallback`).

    ``metric_for_best_model`` and ``greater_is_better`` say which weights are kept, unless
    ``monitor`` and ``mode`` do.

    Args:
        trainer: The trainer, before ``train()``.
        validation: How many examples of ``eval_dataset`` (of several sets together) the
            validation goes over, None for all; or whatever ``eval_dataset`` may be, in its place.
        **options: Keywords of `TrimtabCallback`, except ``validation_data``.

    Returns:
        The callback, whose ``summary`` tells of the run.

    Raises:
        AdapterError: This is no such trainer, it is steered already, or there is nothing to
            validate on.
    """
    inner = inner_trainer(trainer)
    if any(isinstance(one, TrimtabCallback) for one in inner.callback_handler.callbacks):
        raise AdapterError(
            "steer(trainer): it has a TrimtabCallback already; use one of the two, and one only"
        )
    if "validation_data" in options:
        raise AdapterError("steer(validation_data=...): give the data as validation=")
    source = None
    if options.get("validate") is None:
        source = EvaluationSource(trainer, validation)
        metric = getattr(inner.args, "metric_for_best_model", None)
        if metric is not None and "monitor" not in options:
            prefix = f"{getattr(inner, 'logs_prefix', '')}_"  # SetFit's: embedding_loss
            options["monitor"] = metric.removeprefix("eval_").removeprefix(prefix)
    callback = TrimtabCallback(**options)
    callback._source = source
    return callback.attach(trainer)
