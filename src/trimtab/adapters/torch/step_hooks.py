"""Steering a loop that is not the user's own, at the steps of its optimiser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.checks import check_loss
from trimtab.adapters.torch.distributed import Processes
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.adapters.torch.schedules import Rates
from trimtab.adapters.torch.steering import TorchDriver
from trimtab.adapters.torch.stepper import Stepper
from trimtab.adapters.torch.trainer import drop_gradients
from trimtab.adapters.torch.wrappers import unwrapped
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell


def check_hooks(optimizer: Any) -> None:
    """Raise unless an optimiser calls PyTorch's hooks before and after its step.

    Raises:
        AdapterError: It does not.
    """
    has_hooks = hasattr(optimizer, "register_step_pre_hook")
    if not has_hooks or not getattr(type(optimizer).step, "hooked", False):
        raise AdapterError(
            f"attach: {type(optimizer).__name__} calls no hooks of torch.optim.Optimizer at its "
            "step; give one that does (in fastai opt_func=partial(OptimWrapper, "
            "opt=torch.optim.AdamW)), or call controller.step(loss) in a loop of your own"
        )


class StepHooks:
    """Does before and after each step of an optimiser what ``controller.step(loss)`` does there.

    The losses that were told since the last step are that step's; of several micro-batches their
    mean is taken. A closure that is handed to ``step`` is evaluated first, once, and what it
    returns is the loss where none was told.

    Args:
        optimizers: Those that step together, without wrappers.
        driver: Told of each step.
        stepper: Clips, and knows the scaler.
        rates: Writes the learning rates.
        processes: Who trains together.
        model: The model; losses that are computed while it is not in training mode are no
            training losses.
    """

    def __init__(
        self,
        optimizers: Sequence[Any],
        *,
        driver: TorchDriver,
        stepper: Stepper,
        rates: Rates,
        processes: Processes,
        model: nn.Module,
    ) -> None:
        self._optimizers = list(optimizers)
        self._driver, self._stepper, self._rates = driver, stepper, rates
        self._processes, self._model = processes, model
        self._followed = rates if isinstance(rates, FollowedRates) else None
        self._handles: list[Any] = []
        self._watched: list[Any] = []
        self._losses: list[torch.Tensor | float] = []
        self._last: torch.Tensor | float | None = None
        self._depth = {id(optimizer): 0 for optimizer in optimizers}  # of calls of its step
        self._stepped: set[int] | None = None  # in the step that is under way; None for none
        self._goes_on = True  # whether that step's update may be done

    # What a loop tells.

    def tell(self, loss: torch.Tensor | float) -> None:
        """Take in the loss of a batch or micro-batch of training."""
        check_loss(loss, "tell(loss)")
        self._losses.append(loss.detach() if isinstance(loss, torch.Tensor) else loss)

    def watch(self, loss_fn: Any, loss_of: Callable[[Any], Any] | None) -> Any:
        """Return a loss function whose losses are taken in where they are trained on."""
        note = functools.partial(self._note, loss_of or _loss_of)
        if isinstance(loss_fn, nn.Module):
            self._watched.append(loss_fn.register_forward_hook(_ModuleHook(note)))
            return loss_fn
        if not callable(loss_fn):
            raise AdapterError(
                f"watch(loss_fn): {loss_fn!r} cannot be called; give the loss function or module "
                "that the loop calls, or call tell(loss) before each optimizer.step()"
            )
        return _Watched(loss_fn, note)

    def register(self) -> None:
        """Begin to steer at each step."""
        for optimizer in self._optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]
        scaler = self._stepper.scaler
        if scaler is not None:
            # A scaler leaves steps out in silence; they count.
            scaler.step = functools.partial(self._scaled_step, scaler.step)
            scaler.update = functools.partial(self._scaled_update, scaler.update)

    def remove(self) -> None:
        """Leave the loop as it was."""
        if not self._handles:
            return
        for handle in [*self._handles, *self._watched]:
            handle.remove()
        self._handles, self._watched = [], []
        scaler = self._stepper.scaler
        if scaler is not None:
            del scaler.step, scaler.update

    def tell_unused(self) -> None:
        """Say that no step of the optimiser was seen."""
        if self._handles and self._last is None:
            tell(_NEVER_STEPPED.format(optimizer=type(self._optimizers[0]).__name__))

    # At each step of an optimiser.

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        evaluated, value = _evaluated(args, kwargs)
        if evaluated is not None and not self._losses:
            self._losses += _told_by_closure(value)
        if self._depth[id(optimizer)] and not self._losses:
            self._depth[id(optimizer)] += 1  # a subclass's step calls that of its base
            return None
        failed = any(self._depth.values())  # the last step raised, and the loop went on
        self._depth = dict.fromkeys(self._depth, 0) | {id(optimizer): 1}
        if self._stepped is not None and (failed or id(optimizer) in self._stepped):
            self._close(keep=self._losses)  # or another optimiser was left out
        if self._stepped is None:
            self._open()
            if self._followed is not None:
                self._followed.write()
        if not self._goes_on:
            drop_gradients(optimizer)
        self._driver.divide_groups()
        return evaluated

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        self._depth[id(optimizer)] -= 1
        if self._depth[id(optimizer)] or self._stepped is None:
            return
        self._driver.rejoin_groups()
        self._stepped.add(id(optimizer))
        if len(self._stepped) < len(self._optimizers):
            return
        self._put_back_rates()
        if self._stepper.scaler is None:
            self._close()

    def _open(self) -> None:
        """Begin a step: take in its loss and gradients."""
        loss, driver = self._loss(), self._driver
        if self._last is None and self._followed is None and self._holds_peaks():
            self._rates.intact()  # the trainer wrote them when it began; that is no schedule
        self._last = loss
        self._goes_on = driver.before_update(self._processes.mean(loss))
        self._stepped = set()
        if self._goes_on:
            self._stepper.clip_now()

    def _close(self, keep: Sequence[torch.Tensor | float] = ()) -> None:
        self._stepped = None
        self._put_back_rates()
        self._driver.after_update()
        self._losses = list(keep)  # not those of a validation in training mode

    def _put_back_rates(self) -> None:
        """Let the loop's scheduler find its own rates."""
        if self._followed is not None:
            self._followed.put_back()

    def _scaled_step(self, step: Callable[..., Any], optimizer: Any, *args: Any, **kw: Any) -> Any:
        if all(unwrapped(optimizer) is not mine for mine in self._optimizers):
            return step(optimizer, *args, **kw)
        if self._stepped is None and self._driver.looks_at_gradients:
            self._stepper.unscale()
        result = step(optimizer, *args, **kw)
        if self._stepped is None:
            self._open()  # it was left out
        return result

    def _scaled_update(self, update: Callable[..., Any], *args: Any, **kw: Any) -> None:
        update(*args, **kw)
        if self._stepped is not None:
            self._close()

    # Losses.

    def _note(self, loss_of: Callable[[Any], Any], output: Any) -> None:
        if torch.is_grad_enabled() and _in_training(self._model):
            loss = loss_of(output)
            if isinstance(loss, torch.Tensor) and loss.requires_grad and loss.numel() == 1:
                self.tell(loss)

    def _loss(self) -> torch.Tensor | float:
        losses, self._losses = self._losses, []
        if losses:
            return losses[0] if len(losses) == 1 else sum(losses) / len(losses)
        if self._last is None:
            raise AdapterError(_NO_LOSS)
        self._driver.run.warn("no loss", _LOSS_MISSING)
        return self._last

    def _holds_peaks(self) -> bool:
        groups = self._stepper.optimizer.param_groups
        return [float(group["lr"]) for group in groups] == list(self._rates.starts)


