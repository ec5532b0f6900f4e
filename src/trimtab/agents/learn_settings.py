"""The former place of `trimtab.agents.training.settings`, for code that imports it from here."""

from trimtab.agents.training.settings import *  # noqa: F403
