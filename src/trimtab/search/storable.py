"""The former place of `trimtab.core.protocols`, for code that imports it from here."""

from trimtab.core.protocols import *  # noqa: F403
