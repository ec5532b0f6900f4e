"""The former place of `trimtab.tasks.torch.run`, for code that imports it from here."""

from trimtab.tasks.torch.run import *  # noqa: F403
