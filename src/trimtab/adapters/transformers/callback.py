"""A callback that steers the hyperparameters of a Transformers ``Trainer`` while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

import transformers
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import ExportableState

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.options import RunKeywords, RunOptions, takes_run_keywords
from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.adapters.torch.proofs import StandInNorm
from trimtab.adapters.torch.state import left_as_it_was, write_state
from trimtab.adapters.torch.trainer import SteeredTraining, drop_gradients, mean_over_batches
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
from trimtab.core.errors import AdapterError, MetricError
from trimtab.core.notices import tell

_NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "epoch")


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

    **Validation** happens before step 1 and after each window, ``decisions + 1`` times. Without
    ``validation_data`` or ``validate`` Trainer itself is asked to evaluate then, also where its
    ``eval_strategy`` would not: other callbacks see these evaluations. That needs an
    ``eval_strategy`` other than ``"no"`` and no scheduler that goes by the metric; ``monitor`` is a
    key of what Trainer returns, without its prefix ``eval_``.

    Args:
        validation_data: A data set, collated as the training data are, or a ``DataLoader``. Its
            loss is the mean over batches of the model's loss, weighted by examples.
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
        **options: Unpack[RunKeywords],
    ) -> None:
        self._training = SteeredTraining(
            RunOptions(hyperparameters=hyperparameters, reference=reference, **options),
            validation_data=validation_data,
            validate=validate,
            layers=layers,
            begun_by="trainer.train()",
        )
        self._loss = StepLoss()
        self._attached: Attachment | None = None
        self._args: Any = None
        self._state: Any = None
        self._control: Any = None
        self._used = 0.0  # learning rate of the last step, first group
        self._given_clip: float | None = None
        self._clip: float | None = None  # the norm at which Trainer clips now
        self._clips_here = False  # this step is clipped by us, after it was measured
        self._awaited = False  # Trainer was asked to evaluate
        self._evaluated: Mapping[str, float] | None = None
        self._random = ExitStack()  # holds random state while Trainer evaluates for us
        self._eval_on_start: bool | None = None  # what the user's argument was

    @property
    def summary(self) -> Summary:
        """The run so far: ``best``, ``schedule``, ``decisions``, ``spent_steps``, ``rollbacks``."""
        return self._training.summary

    def attach(self, trainer: Any) -> TrimtabCallback:
        """Add this callback to a trainer and read the loss from its ``compute_loss``.

        Needed where the model does not return the loss that is trained: with
        ``label_smoothing_factor``, ``compute_loss_func`` or a ``compute_loss`` of one's own. In
        one process a batch that runs out of memory is then rolled back and done again in twice as
        many parts, and so are later ones; ``summary.memory_retries`` counts.
        """
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
        model, scheduler = kwargs["model"], kwargs["lr_scheduler"]
        optimizer, scaler = unwrapped(kwargs["optimizer"])
        self._args, self._state, self._control = args, state, control
        resumed = int(state.global_step)
        rates = FollowedRates(
            optimizer,
            [] if scheduler is None else [scheduler],
            reference=self._training.options.reference,
            total_steps=int(state.max_steps),
            steps_done=resumed,
        )
        check_arguments(args, asks_trainer=self._asks_trainer, by_metric=rates.by_metric)
        self._given_clip = args.max_grad_norm
        self._clip = float(args.max_grad_norm) if args.max_grad_norm else None
        run = self._training.begin(
            optimizer=optimizer,
            model=model,
            rates=rates,
            total_steps=int(state.max_steps),
            validate=self._validation(model, kwargs.get("train_dataloader")),
            clipping=None if self._clip is None else Place(self._clip, self._norm, self._set_norm),
            scaler=scaler,
            smoothing=None if self._attached is None else self._attached.smoothing(),
            told=lambda monitor: direction_asked(args, monitor),
        )
        alone = scaler is None and self._training.processes.count == 1
        self._stand_in = StandInNorm(run.spec, possible=alone)
        self._loss.begin(model, scaler)
        if resumed:
            run.load_state_dict(saved_state(args, state, type(self).__name__))
        elif self._asks_trainer:
            self._eval_on_start = bool(args.eval_on_start)
            self._await(keep_random=not args.eval_on_start)
            args.eval_on_start = True  # read by Trainer right after this event
        else:
            run.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the clipping of a step whose gradients are measured."""
        del control
        driver = self._training.driver
        self._state = state
        if self._awaited:  # Trainer evaluated, and not what is watched
            self._evaluation_came()
        self._clips_here = self._clip is not None and driver.measures_gradients
        if self._clip is not None:
            args.max_grad_norm = 0.0
            if not self._clips_here:
                args.max_grad_norm = self._stand_in.begin(kwargs["model"], self._clip)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the step's loss and gradients, and write its values."""
        del state, control
        optimizer, scaler = unwrapped(kwargs["optimizer"])
        self._clips_here |= self._stand_in.finish(kwargs["model"])
        loss = self._training.processes.mean(self._loss.step())
        if self._attached is not None:
            self._training.run.record_memory_retries(self._attached.memory.retries)
        if self._training.driver.measures_gradients and scaler is not None:
            unscale(scaler, optimizer)
        if not self._training.driver.before_update(loss) and scaler is None:
            drop_gradients(optimizer)  # a scaler leaves such a step out itself
        if self._clips_here:
            args.max_grad_norm = self._clip
            nn.utils.clip_grad_norm_(kwargs["model"].parameters(), float(self._clip or math.inf))
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
        if self._asks_trainer and self._training.driver.validates_next:
            self._await(keep_random=not control.should_evaluate)
            control.should_evaluate = True
        else:
            self._training.driver.after_update()
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in an evaluation that was asked for."""
        del args, state, control
        if not self._awaited:
            return
        metrics = kwargs["metrics"]
        named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        if self._training.options.monitor in named:  # one of several data sets may not have it
            kept = (name for name in named if not name.endswith(_NOT_METRICS))
            self._evaluated = {name: named[name] for name in kept}
            self._evaluation_came()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish the record, and put the best weights back if that is wanted."""
        del args, state, control, kwargs
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
            name = write_state(folder / STATE_FILE, run.state_dict())
        except (OSError, AdapterError) as error:
            tell(f"checkpoint {folder.name}: steering cannot be resumed from it ({error})")
            return empty
        return {"args": {}, "attributes": {"saved_state": name, "saved_in": str(folder.resolve())}}

    # Inside.

    @property
    def _asks_trainer(self) -> bool:
        return self._training.validation_data is None and self._training.validate is None

    def _validation(self, model: nn.Module, training: Any) -> Callable[[], Any]:
        """Return what validates: the user's function, a walk over their data, or Trainer's word."""
        if self._training.validate is not None:
            return self._training.validate
        if self._training.validation_data is None:
            return self._word_of_trainer
        batches = self._training.validation_data
        if not isinstance(batches, DataLoader):
            batches = DataLoader(
                batches,
                batch_size=self._args.per_device_eval_batch_size,
                collate_fn=getattr(training, "collate_fn", None),
            )
        device = next(model.parameters()).device

        def measure(batch: Any, index: int) -> dict[str, Any]:
            del index
            outputs = model(**batch)
            return {"loss": outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]}

        return lambda: mean_over_batches(model, batches, measure, device)

    def _word_of_trainer(self) -> Mapping[str, float]:
        told, self._evaluated = self._evaluated, None
        if told is None:
            raise MetricError(
                f"Trainer evaluated and did not return 'eval_{self._training.options.monitor}'; "
                "set monitor= to what it returns, or give validation_data="
            )
        return told

    def _await(self, *, keep_random: bool) -> None:
        """Remember that Trainer was asked, and its random state where it was not going to."""
        self._awaited, self._evaluated = True, None
        if keep_random:
            self._random.enter_context(left_as_it_was(nn.Module()))

    def _evaluation_came(self) -> None:
        self._awaited = False
        self._random.close()
        self._give_back_arguments()
        if self._training.run.session is None:
            self._training.run.start()
        else:
            self._training.driver.after_update()

    def _give_back_arguments(self) -> None:
        if self._eval_on_start is not None:
            self._args.eval_on_start, self._eval_on_start = self._eval_on_start, None

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
        self._random.close()
        self._awaited = False
        if not self._training.leave():
            return
        self._give_back_arguments()
        self._stand_in.end()
        self._args.max_grad_norm = self._given_clip
        self._training.driver.finish(status)
