"""Proving, once a run, that a trainer clips gradients at the norm that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell
from trimtab.core.spec import ControlSpec

__all__ = ["ClipProof", "StandInNorm"]

_SMALL = 1e-3  # of a norm: what gradients are clipped at while it is tried


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
