"""What `trimtab.Rescue` and ``policy="guard"`` add to a step of about 5 ms.

Two twins of a model are trained on the same batches in one process, step by step in turn, one
without anything and one with `trimtab.Rescue` around a loop that calls ``loss.backward()`` itself,
with `Rescue.backward`, with ``policy="guard"``, or, beside a twin that clips its gradients, with
`Rescue` that clips them. Time is that of the thread on the processor, so that other processes
disturb it little (they still empty the caches). After a warm-up of 500 steps the state is looked at
every ten steps and copied every fifty; the median of each of the fifty steps of that cycle over
all cycles is taken, and the mean of the fifty.

    python -m benchmarks.rescue.cost
    python -m benchmarks.rescue.cost --json --nets convolutions --cycles 20

Aimed at: at most 2 % of a step of 5 ms or more. What is added grows with the number of weights, not
with the work that is done with them, so a network in which few rows meet many weights (here:
``perceptron``, 64 rows, 530 thousand weights) is the dearest there is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from time import thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import trimtab

__all__ = ["ARMS", "NETS", "main", "measure"]

CYCLE = 50
LIMIT = 0.02


class _Transformer(nn.Module):
    """Two blocks over 32 words of a vocabulary of 200."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 48)
        block = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return the scores of texts."""
        scores: torch.Tensor = self.head(self.blocks(self.words(words)).mean(1))
        return scores


def _perceptron() -> tuple[nn.Module, torch.Tensor]:
    layers = [(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()) for _ in range(8)]
    model = nn.Sequential(*(one for layer in layers for one in layer), nn.Linear(256, 10))
    return model, torch.randn(64, 256)


def _convolutions() -> tuple[nn.Module, torch.Tensor]:
    def layer(channels: int, wide: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()

    layers = [*layer(3, 16), nn.MaxPool2d(2), *layer(16, 32), nn.MaxPool2d(2), *layer(32, 48)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    return model, torch.randn(16, 3, 32, 32)


def _transformer() -> tuple[nn.Module, torch.Tensor]:
    return _Transformer(), torch.randint(0, 200, (12, 32))


NETS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "perceptron": _perceptron,
    "convolutions": _convolutions,
    "transformer": _transformer,
}
ARMS = ("rescue", "rescue.backward", "guard", "rescue, clipped")


def _twin(net: str, arm: str, total_steps: int) -> Callable[[], None]:
    """Return what does one step of a twin."""
    torch.manual_seed(0)
    model, inputs = NETS[net]()
    labels = torch.randint(0, 10, (len(inputs),))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 - k / (total_steps + 1))
    clip = 1.0 if "clipped" in arm else None
    rescue: Any = None
    if arm == "guard":
        rescue = trimtab.TorchController(
            optimizer,
            total_steps=total_steps,
            validate=lambda: 1.0,
            model=model,
            policy="guard",
            reference=scheduler,
            decisions=1,
        )
        rescue.__enter__()
    elif arm.startswith("rescue"):
        rescue = trimtab.Rescue(optimizer, model=model, scheduler=scheduler, clip=clip)

    def loss_of(batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def step() -> None:
        batch = inputs + 0, labels + 0
        if arm == "rescue.backward":
            rescue.step(rescue.backward(loss_of, batch))
            return
        loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if rescue is not None:
            rescue.step(loss)
            return
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    return step


def measure(net: str, arm: str, *, cycles: int, warm_up: int = 500) -> dict[str, Any]:
    """Return the row of one network and one arm.

    Args:
        net: One of `NETS`.
        arm: One of `ARMS`.
        cycles: Of fifty steps.
        warm_up: Steps before them.
    """
    total = warm_up + cycles * CYCLE
    twins = [_twin(net, "plain, clipped" if "clipped" in arm else "plain", total)]
    twins.append(_twin(net, arm, total))
    seconds = np.zeros((2, total))
    for step in range(total):
        for which in (0, 1) if step % 2 else (1, 0):
            begun = thread_time()
            twins[which]()
            seconds[which, step] = thread_time() - begun
    plain, with_it = np.median(seconds[:, warm_up:].reshape(2, cycles, CYCLE), axis=1)
    added = with_it - plain
    return {
        "net": net,
        "arm": arm,
        "ms_per_step": 1e3 * float(plain.mean()),
        "added_us_per_step": 1e6 * float(added.mean()),
        "ordinary_us": 1e6 * float(np.median(added)),
        "share": float(added.mean() / plain.mean()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 0; 1 if a share is beyond its limit and ``--strict`` is given."""
    parser = argparse.ArgumentParser("benchmarks.rescue.cost", description="What a rescue costs.")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--nets", default=",".join(NETS), help="names, separated by commas")
    parser.add_argument("--cycles", type=int, default=12, help="of fifty steps")
    parser.add_argument("--warm-up", type=int, default=500, help="steps before they are timed")
    parser.add_argument("--strict", action="store_true", help="fail where the limit is exceeded")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.nets.split(",")) - set(NETS))
    if unknown:
        parser.error(f"--nets: unknown {', '.join(unknown)} (have: {', '.join(NETS)})")
    torch.set_num_threads(1)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for net, arm in ((n, a) for n in options.nets.split(",") for a in ARMS):
            print(f"measuring {net} {arm}", file=sys.stderr)
            rows.append(measure(net, arm, cycles=options.cycles, warm_up=options.warm_up))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'network':14}{'with':18} ms/step     added   ordinary   share")
        for row in rows:
            print(
                f"{row['net']:14}{row['arm']:18}{row['ms_per_step']:8.2f}"
                f"{row['added_us_per_step']:7.0f} us{row['ordinary_us']:8.0f} us{row['share']:8.2%}"
            )
    return int(options.strict and any(row["share"] > LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
