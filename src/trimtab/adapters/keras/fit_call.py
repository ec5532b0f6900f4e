"""The call of ``fit`` that a callback runs in: its other callbacks and its validation data.

Keras hands neither to a callback, so they are looked up in the frames that called it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import keras

from trimtab.core.notices import local_variables


@dataclass(frozen=True)
class FitCall:
    """What a call of ``fit`` was given.

    Attributes:
        callbacks: All of its callbacks, in order.
        validation_data: As given, or the part that ``validation_split`` left; None for none.
        validation_steps: Batches of one validation; None for all.
        validation_batch_size: For arrays; None for Keras' own.
    """

    callbacks: list[Any] = field(default_factory=list)
    validation_data: Any = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None


def fit_call() -> FitCall:
    """Return the innermost call of ``fit`` that this thread is in; an empty one outside of any."""
    callbacks: list[Any] = []
    for frame in _frames():
        names = local_variables(frame)
        seen = names.get("self")
        if not callbacks and isinstance(seen, keras.callbacks.CallbackList):
            callbacks = list(seen.callbacks)
        if frame.f_code.co_name == "fit" and isinstance(seen, keras.Model):
            return FitCall(
                callbacks,
                names.get("validation_data"),
                names.get("validation_steps"),
                names.get("validation_batch_size") or names.get("batch_size"),
            )
    return FitCall(callbacks)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
