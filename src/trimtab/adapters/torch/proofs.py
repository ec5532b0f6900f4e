"""Proving, once a run, that the framework uses what is written: nothing may be silently ignored.

`Proofs` look at updates and outputs; `ClipProof` and `StandInNorm` at how a trainer clips.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from trimtab.adapters.actuators import SteeredValue
from trimtab.adapters.torch.depth import DepthRates
from trimtab.adapters.torch.several import parts_of
from trimtab.adapters.torch.state import left_as_it_was
from trimtab.core.errors import AdapterError
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.notices import tell
from trimtab.core.spec import ControlSpec

_MOST_REPLAYS = 8  # of each kind; their inputs are held until the first step's update

_SMALL = 1e-3  # of a norm: what gradients are clipped at while it is tried

_RATES = (0.5, 64.0)  # far apart, for some optimisers begin with steps of 1e-6 times the rate

_MOST_COUNTED = 64  # entries of what an optimiser keeps outside its state

_logger = logging.getLogger("trimtab")

_IN_UPDATE = frozenset({"weight_decay", "momentum", "beta1", "layer_decay", "frozen_depth"})
"""Kinds that show in what the optimiser does to a weight."""


class Replay:
    """The first training call of something that reads a value, to be done again at others.

    Args:
        owner: The module whose ``forward`` is recorded; None where `remember` is called instead.
        model: What is left as it was: modes, buffers, random state; None for the owner.

    Attributes:
        waits: Whether a call is waited for.
    """

    def __init__(self, owner: nn.Module | None, model: nn.Module | None = None) -> None:
        self._owner = owner
        self._model = model or owner or nn.Module()
        self._call: Callable[[], Any] | None = None
        self._autocast: Any = None
        self._handle: Any = None
        self.waits = False

    def listen(self) -> None:
        """Wait for the call."""
        self.waits = True
        if self._owner is not None:
            self._handle = self._owner.register_forward_pre_hook(self._hear, with_kwargs=True)

    def forget(self) -> None:
        """Stop waiting, and let go of what was recorded."""
        self._call, self.waits = None, False
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def was_called(self) -> bool:
        """Whether there is a call to do again."""
        return self._call is not None

    def remember(self, call: Callable[[], Any]) -> None:
        """Keep a call, unless there is one."""
        if self._call is None:
            self._call = call
            device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
            if torch.is_autocast_enabled(device):
                self._autocast = torch.autocast(device, torch.get_autocast_dtype(device))

    def stand_in(self) -> None:
        """Make up a call, where a compiled model hides the real ones from hooks."""
        if isinstance(self._owner, nn.modules.dropout._DropoutNd):
            last = type(self._owner).__name__[-2:]
            n_dims = {"1d": 3, "2d": 4, "3d": 5}.get(last, 2)
            owner, ones = self._owner, torch.ones([8] * n_dims)
            self.remember(lambda: owner.forward(ones))
        elif isinstance(self._owner, nn.CrossEntropyLoss):
            loss, logits, labels = self._owner, torch.eye(3), torch.arange(3)
            self.remember(lambda: loss.forward(logits, labels))

    @torch.no_grad()
    def outputs(self, write: Callable[[], None]) -> list[torch.Tensor]:
        """Return the call's tensors after ``write()``, always with the same random numbers."""
        assert self._call is not None
        with left_as_it_was(self._model), _awake_adapters(self._owner):
            for module in self._model.modules():
                module.training = True
            torch.manual_seed(0)
            write()
            if self._autocast is None:
                outputs = self._call()
            else:
                with self._autocast:
                    outputs = self._call()
            values = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
            return [x.clone() for x in tree_leaves(values) if isinstance(x, torch.Tensor)]

    def _hear(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or not module.training or not torch.is_grad_enabled():
            return
        if self._call is None:
            given = tree_map(_apart, (args, kwargs))
            self.remember(lambda: module.forward(*given[0], **given[1]))


class Proofs:
    """Proves each kind once: at the beginning what the update shows, at step 1 what outputs show.

    The run's weights, buffers, optimiser state, groups and random state are bit for bit what they
    were: the optimiser steps on two small weights of our own, and a module's call is done again
    without gradients, with modes, buffers and random state put back.

    Args:
        actuators: What writes each hyperparameter; None where there is nothing to prove.
        optimizer: The optimiser.
        depth: What divides its groups by depth, or None.
        lr: Whether the learning rate is to be proven as well.

    Raises:
        AdapterError: A kind does not show in the optimiser's update.
    """

    def __init__(
        self,
        actuators: Sequence[Any],
        optimizer: torch.optim.Optimizer,
        depth: DepthRates | None = None,
        *,
        lr: bool = False,
    ) -> None:
        if lr:
            for part in parts_of(optimizer):
                _prove_rate(part)
        self._open = [a for a in actuators if a is not None and a.item.kind not in _IN_UPDATE]
        for actuator in actuators:
            if actuator is not None and actuator.item.kind in _IN_UPDATE:
                _prove_update(actuator, optimizer, depth)
        self._replays = [r for a in self._open for r in _replays(a)]
        for replay in self._replays:
            replay.listen()

    def finish(self) -> None:
        """Prove what outputs show, before the first update.

        Raises:
            AdapterError: Nothing that was trained on reads a value.
        """
        if not self._open:
            return
        waiting, self._open = self._open, []
        try:
            for actuator in waiting:
                problem = _unproven(actuator)
                if problem:
                    raise AdapterError(f"{actuator.item.name}: {problem}")
        finally:
            for replay in self._replays:
                replay.forget()
            self._replays = []


def _replays(actuator: Any) -> list[Replay]:
    return [p.owner for p in actuator.places if isinstance(p.owner, Replay)][:_MOST_REPLAYS]


def _unproven(actuator: Any) -> str:
    """Return why a kind is not proven to be used, or an empty string."""
    owners = [place.owner for place in actuator.places]
    values = [owner for owner in owners if isinstance(owner, SteeredValue)]
    if values:
        return "" if any(v.reads for v in values) else _NOT_READ.format(name=actuator.item.name)
    if not any(isinstance(owner, Replay) for owner in owners):
        return ""  # written into what we use ourselves
    called = False
    for place in actuator.places:
        replay = place.owner
        if isinstance(replay, Replay):
            if not replay.was_called and _something_was_compiled():
                replay.stand_in()
            called |= replay.was_called
            if replay.was_called and _changes_output(place, replay, actuator.item):
                return ""
    return _SAME_OUTPUT if called else _NOT_CALLED


def _changes_output(place: Any, replay: Replay, item: Hyperparameter) -> bool:
    before = place.read()
    try:
        low, high = (
            replay.outputs(lambda value=value: place.write(value))  # type: ignore[misc]
            for value in (item.low, item.high)
        )
    except Exception:  # noqa: BLE001 - any module of the user's own; then another may prove it
        return False
    finally:
        place.write(before)
    return _differ(low, high)


def _differ(low: Sequence[torch.Tensor], high: Sequence[torch.Tensor]) -> bool:
    return any(
        a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(low, high, strict=True)
    )


def _prove_update(actuator: Any, optimizer: Any, depth: DepthRates | None) -> None:
    kind, parts = actuator.item.name, parts_of(optimizer)
    name = " and ".join(dict.fromkeys(type(part).__name__ for part in parts))
    try:
        unmoved = _unmoved(actuator, optimizer, depth)
    except Exception as error:
        raise AdapterError(
            f"{kind}: {name} could not be tried on a small weight "
            f"({type(error).__name__}: {error}), so nothing proves that it uses the value; leave "
            f"{kind!r} out of hyperparameters="
        ) from error
    if unmoved:
        raise AdapterError(
            f"{kind}: {type(unmoved[0]).__name__} makes the same update at {actuator.item.low:g} "
            f"and at {actuator.item.high:g}, so it does not use the value; leave {kind!r} out of "
            "hyperparameters=, or use an optimiser that does"
        )


def _prove_rate(optimizer: Any) -> None:
    """Raise if an optimiser ignores a learning rate that is written into its groups in mid-run.

    One that cannot be tried on small weights is believed.
    """
    name = type(optimizer).__name__
    try:
        ends = [_later_steps_at(rate, optimizer) for rate in _RATES]
    except Exception as error:  # noqa: BLE001 - any optimiser of the user's own
        _logger.info("lr: %s could not be tried (%s: %s)", name, type(error).__name__, error)
        return
    if not _differ(*ends):
        raise AdapterError(
            f"lr: {name} makes the same update at a learning rate of {_RATES[0]:g} and of "
            f"{_RATES[1]:g}, so it does not use the one in its parameter groups; take an optimiser "
            "that does, such as AdamW, or switch off the schedule of its own"
        )


def _later_steps_at(rate: float, optimizer: Any) -> list[torch.Tensor]:
    """Return small weights after a step at a usual rate and two at this; ASGD is a step late."""
    with left_as_it_was(nn.Module()), _small_weights(optimizer, None) as weights:
        torch.manual_seed(0)
        for step in range(3):
            for weight in weights:
                weight.grad = _gradient(weight, step)
            if step == 1:
                for group in optimizer.param_groups:
                    if isinstance(group["lr"], torch.Tensor):
                        group["lr"].fill_(rate)
                    else:
                        group["lr"] = rate
            type(optimizer).step(optimizer)
        return [weight.detach().clone() for weight in weights]


def changes_update(
    actuator: Any, optimizer: torch.optim.Optimizer, depth: DepthRates | None = None
) -> bool:
    """Return whether two steps on small weights end elsewhere at the lowest and highest value.

    The optimiser itself steps, through the same writing that steers it; its groups, state and step
    hooks are exchanged for that time, and its own are not touched.
    """
    return not _unmoved(actuator, optimizer, depth)


def _unmoved(actuator: Any, optimizer: Any, depth: DepthRates | None) -> list[Any]:
    """Return the optimisers that hold the value and do not use it."""
    parts, seen = parts_of(optimizer), []
    for value in (actuator.item.low, actuator.item.high):
        with ExitStack() as stack:
            small = [stack.enter_context(_small_weights(part, depth)) for part in parts]
            seen.append(_steps_at(value, actuator, parts, small, depth))
    (low, low_held), (high, high_held) = seen
    # With layers in the place of settings, an optimiser may hold weights of one layer only.
    concerned = [a != b for a, b in zip(low_held, high_held, strict=True)]
    moved = [_differ(a, b) for a, b in zip(low, high, strict=True)]
    if len(parts) == 1 or not any(concerned):
        return [] if any(moved) else parts[:1]
    asked = zip(parts, concerned, moved, strict=True)
    return [part for part, holds, moves in asked if holds and not moves]


def _steps_at(
    value: float, actuator: Any, parts: list[Any], small: list[list[torch.Tensor]], depth: Any
) -> tuple[list[list[torch.Tensor]], list[str]]:
    """Do two steps at a value; return each optimiser's weights then, and its settings."""
    before = [place.read() for place in actuator.places]
    try:
        for place in actuator.places:
            place.write(value)
        held = [_settings(part) for part in parts]
        for step in range(2):
            for weight in (weight for weights in small for weight in weights):
                weight.grad = _gradient(weight, step)
            if depth is not None:
                depth.divide()
            for part in parts:
                type(part).step(part)
            if depth is not None:
                depth.rejoin()
    finally:
        if depth is not None:
            depth.rejoin()
        for place, kept in zip(actuator.places, before, strict=True):
            place.write(kept)
    return [[weight.detach().clone() for weight in weights] for weights in small], held


def _gradient(weight: torch.Tensor, step: int) -> torch.Tensor:
    """Return a gradient that differs from step to step by more than its length, as Muon needs."""
    ones = torch.ones_like(weight)
    return -0.5 * ones.flatten().cumsum(0).view_as(weight) if step else ones


def _settings(optimizer: Any) -> str:
    groups = optimizer.param_groups
    return str([{key: group[key] for key in group if key != "params"} for group in groups])


@contextmanager
def _small_weights(optimizer: Any, depth: DepthRates | None) -> Iterator[list[torch.Tensor]]:
    """Let the optimiser hold one small weight for each group and layer."""
    names = ("param_groups", "state", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    kept = {name: getattr(optimizer, name) for name in names if hasattr(optimizer, name)}
    own = {name: held for name, held in vars(optimizer).items() if name not in names}
    contents = {name: _copied(held) for name, held in own.items() if _is_small(held)}
    layers = {} if depth is None else dict(depth.layer)
    weights: list[torch.Tensor] = []
    groups = []
    for group in kept["param_groups"]:
        theirs = {layers.get(id(weight), -1): weight for weight in group["params"]}
        mine = []
        for layer, weight in theirs.items():
            shape = [min(size, 2) for size in weight.shape]
            mine.append(torch.full(shape, 2.0, device=weight.device, requires_grad=True))
            if depth is not None and layer >= 0:
                depth.layer[id(mine[-1])] = layer
        weights += mine
        small = type(group)(group)
        for key in list(group):
            if key != "params":  # rates and betas may be tensors, which are filled in place
                small[key] = copy.deepcopy(group[key])
        small["params"] = mine
        if isinstance(small["lr"], torch.Tensor):
            small["lr"].fill_(0.5)
        else:
            small["lr"] = 0.5
        groups.append(small)
    try:
        optimizer.param_groups, optimizer.state = groups, defaultdict(dict)
        for name in names[2:]:
            if name in kept:
                setattr(optimizer, name, OrderedDict())
        yield weights
    finally:
        for name in set(vars(optimizer)) - set(own) - set(kept):
            delattr(optimizer, name)
        for name, value in (own | kept).items():
            vars(optimizer)[name] = value
        for name, value in contents.items():
            _refill(own[name], value)
        if depth is not None:
            depth.layer = layers


def _is_small(held: Any) -> bool:
    """Return whether this is a counter or estimate of an optimiser's own, outside its state."""
    if isinstance(held, torch.Tensor):
        return not isinstance(held, nn.Parameter) and held.numel() <= _MOST_COUNTED
    return isinstance(held, list | dict) and len(held) <= _MOST_COUNTED


def _copied(held: Any) -> Any:
    return held.detach().clone() if isinstance(held, torch.Tensor) else copy.copy(held)


@torch.no_grad()
def _refill(held: Any, contents: Any) -> None:
    """Give a container or tensor back what was in it."""
    if isinstance(held, torch.Tensor):
        held.copy_(contents)
        return
    held.clear()
    if isinstance(held, dict):
        held.update(contents)
    else:
        held.extend(contents)


@contextmanager
def _awake_adapters(owner: nn.Module | None) -> Iterator[None]:
    """Let a LoRA layer whose second matrix is still zero say something."""
    matrices: list[torch.Tensor] = []
    with suppress(AttributeError):
        matrices = [w for m in owner.lora_B.values() for w in m.parameters()]  # type: ignore[union-attr, operator]
    kept = [weight.detach().clone() for weight in matrices]
    try:
        for weight in matrices:
            weight.fill_(0.5)
        yield
    finally:
        for weight, value in zip(matrices, kept, strict=True):
            weight.copy_(value)


def _apart(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _something_was_compiled() -> bool:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"]["ok"])


_NOT_READ = (
    "SteeredValue({name!r}) was not read before the first step, so steering it would do nothing; "
    "call it where the batch is made, in this process (num_workers=0)"
)
_NOT_CALLED = (
    "nothing that holds it was called in the first training step, so steering it would do nothing; "
    "use the very object that the loop calls, or leave it out of hyperparameters= (inside a "
    "compiled model only PyTorch's own dropout layers and cross entropy can be proven)"
)
_SAME_OUTPUT = (
    "what holds it gives the same output at its lowest and its highest value, so it is not used; "
    "leave it out of hyperparameters="
)


class ClipProof:
    """Clips a step's gradients as the trainer does, at two norms, and gives them back as they were.

    Args:
        spec: What is steered; without a clipping norm there is nothing to prove.

    Attributes:
        open: Whether it is still to be proven.
    """

    def __init__(self, spec: ControlSpec) -> None:
        self.open = any(item.kind == "clip" for item in spec.hyperparameters)

    @torch.no_grad()
    def prove(self, weights: Sequence[torch.Tensor], clip: Callable[[float], None]) -> None:
        """Prove it on the gradients that are there, unless they are nothing or not finite.

        Args:
            weights: All trainable weights.
            clip: Clips their gradients as the trainer would at this norm.

        Raises:
            AdapterError: They are the same at both norms.
        """
        kept = {id(w): w.grad.clone() for w in weights if w.grad is not None}
        norm = _norm(kept.values())
        if not self.open or norm is None:
            return
        ended = []
        try:
            for value in (_SMALL * norm, 2 * norm):
                clip(value)
                ended.append(_norm(w.grad for w in weights if w.grad is not None))
                _put_back(weights, kept)
        except Exception as error:  # noqa: BLE001 - a hook of the user's own; their fit goes on
            _put_back(weights, kept)
            self.open = False
            tell(f"clip: trying whether it is used failed ({type(error).__name__}: {error})")
            return
        self.open = False
        if ended[0] == ended[1]:
            raise AdapterError(_UNUSED)


class StandInNorm:
    """Lets Trainer clip one step at a small norm, and then puts the whole gradients back.

    Trainer clips between two of its events, by itself. So in the first step that it clips it is
    given another norm than the one in force; whether the gradients came out at that norm is the
    proof. The gradients of before are kept as they are made, and clipped as Trainer does.

    Args:
        spec: What is steered; without a clipping norm there is nothing to prove.
        possible: False where gradients are scaled, or put together from several processes.
    """

    def __init__(self, spec: ControlSpec, *, possible: bool) -> None:
        self._open = possible and any(item.kind == "clip" for item in spec.hyperparameters)
        self._kept: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []
        self._norm = 0.0

    def begin(self, model: torch.nn.Module, norm: float) -> float:
        """Return the norm at which Trainer is to clip the coming step; ``norm`` once it is proven.

        Args:
            model: Whose gradients are clipped.
            norm: The norm in force.
        """
        self.end()
        if not self._open:
            return norm
        self._norm = norm * _SMALL
        for weight in model.parameters():
            if weight.requires_grad:
                handle = weight.register_post_accumulate_grad_hook(self._keep)
                self._handles.append(handle)
        return self._norm

    def finish(self, model: torch.nn.Module) -> bool:
        """Put the gradients back; return whether they are still to be clipped at the true norm.

        Raises:
            AdapterError: Trainer clipped at another norm, or not at all.
        """
        kept = self._kept
        if not self._handles:
            return False
        self.end()
        weights = list(model.parameters())
        whole = _norm(kept.values())
        clipped = _norm(w.grad for w in weights if w.grad is not None)
        _put_back(weights, kept)
        if whole is not None and whole > 4 * self._norm:
            self._open = False
            if clipped is not None and clipped > 2 * self._norm:
                raise AdapterError(_UNUSED)
        return True

    def end(self) -> None:
        """Let go of what was kept."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], {}

    def _keep(self, weight: torch.Tensor) -> None:
        if weight.grad is not None:
            self._kept[id(weight)] = weight.grad.detach().clone()


def _norm(gradients: Iterable[torch.Tensor]) -> float | None:
    """Return the norm of all gradients together; None if it is 0 or not finite."""
    norms = [torch.linalg.vector_norm(_dense(gradient).float()) for gradient in gradients]
    if not norms:
        return None
    total = float(torch.linalg.vector_norm(torch.stack([norm.cpu() for norm in norms])))
    return total if 0 < total < float("inf") else None


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _put_back(weights: Iterable[torch.Tensor], kept: dict[int, torch.Tensor]) -> None:
    for weight in weights:
        if id(weight) in kept:
            weight.grad = kept[id(weight)].clone()


_UNUSED = (
    "clip: the trainer clips the same at a small and at a large norm, so it does not use the one "
    "that is written; leave 'clip' out of hyperparameters=, or let configure_gradient_clipping or "
    "the trainer's own clipping take the norm it is given"
)
