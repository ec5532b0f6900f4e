"""The former place of `SteeredValue` for Keras, for code that imports it from here."""

from trimtab.adapters.actuators import SteeredValue as SteeredValue
