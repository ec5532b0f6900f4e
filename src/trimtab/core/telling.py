"""Telling the user something in a run that goes on, whatever they made of warnings."""

from __future__ import annotations

import logging
import warnings

from trimtab.core.errors import TrimtabWarning

__all__ = ["tell"]


def tell(message: str, category: type[TrimtabWarning] = TrimtabWarning) -> None:
    """Warn of something; where warnings are errors, log it instead, since training must go on."""
    try:
        warnings.warn(message, category, stacklevel=3)
    except TrimtabWarning:
        logging.getLogger("trimtab").warning(message)
