"""Tasks whose runs step in PyTorch: how each of them is started."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from trimtab.tasks.randomness import RunSeeds, run_seeds
from trimtab.tasks.torch_run import ParameterGroups, TorchRun, adamw
from trimtab.tasks.variants import SizedTask

__all__ = ["OptimizerMaker", "TorchTask"]

OptimizerMaker = Callable[[ParameterGroups], torch.optim.Optimizer]
"""Makes an optimiser from parameter groups."""


class TorchTask(SizedTask):
    """A task in PyTorch, which says by ``_run`` what a run is made of."""

    def start(self, *, seed: int, optimizer: OptimizerMaker = adamw) -> TorchRun:
        """Return a fresh run; the seed moves the new weights, the order of data and dropout.

        Args:
            seed: 0 or more.
            optimizer: Makes another optimiser than AdamW from the parameter groups.

        Raises:
            MissingDependencyError: The data, the weights or a library is not installed.
            SpecError: A package's files hold something else than they should.
        """
        gc.collect()  # the run before holds its weights in a cycle, too few objects to be noticed
        return self._run(run_seeds(seed), optimizer)

    def _run(self, seeds: RunSeeds, optimizer: OptimizerMaker) -> TorchRun:
        raise NotImplementedError
