"""Steering Keras: inside ``fit``, or in a loop of one's own."""

from __future__ import annotations

from trimtab.adapters.actuators import SteeredValue
from trimtab.adapters.keras.callback import TrimtabCallback
from trimtab.adapters.keras.controller import KerasController

__all__ = ["KerasController", "SteeredValue", "TrimtabCallback"]
