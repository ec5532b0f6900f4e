"""The state of a PyTorch run that a rescue looks at, keeps, and puts back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trimtab.adapters.snapshots import Snapshots
from trimtab.adapters.torch.snapshots import TrainingState
from trimtab.adapters.torch.state import left_as_it_was, random_state, restore_random_state
from trimtab.rescue.engine import Jump, Probe
from trimtab.rescue.events import Fault

_REMEMBERED = 2  # good batches
_GOOD = 2  # verified snapshots
_FAR = 100.0  # a norm that moved more than so many times is looked into
_CERTAIN = 1e6  # a buffer's that moved more than so many times was not moved by batches
_FLOOR = 1e-3  # root mean square below which a tensor counts as zero
# Means of gradients or of their squares: none can grow beyond what the gradients bring.
_MEANS = frozenset(
    {"exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer"}
    | {"square_avg", "sum"}
)


class Batch(NamedTuple):
    """A batch, how its loss is computed, and what the loop calls it."""

    loss_of: Callable[[Any], torch.Tensor]
    data: Any
    name: Any


class _Kept(NamedTuple):
    step: int
    loss: float
    state: Snapshots


class GuardedTorchTraining:
    """The state of a PyTorch run: weights, buffers and optimiser state.

    Args:
        model: Its model.
        optimizer: Its optimiser.
        place: Where snapshots go: ``"memory"``, ``"cpu"`` or ``"disk"``.

    Attributes:
        batch: The batch whose step is done now, if the loop told of it.
        gradient_sums: Sums of the norms and of the squared norms of gradients since the last look.
        rate_sum: Sum of the learning rates since then.
        bytes: Size of all snapshots.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, place: str) -> None:
        self.batch: Batch | None = None
        self.gradient_sums, self.rate_sum = [0.0, 0.0], 0.0
        self._model, self._optimizer = model, optimizer
        self._source = TrainingState(model, optimizer)
        self._free = [Snapshots(place, self._source) for _ in range(_GOOD + 2)]
        self.bytes = sum(one.bytes for one in self._free)
        self._good: list[_Kept] = []
        self._pending: _Kept | None = None
        self._lowest: _Kept | None = None
        self._found: dict[str, torch.Tensor] | None = None  # since the last snapshot
        self._norms: dict[str, float] = {}
        self._looked: tuple[list[str], list[torch.Tensor], list[float]] | None = None
        self._batches: deque[tuple[Batch, float]] = deque(maxlen=_REMEMBERED)
        self._running = [
            buffer
            for module in model.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self._before = [buffer.detach().clone() for buffer in self._running]

    # Looking.

    @torch.no_grad()
    def compare_with(self, kept: Mapping[str, torch.Tensor]) -> bool:
        """Take a kept state for the last good one, where no snapshots are taken here.

        Args:
            kept: Its tensors, by the names that `TrainingState` gives them.

        Returns:
            Whether buffers that the last forward pass poisoned can be put back from it.
        """
        floats = {name: one for name, one in kept.items() if one.is_floating_point()}
        self._norms = dict(zip(floats, norms_of(list(floats.values())).tolist(), strict=True))
        self._found = self._looked = None
        self._measured()
        names = {one.data_ptr(): name for name, one in (self._found or {}).items()}
        self._before = [buffer.detach().clone() for buffer in self._running]
        for place, buffer in enumerate(self._running):
            if not torch.isfinite(buffer).all():
                before = kept.get(names.get(buffer.data_ptr(), ""))
                if before is None:
                    return False
                self._before[place].copy_(before)
        return True

    def not_finite(self, *, forward: bool = False) -> tuple[Fault, str] | None:
        """Return which of weights, buffers and optimiser state is not finite, and where.

        What was not finite when the last good snapshot was taken (a mask of minus infinity) is
        left out.

        Args:
            forward: Leave out what the step's forward pass moved.
        """
        self._looked = names, tensors, norms = self._measured()
        moved = {buffer.data_ptr() for buffer in self._running} if forward else set()
        for name, tensor, norm in zip(names, tensors, norms, strict=True):
            if math.isfinite(norm) or not math.isfinite(self._norms.get(name, 0.0)):
                continue
            if tensor.data_ptr() in moved:
                continue
            huge = bool(torch.isfinite(tensor).all())  # its norm alone is too large for the type
            faults = _JUMPS if huge else _FAULTS
            return faults[name.partition(".")[0]], self._place(name, tensor)
        return None

    def jumps(self) -> list[Jump]:
        """Return what moved too far since the last good snapshot, the surest first."""
        names, tensors, norms = self._looked or self._measured()
        sums, self.gradient_sums = self.gradient_sums, [0.0, 0.0]
        rates, self.rate_sum = self.rate_sum, 0.0
        found = []
        for name, tensor, norm in zip(names, tensors, norms, strict=True):
            before = self._norms.get(name, math.nan)
            kind, _, leaf = name.partition(".")
            if not math.isfinite(before) or (kind == "state" and _entry(leaf) not in _MEANS):
                continue
            root = math.sqrt(tensor.numel())
            floor = _FLOOR * root
            low, high = sorted((before + floor, norm + floor))
            if kind == "state":
                # A mean of gradients, or of their squares, cannot exceed what they add up to.
                is_certain = is_far = norm > 1e3 * (before + max(sums) + floor)
            elif kind == "weight":
                # Ten times what an update by sign, or by the gradient itself, moves a tensor.
                is_far = high > _FAR * low
                is_certain = is_far and abs(norm - before) > 10.0 * rates * (root + sums[0])
            else:
                is_far, is_certain = high > _FAR * low, high > _CERTAIN * low
            if is_far:
                place = self._place(name, tensor)
                found.append(Jump(_JUMPS[kind], place, before, norm, is_certain))
        return sorted(found, key=lambda jump: not jump.certain)

    @torch.no_grad()
    def _measured(self) -> tuple[list[str], list[torch.Tensor], list[float]]:
        """Return names, tensors and norms of all that is kept and can be damaged."""
        if self._found is None:
            live, _ = self._source.collect()
            self._found = {
                name: tensor
                for name, tensor in live.items()
                if tensor.is_floating_point() and tensor.numel() and tensor.layout is torch.strided
                if not (name.startswith("state.") and tensor.dim() == 0)
            }
        names, tensors = list(self._found), list(self._found.values())
        return names, tensors, norms_of(tensors).tolist()

    def _place(self, name: str, tensor: torch.Tensor) -> str:
        """Return where a damaged tensor stands in the user's words, and which of its rows."""
        kind, _, rest = name.partition(".")
        if kind == "state":
            index, _, entry = rest.partition(".")
            return f"{entry} of {self._weight_names()[int(index)]}"
        finite = torch.isfinite(tensor.detach())
        rows = "" if tensor.dim() < 1 else _rows(~finite)
        return f"{rest}{rows}"

    def _weight_names(self) -> list[str]:
        names = {id(weight): name for name, weight in self._model.named_parameters()}
        groups = enumerate(self._optimizer.param_groups)
        return [
            names.get(id(weight), f"weight {i} of group {g}")
            for g, group in groups
            for i, weight in enumerate(group["params"])
        ]

    def first_not_finite(self) -> tuple[Fault | None, str, Any]:
        """Return what in the batch is to blame, where in the model, and which rows."""
        batch = self.batch
        if batch is not None:
            rows = bad_rows(batch.data)
            if rows is not None:
                named = _named_rows(batch.name, rows)
                return Fault.INPUT_NOT_FINITE, "the batch itself", named
        named = None if batch is None else batch.name
        where = "" if batch is None else self._first_in_forward(batch)
        if where:
            return None, f"first in the output of {where}", named
        for name, weight in reversed(list(self._model.named_parameters())):
            if weight.grad is not None and not torch.isfinite(weight.grad).all():
                return None, f"gradient of {name}", named
        return None, "", named

    def _first_in_forward(self, batch: Batch) -> str:
        """Run a batch again and return the first module whose output is not finite."""
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _: Any, output: Any) -> None:
                if not found and any(not torch.isfinite(t).all() for t in floats_in(output)):
                    found.append(f"{name or 'the model'} ({type(module).__name__})")

            return hook

        hooks = [
            module.register_forward_hook(look(name)) for name, module in self._model.named_modules()
        ]
        try:
            with left_as_it_was(self._model), torch.no_grad():
                batch.loss_of(batch.data)
        except Exception:  # noqa: BLE001 - the user's own code, run once more for evidence alone
            return ""
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else ""

    # Asking good batches.

    def remember(self, loss: float) -> None:
        """Remember the batch of a healthy step."""
        if self.batch is not None:
            self._batches.append((self.batch, loss))

    def probe(self) -> Probe | None:
        """Return the worst case, training or evaluating, of good batches now and before."""
        kept = self._newest()
        if not self._batches or kept is None:
            return None
        try:
            with left_as_it_was(self._model):
                now = self._losses()
                with self._as_kept(kept):
                    then = self._losses()
        except Exception:  # noqa: BLE001 - the user's own code, run once more for evidence alone
            return None
        pairs = [Probe(a, b) for a, b in zip(now, then, strict=True) if math.isfinite(b)]
        return max(pairs, key=_worse, default=None)

    @torch.no_grad()
    def _losses(self) -> list[float]:
        """Return the mean loss of the good batches, in training mode and in evaluation mode."""
        found, modes = [], [(module, module.training) for module in self._model.modules()]
        for training in (True, False):
            state = random_state()
            for module, was in modes:
                module.training = was and training
            kept = [buffer.detach().clone() for buffer in self._running]
            losses = [float(batch.loss_of(batch.data)) for batch, _ in self._batches]
            _copy(self._running, kept)
            restore_random_state(state)
            found.append(sum(losses) / len(losses))
        for module, was in modes:
            module.training = was
        return found

    def _as_kept(self, kept: Snapshots) -> Any:
        return _Exchanged(self._source, kept)

    # Keeping and putting back.

    def note_forward(self) -> None:
        """Remember the buffers that the coming forward pass moves."""
        _copy(self._before, self._running)

    def undo_forward(self) -> None:
        """Put buffers back as they were before the step's forward pass."""
        _copy(self._running, self._before)

    def take(self, step: int, loss: float) -> None:
        """Promote the snapshot that was taken last, and take another."""
        if self._pending is not None:
            self._good.append(self._pending)
            if len(self._good) > _GOOD:
                self._drop(self._good.pop(0))
        room = self._free.pop()
        room.keep()
        self._pending, self._found = _Kept(step, loss, room), None
        names, _, norms = self._looked or self._measured()
        self._norms, self._looked = dict(zip(names, norms, strict=True)), None
        self.gradient_sums, self.rate_sum = [0.0, 0.0], 0.0

    def _drop(self, kept: _Kept) -> None:
        """Free a snapshot, or keep it in place of the one with the lowest loss so far."""
        if kept.loss < (math.inf if self._lowest is None else self._lowest.loss):
            kept, self._lowest = self._lowest, kept  # type: ignore[assignment]
        if kept is not None:
            self._free.append(kept.state)

    def restore(self, older: bool, lowest: bool = False) -> int | None:
        """Put back a good snapshot, and return its step."""
        if self._good and self._pending is not None:
            self._free.append(self._pending.state)
            self._pending = None
        if lowest and self._lowest is not None:
            while self._good:
                self._free.append(self._good.pop().state)
            self._good, self._lowest = [self._lowest], None
        if older and len(self._good) > 1:
            self._free.append(self._good.pop().state)
        kept = self._good[-1] if self._good else self._pending
        if kept is None:
            return None
        kept.state.restore()
        self._found = None
        self.note_forward()
        names, _, norms = self._measured()
        self._norms, self._looked = dict(zip(names, norms, strict=True)), None
        return kept.step

    def close(self) -> None:
        """Let go of the snapshots."""
        kept = [one for one in (*self._good, self._pending, self._lowest) if one is not None]
        for state in [*self._free, *(one.state for one in kept)]:
            state.close()

    def _newest(self) -> Snapshots | None:
        kept = self._good[-1] if self._good else self._pending
        return None if kept is None else kept.state


