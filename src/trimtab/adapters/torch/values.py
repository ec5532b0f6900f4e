"""Numbers of one's own that a PyTorch loop reads and that are steered: mix-up, batch size, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter

KINDS_THAT_ARE_READ: tuple[str, ...] = (
    "augmentation",
    "mixup",
    "batch_size",
    "ema_decay",
    "adapter_scale",
    "other",
)
"""The kinds for which a `SteeredValue` may stand."""


class SteeredValue:
    """A number that code of one's own reads: how strong an augmentation is, how much is mixed.

    .. code-block:: python

        strength = SteeredValue("mixup", 0.2)
        with TorchController(..., hyperparameters=("lr", strength)) as controller:
            for x, y in batches:
                x, y = mixed(x, y, strength())
                ...

    It has to be read before the first optimiser step, and in this process: a copy in a worker of a
    ``DataLoader`` hears of nothing. A value that was not read by then is refused.

    Args:
        item: Name of a kind, such as ``"augmentation"`` or ``"mixup"``; any other name is of the
            kind ``"other"``. Or a `Hyperparameter` of one of `KINDS_THAT_ARE_READ`.
        start: Where it stands at first; None for the kind's usual value.

    Attributes:
        item: The hyperparameter; its default is the start.
        reads: How often it was read.

    Raises:
        AdapterError: The kind is one that is found in the optimiser, the model or the loss.
        SpecError: The start is out of bounds.

    >>> strength = SteeredValue("mixup", 0.2)
    >>> strength(), strength.reads
    (0.2, 1)
    """

    def __init__(self, item: str | Hyperparameter, start: float | None = None) -> None:
        made = hyperparameter(item, start) if isinstance(item, str) else item
        if isinstance(item, Hyperparameter) and start is not None:
            made = item.starting_at(start)
        if made.kind not in KINDS_THAT_ARE_READ:
            raise AdapterError(
                f"{made.name}: the kind {made.kind!r} is found by trimtab itself, so name it in "
                f"hyperparameters=; a value of one's own is {', '.join(KINDS_THAT_ARE_READ)}"
            )
        self.item = made
        self.reads = 0
        self._value = made.default

    def __call__(self) -> float:
        """Return the value now, and count that it was read."""
        self.reads += 1
        return self._value

    def __float__(self) -> float:
        return self()

    def held(self) -> float:
        """Return the value without counting it as read."""
        return self._value

    def hold(self, value: float) -> None:
        """Take a new value; what steers calls this."""
        self._value = value


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
