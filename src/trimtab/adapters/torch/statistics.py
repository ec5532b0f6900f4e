"""What one window of training tells about itself, measured on PyTorch tensors or a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from trimtab.adapters.torch.sharding import is_sharded, local_part, share_of, summed
from trimtab.adapters.torch.travel import Travel
from trimtab.core.errors import SpecError
from trimtab.core.metrics import Metrics, window_metrics

SAMPLED_ENTRIES = 32_768
"""So many entries, or up to twice as many, are looked at; a smaller model is seen whole."""

_LEAST = 64  # entries of each tensor, if it has so many
_PLACES = 7919  # a prime: tensors of one shape are not all looked at in the same place


class Sample:
    """A fixed choice of the entries of a list of tensors, the same in each process and run.

    Each tensor is a stratum that gives entries in proportion to its size, at least 64 of them:
    every k-th slice along its first dimension that is long enough for that (rows of a matrix,
    filters of a convolution), or along its longest one. The choice follows from the shapes alone,
    so it needs no state. A square sum is estimated by weighting each entry with its tensor's size
    over the entries taken from it, which is without bias over the choice of the first slice.

    Args:
        tensors: All trainable weights.
        entries: How many entries to look at altogether.

    Attributes:
        is_whole: Whether every entry is looked at, and nothing is estimated.
        is_sharded: Whether other processes look at other entries, so that sums are to be added up.
        entries: Number of entries that are looked at.
        total: Number of weights.
        counts: (entries,) how many weights each entry stands for; None for one each.
        device: Where samples are kept: that of the first tensor.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], entries: int = SAMPLED_ENTRIES) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        is_double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
        given, tensors = tensors, [_plain(tensor) for tensor in tensors]
        total = sum(tensor.numel() for tensor in tensors)
        self._slices: list[tuple[slice, ...] | None] = []
        self._sizes: list[torch.Size] = []
        weights: list[float] = []
        for index, tensor in enumerate(tensors):
            where = _slices(tensor, entries / total, index) if total > entries else None
            size = tensor.shape if where is None else tensor[where].shape
            self._slices.append(where)
            self._sizes.append(size)
            weights.append(tensor.numel() / max(size.numel(), 1))
        self.is_sharded = any(map(is_sharded, given))
        if self.is_sharded:  # each process adds its part, and some parts are held by several
            weights = [w * share_of(one) for w, one in zip(weights, given, strict=True)]
        counts = [size.numel() for size in self._sizes]
        self._is_plain = not self.is_sharded and not any(one.dtype.is_complex for one in given)
        self.is_whole = all(where is None for where in self._slices)
        self.entries = sum(counts)
        self.device = tensors[0].device if tensors else torch.device("cpu")
        # Half-precision entries are kept as float32, whose range holds their squares.
        self._dtype = torch.float64 if is_double else torch.float32
        self.total, self.counts = total, None
        if not self.is_whole or self.is_sharded:
            each = torch.tensor(weights, dtype=self._dtype)
            self.counts = each.repeat_interleave(torch.tensor(counts)).to(self.device)

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether this is a choice for tensors of these shapes."""
        return len(tensors) == len(self.shapes) and all(
            tensor.shape == shape for tensor, shape in zip(tensors, self.shapes, strict=True)
        )

    def room(self) -> Room:
        """Return room for one sample."""
        flat = torch.zeros(self.entries, dtype=self._dtype, device=self.device)
        views, start = [], 0
        for size in self._sizes:
            views.append(flat[start : start + size.numel()].view(size))
            start += size.numel()
        return Room(flat, views, self._slices, is_plain=self._is_plain)

    def weighted(self, sample: torch.Tensor) -> torch.Tensor:
        """Return a sample with each entry multiplied by how many it stands for."""
        return sample if self.counts is None else sample * self.counts


class Room:
    """Holds one sample; it is written again and again, for new pages cost more than the copy.

    Attributes:
        flat: (entries,) the sample.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        views: list[torch.Tensor],
        slices: list[tuple[slice, ...] | None],
        *,
        is_plain: bool,
    ) -> None:
        self.flat = flat
        self._is_plain = is_plain
        self._views, self._slices = views, slices

    def take(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Copy the chosen entries here and return them; a tensor that is None counts as zeros."""
        return self.copy(self.chosen(tensors))

    @torch.no_grad()
    def chosen(self, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return the chosen entries of each tensor: views of it, if it is dense."""
        return [
            None if tensor is None else self._entries(tensor, where)
            for tensor, where in zip(tensors, self._slices, strict=True)
        ]

    @torch.no_grad()
    def copy(self, chosen: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Copy what `chosen` returned here and return it; None counts as zeros."""
        into: list[torch.Tensor] = []
        taken: list[torch.Tensor] = []
        for entries, view in zip(chosen, self._views, strict=True):
            if entries is None:
                view.zero_()
            else:
                into.append(view)
                taken.append(entries)
        if into:
            torch._foreach_copy_(into, taken)
        return self.flat

    def _entries(self, tensor: torch.Tensor, where: tuple[slice, ...] | None) -> torch.Tensor:
        entries = tensor if self._is_plain and not tensor.is_sparse else _plain(tensor)
        return entries if where is None else entries[where]


def _slices(tensor: torch.Tensor, share: float, index: int) -> tuple[slice, ...] | None:
    """Return which slices of a tensor to take; None for all of it."""
    n = tensor.numel()
    wanted = max(math.ceil(n * share), min(_LEAST, n))
    every = n // wanted if wanted else 1
    if every < 2:
        return None
    long_enough = [axis for axis, length in enumerate(tensor.shape) if length >= 2 * every]
    axis = long_enough[0] if long_enough else max(range(tensor.dim()), key=tensor.shape.__getitem__)
    every = min(every, tensor.shape[axis])
    return (*[slice(None)] * axis, slice(index * _PLACES % every, None, every))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense view without history of what is held here; a complex entry is two."""
    tensor = local_part(tensor.detach())
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


CHECK_EVERY = 16
"""On an accelerator, steps between two looks at the losses; each look waits for the device."""


def is_elsewhere(loss: torch.Tensor | float) -> bool:
    """Return whether a loss lies on an accelerator, where each reading waits for the device."""
    return isinstance(loss, torch.Tensor) and loss.device.type != "cpu"


def kept_for_later(loss: torch.Tensor) -> torch.Tensor:
    """Return a copy, for a compiled step may write the next loss into the same memory."""
    return loss.detach().reshape(()).clone()


def read_together(losses: Sequence[torch.Tensor]) -> list[float]:
    """Return losses as numbers, with one wait for the device."""
    values: list[float] = torch.stack(list(losses)).tolist()
    return values


class _Weights(NamedTuple):
    """Sampled weights, what they are copies of, and where each tensor began in memory then."""

    sampled: torch.Tensor
    chosen: list[torch.Tensor | None]
    places: list[int] | None


class WindowStatistics:
    """Loss and gradient statistics of one window of optimiser steps.

    Gradients and weights are touched on the window's last two steps only, and of a model with
    more than `SAMPLED_ENTRIES` weights only a fixed sample of them,
    stratified by tensor (see `Sample`): the features look at changes
    against the run's own past, for which the same entries each time serve as well as all. The last
    but one step copies the sample of the gradients; the last one takes their product with its own,
    and copies the sample of the weights before and after its update. All other steps cost the
    reading of one loss; on an accelerator the losses stay there and are read every `CHECK_EVERY`
    steps.

    With e_i the gradient's i-th sampled entry, n_i the entries it stands for (1 if all are looked
    at), p_i that of the step before, w_i the weight and u_i its change: ``grad_norm`` is
    sqrt(sum n e^2), ``grad_cosine`` sum n e p / sqrt(sum n e^2 sum n p^2), ``update_ratio``
    sqrt(sum n u^2 / sum n w^2). How far the run has come is told by `Travel`, of the same entries.

    One window is ``begin``, then ``before_step`` and ``after_step`` around each optimiser step,
    then ``finish``:

    >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> statistics = WindowStatistics()
    >>> statistics.begin(2)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * weight.square().sum()
    ...     loss.backward()
    ...     if not statistics.before_step(loss, [weight]):
    ...         break
    ...     optimizer.step()
    ...     statistics.after_step([weight])
    >>> metrics = statistics.finish()
    >>> metrics.train_loss_first, round(metrics.grad_norm, 6), round(metrics.update_ratio, 6)
    (12.5, 4.5, 0.1)

    Args:
        travels: Whether to measure how far the run has come, for policies that see it.

    Attributes:
        losses: The step losses read so far; a loop may append those of its ordinary steps itself.
        ordinary_until: A step is ordinary as long as ``losses`` is shorter than this: nothing is
            due in it but to append its loss, which is finite. 0 before the window's first step.
    """

    def __init__(self, travels: bool = True) -> None:
        self._travels = travels
        self._sample: Sample | None = None
        self._rooms: tuple[Room, Room] | None = None
        self._travel: Travel | None = None
        self._began = False  # whether the first weights were seen, or a run goes on without them
        self._gone: Mapping[str, Any] | None = None  # of a run that was loaded
        self.begin(1)

    def begin(self, window_steps: int) -> None:
        """Forget the last window and expect one of ``window_steps`` optimiser steps.

        Raises:
            SpecError: ``window_steps`` is below 1.
        """
        if window_steps < 1:
            raise SpecError(f"window_steps: {window_steps} is below 1; give at least one step")
        self._window_steps = int(window_steps)
        self._finite = True
        self._waits: bool | None = None  # whether losses stay on their device for some steps
        self.losses: list[float] = []
        self.ordinary_until = 0
        self._unread: list[torch.Tensor] = []
        self._gradients: torch.Tensor | None = None  # sampled at the last but one step
        self._weights: _Weights | None = None  # before the last step's update, until after it
        self._sums: dict[str, torch.Tensor] = {}
        self._sampled: Sequence[torch.Tensor] | None = None  # fit the sample in this window

    @property
    def steps(self) -> int:
        """How many losses were taken in; there is one for each step."""
        return len(self.losses) + len(self._unread)

    def expect_ordinary_steps(self) -> None:
        """Let the coming steps be ordinary again, where ``ordinary_until`` was taken back."""
        if self._waits is False:
            self.ordinary_until = self._window_steps - 2

    def before_step(self, loss: torch.Tensor | float, parameters: Sequence[torch.Tensor]) -> bool:
        """Take in a step's loss and gradients; return whether training may go on.

        To be called after the backward pass, with gradients unscaled and not yet clipped, before
        the optimiser's step.

        Args:
            loss: Mean loss of the step, one number.
            parameters: All trainable weights, in the same order each time.

        Returns:
            False once a loss was not finite: the window has to end without this step's update.
            On a CPU that is this very step; elsewhere at most ``CHECK_EVERY - 1`` steps later.
        """
        if self._waits is None:  # asked once a window: the answer costs as much as the reading
            if self._travels and not self._began:
                self._depart(parameters)
            self._waits = is_elsewhere(loss)
            self.ordinary_until = 0 if self._waits else self._window_steps - 2
        if self._waits and isinstance(loss, torch.Tensor):
            self._take_later(loss)
        else:
            value = float(loss.item() if isinstance(loss, torch.Tensor) else loss)
            self.losses.append(value)
            if not math.isfinite(value):
                self._finite = False
        if not self._finite:
            self._gradients = self._weights = None
            return False
        if self.steps >= self._window_steps - 1:
            with torch.no_grad():
                self._look(parameters)
        return True

    @torch.no_grad()
    def after_step(self, parameters: Sequence[torch.Tensor]) -> None:
        """Measure the window's last update; to be called after the optimiser's step.

        Args:
            parameters: The same as for `before_step`.
        """
        if self._weights is None:
            return
        sample, (room, _) = self._places(parameters)
        (before, chosen, places), self._weights = self._weights, None
        self._sums["weights"] = sample.weighted(before).dot(before)
        # An optimiser that gives weights new memory leaves the views of a moment ago behind.
        if places is None or places != _places_in_memory(parameters):
            chosen = room.chosen(parameters)
        change = room.copy(chosen).sub_(before)
        self._sums["update"] = sample.weighted(change).dot(change)

    def finish(self) -> Metrics:
        """Return the window's metrics; validation and charge are left to the caller.

        ``steps`` counts every batch that was taken in, also the one whose loss was not finite.
        ``train_loss_change`` leaves the middle step of an odd window out, and is nan for a window
        of one step, as is ``grad_cosine``. Gradient statistics are nan if the window ended early.
        ``train_loss_std`` is the population's standard deviation. Computed in float64.
        """
        self._read_losses()
        self._gradients = self._weights = None
        measured: dict[str, float] = {}
        if self._sums and self._finite:
            sums = self._read_sums()
            measured = _from_sums(sums)
            if self._travel is not None:
                measured |= self._travel.add(sums, self._window_steps)
        return window_metrics(self.losses, measured)

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, to go on with it later: plain values and tensors."""
        self._read_losses()
        return {
            "window_steps": self._window_steps,
            "step": self.steps,
            "finite": self._finite,
            "losses": list(self.losses),
            "gradients": None if self._gradients is None else self._gradients.clone(),
            "travel": self.travel_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the window of `state_dict`, between two steps."""
        self.begin(int(state["window_steps"]))
        self._finite, self._gradients = bool(state["finite"]), state["gradients"]
        self.losses = list(state["losses"])
        self.load_travel(state.get("travel"))

    def travel_state(self) -> dict[str, torch.Tensor] | None:
        """Return how far the run has come; None if that is not known."""
        return None if self._travel is None else self._travel.state_dict()

    def load_travel(self, state: Mapping[str, Any] | None) -> None:
        """Go on with what `travel_state` gave; with None, nothing is told of the way so far."""
        self._travel, self._gone, self._began = None, state, state is None

    def _depart(self, parameters: Sequence[torch.Tensor]) -> None:
        """Remember the first weights, or go on from those of the run that was loaded."""
        self._began = True
        sample, (_, room) = self._places(parameters)
        if sample.is_sharded:
            return
        travel, gone = Travel(room.take(parameters), sample.counts, sample.total), self._gone
        if gone is not None and gone["origin"].shape != travel.origin.shape:
            return
        if gone is not None:
            travel.load_state_dict(gone)
        self._travel, self._gone = travel, None

    def _take_later(self, loss: torch.Tensor) -> None:
        self._unread.append(kept_for_later(loss))
        if len(self._unread) >= CHECK_EVERY:
            self._read_losses()

    def _read_losses(self) -> None:
        if self._unread:
            values, self._unread = read_together(self._unread), []
            self.losses += values
            self._finite = self._finite and all(math.isfinite(value) for value in values)

    def _read_sums(self) -> dict[str, float]:
        """Return the sums as numbers, with one wait for the device."""
        sums = self._sums
        if self._sample is not None and self._sample.is_sharded:
            together = torch.stack([value.double() for value in sums.values()])
            return dict(zip(sums, summed(together).tolist(), strict=True))
        if sums["gradients"].device.type == "cpu":
            return {name: value.item() for name, value in sums.items()}
        return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))

    def _look(self, parameters: Sequence[torch.Tensor]) -> None:
        """Take in the gradients of one of the last two steps, and the weights of the last."""
        sample, (mine, other) = self._places(parameters)
        gradients = [parameter.grad for parameter in parameters]
        if self.steps < self._window_steps:
            self._gradients = other.take(gradients)
            return
        now, before = mine.take(gradients), self._gradients
        weighted = sample.weighted(now)
        self._sums["gradients"] = weighted.dot(now)
        if before is not None and before.numel() == now.numel():
            before = before.to(now.device, now.dtype)  # a state that was loaded is elsewhere
            self._sums["product"] = weighted.dot(before)
            self._sums["gradients before"] = sample.weighted(before).dot(before)
        if self._travel is not None:
            self._travel.look(now, before)
        self._gradients = None
        chosen = other.chosen(parameters)
        weights = other.copy(chosen)  # where the gradients of the step before were
        self._weights = _Weights(weights, chosen, _places_in_memory(parameters))
        if self._travel is not None:
            self._sums |= self._travel.stand(weights)

    def _places(self, parameters: Sequence[torch.Tensor]) -> tuple[Sample, tuple[Room, Room]]:
        """Return the sample for these weights, and room for two of them."""
        known = parameters is self._sampled
        if (
            self._sample is None
            or self._rooms is None
            or not (known or self._sample.fits(parameters))
        ):
            self._sample = Sample(parameters)
            self._rooms = self._sample.room(), self._sample.room()
            self._travel = None
        self._sampled = parameters
        return self._sample, self._rooms


def _places_in_memory(tensors: Sequence[torch.Tensor]) -> list[int] | None:
    """Return where each tensor begins in memory, or None if one has none of its own."""
    try:
        return [local_part(tensor).data_ptr() for tensor in tensors]
    except RuntimeError:
        return None


def _from_sums(sums: dict[str, float]) -> dict[str, float]:
    """Return the statistics from the sums over sampled entries."""
    squared = sums["gradients"]
    fields = {"grad_norm": math.sqrt(squared)}
    before = sums.get("gradients before", math.nan)
    lengths = math.sqrt(squared) * math.sqrt(before)
    if lengths > 0:
        fields["grad_cosine"] = min(max(sums["product"] / lengths, -1.0), 1.0)
    weights = sums.get("weights", math.nan)
    if weights > 0:
        fields["update_ratio"] = math.sqrt(sums["update"] / weights)
    return fields