class _Exchanged:
    """Has the state of a snapshot in the model within a block."""

    def __init__(self, source: TrainingState, kept: Snapshots) -> None:
        self._source, self._kept = source, kept

    def __enter__(self) -> None:
        live, self._plain = self._source.collect()
        self._now = {name: tensor.clone() for name, tensor in live.items()}
        self._kept.restore()

    def __exit__(self, *error: object) -> None:
        self._source.put_back(self._now, self._plain)


def norms_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the (n,) float32 norms of tensors, in few kernels."""
    if not tensors:
        return torch.zeros(0)
    norms = torch._foreach_norm(list(tensors))
    first = norms[0].device
    return torch.stack([norm.to(first, torch.float32) for norm in norms])


def floats_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floats_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from floats_in(item)


def bad_rows(batch: Any) -> list[int] | None:
    """Return the rows of a batch that are not finite; None if all are finite."""
    rows: set[int] = set()
    for tensor in floats_in(batch):
        bad = ~torch.isfinite(tensor)
        if bad.any():
            rows |= set(_row_numbers(bad))
    return sorted(rows) or None


def _row_numbers(bad: torch.Tensor) -> list[int]:
    if bad.dim() == 0:
        return [0]
    found: list[int] = bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else []
    return found or bad.nonzero()[:, 0].tolist()


def _rows(bad: torch.Tensor) -> str:
    rows = sorted(set(_row_numbers(bad))) if bad.any() else []
    if not rows:
        return ""
    told = ", ".join(map(str, rows[:3])) + (", ..." if len(rows) > len(rows[:3]) else "")
    return f"[{told}]"


def _named_rows(name: Any, rows: list[int]) -> Any:
    """Return what the loop calls the bad rows of a batch, as plain values."""
    if isinstance(name, list | tuple | range) and len(name) > max(rows):
        return [name[row] for row in rows]
    return {"batch": name, "rows": rows}


def _entry(leaf: str) -> str:
    """Return the name of an entry of the optimiser's state."""
    return leaf.rpartition(".")[2]


def _copy(into: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
    if into:
        with torch.no_grad():
            torch._foreach_copy_(list(into), list(of))


def _worse(probe: Probe) -> float:
    return math.inf if not math.isfinite(probe.now) else probe.now - probe.then


_JUMPS = {
    "weight": Fault.WEIGHTS_JUMPED,
    "buffer": Fault.BUFFERS_JUMPED,
    "state": Fault.OPTIMIZER_JUMPED,
}
_FAULTS = {
    "weight": Fault.WEIGHTS_NOT_FINITE,
    "buffer": Fault.BUFFERS_NOT_FINITE,
    "state": Fault.OPTIMIZER_NOT_FINITE,
}
