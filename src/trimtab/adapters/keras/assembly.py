"""A Keras model patched for one steered run: what callback and controller share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.actuators import Actuator
from trimtab.adapters.keras.actuators import ModelPatches, find_actuators, unread
from trimtab.adapters.keras.optimizers import OtherMemory
from trimtab.adapters.keras.proofs import LR_UNREAD, MOST_TRIES, FitProof, prove_in_loop
from trimtab.adapters.keras.schedules import KerasRates, inner_optimizer
from trimtab.adapters.keras.snapshots import TrainingState
from trimtab.adapters.keras.state import left_as_it_was, load_random_state, random_state
from trimtab.adapters.keras.steering import KerasDriver
from trimtab.adapters.keras.variables import array_of, backend_name, synchronise
from trimtab.adapters.options import RunOptions
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.validation import Validation
from trimtab.core.directions import direction_of_metric
from trimtab.core.errors import AdapterError

_LEFTOVER = "_trimtab_release"


class SteeredModel:
    """Patches a model and its optimiser, steers them, and gives them back as they were.

    Args:
        options: What the user asked for.
        model: A model with its weights made.
        optimizer: Its optimiser.
        losses: Its losses: one, or a nest of them.
        total_steps: Steps of the run.
        validate: Returns a loss, or a dict of floats.

    Attributes:
        run: The run.
        driver: What the loop tells of its steps.

    Raises:
        AdapterError: Something cannot be steered as it is.
        SpecError: A number or a start value is out of range.
        UnknownNameError: A policy, reference, hyperparameter or place has no such name.
        PolicyFileError: The policy's file cannot be read as one.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        model: Any,
        optimizer: Any,
        losses: Any,
        total_steps: int,
        validate: Callable[[], float | Mapping[str, float]],
    ) -> None:
        _check(options, model)
        self._model, self._optimizer, self._options = model, optimizer, options
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._others = OtherMemory(model, optimizer)
        self._rates = KerasRates(
            optimizer,
            options.reference,
            total_steps,
            steers=not options.watch_only and options.policy is not None,
        )
        items, self._actuators = find_actuators(
            options.hyperparameters,
            optimizer=inner_optimizer(optimizer),
            model=model,
            losses=losses,
            learning_rate=self._rates.start,
        )
        spec, policy = options.controller(items)
        info = options.run_info(
            spec,
            task=type(model).__name__,
            total_steps=total_steps,
            policy=policy.name,
            reference=self._rates.name,
        )
        snapshots, kept = options.snapshots_of(
            TrainingState(model, optimizer, self._rates.is_steered_variable, self._others), policy
        )
        self.run = SteeredRun(
            info,
            policy,
            multipliers=self._rates.multipliers,
            actuators=self._actuators,
            validation=self._validation(validate),
            snapshots=snapshots,
            kept=kept,
            keep_best=options.keeps_best,
            store=options.store,
            on_decision=options.teller(),
            after_restore=self._drop_poisoned_metrics,
            after_end=self._finalize,
        )
        self.run.end_is_meant = not self.changes_rates  # no schedule of ours is left unfinished
        self.driver = KerasDriver(
            self.run,
            self._rates,
            model,
            before_decision=lambda: synchronise(model),
            weights=model.get_weights,
        )
        self._tries = 0  # of a proof in a loop of the user's own
        self._patch_model()

    def _validation(self, validate: Callable[[], float | Mapping[str, float]]) -> Validation:
        return Validation(
            self._at_start_smoothing(validate),
            lambda: left_as_it_was(self._model),
            monitor=self._options.monitor.removeprefix("val_"),
            mode=self._options.mode,
            name="the validation",
            told=self._direction,
        )

    def release(self) -> None:
        """Give model, optimiser and losses back as they were, with their own values."""
        synchronise(self._model)
        self._rates.release()
        self._patches.release()
        self._model.__dict__.pop(_LEFTOVER, None)

    @property
    def changes_rates(self) -> bool:
        """Whether the learning rate goes by the run's steps, and not by what the model has."""
        return not self._options.watch_only and not self._rates.follows_own

    def is_compiled_again(self) -> bool:
        """Return whether the model trains with another optimiser than the steered one."""
        return getattr(self._model, "optimizer", self._optimizer) is not self._optimizer

    def check_that_it_acts(self) -> None:
        """Tell what the training step, which has run by now, does not read."""
        if not self._optimizer_patch.reads.get("learning_rate", 0):
            self.run.warn("lr unread", LR_UNREAD)
        for actuator in self._actuators if self._options.moves else []:
            problem = "" if actuator is None else unread(actuator)
            if problem:
                self.run.warn(problem.partition(":")[0] + " unread", problem)

    def proof(self, function: Callable[..., Any], refuse: Callable[[], None]) -> FitProof | None:
        """Return what proves, at the first steps of ``fit``, that all that is steered is used.

        Args:
            function: The model's training function, without a memory guard around it.
            refuse: Called before an error is raised.
        """
        if not self._options.moves:
            return None
        return FitProof(
            self._model,
            function,
            actuators=self._actuators,
            rates=self._rates,
            others=self._others,
            refuse=refuse,
            warn=self.run.warn,
        )

    def prove_in_loop(self, gradients: Sequence[Any] | None) -> bool:
        """Prove in a loop of the user's own that all that is steered is used.

        Returns:
            Whether that is settled; False where this step's gradients tell nothing.

        Raises:
            AdapterError: A value is not used.
        """
        if not self._options.moves:
            return True
        proven = prove_in_loop(
            self._model,
            self._optimizer,
            gradients,
            actuators=self._actuators,
            rates=self._rates,
        )
        self._tries += 1
        if not proven and self._tries >= MOST_TRIES:
            self.run.warn("proof", _UNPROVEN)
            return True
        return proven

    def forget_reads(self) -> None:
        """Count from now on what the training step reads."""
        self._patches.forget_reads()
        self._optimizer_patch.reads = dict.fromkeys(self._optimizer_patch.reads, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the run's state and that of the random generators: arrays and plain values."""
        synchronise(self._model)
        return self.run.state_dict() | {"random": random_state(self._model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, before any step.

        Raises:
            AdapterError: Steps were done already, or the state is of another model or run.
            SpecError: The state is of another spec or number of steps.
        """
        self.run.load_state_dict(state)
        load_random_state(self._model, state["random"])

    # Inside.

    def _patch_model(self) -> None:
        moving = [a for a in self._actuators if a is not None] if self._options.moves else []
        values = [value for actuator in moving for value in actuator.places]
        self._patches = ModelPatches(self._model, inner_optimizer(self._optimizer), values)
        held, supplies = self._patches.make()
        self._optimizer_patch = self._rates.install(held, supplies, self._patches.layers)
        self._patches.track_reads(self._optimizer_patch)
        self._model.__dict__[_LEFTOVER] = self.release

    def _at_start_smoothing(self, validate: Callable[[], Any]) -> Callable[[], Any]:
        """Validate with the label smoothing of the start, so that losses stay comparable."""
        smoothing: list[Actuator] = [
            a for a in self._actuators if a is not None and a.item.kind == "label_smoothing"
        ]
        values = [value for actuator in smoothing for value in actuator.places]
        if not values or not self._options.moves:
            return validate

        def validate_at_start() -> Any:
            now = [value.number for value in values]
            for value in values:
                value.write(value.start)
            try:
                return validate()
            finally:
                synchronise(self._model)
                for value, number in zip(values, now, strict=True):
                    value.write(number)

        return validate_at_start

    def _direction(self, monitor: str) -> str | None:
        """Return which way a metric of the compiled model says that it gets better."""
        for metric in self._model.metrics:
            for one in getattr(metric, "metrics", [metric]):  # compiled ones share a container
                if one.name == monitor:
                    return direction_of_metric(one)
        return None

    def _drop_poisoned_metrics(self) -> None:
        """Begin those running means afresh that a lost step has made nan for the whole epoch."""
        for metric in self._model.metrics:
            if not all(np.all(np.isfinite(array_of(v))) for v in metric.variables):
                metric.reset_state()

    def _finalize(self) -> None:
        # Where weights are averaged, Keras puts the averages in at the end; so do the best ones'.
        self._optimizer.finalize_variable_values(self._model.trainable_variables)


def kind_of(value: Any) -> str:
    """Return the type of what was given for an error, and its package where that is Keras 2."""
    cls = type(value)
    legacy = any(base.__module__.partition(".")[0] == "tf_keras" for base in cls.__mro__)
    told = " of tf_keras, which is Keras 2 (unset TF_USE_LEGACY_KERAS and build it with keras 3)"
    return cls.__name__ + (told if legacy else "")


def check_one_device(model: Any) -> None:
    """Raise if the model trains on several devices at once.

    Raises:
        AdapterError: It does; this has not been proved to steer all of them alike.
    """
    import keras

    replicas = 1
    if backend_name() == "tensorflow":
        replicas = int(model.distribute_strategy.num_replicas_in_sync)
    if replicas > 1 or keras.distribution.distribution() is not None:
        raise AdapterError(
            f"model: it is distributed over several devices ({replicas} replicas); steering is "
            "proved on one device, so leave the distribution out"
        )


_UNPROVEN = (
    "the first gradients could not show whether what is steered is used, for no weight moved by "
    "them; look at the first decisions"
)


def _check(options: RunOptions, model: Any) -> None:
    """Refuse what cannot be trained or rescued; end a run that an error left open."""
    if options.rescues:
        raise AdapterError(
            "policy='guard' rescues PyTorch models, in loops of one's own and in Transformers "
            "and Lightning; in Keras choose a policy, or None"
        )
    leftover = model.__dict__.get(_LEFTOVER)
    if leftover is not None:
        leftover()
    if not model.trainable_variables:
        raise AdapterError(
            f"model: {model.name} has no weight that is trained; set trainable = True on what "
            "is to be trained, and compile the model again"
        )
