"""The former place of `trimtab.adapters.optuna`, for code that imports it from here."""

from trimtab.adapters.optuna import *  # noqa: F403
from trimtab.adapters.optuna import LoopController as Steering  # noqa: F401
