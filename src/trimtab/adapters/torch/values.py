"""A batch size and a decay of averages that a PyTorch loop reads from a `SteeredValue`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from trimtab.adapters.actuators import SteeredValue as SteeredValue


class TrimtabBatchSampler:
    """Batches of indices whose size is looked up for each one, for ``DataLoader(batch_sampler=)``.

    Use ``num_workers=0``, or the workers' queue is some batches behind.

    Args:
        sampler: Indices, such as a ``RandomSampler`` of the data.
        size: Examples a batch, rounded to a whole number of at least 1.
        drop_last: Whether a last batch that is too small is left out.

    >>> list(TrimtabBatchSampler(range(10), SteeredValue("batch_size", 4)))
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """

    def __init__(
        self, sampler: Iterable[int], size: SteeredValue, *, drop_last: bool = False
    ) -> None:
        self.sampler, self.size, self.drop_last = sampler, size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        """Yield one batch after the other."""
        batch: list[int] = []
        size = _whole(self.size())
        for index in self.sampler:
            batch.append(index)
            if len(batch) >= size:
                yield batch
                batch, size = [], _whole(self.size())
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        """Return how many batches there would be at the present size."""
        n, size = len(self.sampler), _whole(self.size.held())  # type: ignore[arg-type]
        return n // size if self.drop_last else math.ceil(n / size)


def _whole(size: float) -> int:
    return max(round(size), 1)


def averaging(
    decay: SteeredValue,
) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], Any], None]:
    """Return how ``torch.optim.swa_utils.AveragedModel`` averages weights at a steered decay.

    ``AveragedModel(model, multi_avg_fn=averaging(SteeredValue("ema_decay", 0.99)))``, updated
    before each ``controller.step``; let ``validate()`` measure the averaged model, and give the
    controller ``model=nn.ModuleList([model, averaged])``, so that both are kept and put back.
    """

    @torch.no_grad()
    def update(
        averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], n_averaged: Any
    ) -> None:
        del n_averaged
        share = 1.0 - decay()
        if torch.is_floating_point(averaged[0]) or torch.is_complex(averaged[0]):
            torch._foreach_lerp_(list(averaged), list(current), share)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(old * (1.0 - share) + new * share)

    return update
