"""Tasks that fine-tune the last stages of EfficientNet-Lite0 on a frozen trunk (PyTorch)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_versions
from trimtab.tasks.torch.efficientnet import pretrained_network
from trimtab.tasks.torch.task import TorchTask

__all__ = ["FrozenTrunkTask"]


class FrozenTrunkTask(TorchTask):
    """A task whose images go through the trunk once; what comes out is kept in the user's cache.

    It says by ``_build`` what is kept, and by ``_depends_on`` what moves that besides the number
    of pixels and the versions of its ``_packages``.
    """

    def _build(self) -> dict[str, np.ndarray]:
        """Return the trunk's outputs, labels and splits of all images."""
        raise NotImplementedError

    def _depends_on(self) -> dict[str, object]:
        raise NotImplementedError

    @cached_property
    def _network(self) -> Any:
        """The pretrained network; runs take copies of its stages."""
        return pretrained_network(self.name, self._settings.size)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return what ``_build`` makes, from the cache if it is there."""
        inputs: dict[str, object] = {
            "format": 1,
            "pixels": self._settings.size,
            "torch": torch.__version__,
        }
        inputs |= self._depends_on() | package_versions(self._packages)
        return cached_arrays(self.name.rpartition("/")[2], inputs, self._build)
