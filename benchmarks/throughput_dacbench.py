"""Inner training steps a second of DACBench's SGD benchmark; run by `benchmarks.throughput`.

It runs in the environment that ``make venv-dacbench`` makes, which has no trimtab. The network, the
samples, the batch and the validation are those of the other contestants: one step of the
environment is an epoch of 20 batches of 32, followed by the loss on 256 validation samples.

    .venv-dacbench/bin/python benchmarks/throughput_dacbench.py samples.npz --env-steps 20

``samples.npz`` holds ``inputs`` (896, 64) float32 and ``labels`` (896,) int64. Prints one JSON
object with ``steps_per_second`` of the fastest repeat.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

BATCH, EPOCH, VALIDATION = 32, 20, 256
SIZES = (64, 32, 32, 10)


def define_missing_operators() -> None:
    """Let torchvision be imported beside a PyTorch build that its compiled part does not fit.

    DACBench imports torchvision for its data sets alone, yet the import fails where the operators
    of that part are missing. Here they are declared, and never called.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_KEPT_LIBRARY"] = library  # dropped with its last reference


class Samples(torch.utils.data.Dataset[Any]):
    """Samples in memory, asked for as torchvision's data sets are."""

    inputs = torch.zeros(0, SIZES[0])
    labels: tuple[int, ...] = ()
    classes = tuple(str(label) for label in range(SIZES[-1]))

    def __init__(
        self, root: str, train: bool = True, download: bool = False, transform: Any = None
    ) -> None:
        del root, download, transform
        self._count = len(self.labels) if train else BATCH

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return input and label."""
        return self.inputs[index], self.labels[index]


def network() -> nn.Module:
    """Return the 64-32-32-10 network; DACBench's loss wants log-probabilities."""
    layers: list[nn.Module] = []
    for before, after in pairwise(SIZES):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.LogSoftmax(1))


def environment(cutoff: int) -> Any:
    """Return DACBench's environment for `Samples` and `network`."""
    define_missing_operators()
    from dacbench.benchmarks import SGDBenchmark
    from dacbench.envs.sgd import SGDInstance
    from torchvision import datasets

    datasets.Samples = Samples
    n_samples = len(Samples.labels)
    benchmark = SGDBenchmark()
    instance = SGDInstance(
        model=network,
        optimizer_type=torch.optim.AdamW,
        optimizer_params={},
        dataset_path=".",
        dataset_name="Samples",
        batch_size=BATCH,
        fraction_of_dataset=1.0,
        # half a sample more, since it rounds down
        train_validation_ratio=(n_samples - VALIDATION + 0.5) / n_samples,
        seed=0,
    )
    nothing = {"train_transform": None, "test_transform": None}
    benchmark.config.update(
        instance_set={0: instance},
        epoch_mode=True,
        # a multiple of the epoch, else only a tenth of the validation samples are measured
        cutoff=cutoff * EPOCH,
        dataset_config={"Samples": nothing},
    )
    return benchmark.get_environment()


def main(arguments: list[str] | None = None) -> int:
    """Print the figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--env-steps", type=int, default=20, help="of one timed repeat")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(given.samples) as kept:
        Samples.inputs = torch.from_numpy(kept["inputs"])
        Samples.labels = tuple(kept["labels"].tolist())
    env = environment((given.repeats + 1) * given.env_steps)
    env.reset()
    env.step([1e-3])
    if len(env.train_loader) != EPOCH or len(env.validation_loader.dataset) != VALIDATION:
        raise SystemExit(f"an epoch has {len(env.train_loader)} batches instead of {EPOCH}")
    times = []
    for _ in range(given.repeats):
        begin = time.perf_counter()
        for _ in range(given.env_steps):
            env.step([1e-3])
        times.append(time.perf_counter() - begin)
    json.dump({"steps_per_second": given.env_steps * EPOCH / min(times)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
