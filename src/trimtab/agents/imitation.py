"""The former place of `trimtab.agents.training.imitation`, for code that imports it from here."""

from trimtab.agents.training.imitation import *  # noqa: F403
