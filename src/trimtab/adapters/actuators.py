"""What a hyperparameter acts on, in every framework: the search for it, and the writing into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trimtab.core.errors import AdapterError, unknown_name
from trimtab.core.hyperparameters import KINDS, Hyperparameter, hyperparameter, moved_value

KINDS_THAT_ARE_READ: tuple[str, ...] = (
    "augmentation",
    "mixup",
    "batch_size",
    "ema_decay",
    "adapter_scale",
    "other",
)
"""The kinds for which a `SteeredValue` may stand."""

KINDS_FOUND: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in KINDS_THAT_ARE_READ)
"""The kinds that are found by name in every framework."""


class SteeredValue:
    """A number that code of one's own reads: how strong an augmentation is, how much is mixed.

    .. code-block:: python

        strength = SteeredValue("mixup", 0.2)
        with TorchController(..., hyperparameters=("lr", strength)) as controller:
            for x, y in batches:
                x, y = mixed(x, y, strength())
                ...

    It has to be read before the first optimiser step, and in this process: a copy in a worker of a
    ``DataLoader`` hears of nothing. A value that was not read by then is refused.

    In Keras it is called inside a layer or a loss, where it gives a tensor that the compiled step
    reads anew each time, so that a new value costs no compilation:

    .. code-block:: python

        class Noise(keras.layers.Layer):
            def call(self, x, training=False):
                return x + strength() * keras.random.normal(x.shape) if training else x

        strength = SteeredValue("augmentation", 0.1)
        steer = TrimtabCallback(validation, hyperparameters=("lr", strength))

    ``float(strength)`` is for Python code there: a ``PyDataset`` or a generator, which Keras may
    ask for some batches ahead. After a run in Keras both give the start again.

    Args:
        item: Name of a kind, such as ``"augmentation"``, ``"mixup"`` or ``"adapter_scale"``; any
            other name is of the kind ``"other"``. Or a `Hyperparameter` of one of
            `KINDS_THAT_ARE_READ`.
        start: Where it stands at first; None for the kind's usual value.

    Attributes:
        item: The hyperparameter; its default is the start.
        reads: How often it was read; in Keras, since the run began.

    Raises:
        AdapterError: The kind is one that is found in the optimiser, the model or the loss.
        SpecError: The start is out of bounds.

    >>> strength = SteeredValue("mixup", 0.2)
    >>> strength(), strength.reads
    (0.2, 1)
    """

    def __init__(self, item: str | Hyperparameter, start: float | None = None) -> None:
        made = hyperparameter(item, start) if isinstance(item, str) else item
        if isinstance(item, Hyperparameter) and start is not None:
            made = item.starting_at(start)
        if made.kind not in KINDS_THAT_ARE_READ:
            raise AdapterError(
                f"{made.name}: the kind {made.kind!r} is found by trimtab itself, so name it in "
                f"hyperparameters=; a value of one's own is {', '.join(KINDS_THAT_ARE_READ)}"
            )
        self.item = made
        self.reads = 0
        self._value = made.default
        self._source: Any = None

    def __call__(self) -> Any:
        """Return the value now, in a step of Keras as a tensor, and count that it was read."""
        self.reads += 1
        return self._value if self._source is None else self._source.tensor()

    def __float__(self) -> float:
        self.reads += 1
        return self.held()

    def held(self) -> float:
        """Return the value without counting it as read."""
        return self._value if self._source is None else float(self._source.number)

    def hold(self, value: float) -> None:
        """Take a new value; what steers calls this."""
        self._value = value

    def attach(self, source: Any) -> None:
        """Begin to give what a `trimtab.adapters.keras.actuators.Value` holds; None to end."""
        self._source, self.reads = source, 0


Steerable = str | Hyperparameter | SteeredValue
"""What stands in ``hyperparameters=``: the name of a kind, or an object."""


class Setting(Protocol):
    """One spot where a value is kept: a parameter group, a layer, the clipping norm.

    Attributes:
        start: Value on entry; the spot keeps its distance from the hyperparameter's start.
    """

    start: float

    def read(self) -> float:
        """Return what stands there now."""
        ...

    def write(self, value: float) -> None:
        """Put a value there."""
        ...


class Actuator:
    """Writes one hyperparameter into all its places, and reads it back.

    Attributes:
        item: The hyperparameter; its start is that of the first place.
        places: Where it is written; each is a `Setting`.
    """

    def __init__(self, item: Hyperparameter, places: Sequence[Any]) -> None:
        self.item, self.places = item, list(places)

    def write(self, offset: float) -> str:
        """Write the value at an offset; return what was not taken, or an empty string."""
        for place in self.places:
            wanted = moved_value(self.item, place.start, offset)
            if place.read() != wanted:
                place.write(wanted)
            held = place.read()
            if not math.isclose(held, wanted, rel_tol=1e-6, abs_tol=1e-12):
                return (
                    f"{self.item.name}: {wanted:g} was written and {held:g} stands there; whatever "
                    "holds it does not take new values, so leave it out of hyperparameters="
                )
        return ""

    def starts(self) -> list[float]:
        """Return the start of each place, for `begin_at`."""
        return [place.start for place in self.places]

    def begin_at(self, item: Hyperparameter, starts: Iterable[float]) -> None:
        """Take over the hyperparameter and the starts of a run that goes on."""
        self.item = item
        # A group that joined in the run before may join again later.
        for place, start in zip(self.places, starts, strict=False):
            place.start = float(start)


@dataclass(frozen=True)
class Search:
    """How a framework answers what a hyperparameter acts on.

    Attributes:
        kinds: Those that are found by name, ``"lr"`` among them.
        places: Returns where a kind other than ``"lr"`` is kept; none if it is not there.
        place_of: Returns the place of a value of the user's own, or refuses it.
        missing: Kind -> what to say where it has no place; ``{optimizer}`` and ``{model}`` stand
            for the names of their classes.
        refusal: Returns what to say of a name and its kind that are not found by name.
    """

    kinds: tuple[str, ...]
    places: Callable[[str], Sequence[Any]]
    place_of: Callable[[SteeredValue], Setting]
    missing: Mapping[str, str]
    refusal: Callable[[str, str], str]


def entries_of(wanted: Any) -> list[Any]:
    """Return hyperparameters as a list that can be gone through twice; one alone is one entry."""
    return [wanted] if isinstance(wanted, str | Hyperparameter | SteeredValue) else list(wanted)


def find(
    wanted: Iterable[Steerable], search: Search, *, optimizer: Any, model: Any, lr: float
) -> tuple[list[Hyperparameter], list[Actuator | None]]:
    """Return each hyperparameter with its start in this loop, and what writes it.

    Learning rates have no actuator (None): the reference gives them at each step.

    Args:
        wanted: Names of kinds, or objects, whose start is replaced by what stands in the loop, or
            values of the user's own, which keep theirs.
        search: How the framework finds them.
        optimizer: The optimiser.
        model: The model.
        lr: Start of the learning rate.

    Raises:
        AdapterError: A hyperparameter cannot be steered in this loop, or is asked for twice.
        UnknownNameError: A name is no hyperparameter.
        SpecError: A start is outside the hyperparameter's bounds.
    """
    items: list[Hyperparameter] = []
    actuators: list[Actuator | None] = []
    names = {"optimizer": type(optimizer).__name__, "model": type(model).__name__}
    for entry in entries_of(wanted):
        own = isinstance(entry, SteeredValue)
        kind = entry.item.kind if own else getattr(entry, "kind", entry)
        if kind in (item.kind for item in items if item.kind != "other"):
            raise AdapterError(f"hyperparameters: {kind!r} is asked for twice; name each kind once")
        if not own and kind not in search.kinds:
            raise _refused(str(getattr(entry, "name", entry)), kind, search)
        if own:
            places: Sequence[Any] = [search.place_of(entry)]
        else:
            places = [] if kind == "lr" else search.places(kind)
            if not places and kind != "lr":
                raise AdapterError(f"{kind}: {search.missing[kind].format(**names)}")
        item = entry.item if own else _starting(entry, places[0].start if places else lr)
        items.append(item)
        actuators.append(Actuator(item, places) if places else None)
    if not items:
        raise AdapterError("hyperparameters: () is empty; name at least one, such as ('lr',)")
    return items, actuators


def _starting(entry: str | Hyperparameter, start: float) -> Hyperparameter:
    return hyperparameter(entry, start) if isinstance(entry, str) else replace(entry, default=start)


def _refused(name: str, kind: Any, search: Search) -> Exception:
    if kind not in KINDS:
        return unknown_name("hyperparameter", name, search.kinds)
    return AdapterError(f"hyperparameters: {name!r} (kind {kind!r}) {search.refusal(name, kind)}")
