"""One steered run inside ``fit``, also where a training step finds no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Unpack

import keras

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.keras.assembly import SteeredModel, check_one_device, kind_of
from trimtab.adapters.keras.fit_call import FitCall, fit_call
from trimtab.adapters.keras.proofs import FitProof
from trimtab.adapters.keras.state import before, evaluation, fingerprint, read_state, write_state
from trimtab.adapters.keras.statistics import StepLosses
from trimtab.adapters.keras.variables import backend_name, synchronise
from trimtab.adapters.options import (
    RunKeywords,
    RunOptions,
    check_total_steps,
    takes_run_keywords,
)
from trimtab.adapters.snapshots import is_out_of_memory
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError
from trimtab.core.spec import ControlSpec, window_ends

_MOST_IN_A_ROW = 3


class MemoryGuard:
    """Stands around a model's compiled training function, under TensorFlow and PyTorch.

    A step that runs out of memory may have changed some weights and not others. The run goes back
    to its best state and on with the next batch; the lost one counts. The third such step in a row
    is the user's to see, as is every one under JAX, whose step has given its state away by then.

    Args:
        model: Whose ``train_function`` has been made.
        recover: Goes back to the best state, told what happened; returns False if it cannot.

    Attributes:
        lost: Whether the latest execution was lost.
    """

    def __init__(self, model: Any, recover: Callable[[BaseException], bool]) -> None:
        self.lost = False
        self._recover, self._in_a_row = recover, 0
        self._model, self._function = model, model.train_function
        self._installed: Any = None
        if backend_name() != "jax":
            self._installed = model.train_function = self._train

    def release(self) -> None:
        """Give the model its own training function back, if it still has ours."""
        if self._installed is not None and self._model.train_function is self._installed:
            self._model.train_function = self._function

    def _train(self, iterator: Any) -> Any:
        try:
            logs = self._function(iterator)
        except Exception as error:
            self._in_a_row += 1
            out = is_out_of_memory(error) and self._in_a_row < _MOST_IN_A_ROW
            if not out or not self._recover(error):
                raise
            self.lost = True
            return self._model.get_metrics_result()
        self.lost, self._in_a_row = False, 0
        return logs


@takes_run_keywords
class TrimtabCallback(keras.callbacks.Callback):
    """Steers the hyperparameters of ``model.fit`` while it runs, on every backend of Keras.

    .. code-block:: python

        steer = TrimtabCallback(validation_data=(x_val, y_val))
        model.fit(x, y, epochs=5, callbacks=[steer])
        steer.summary

    The validation data are evaluated before step 1 and after each of ``decisions`` windows, and
    give ``"loss"`` and the model's metrics by name to ``monitor``; the epoch's metrics, random
    state and buffers are put back after that. A loss that is not finite ends its window at once and
    takes weights and optimiser back to the best state, with a lower learning rate; the fourth time
    the best state is put back for good and the values are frozen. A step that runs out of memory is
    mended alike (not under JAX), the third in a row is raised.
    With the policy off (``policy=None``) and with ``watch_only`` nothing of this happens: the
    weights are bit for bit those of a plain ``fit`` with the same schedule (JAX: to 1e-6).

    At the first batch each hyperparameter is proven to be used, or refused with an `AdapterError`:
    the training step itself is tried at its lowest and its highest value, and every variable and
    the random state are put back. New values cost no compilation: they stand in variables that the
    compiled step reads. A model, optimiser or loss that is saved in mid-run is saved as it would
    be without us, and all of them are the user's own again when ``fit`` ends. A step is a batch.
    With ``steps_per_execution=n`` decisions are taken at the borders of executions; the reference
    moves in every step.

    Args:
        validation_data: ``(x, y)``, ``(x, y, weights)``, a ``tf.data.Dataset`` or a ``PyDataset``;
            None for what ``fit`` validates on.
        validate: In its place: returns the validation loss, or a dict of floats.
        validation_batch_size: For arrays; None for Keras' own, 32.
        validation_steps: Batches of one validation; None for all.
        hyperparameters: Names or `Hyperparameter` objects of these kinds: ``lr``,
            ``weight_decay``, ``momentum``, ``beta1``, ``clip``, ``ema_decay`` (of the optimiser),
            ``layer_decay``, ``frozen_depth`` (see `trimtab.adapters.keras.depth.LayerRates`),
            ``dropout`` (of Dropout and SpatialDropout layers), ``label_smoothing`` (of loss
            objects; validation keeps the start's); and any `SteeredValue` that code of one's own
            reads, such as the strength of an augmentation. Starts are what the compiled model has.
        reference: ``"warmup-linear"``, ``"cosine"``, ``"one-cycle"``, ``"constant"``, a function
            of progress in [0, 1), or a ``LearningRateSchedule``. None for the schedule that the
            optimiser was compiled with, or ``"warmup-linear"`` if it has a number. With
            ``policy=None`` or ``watch_only`` a number stays as it is, other callbacks may set it.
        total_steps: Batches of the run; None for epochs times batches an epoch.
        state_file: Where the state is kept at the end of each epoch, to go on after an
            interruption beside Keras' own ``BackupAndRestore`` (or with ``initial_epoch`` and a
            model of ``ModelCheckpoint``); removed when ``fit`` ends. None keeps none.
        **options: `trimtab.adapters.options.RunOptions`.

    Raises:
        AdapterError: There are two things to validate on.
    """

    def __init__(
        self,
        validation_data: Any = None,
        *,
        validate: Callable[[], float | Mapping[str, float]] | None = None,
        validation_batch_size: int | None = None,
        validation_steps: int | None = None,
        hyperparameters: Iterable[Steerable] = ("lr",),
        reference: Any = None,
        total_steps: int | None = None,
        state_file: str | Path | None = None,
        **options: Unpack[RunKeywords],
    ) -> None:
        super().__init__()
        if validation_data is not None and validate is not None:
            raise AdapterError(
                "validation_data: validate= as well is given; pass one of the two, or neither to "
                "validate on what fit has"
            )
        self._options = RunOptions(hyperparameters=hyperparameters, reference=reference, **options)
        self._validation_data, self._validate = validation_data, validate
        self._batch_size, self._validation_steps = validation_batch_size, validation_steps
        self._total_steps = total_steps
        self._state_file = None if state_file is None else Path(state_file)
        self._pending: Mapping[str, Any] | None = None
        self._steered: SteeredModel | None = None
        self._losses: StepLosses | None = None
        self._memory: MemoryGuard | None = None
        self._proof: FitProof | None = None
        self._proved = False
        self._given_up = False  # the model was compiled again in this fit
        self._summary = Summary()
        self._after_validation: Callable[[], None] = _nothing

    # What a user asks.

    @property
    def summary(self) -> Summary:
        """The run so far: ``best``, ``schedule``, ``decisions``, ``spent_steps``, ``rollbacks``."""
        session = None if self._steered is None else self._steered.run.session
        return self._summary if session is None else session.summary

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        return self._options.monitor

    @property
    def mode(self) -> str | None:
        """Which way it gets better, ``"min"`` or ``"max"``; None until a validation shows it."""
        told = None if self._options.mode == "auto" else self._options.mode
        return told if self._steered is None else self._steered.run.mode

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation, with the coming window's values written.

        What it raises leaves the training there; `end` comes before that. None calls nothing.
        """
        self._after_validation = call or _nothing
        if self._steered is not None:
            self._steered.run.after_validation = self._after_validation

    def end(self) -> None:
        """End the run in mid-training as its last step would: the best weights are back.

        For a function of `after_validation`, which then raises what ends the training.
        """
        self._steered_now.run.end_is_meant = True
        self._end(None)
        self._forget_state_file()

    @property
    def spec(self) -> ControlSpec:
        """The `ControlSpec` of the run in progress; its hyperparameters' defaults are the starts.

        Raises:
            AdapterError: No run is in progress.
        """
        return self._steered_now.run.spec

    @property
    def values(self) -> dict[str, float]:
        """Each hyperparameter's value at the coming step, reference included.

        Raises:
            AdapterError: No run is in progress.
        """
        steered = self._steered_now
        self._take_waiting()
        return steered.run.values()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process, at any step: arrays, plain values.

        It holds the best state and the random generators'; the model is saved by the user.

        Raises:
            AdapterError: No run is in progress.
        """
        steered = self._steered_now
        self._take_waiting()
        return steered.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict` in the next ``fit``, whose model is of the same moment."""
        self._pending = dict(state)

    # What fit calls.

    def set_model(self, model: Any) -> None:
        """Take the model.

        Raises:
            AdapterError: It is none of Keras 3, or is compiled in a way that Keras cannot run.
        """
        if not isinstance(model, keras.Model):
            raise AdapterError(f"model: {kind_of(model)} is no keras.Model; give one of Keras 3")
        at_once = getattr(model, "steps_per_execution", 1)
        if not isinstance(at_once, int):
            raise AdapterError(
                f"steps_per_execution: {at_once!r} is no whole number, which Keras 3 needs; "
                "compile(steps_per_execution=8), say, or leave it out"
            )
        super().set_model(model)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """Begin the run at the first epoch: what other callbacks restored is in place by then.

        Raises:
            AdapterError: The model cannot be steered as it is, or the state is of another moment.
            MetricError: The validation fails or gives nothing to steer by.
            SpecError: A number or a start value is out of range.
            StoreError: The store cannot be opened.
            UnknownNameError: A policy, reference, hyperparameter or place has no such name.
        """
        if self._has_given_up():
            return
        if self._steered is None:
            self._begin(epoch)
        if self._losses is not None:
            self._losses.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take in the losses of the batches just done, and decide where a window ends."""
        if self._has_given_up():
            return
        steered = self._steered_now
        assert self._losses is not None
        steps = (self.params or {}).get("steps")
        lost = self._memory is not None and self._memory.lost
        may_wait = self._proved and not lost and steps and batch + 1 < steps
        if may_wait and self._losses.wait(logs, steered.driver.remaining - 1):
            return
        losses = self._losses.read(logs)
        if lost:
            losses = [None] * len(losses)
        elif not self._proved and (self._proof is None or self._proof.ended):
            self._proved = True
            if self._proof is None or not self._proof.proven:
                steered.check_that_it_acts()
        steered.driver.record_steps(losses)
        if steps and batch + 1 >= steps:  # before any callback's on_epoch_end
            self._write_state()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """Keep the state where the end of an epoch could not be foreseen."""
        if not (self.params or {}).get("steps"):
            self._write_state()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """Finish the record, put the best weights back, and give everything back."""
        self._given_up = False
        if self._steered is not None:
            self._end(None)
            if self._options.keeps_best and not self._options.watch_only:
                self._settle_early_stopping()
            self._forget_state_file()

    def close(self) -> Summary:
        """Finish a run whose ``fit`` was left by an error, and give the model back as it was."""
        if self._steered is not None:
            self._end("failed")
        return self._summary

    # Inside.

    @property
    def _steered_now(self) -> SteeredModel:
        if self._steered is None:
            raise AdapterError("no run is in progress; pass this object in fit(callbacks=[...])")
        return self._steered

    def _forget_state_file(self) -> None:
        if self._state_file is not None:
            for path in (self._state_file, before(self._state_file)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _take_waiting(self) -> None:
        """Take in the steps whose losses wait to be read together."""
        if self._steered is not None and self._losses is not None and self._losses.waiting:
            self._steered.driver.record_steps(self._losses.waited())

    def _has_given_up(self) -> bool:
        """Return whether this fit is not steered any more, as its model was compiled again."""
        steered = self._steered
        if steered is not None and steered.is_compiled_again():
            steered.run.warn("compiled", _COMPILED_AGAIN)
            self._given_up = True
            self._end("stopped", compiled_again=True)
        return self._given_up

    def _settle_early_stopping(self) -> None:
        """Let EarlyStopping, where it comes after this, put back the weights that stand now."""
        everyone = fit_call().callbacks
        later = everyone[everyone.index(self) + 1 :] if self in everyone else []
        for other in later:
            is_one = isinstance(other, keras.callbacks.EarlyStopping)
            if is_one and getattr(other, "best_weights", None) is not None:
                other.best_weights = self._model.get_weights()

    def _tell_of_backups(self, steered: SteeredModel, call: FitCall) -> None:
        """Say what Keras' own backup leaves out."""
        backs_up = any(isinstance(o, keras.callbacks.BackupAndRestore) for o in call.callbacks)
        if backs_up and self._state_file is None and steered.changes_rates:
            steered.run.warn("backup", _NO_STATE_FILE)

    def _begin(self, epoch: int) -> None:
        model, call = self.model, fit_call()
        check_one_device(model)
        validate = self._validate or self._evaluation(model, call)
        if not model.built or not all(layer.built for layer in model._flatten_layers()):
            validate()  # one more validation makes the weights
        state = self._pending
        if state is None and self._state_file is not None:
            state = read_state(self._state_file, fingerprint(model.trainable_variables))
        total = self._length(epoch) if state is None else int(state["session"]["total_steps"])
        steered = SteeredModel(
            self._options,
            model=model,
            optimizer=model.optimizer,
            losses=model.loss,
            total_steps=total,
            validate=validate,
        )
        self._steered, self._losses, self._pending = steered, StepLosses(model), None
        try:
            _compile_anew(model)
            function = model.train_function
            self._memory = MemoryGuard(model, self._recover)
            self._proof = steered.proof(function, lambda: self._end("failed"))
            if state is not None:
                steered.load_state_dict(state)
            steered.run.after_validation = self._after_validation
            steered.run.start()
        except BaseException:
            self._end("failed")
            raise
        steered.forget_reads()
        self._proved = False
        self._tell_of_borders(steered, total)
        self._tell_of_backups(steered, call)
        self._write_state()

    def _end(self, status: str | None, *, compiled_again: bool = False) -> None:
        steered, losses = self._steered_now, self._losses
        self._take_waiting()
        self._steered = self._losses = None
        synchronise(self._model)
        steered.run.finish(status)
        session = steered.run.session
        self._summary = Summary() if session is None else session.summary
        steered.release()
        if losses is not None:
            losses.release()
        if self._proof is not None:
            self._proof.release()
            self._proof = None
        if self._memory is not None:
            self._memory.release()
            self._memory = None
        if compiled_again:  # and with a step that is not ours
            return
        # What was compiled reads our variables; the next fit compiles the user's own step.
        self._model.train_function = self._model.test_function = None

    def _recover(self, error: BaseException) -> bool:
        steps = int(self._model.steps_per_execution)
        self._take_waiting()
        return self._steered is not None and self._steered.driver.recover(error, steps)

    def _evaluation(self, model: Any, call: FitCall) -> Callable[[], dict[str, float]]:
        data, size, steps = self._validation_data, self._batch_size, self._validation_steps
        if data is None:
            data = call.validation_data
            size = size or call.validation_batch_size
            steps = steps or call.validation_steps
        if data is None:
            raise AdapterError(
                "validation_data: nothing is given, to the callback or to fit; pass "
                "validation_data=(x, y), which is needed more often than fit evaluates, or a "
                "function as validate="
            )
        return evaluation(model, data, batch_size=size, steps=steps)

    def _length(self, epoch: int) -> int:
        if self._total_steps is not None:
            steps: Any = self._total_steps
        else:
            an_epoch = (self.params or {}).get("steps")
            if not an_epoch:
                raise AdapterError(
                    "total_steps: the training data do not tell how many batches an epoch has; "
                    "pass total_steps= to the callback, or steps_per_epoch= to fit"
                )
            steps = an_epoch * (self.params["epochs"] - epoch)
        return check_total_steps(steps, "how many batches fit will train")

    def _tell_of_borders(self, steered: SteeredModel, total_steps: int) -> None:
        ends = window_ends(steered.run.spec, total_steps).tolist()
        shortest = min(b - a for a, b in zip([0, *ends], ends, strict=False))
        at_once = int(self._model.steps_per_execution)
        if at_once > shortest:
            steered.run.warn(
                "borders",
                f"steps_per_execution={at_once}: the shortest window has {shortest} steps, so "
                "decisions are fewer and later; choose a smaller one, or fewer decisions",
            )

    def _write_state(self) -> None:
        if self._state_file is None or self._steered is None:
            return
        synchronise(self._model)
        weights = fingerprint(self._model.trainable_variables)
        try:
            write_state(self._state_file, self._steered.state_dict(), weights)
        except OSError as error:
            self._steered.run.warn(
                "state_file",
                f"state_file: {self._state_file} could not be written ({error}); the run goes on "
                "and cannot be continued from here, so free the disk or choose another folder",
            )


def _nothing() -> None:
    return None


def _compile_anew(model: Any) -> None:
    """Let the coming steps be traced again, so that it is seen what they read.

    JAX remembers traces by the function, and two bound methods are equal: a second ``fit`` would
    take the first one's trace. So it is given another function that does the same.
    """
    step, is_own = model.train_step, "train_step" in vars(model)
    if backend_name() == "jax":
        model.train_step = lambda *given, **named: step(*given, **named)
    try:
        model.make_train_function(force=True)
        model.make_test_function(force=True)
    finally:
        if is_own:
            model.train_step = step
        elif backend_name() == "jax":
            del model.train_step


_COMPILED_AGAIN = (
    "model: it was compiled again inside of fit, so the optimiser that was steered trains no more "
    "and steering ends here; compile before fit, and give each fit a callback of its own"
)
_NO_STATE_FILE = (
    "state_file: BackupAndRestore is used without it, so an interrupted fit would go on with a "
    "schedule and decisions that begin afresh; pass TrimtabCallback(..., "
    "state_file='steering.safetensors')"
)
