"""Proving, once a run, that a Keras step uses what is written: nothing may be silently ignored.

A training step is done again from the same state at other values, and everything is left as it was.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trimtab.adapters.actuators import Actuator, SteeredValue
from trimtab.adapters.keras.actuators import Value, unread
from trimtab.adapters.keras.optimizers import OtherMemory
from trimtab.adapters.keras.schedules import KerasRates, accumulated_batches
from trimtab.adapters.keras.state import load_random_state, random_state
from trimtab.adapters.keras.variables import array_of, backend_name
from trimtab.core.errors import AdapterError

MOST_TRIES = 8
"""Executions whose batches may tell nothing: a loss that is nan, no gradient."""

_UPDATES = 2  # a momentum shows in the second one only
_PROBE_RATES = (1e-3, 2e-3)
_CLIP_BEYOND = 1e3  # a batch's gradients may be smaller or larger than any norm that is applied


@dataclass(frozen=True)
class After:
    """What a step left behind.

    Attributes:
        arrays: Values of all variables that are not steered, or outputs.
        tells: Whether they can be compared: weights have moved, and all of them are finite.
    """

    arrays: list[np.ndarray]
    tells: bool


class Replay(Protocol):
    """Does a step at other values."""

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what the step leaves behind after ``put()``, leaving out ``hidden`` variables."""
        ...

    def restore(self) -> None:
        """Put every variable and the random state back to what they were before the step."""
        ...


def _times(optimizer: Any) -> int:
    """Return how many batches make the updates in which every kind shows."""
    return _UPDATES * accumulated_batches(optimizer)


class _Kept:
    """Every variable of a model and its optimisers, and the random state, as they are now."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        values: Sequence[Any] | None = None,
        others: OtherMemory | None = None,
    ) -> None:
        import keras

        self._model = model
        self.variables = _variables(model, optimizer)
        if values is None:
            values = [keras.ops.copy(variable.value) for variable in self.variables]
        self._values = list(values)
        self._others = OtherMemory(model, optimizer) if others is None else others
        self._others.look(everywhere=others is not None)
        self._looks = others is not None
        self._memory = {name: array_of(v) for name, v in self._others.variables().items()}
        self.trained = len(model.trainable_variables)
        self.weights = [array_of(value) for value in self._values[: self.trained]]
        self._draws = _global_draws()
        self._drawn = None if self._draws is None else array_of(self._draws)
        self._random = random_state(model)
        self._stops = getattr(model, "stop_training", False)

    def put_back(self) -> None:
        for variable, value in zip(self.variables, self._values, strict=True):
            variable.assign(value)
        self._others.look(everywhere=self._looks)  # the step itself may have built some
        self._looks = False
        for name, variable in self._others.variables().items():
            kept = self._memory.get(name)
            variable.assign(self._others.beginning(name) if kept is None else kept)
        known = {id(variable) for variable in self.variables}
        for metric in self._model.metrics:  # those that the step itself has built
            if any(id(variable) not in known for variable in metric.variables):
                metric.reset_state()
        if self._draws is not None:
            self._draws.assign(self._drawn)
        load_random_state(self._model, self._random)
        if hasattr(self._model, "stop_training"):
            self._model.stop_training = self._stops

    def after(self, values: Sequence[Any], hidden: Callable[[Any], bool]) -> After:
        arrays = [
            array_of(value)
            for variable, value in zip(self.variables, values, strict=True)
            if not hidden(variable) and not _is_draws(variable)
        ]
        trained = [array_of(value) for value in values[: self.trained]]
        moved = any(not np.array_equal(a, b) for a, b in zip(trained, self.weights, strict=True))
        return After(arrays, moved and all(bool(np.isfinite(array).all()) for array in trained))


def _variables(model: Any, optimizer: Any) -> list[Any]:
    """Return all variables in the order of a JAX step's state."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *optimizer.variables,
        *model.metrics_variables,
    ]


