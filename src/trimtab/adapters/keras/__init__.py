"""Steering Keras: inside ``fit``, or in a loop of one's own.

A name is loaded when it is used: what else stands in this folder needs no Keras to be loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.adapters.actuators import SteeredValue as SteeredValue
    from trimtab.adapters.keras.callback import TrimtabCallback as TrimtabCallback
    from trimtab.adapters.keras.controller import KerasController as KerasController

__all__ = ["KerasController", "SteeredValue", "TrimtabCallback"]

_HOMES = {
    "KerasController": "trimtab.adapters.keras.controller",
    "SteeredValue": "trimtab.adapters.actuators",
    "TrimtabCallback": "trimtab.adapters.keras.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
