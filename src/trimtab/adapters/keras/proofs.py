"""Proving, once a run, that a Keras step uses what is written: nothing may be silently ignored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.keras.actuators import Actuator, Value
from trimtab.adapters.keras.replay import LoopReplay, Replay, StepReplay
from trimtab.adapters.keras.schedules import KerasRates
from trimtab.adapters.keras.values import SteeredValue
from trimtab.core.errors import AdapterError

__all__ = ["MOST_TRIES", "FitProof", "prove_in_loop"]

_PROBE_RATES = (1e-3, 2e-3)
MOST_TRIES = 8
"""Executions whose batches may tell nothing: a loss that is nan, no gradient."""

_CLIP_BEYOND = 1e3  # a batch's gradients may be smaller or larger than any norm that is applied


class _Subject:
    """One hyperparameter that is to be proven: how it is set to its lowest and highest value.

    Args:
        actuator: What writes it; None for the learning rate.
        rates: The optimiser's learning rate, which stands at a rate of ours while it is tried.
    """

    def __init__(self, actuator: Actuator | None, rates: KerasRates) -> None:
        self._rates, self.actuator = rates, actuator
        self.name = "lr" if actuator is None else actuator.item.name
        self._owners = [] if actuator is None else [value.owner for value in actuator.values]

    @property
    def is_own(self) -> bool:
        """Whether code of the user's own reads it, perhaps where batches are made."""
        return any(isinstance(owner, SteeredValue) for owner in self._owners)

    @property
    def was_read(self) -> bool:
        """Whether anything has read it since the run began."""
        return self.actuator is None or not self.actuator.unread()

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
            for value in actuator.values:
                value.write(number)

        return [lambda: put(low), lambda: put(high)]

    def refusal(self) -> AdapterError:
        """Return the error that says that it is not used."""
        told = "" if self.actuator is None else self.actuator.unread()
        return AdapterError(told or _SAME.format(name=self.name))


def _subjects_of(actuators: Iterable[Actuator | None], rates: KerasRates) -> list[_Subject]:
    return [_Subject(actuator, rates) for actuator in actuators]


def _values(subjects: Iterable[_Subject]) -> list[Value]:
    return [v for s in subjects if s.actuator is not None for v in s.actuator.values]


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
        refuse: Callable[[], None],
        warn: Callable[[str, str], None],
    ) -> None:
        self._model, self._function = model, function
        self._inner = model.train_function
        self._open = _subjects_of(actuators, rates)
        self._is_steered = rates.is_steered_variable
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
        replay = StepReplay(self._model, self._function, arguments)
        self._tries += 1
        refused: _Subject | None = None
        if replay.possible:
            try:
                refused = self._refused(replay)
            except Exception as error:  # noqa: BLE001 - the real step tells, if it fails as well
                self._open, self.ended = [], True
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
        raise AdapterError(_LR_UNREAD)
    for subject in subjects:
        if subject.is_own:
            continue
        trial = subject.actuator is None or subject in ours
        owners = None if trial else [value.owner for value in subject.actuator.values]  # type: ignore[union-attr]
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
_UNPROVEN = (
    "{names}: the first batches could not show whether the training step uses this (their loss is "
    "not finite, they have no gradient, or the data are handed over in a way of their own); look "
    "at the first decisions, or leave it out of hyperparameters="
)
_LR_UNREAD = (
    "lr: the training step does not read the optimiser's learning rate, so steering changes "
    "nothing; use that optimiser, and compile a step of your own after steering has begun"
)