def _is_draws(variable: Any) -> bool:
    """Return whether a seed generator counts its draws in a variable; a rate of 0 may draw none."""
    return str(getattr(variable, "name", "")) == "seed_generator_state"


def _global_draws() -> Any:
    """Return what Keras' random functions draw from without a seed; None before any has."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


class StepReplay:
    """The training function of ``fit``, called again on the batches of one execution.

    The batches are taken from the iterator that ``fit`` hands over, and given to the function in
    an iterator of the same kind, so that nothing is compiled for it.

    Args:
        model: A compiled model in ``fit``.
        function: Its training function.
        handed: What ``fit`` calls it with: an iterator (TensorFlow), the state and an iterator
            (JAX), a batch in a list (PyTorch).
        others: What the model's other optimisers remember.

    Attributes:
        possible: Whether the function can be called again.
    """

    def __init__(
        self,
        model: Any,
        function: Callable[..., Any],
        handed: Sequence[Any],
        others: OtherMemory,
    ) -> None:
        self._model, self._function, self._handed = model, function, tuple(handed)
        self._others = others
        self._kept: _Kept | None = None
        self._iterate: Callable[[], Any] | None = None
        if backend_name() == "torch":
            self.possible = True
            return
        steps = max(int(model.steps_per_execution), 1)
        self._iterate = _repeatable(handed[-1], steps)
        self.possible = self._iterate is not None

    def arguments(self) -> tuple[Any, ...]:
        """Return what the real step is to be called with, once nothing is tried any more."""
        if self._kept is not None and backend_name() == "jax":
            # The state is outside of the variables while JAX trains, as fit has put it.
            self._model._purge_model_variables(
                trainable_variables=True,
                non_trainable_variables=True,
                optimizer_variables=True,
                metrics_variables=True,
            )
        if self._iterate is None:
            return self._handed
        return (*self._handed[:-1], self._iterate())

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what two updates or more in a row leave behind after ``put()``."""
        if self._kept is None:
            self._keep()
        kept = self._kept
        assert kept is not None
        put()
        times = _times(self._model.optimizer)
        if backend_name() != "jax":
            for _ in range(times):
                self._function(*((self._iterate(),) if self._iterate else self._handed))
            return kept.after([variable.value for variable in kept.variables], hidden)
        assert self._iterate is not None
        state = self._copied_state()
        for _ in range(times):
            _, state = self._function(state, self._iterate())
        return kept.after(list(itertools.chain.from_iterable(state)), hidden)

    def restore(self) -> None:
        """Put every variable and the random state back to what they were before the step."""
        if self._kept is not None:
            self._kept.put_back()

    def _keep(self) -> None:
        model = self._model
        values = None
        if backend_name() == "jax":
            values = list(itertools.chain.from_iterable(self._handed[0]))
            for variable, value in zip(_variables(model, model.optimizer), values, strict=True):
                variable.assign(value)
        self._kept = _Kept(model, model.optimizer, values, self._others)

    def _copied_state(self) -> tuple[list[Any], ...]:
        """Return the state that a step takes, and gives away, in copies of its own."""
        from keras import ops

        model = self._model
        parts = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        return tuple([ops.copy(variable.value) for variable in part] for part in parts)


def _repeatable(iterator: Any, steps: int) -> Callable[[], Any] | None:
    """Return a function that gives the iterator's next batches again and again; None if it cannot.

    Batches of a kind that cannot be given again stay in the iterator.
    """
    if backend_name() != "tensorflow":
        batches = list(itertools.islice(iterator, steps))
        return lambda: iter(batches)
    import tensorflow

    if not isinstance(iterator, tensorflow.data.Iterator):
        return None  # of a distribution strategy
    batches = list(itertools.islice(iterator, steps))
    if not batches:
        return None
    dataset = tensorflow.data.Dataset.from_tensors(batches[0])
    for batch in batches[1:]:
        dataset = dataset.concatenate(tensorflow.data.Dataset.from_tensors(batch))
    # With the very spec of fit's own data set, or the step would be compiled anew.
    spec = tensorflow.data.DatasetSpec(iterator.element_spec)
    again = spec._from_components(dataset._variant_tensor)
    return lambda: iter(again)


