"""The learning rate of a Keras optimiser: looked up inside the training step, per step.

The rate of each step stands in a variable that the compiled step reads by the optimiser's own
counter, or comes from the user's schedule times a variable. Nothing has to be written between two
decisions, so several steps in one execution follow the reference as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trimtab.adapters.keras.depth import LayerRates
from trimtab.adapters.keras.variables import (
    AttributePatch,
    array_of,
    backend_name,
    plain_variable,
    saving_without,
)
from trimtab.core.errors import AdapterError
from trimtab.core.references import reference_multipliers


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimiser inside a `LossScaleOptimizer`, or the optimiser itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def accumulated_batches(optimizer: Any) -> int:
    """Return how many batches' gradients an optimiser gathers for one update."""
    return int(getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None) or 1)


def _is_schedule(value: Any) -> bool:
    import keras

    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)


class KerasRates:
    """Reference times multiplier, as a part of the optimiser's own step.

    Args:
        optimizer: The model's optimiser, built.
        reference: A name, a function of progress, or a ``LearningRateSchedule``; None for the
            optimiser's own schedule, or ``"warmup-linear"`` where it has none.
        total_steps: Steps of the run, T.
        steers: Whether anything may be changed; if not, an optimiser with a number and no
            reference reads its own variable, which other callbacks may set as ever.

    Attributes:
        follows_own: Whether the optimiser's own variable is read, and only taken note of.
        start: Peak learning rate.
        multipliers: (T,) float64, the reference over its peak.
        name: Of the reference, for the record.
        first: What the optimiser had counted when the run began.
        multiplier: What the reference is multiplied by now.

    Raises:
        AdapterError: The optimiser's learning rate cannot be steered, or contradicts ``reference``.
        UnknownNameError: No reference has that name.
        SpecError: A function gives something that is not a finite number of at least 0.
    """

    def __init__(
        self, optimizer: Any, reference: Any, total_steps: int, *, steers: bool = True
    ) -> None:
        self._outer, self._optimizer = optimizer, inner_optimizer(optimizer)
        self._total_steps = total_steps
        own = getattr(self._optimizer, "_learning_rate", None)
        self._schedule = _schedule_of(own, reference)
        self.first = int(array_of(self._optimizer._iterations))
        self._own, self._own_variable = own, None if _is_schedule(own) else own
        self.follows_own = not steers and reference is None and self._schedule is None
        if self._schedule is None:
            if self.follows_own:
                reference = "constant"
            name = "warmup-linear" if reference is None else reference
            # What was typed: 0.01, and not the float32 next to it, 0.009999999776482582.
            self.start = float(str(np.float32(array_of(own))))
            self.multipliers = reference_multipliers(name, total_steps)
        else:
            rates = _forecast(self._schedule, self.first, total_steps)
            self.start = float(rates.max())
            self.multipliers = rates / self.start if self.start > 0 else rates
        if not math.isfinite(self.start) or self.start <= 0:
            raise AdapterError(
                f"lr: {self.start!r} is the highest learning rate of "
                f"{type(self._optimizer).__name__}; give a finite one above 0"
            )
        self.name = _name_of(reference, self._schedule)
        self._table: Any = None
        self._multiplier: Any = None
        self._shift: Any = None
        self._base: Any = None
        self._placed: tuple[int, int] | None = None  # what shift and base hold, where it is known
        self._patches: list[AttributePatch] = []
        self.multiplier = 1.0
        self._added: list[Any] = []
        self._seen_own = self._own_value()

    # For as long as a run lasts.

    def install(
        self,
        extra: list[Any],
        supplies: dict[str, Callable[[], Any]],
        layers: LayerRates | None = None,
    ) -> AttributePatch:
        """Make the optimiser read its rate here, and other settings from ``supplies``.

        Args:
            extra: Variables that the optimiser's step reads besides.
            supplies: Attribute -> what is to be read there.
            layers: What the rate is multiplied by in each layer; None for the same in all.
        """
        self._shift = plain_variable(0, "int", "trimtab_shift")
        self._base = plain_variable(self.first, "int", "trimtab_base")
        mine = [] if self.follows_own else [self._shift, self._base]
        if self.follows_own:
            pass
        elif self._schedule is None:
            table = (self.start * self.multipliers).astype(np.float32)
            self._table = plain_variable(table, "float32", "trimtab_rates")
            mine.append(self._table)
        else:
            self._multiplier = plain_variable(np.float32(1.0), "float32", "trimtab_multiplier")
            mine.append(self._multiplier)
        methods: dict[str, Callable[..., Any]] = {}
        if layers is not None:
            mine.append(layers.variable)
            methods = layers.methods(type(self._optimizer))
        self._added = [*mine, *extra]
        if self._outer is not self._optimizer:
            saving = saving_without(self._added, type(self._outer))
            self._patches.append(AttributePatch(self._outer, {}, saving))

        plain = type(self._optimizer)._get_current_learning_rate

        def current_rate(owner: Any) -> Any:
            patch.count("learning_rate")
            rate = plain(owner) if self.follows_own else self._rate(owner._iterations)
            return rate if layers is None else layers.scaled(rate)

        patch = AttributePatch(
            self._optimizer,
            supplies,
            {
                **methods,
                "_get_current_learning_rate": current_rate,
                **saving_without(self._added, type(self._optimizer)),
            },
        )
        self._patches.append(patch)
        for variable in self._added:
            self._optimizer._track_variable(variable)
        return patch

    def release(self) -> None:
        """Give the optimiser back as it was, with its own rate and settings."""
        for patch in reversed(self._patches):
            patch.release()
        if self._patches:
            for variable in self._added:
                self._optimizer._untrack_variable(variable)
        self._patches, self._added = [], []

    def resume(self, start: float, first: int) -> None:
        """Take over the peak and the first count of a run that goes on."""
        self.start = start
        if first != self.first:
            self.first = first
            if self._schedule is not None:  # in place, for the session looks at the same array
                rates = _forecast(self._schedule, first, self._total_steps)
                self.multipliers[:] = rates / start

    def is_steered_variable(self, variable: Any) -> bool:
        """Return whether a variable of the optimiser is ours, or holds its learning rate."""
        return any(variable is other for other in [*self._added, self._own_variable])

    # At each decision.

    def begin(self, step: int, multiplier: float) -> None:
        """Make ``step`` the coming one, whatever the optimiser counts, and multiply from it on.

        A rollback takes the optimiser's counter back, which Adam's bias correction needs; the
        reference goes on all the same, for lost steps count.
        """
        self.multiplier = multiplier
        if self.follows_own:
            return
        place = step - int(array_of(self._optimizer._iterations)), self.first
        if place != self._placed:  # an assignment costs as much as a quarter of a decision
            self._shift.assign(place[0])
            self._base.assign(place[1])
            self._placed = place
        if self._table is not None:
            rates = self.start * multiplier * self.multipliers
            self._table.assign(rates.astype(np.float32))
        else:
            self._multiplier.assign(np.float32(multiplier))

    def try_rate(self, rate: float) -> None:
        """Make the coming steps read one rate; whoever tries it puts the variables back."""
        counted = int(array_of(self._optimizer._iterations))
        self._placed = None
        self._shift.assign(int(np.argmax(self.multipliers)) - counted)
        if self._table is not None:
            self._table.assign(np.full(self._total_steps, rate, np.float32))
        else:
            self._multiplier.assign(np.float32(rate / self.start))

    @property
    def was_read(self) -> bool:
        """Whether a step has read the learning rate since readings were last forgotten."""
        return bool(self._patches and self._patches[-1].reads.get("learning_rate", 0))

    def overruled(self) -> bool:
        """Return whether something else set the optimiser's learning rate since the last call."""
        now, before = self._own_value(), self._seen_own
        replaced = self._optimizer._learning_rate is not self._own
        self._seen_own = now
        return not self.follows_own and (now != before or replaced)

    def take_note(self, model: Any, step: int, steps: int) -> None:
        """Record the optimiser's own learning rate for steps that were just done with it."""
        if not self.follows_own:
            return
        outside = getattr(model, "_jax_state", None)
        if outside and not model._jax_state_synced:  # while fit runs, JAX keeps values there
            ids = [id(variable) for variable in model.optimizer.variables]
            place = ids.index(id(self._own_variable))
            self._seen_own = float(array_of(outside["optimizer_variables"][place]))
        else:
            self._seen_own = self._own_value()
        assert self._seen_own is not None
        self.multipliers[step : step + steps] = self._seen_own / self.start

    def has_just_updated(self) -> bool:
        """Return whether no gathered gradients wait for an update; always, if none are gathered."""
        batches = accumulated_batches(self._optimizer)
        return batches == 1 or int(array_of(self._optimizer._iterations)) % batches == 0

    def now(self) -> float:
        """Return the rate that the coming step will read."""
        if self.follows_own:
            return float(array_of(self._own_variable))
        return float(array_of(self._rate(self._optimizer._iterations)))

    # Inside.

    def _rate(self, iterations: Any) -> Any:
        from keras import ops

        counted = ops.convert_to_tensor(iterations)
        step = counted + ops.cast(self._shift, counted.dtype)
        step = ops.clip(step, 0, self._total_steps - 1)
        if self._schedule is None:
            return ops.take(ops.convert_to_tensor(self._table), step)
        rate = ops.convert_to_tensor(self._schedule(step + ops.cast(self._base, step.dtype)))
        return rate * ops.cast(self._multiplier, rate.dtype)

    def _own_value(self) -> float | None:
        return None if self._own_variable is None else float(array_of(self._own_variable))


