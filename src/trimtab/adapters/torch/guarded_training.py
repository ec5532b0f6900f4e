"""The state of a PyTorch run that a rescue looks at, keeps, and puts back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
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
_UNKNOWN = -1.0  # norm of what was not there
_FLOOR = 1e-3  # root mean square below which a tensor counts as zero
# Means of gradients or of their squares: none can grow beyond what the gradients bring.
_MEANS = frozenset(
    {"exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer"}
    | {"square_avg", "sum"}
)
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})


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
        gradient_sums: Sums of the norms and of the squared norms of gradients since the last
            snapshot.
        rate_sum: Sum of the learning rates since then.
        updates: How many there were since then.
        bytes: Size of all snapshots.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, place: str) -> None:
        self.batch: Batch | None = None
        self.gradient_sums, self.rate_sum, self.updates = [0.0, 0.0], 0.0, 0
        self._model, self._optimizer = model, optimizer
        self._source = TrainingState(model, optimizer)
        self._free = [Snapshots(place, self._source) for _ in range(_GOOD + 2)]
        self.bytes = sum(one.bytes for one in self._free)
        self._good: list[_Kept] = []
        self._pending: _Kept | None = None
        self._lowest: _Kept | None = None
        self._roster: _Roster | None = None  # of the last snapshot
        self._stale = True  # whether the state's tensors may be others at the next look
        self._before = np.zeros(0)  # norms of the roster's tensors then
        self._damaged: list[int] = []  # which of them the last look found
        self._norms: np.ndarray | None = None  # and now, once they were looked at
        self._batches: deque[tuple[Batch, float]] = deque(maxlen=_REMEMBERED)
        self._norms_of_batches = [one for one in model.modules() if isinstance(one, _NormBase)]
        self._running = [
            buffer for module in self._norms_of_batches for buffer in module.buffers(recurse=False)
        ]
        self._statistics = _Joined([one for one in self._running if one.is_floating_point()])
        self._masks: frozenset[str] | None = None  # buffers that are not finite from the beginning

    # Looking.

    def keep_statistics(self) -> None:
        """Keep the running statistics, and at first what else is not finite from the beginning."""
        self._statistics.keep()
        if self._masks is None:
            self._masks = frozenset(_not_finite_at_first(self._model))

    @torch.no_grad()
    def look_anew(self) -> None:
        """Look at a state of which no snapshots are taken here.

        Running statistics that are not finite, as the last forward pass leaves them, are those
        that were kept; what was not finite from the beginning (a mask of minus infinity) is sound.
        """
        self._roster, self._stale, self._before = None, True, np.zeros(0)
        roster, _ = self._look()
        masks = {f"buffer.{name}" for name in self._masks or ()}
        self._before = np.array([math.inf if n in masks else _UNKNOWN for n in roster.names])
        self._statistics.mend()
        self._statistics.keep()

    def kept_statistics(self) -> list[torch.Tensor]:
        """Return copies of the running statistics that were kept, joined by kind."""
        return [kept.clone() for kept in self._statistics.kept]

    def load_statistics(self, kept: Sequence[torch.Tensor]) -> None:
        """Take over `kept_statistics`."""
        for into, of in zip(self._statistics.kept, kept, strict=True):
            into.copy_(of)

    def not_finite(self, *, forward: bool = False) -> tuple[Fault, str] | None:
        """Return which of weights, buffers and optimiser state is not finite, and where.

        What was not finite when the last good snapshot was taken (a mask of minus infinity) is
        left out.

        Args:
            forward: Leave out what the step's forward pass moved.
        """
        roster, norms = self._look()
        damaged = ~np.isfinite(norms) & np.isfinite(self._before)
        self._damaged = damaged.nonzero()[0].tolist()
        if not self._damaged:
            return None
        moved = {buffer.data_ptr() for buffer in self._running} if forward else set()
        for index in self._damaged:
            name, tensor = roster.names[index], roster.tensors[index]
            if tensor.data_ptr() in moved:
                continue
            huge = bool(torch.isfinite(tensor).all())  # its norm alone is too large for the type
            faults = _JUMPS if huge else _FAULTS
            return faults[name.partition(".")[0]], self._place(name, tensor)
        return None

    def jumps(self) -> list[Jump]:
        """Return what moved too far since the last good snapshot, the surest first."""
        roster, now = self._roster, self._norms
        if roster is None or now is None:
            roster, now = self._look()
        before = self._before
        sums, rates = self.gradient_sums, self.rate_sum
        floor = _FLOOR * roster.roots
        with np.errstate(invalid="ignore", over="ignore"):
            times = (np.maximum(before, now) + floor) / (np.minimum(before, now) + floor)
            # A mean of gradients, or of their squares, cannot exceed what they add up to.
            state = roster.is_mean & (now > 1e3 * (before + max(sums) + floor))
            # Nor can a mean of squares fall faster than it forgets.
            state |= roster.is_square & (now < 0.5 * self._kept_share() * before)
            # Ten times what an update by sign, or by the gradient itself, moves a tensor.
            step = 10.0 * rates * (roster.roots + sums[0])
            far = (times > _FAR) & ~roster.is_state | state
            certain = roster.is_weight & (np.abs(now - before) > step)
            certain = far & (certain | state | roster.is_buffer & (times > _CERTAIN))
        far &= np.isfinite(before) & (before != _UNKNOWN)
        found = []
        self._damaged = far.nonzero()[0].tolist()
        for index in self._damaged:
            name = roster.names[index]
            fault, place = _JUMPS[name.partition(".")[0]], self._place(name, roster.tensors[index])
            jump = Jump(fault, place, float(before[index]), float(now[index]), bool(certain[index]))
            found.append(jump)
        return sorted(found, key=lambda jump: not jump.certain)

    def _kept_share(self) -> float:
        """Return how much of its mean of squares the optimiser keeps at least since then."""
        betas = [group.get("betas", (0.0, group.get("alpha", 0.9))) for group in self._groups()]
        least = min((float(pair[1]) for pair in betas), default=0.9)
        return float(min(max(least, 0.0), 1.0) ** self.updates)

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def _look(self) -> tuple[_Roster, np.ndarray]:
        """Measure all that is kept and can be damaged."""
        if self._roster is None or self._stale:
            old, new = self._roster, _Roster.of(self._source.collect()[0])
            if old is None or old.names != new.names:
                names = [] if old is None else old.names
                known = dict(zip(names, self._before.tolist(), strict=True))
                self._before = np.array([known.get(name, _UNKNOWN) for name in new.names])
            self._stale = old is None or old.places() != new.places()
            self._roster = new
        self._norms = _measured(self._roster.tensors)
        return self._roster, self._norms

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
        named = list(named) if isinstance(named, range) else named
        where = "" if batch is None else first_in_forward(self._model, batch.loss_of, batch.data)
        if where:
            return None, f"first in the output of {where}", named
        for name, weight in reversed(list(self._model.named_parameters())):
            if weight.grad is not None and not torch.isfinite(_entries(weight.grad)).all():
                return None, f"gradient of {name}", named
        return None, "", named

    # Asking good batches.

    def remember(self, loss: float) -> None:
        """Remember the batch of a healthy step."""
        if self.batch is not None:
            self._batches.append((self.batch, loss))

    def probe(self, *, sound: bool = False, lowest: bool = False) -> Probe | None:
        """Return the worst case, training or evaluating, of good batches now and before."""
        kept = self._lowest if lowest and self._lowest is not None else self._newest()
        if not self._batches or kept is None:
            return None
        try:
            with left_as_it_was(self._model):
                if sound:
                    self._statistics.put_back()
                now = self._losses()
                with self._as_kept(kept.state):
                    then = self._losses()
        except Exception:  # noqa: BLE001 - the user's own code, run once more for evidence alone
            return None
        pairs = [Probe(a, b) for a, b in zip(now, then, strict=True) if math.isfinite(b)]
        return max(pairs, key=_worse, default=None)

    def _is_no_worse(self, newer: _Kept, older: _Kept) -> bool:
        """Return whether good batches say that the newer of two snapshots is as good."""
        if not self._batches:
            return False
        try:
            with left_as_it_was(self._model):
                with self._as_kept(newer.state):
                    now = self._losses()
                with self._as_kept(older.state):
                    then = self._losses()
        except Exception:  # noqa: BLE001 - the user's own code, run once more for evidence alone
            return False
        return not any(
            Probe(a, b).is_damaged(0.0, share=0.1) for a, b in zip(now, then, strict=True)
        )

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

    def undo_forward(self) -> None:
        """Put the buffers that a forward pass moves back as they were when last found sound."""
        self._statistics.put_back()

    def take(self, step: int, loss: float) -> None:
        """Take a snapshot, which is good once a later look finds nothing."""
        self.find_sound()
        room = self._free.pop()
        live = self._source.collect()
        room.keep(live)
        self._pending = _Kept(step, loss, room)
        before, self._roster = self._roster, _Roster.of(live[0])
        self._stale |= before is None or before.places() != self._roster.places()
        if self._norms is None or before is None or before.names != self._roster.names:
            self._norms = _measured(self._roster.tensors)
        self._before, self._norms = self._norms, None
        self._count_anew()

    def _count_anew(self) -> None:
        self.gradient_sums, self.rate_sum, self.updates = [0.0, 0.0], 0.0, 0

    def find_sound(self) -> None:
        """Call the snapshot that was taken last a good one: a later look found nothing."""
        self._statistics.keep()
        self._promote()

    def _promote(self) -> None:
        if self._pending is not None:
            self._good.append(self._pending)
            self._pending = None
            if len(self._good) > _GOOD:
                self._drop(self._good.pop(0))

    def restore_statistics(self) -> bool:
        """Put BatchNorm's statistics back, if they alone are damaged and training reads none."""
        roster, ours = self._roster, {buffer.data_ptr() for buffer in self._running}
        if roster is None or any(not module.training for module in self._norms_of_batches):
            return False
        if any(roster.tensors[index].data_ptr() not in ours for index in self._damaged):
            return False
        self._statistics.put_back()
        self._norms = None
        return True

    def _drop(self, kept: _Kept) -> None:
        """Free a snapshot, or keep it in place of the one with the lowest loss so far."""
        if kept.loss < (math.inf if self._lowest is None else self._lowest.loss):
            kept, self._lowest = self._lowest, kept  # type: ignore[assignment]
        if kept is not None:
            self._free.append(kept.state)

    def restore(self, older: bool, lowest: bool = False) -> int | None:
        """Put back a good snapshot, and return its step."""
        if self._good and self._pending is not None:
            if not older and not lowest and self._is_no_worse(self._pending, self._good[-1]):
                self._promote()
            else:
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
        self._roster, self._before = None, np.zeros(0)
        self._statistics.keep()
        _, self._before = self._look()
        self._norms = None
        self._count_anew()
        return kept.step

    def close(self) -> None:
        """Let go of the snapshots."""
        kept = [one for one in (*self._good, self._pending, self._lowest) if one is not None]
        for state in [*self._free, *(one.state for one in kept)]:
            state.close()

    def _newest(self) -> _Kept | None:
        return self._good[-1] if self._good else self._pending


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