class LoopReplay:
    """An update of an optimiser in a loop of the user's own, or a call of a layer or a loss.

    Args:
        model: The model.
        optimizer: The optimiser.
        gradients: Of the trainable weights; None for ones.
        owners: Layers and losses to be called; None to update.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        gradients: Sequence[Any] | None,
        owners: Sequence[Any] | None,
    ) -> None:
        from keras import ops

        self._model, self._optimizer, self._owners = model, optimizer, owners
        self._gradients = list(
            gradients
            if gradients is not None
            else [ops.ones_like(variable.value) for variable in model.trainable_variables]
        )
        self._kept = _Kept(model, optimizer)

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what two updates, or one call of each owner, leave behind after ``put()``."""
        kept = self._kept
        put()
        if self._owners is not None:
            return After([array_of(_called(owner)) for owner in self._owners], tells=True)
        for _ in range(_times(self._optimizer)):
            self._optimizer.apply(self._gradients, self._model.trainable_variables)
        return kept.after([variable.value for variable in kept.variables], hidden)

    def restore(self) -> None:
        """Put every variable and the random state back to what they were."""
        self._kept.put_back()


def _called(owner: Any) -> Any:
    """Return what a dropout layer or a loss gives for a small input."""
    import keras
    from keras import ops

    if isinstance(owner, keras.losses.Loss):
        labels = ops.convert_to_tensor([[1.0, 0.0], [0.0, 1.0]])
        return owner(labels, ops.convert_to_tensor([[0.7, 0.3], [0.4, 0.6]]))
    n_dims = {"SpatialDropout1D": 3, "SpatialDropout2D": 4, "SpatialDropout3D": 5}
    wanted = next((n for name, n in n_dims.items() if isinstance(owner, _layer(name))), 2)
    noise = getattr(owner, "noise_shape", None) or [None] * wanted
    shape = [8 if size in (None, 1) else int(size) for size in noise]
    return owner.call(ops.ones(shape), training=True)


def _layer(name: str) -> type:
    import keras

    cls: type = getattr(keras.layers, name)
    return cls


class _Subject:
    """One hyperparameter that is to be proven: how it is set to its lowest and highest value.

    Args:
        actuator: What writes it; None for the learning rate.
        rates: The optimiser's learning rate, which stands at a rate of ours while it is tried.
    """

    def __init__(self, actuator: Actuator | None, rates: KerasRates) -> None:
        self._rates, self.actuator = rates, actuator
        self.name = "lr" if actuator is None else actuator.item.name
        self._owners = [] if actuator is None else [value.owner for value in actuator.places]

    @property
    def is_own(self) -> bool:
        """Whether code of the user's own reads it, perhaps where batches are made."""
        return any(isinstance(owner, SteeredValue) for owner in self._owners)

    @property
    def was_read(self) -> bool:
        """Whether anything has read it since the run began."""
        return self._rates.was_read if self.actuator is None else not unread(self.actuator)

    def belongs_to(self, optimizer: Any) -> bool:
        """Return whether it shows in what the optimiser does to a weight."""
        kinds = ("layer_decay", "frozen_depth")
        return (
            self.actuator is None
            or self.actuator.item.kind in kinds
            or any(owner is optimizer for owner in self._owners)
        )

    def ends(self) -> list[Callable[[], None]]:
        """Return what sets its lowest, and what its highest value; the replay puts it back."""
        actuator = self.actuator
        if actuator is None:
            return [lambda rate=rate: self._rates.try_rate(rate) for rate in _PROBE_RATES]  # type: ignore[misc]
        low, high = actuator.item.low, actuator.item.high
        if actuator.item.kind == "clip":
            low, high = low / _CLIP_BEYOND, high * _CLIP_BEYOND

        def put(number: float) -> None:
            self._rates.try_rate(_PROBE_RATES[0])
            for value in actuator.places:
                value.write(number)

        return [lambda: put(low), lambda: put(high)]

    def refusal(self) -> AdapterError:
        """Return the error that says that it is not used."""
        if self.actuator is None:
            told = "" if self.was_read else LR_UNREAD
        else:
            told = unread(self.actuator)
        return AdapterError(told or _SAME.format(name=self.name))