class _ModuleHook:
    """Notes what a module returns; a copy of the module, or a file of it, has one that does not."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        self._note = note

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        self._note(output)

    def __reduce__(self) -> Any:
        # Takes three arguments, returns None, and is loaded without trimtab.
        return getattr, (nullcontext(), "__exit__")


class _Watched:
    """A loss function that notes what it returns, and is otherwise the function itself."""

    def __init__(self, loss_fn: Callable[..., Any], note: Callable[[Any], None]) -> None:
        self.__dict__.update(__wrapped__=loss_fn, _note=note)
        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            if hasattr(loss_fn, name):
                self.__dict__[name] = getattr(loss_fn, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        self._note(output)
        return output

    def __reduce__(self) -> Any:
        return functools.partial, (self.__wrapped__,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["__wrapped__"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["__wrapped__"], name, value)


def _loss_of(output: Any) -> Any:
    """Return the loss in what a loss function or a model returns."""
    if isinstance(output, Mapping):
        return output.get("loss", output)
    if isinstance(output, list | tuple) and output:
        return getattr(output, "loss", output[0])
    return getattr(output, "loss", output)


def _evaluated(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return a step's arguments with the closure evaluated, and its value; None without one."""
    positional = len(args) > 1 and callable(args[1])
    closure = args[1] if positional else kwargs.get("closure")
    if closure is None or isinstance(closure, _Done):
        return None, None
    with torch.enable_grad():
        done = _Done(closure())
    if positional:
        return ((args[0], done, *args[2:]), kwargs), done()
    return (args, {**kwargs, "closure": done}), done()


class _Done:
    """A closure that was evaluated: gives what it returned."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        return self._value


def _told_by_closure(value: Any) -> list[torch.Tensor | float]:
    if isinstance(value, torch.Tensor):
        return [value.detach()] if value.numel() == 1 else []
    return [value] if isinstance(value, int | float) else []


def _in_training(model: nn.Module) -> bool:
    if isinstance(model, nn.ModuleList):
        return any(child.training for child in model)
    return model.training


_NO_LOSS = (
    "attach: optimizer.step() was called and no loss was told before it; hand the loop "
    "controller.watch(loss_fn) in the place of its loss function, or call controller.tell(loss) "
    "before each optimizer.step() (a loss that is watched is taken in where the model is in "
    "training mode, gradients are on, and it is one number: watch(loss_fn, loss_of=...) may say "
    "which)"
)
_LOSS_MISSING = (
    "attach: optimizer.step() was called without a new loss; the last one is used, so call "
    "controller.tell(loss) before each step"
)
_NEVER_STEPPED = (
    "attach: no step of {optimizer} was seen, so nothing was steered; the loop steps another "
    "optimiser, such as one that a trainer makes anew when it begins: attach to that one"
)