def _schedule_of(own: Any, reference: Any) -> Any:
    """Return the schedule that is adopted; None for a reference of ours."""
    import keras

    if _is_schedule(own):
        if reference is None or reference is own:
            return own
        raise AdapterError(
            f"reference: {reference!r} contradicts the optimiser's own schedule "
            f"{type(own).__name__}; leave reference= out to adopt that, or compile the optimiser "
            "with a number as its learning rate"
        )
    if not isinstance(own, keras.Variable):
        raise AdapterError(
            f"learning_rate: {own!r} cannot be foreseen; compile the optimiser with a number or a "
            "keras.optimizers.schedules.LearningRateSchedule"
        )
    if _is_schedule(reference):
        return reference
    if reference is not None and not isinstance(reference, str) and not callable(reference):
        raise AdapterError(
            f"reference: {reference!r} is neither a name, nor a function of progress, nor a "
            "schedule; use 'warmup-linear', 'cosine', 'one-cycle', 'constant' or one of these"
        )
    return None


def _name_of(reference: Any, schedule: Any) -> str:
    if schedule is not None:
        return type(schedule).__name__
    if reference is None or isinstance(reference, str):
        return str(reference or "warmup-linear")
    return str(getattr(reference, "__name__", type(reference).__name__))


def _forecast(schedule: Any, first: int, total_steps: int) -> np.ndarray:
    """Return (T,) float64, what a schedule will give, step by step.

    Raises:
        AdapterError: It fails, or gives something that is not a finite number of at least 0.
    """
    try:
        rates = _all_rates(schedule, np.arange(first, first + total_steps))
    except Exception as error:
        raise AdapterError(
            f"reference: the schedule {type(schedule).__name__} fails within {total_steps} steps "
            f"({error}); mend it, or use a named reference"
        ) from error
    wrong = np.flatnonzero(~np.isfinite(rates) | (rates < 0))
    if wrong.size:
        raise AdapterError(
            f"reference: the schedule {type(schedule).__name__} gives {rates[wrong[0]]!r} at step "
            f"{wrong[0]}; learning rates are finite and at least 0"
        )
    return rates


def _all_rates(schedule: Any, steps: np.ndarray) -> np.ndarray:
    from keras import ops

    def one(step: Any) -> Any:
        return ops.cast(ops.convert_to_tensor(schedule(step)), "float32")

    if backend_name() == "torch":
        return np.array([float(array_of(one(ops.convert_to_tensor(s)))) for s in steps], np.float64)
    every: Callable[[Any], Any] = lambda given: ops.map(one, given)  # noqa: E731
    if backend_name() == "tensorflow":
        import tensorflow

        every = tensorflow.function(every, autograph=False)
    return array_of(every(ops.convert_to_tensor(steps, dtype="int32"))).astype(np.float64)
