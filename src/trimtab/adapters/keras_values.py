"""The former place of `trimtab.adapters.keras.values`, for code that imports it from here."""

from trimtab.adapters.keras.values import *  # noqa: F403