class _Roster(NamedTuple):
    """Tensors that can be damaged, and of which kind each is."""

    names: list[str]
    tensors: list[torch.Tensor]
    roots: np.ndarray  # of their numbers of elements
    is_weight: np.ndarray
    is_buffer: np.ndarray
    is_state: np.ndarray
    is_mean: np.ndarray
    is_square: np.ndarray

    @classmethod
    def of(cls, live: Mapping[str, torch.Tensor]) -> _Roster:
        """Return those among a state's tensors."""
        chosen = {
            name: tensor
            for name, tensor in live.items()
            if tensor.is_floating_point() and tensor.numel() and tensor.layout is torch.strided
            if not (name.startswith("state.") and tensor.dim() == 0)
        }
        names = list(chosen)
        kinds = [name[:6] for name in names]
        weights, buffers, states = (np.array([k == one for k in kinds], bool) for one in _KINDS)
        leaves = [name.rpartition(".")[2] for name in names]
        means, squares = (
            states & np.array([leaf in kind for leaf in leaves], bool)
            for kind in (_MEANS, _SQUARES)
        )
        sizes = np.array([tensor.numel() for tensor in chosen.values()], float)
        roots = np.sqrt(sizes)
        tensors = list(chosen.values())
        return cls(names, tensors, roots, weights, buffers, states, means, squares)

    def places(self) -> list[int]:
        """Return where in memory the tensors lie."""
        return [tensor.data_ptr() for tensor in self.tensors]


