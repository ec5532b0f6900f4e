"""The former place of `trimtab.tasks.data.splits`, for code that imports it from here."""

from trimtab.tasks.data.splits import *  # noqa: F403
