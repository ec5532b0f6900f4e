"""The former place of `trimtab.adapters.keras.controller`, for code that imports it from here."""

from trimtab.adapters.keras.controller import *  # noqa: F403