def _subjects_of(actuators: Iterable[Actuator | None], rates: KerasRates) -> list[_Subject]:
    return [_Subject(actuator, rates) for actuator in actuators]


def _values(subjects: Iterable[_Subject]) -> list[Value]:
    return [v for s in subjects if s.actuator is not None for v in s.actuator.places]


class FitProof:
    """Stands around the compiled training function of ``fit`` until every kind is proven.

    The very function that trains does the first execution's batches again, twice in a row from the
    same state, with a value at its lowest and at its highest: weights, moments, buffers or metrics
    have to end elsewhere. Every variable and the random state are bit for bit what they were after
    that, and the batches are trained on as ever. Nothing is compiled for it. Code of the user's own
    that keeps count outside of Keras' variables sees the additional steps under PyTorch, where
    nothing is compiled.

    Args:
        model: Its ``train_function`` is replaced until the proof is done.
        function: The training function that is tried, without a memory guard around it.
        actuators: What writes each hyperparameter; None for the learning rate.
        rates: The optimiser's learning rate.
        others: What the model's other optimisers remember.
        refuse: Called before a refusal is raised, to give the model back.
        warn: Tells of a proof that could not be had: topic, message.

    Attributes:
        ended: Whether nothing is tried any more.
        proven: Whether every kind is proven to be used.
    """

    def __init__(
        self,
        model: Any,
        function: Callable[..., Any],
        *,
        actuators: Sequence[Actuator | None],
        rates: KerasRates,
        others: OtherMemory,
        refuse: Callable[[], None],
        warn: Callable[[str, str], None],
    ) -> None:
        self._model, self._function = model, function
        self._inner = model.train_function
        self._open = _subjects_of(actuators, rates)
        self._is_steered, self._others = rates.is_steered_variable, others
        self._refuse, self._warn = refuse, warn
        self._tries = 0
        self.ended = self.proven = not self._open
        self._installed = self._train
        if self._open:
            model.train_function = self._installed

    def release(self) -> None:
        """Give the model the training function back that stood there, if it still has ours."""
        if self._model.train_function is self._installed:
            self._model.train_function = self._inner

    def _train(self, *arguments: Any) -> Any:
        replay = StepReplay(self._model, self._function, arguments, self._others)
        self._tries += 1
        refused: _Subject | None = None
        if replay.possible:
            try:
                refused = self._refused(replay)
            except Exception as error:  # the real step tells, if it fails as well
                self._open, self.ended = [], True
                if isinstance(error, AttributeError) and "attribute 'assign" in str(error):
                    self.release()
                    self._refuse()  # forgets what was read
                    raise AdapterError(_LR_WRITTEN) from error
                self._warn("proof", _FAILED.format(what=f"{type(error).__name__}: {error}"))
        if refused is not None:
            refusal = refused.refusal()
            self.release()
            self._refuse()  # forgets what was read
            raise refusal
        if not self._open or not replay.possible or self._tries >= MOST_TRIES:
            self.proven = not self._open and not self.ended
            self.ended = True
            if self._open:
                self._warn("proof", _UNPROVEN.format(names=", ".join(s.name for s in self._open)))
            self.release()
        return self._inner(*replay.arguments())

    def _refused(self, replay: Replay) -> _Subject | None:
        """Try what is open; return what is not used, and leave open what could not be seen."""
        outside = [subject for subject in self._open if subject.is_own and subject.was_read]
        hidden = _hidden(self._open, self._is_steered)
        for subject in list(self._open):
            changed = _changes(subject, replay, _values(self._open), hidden)
            is_last = self._tries >= MOST_TRIES
            if subject.actuator is None and not subject.was_read and (changed or is_last):
                return subject  # whatever moved the weights was another optimiser
            if changed is None:
                return None
            if not changed and subject not in outside:
                return subject
            self._open.remove(subject)
        return None