class _Joined:
    """Small tensors of a model, kept together by one call each."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        kinds: dict[Any, list[torch.Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        self._of = [(list(same), torch.cat([t.flatten() for t in same])) for same in kinds.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the values they have now."""
        for tensors, kept in self._of:
            torch.cat(tensors, out=kept)

    @property
    def kept(self) -> list[torch.Tensor]:
        """What was kept, joined by device and type."""
        return [kept for _, kept in self._of]

    @torch.no_grad()
    def put_back(self) -> None:
        """Put back what was kept."""
        for tensor, part in self._parts():
            tensor.copy_(part)

    @torch.no_grad()
    def mend(self) -> None:
        """Put back what was kept of those that are not finite now."""
        for tensor, part in self._parts():
            if not torch.isfinite(tensor).all():
                tensor.copy_(part)

    def _parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for tensors, kept in self._of:
            for tensor, part in zip(tensors, kept.split([t.numel() for t in tensors]), strict=True):
                yield tensor, part.view_as(tensor)


def _not_finite_at_first(model: nn.Module) -> Iterator[str]:
    """Yield the names of buffers that are not finite; of a type that cannot tell, none."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and buffer.layout is torch.strided:
            with suppress(RuntimeError):
                if not torch.isfinite(buffer).all():
                    yield name


def first_in_forward(model: nn.Module, loss_of: Callable[[Any], torch.Tensor], data: Any) -> str:
    """Run a batch forward and return the first module whose output is not finite; empty: none.

    The model is left as it was. An error of the user's own code counts as none.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not found and any(not torch.isfinite(t).all() for t in _floats_in(output)):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with left_as_it_was(model), torch.no_grad():
            loss_of(data)
    except Exception:  # noqa: BLE001 - run once more for evidence alone
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def norms_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the (n,) float32 norms of tensors, in few kernels."""
    if not tensors:
        return torch.zeros(0)
    try:
        norms = list(torch._foreach_norm(list(tensors)))
    except NotImplementedError:  # a sparse gradient among them
        norms = list(torch._foreach_norm([_entries(tensor) for tensor in tensors]))
    first = norms[0]
    if any(norm.dtype is not torch.float32 or norm.device != first.device for norm in norms):
        norms = [norm.to(first.device, torch.float32) for norm in norms]
    return torch.stack(norms)


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    """Return the entries of a gradient that are there."""
    if not tensor.is_sparse:
        return tensor
    values: torch.Tensor = tensor.coalesce().values()
    return values


def total_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients together, () float32, in few kernels."""
    norm: torch.Tensor = torch.linalg.vector_norm(norms_of(gradients))
    return norm


def _measured(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return np.array(norms_of(tensors).tolist())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _floats_in(value: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point())


def bad_rows(batch: Any) -> list[int] | None:
    """Return the rows of a batch that are not finite; None if all are finite."""
    rows: set[int] = set()
    for tensor in _floats_in(batch):
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


def _copy(into: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
    if into:
        with torch.no_grad():
            torch._foreach_copy_(list(into), list(of))


def _worse(probe: Probe) -> float:
    return math.inf if not math.isfinite(probe.now) else probe.now - probe.then


_KINDS = ("weight", "buffer", "state.")
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
