"""The former place of `trimtab.adapters.ray.scheduler`, for code that imports it from here."""

from trimtab.adapters.ray.scheduler import *  # noqa: F403