def prove_in_loop(
    model: Any,
    optimizer: Any,
    gradients: Sequence[Any] | None,
    *,
    actuators: Sequence[Actuator | None],
    rates: KerasRates,
) -> bool:
    """Prove each kind where the loop is the user's own; return whether the gradients told anything.

    What the optimiser uses is tried on the weights with the step's own gradients (ones where the
    loop has applied them already); a dropout layer or a loss on a small input of ours, where the
    user's step has read it. Every variable and the random state are left as they were.

    Args:
        model: The model.
        optimizer: The optimiser that was given, with a loss scale around it or not.
        gradients: Of the trainable weights; None where the loop has applied them.
        actuators: What writes each hyperparameter; None for the learning rate.
        rates: The optimiser's learning rate.

    Raises:
        AdapterError: A value is not used.
    """
    subjects = _subjects_of(actuators, rates)
    hidden = _hidden(subjects, rates.is_steered_variable)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    ours = [subject for subject in subjects if subject.belongs_to(inner)]
    for subject in subjects:
        unread = gradients is None or subject not in ours
        if unread and not subject.was_read:
            raise subject.refusal()
    # A step compiled before steering began reads nothing, and would be told of by that above.
    if gradients is None and not rates.was_read:
        raise AdapterError(LR_UNREAD)
    for subject in subjects:
        if subject.is_own:
            continue
        trial = subject.actuator is None or subject in ours
        owners = None if trial else [value.owner for value in subject.actuator.places]  # type: ignore[union-attr]
        replay = LoopReplay(model, optimizer, gradients, owners)
        changed = _changes(subject, replay, _values(subjects), hidden)
        if changed is None:
            return False
        if not changed:
            raise subject.refusal()
    return True


def _hidden(
    subjects: Iterable[_Subject], is_steered: Callable[[Any], bool]
) -> Callable[[Any], bool]:
    """Return what tells the variables that hold steered values, which differ by themselves."""
    held = {id(value.held) for value in _values(subjects) if value.held is not None}
    return lambda variable: id(variable) in held or is_steered(variable)


def _changes(
    subject: _Subject, replay: Replay, values: Sequence[Value], hidden: Callable[[Any], bool]
) -> bool | None:
    """Return whether the step ends elsewhere at the other value; None if nothing can be seen."""
    ended = []
    for put in subject.ends():
        numbers = [(value, value.number) for value in values]
        try:
            after = replay.run(put, hidden)
        finally:
            for value, number in numbers:
                value.write(number)
            replay.restore()
        if not after.tells:
            return None
        ended.append(_digest(after.arrays))
    return ended[0] != ended[1]


def _digest(arrays: Iterable[np.ndarray]) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.digest()


_SAME = (
    "{name}: the training step ends the same at its lowest and its highest value, so it is not "
    "used; leave it out of hyperparameters=, or let the step use what holds it"
)
_FAILED = (
    "trying whether the training step uses what is steered failed ({what}); steering goes on "
    "unproven, so look at the first decisions, or leave other kinds than 'lr' out"
)
_LR_WRITTEN = (
    "lr: train_step writes the optimiser's learning rate itself, which a steered rate does not let "
    "it; take that line out, and pass what it follows as reference= (a name, or a function of the "
    "share of the steps that is done)"
)
_UNPROVEN = (
    "{names}: the first batches could not show whether the training step uses this (their loss is "
    "not finite, they have no gradient, or the data are handed over in a way of their own); look "
    "at the first decisions, or leave it out of hyperparameters="
)
LR_UNREAD = (
    "lr: the training step does not read the learning rate of the optimiser that is to be steered, "
    "so steering changes nothing; let train_step apply model.optimizer, not optimisers of its own, "
    "and compile a step of your own after steering has begun"
)
