"""The former place of `trimtab.adapters.torch.values`, for code that imports it from here."""

from trimtab.adapters.torch.values import *  # noqa: F403
