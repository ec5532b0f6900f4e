"""Telling the user something in a run that goes on, whatever they made of warnings."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from importlib import resources
from types import FrameType
from typing import Any

from trimtab.core.errors import TrimtabWarning

_PACKAGE = str(resources.files("trimtab")) + os.sep


def is_ours(frame: FrameType) -> bool:
    """Return whether a frame is of trimtab's own code."""
    return frame.f_code.co_filename.startswith(_PACKAGE)


def local_variables(frame: FrameType) -> dict[str, Any]:
    """Return a frame's variables, and leave nothing that keeps them alive.

    Before Python 3.13 a function's frame holds on to the dict that it gives out until it ends, and
    with it to whatever its owner deletes in the meantime.
    """
    given = frame.f_locals
    found = dict(given)
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and isinstance(given, dict):
        given.clear()
    return found


def tell(message: str, category: type[TrimtabWarning] = TrimtabWarning) -> None:
    """Warn at the line of the user's own code; where warnings are errors, log it instead.

    A training run is never stopped by a warning of ours.

    Args:
        message: What is said.
        category: Kind of warning, by which a user can silence it.
    """
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and is_ours(frame):
        level, frame = level + 1, frame.f_back
    try:
        warnings.warn(message, category, stacklevel=level)
    except TrimtabWarning:
        logging.getLogger("trimtab").warning(message)
