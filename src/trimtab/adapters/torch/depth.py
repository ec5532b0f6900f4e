"""Layer-wise learning rates and frozen layers in an optimiser whose groups know no depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.several import parts_of
from trimtab.core.errors import AdapterError


class DepthRates:
    """Divides the optimiser's groups by depth, for the moment of its step only.

    With L layers, counted from 0 at the input, layer l steps at ``layer_decay ** (L - 1 - l)``
    times its group's rate, and the lowest ``floor(frozen_depth * L)`` layers, at most L - 1, are
    left out of the step: no decay, no moments. Gradients are computed all the same, so that
    data-parallel processes stay in step. Between two steps the groups are the user's own, so
    schedulers and checkpoints see nothing; at 1 and 0 they are not divided at all.

    Args:
        optimizer: One of PyTorch's own; others may keep state of their own in a group.
        model: Whose order of weights decides about those outside the given layers.
        layers: Modules from the input to the output; None to look for them.

    Attributes:
        layer_decay: Factor of the rate from one layer to the one below.
        frozen_depth: Share of the layers that do not move.
        n_layers: How many there are.
        layer: Which one a weight is in, by ``id``.

    Raises:
        AdapterError: The layers cannot be inferred, or the optimiser is not one of PyTorch's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        layers: Sequence[nn.Module] | None = None,
    ) -> None:
        self._optimizers = parts_of(optimizer)
        for part in self._optimizers:
            if not type(part).step.__module__.startswith("torch.optim"):
                raise AdapterError(
                    f"layer_decay, frozen_depth: {type(part).__name__} may keep state of its own "
                    "in its parameter groups, which cannot be divided by depth; use an optimiser "
                    "of torch.optim, or leave these two out"
                )
        self.layer_decay, self.frozen_depth = 1.0, 0.0
        self.layer = _layer_of_each(model, layers_of(model) if layers is None else list(layers))
        self.n_layers = 1 + max(self.layer.values())
        self._whole: list[list[dict[str, Any]]] | None = None  # of each optimiser

    def divide(self) -> None:
        """Put groups divided by depth in the place of the optimiser's."""
        self.rejoin()
        if self.layer_decay == 1.0 and self.frozen_depth == 0.0:
            return
        self._whole = [optimizer.param_groups for optimizer in self._optimizers]
        for optimizer, whole in zip(self._optimizers, self._whole, strict=True):
            optimizer.param_groups = [part for group in whole for part in self._parts(group)]

    def rejoin(self) -> None:
        """Give the optimiser its own groups back."""
        if self._whole is not None:
            for optimizer, whole in zip(self._optimizers, self._whole, strict=True):
                optimizer.param_groups = whole
            self._whole = None

    def _parts(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        weights: dict[int, list[torch.Tensor]] = {}
        top = self.n_layers - 1
        for weight in group["params"]:  # one outside the model steps as the last layer does
            weights.setdefault(self.layer.get(id(weight), top), []).append(weight)
        frozen = min(int(self.frozen_depth * self.n_layers + 1e-9), top)
        for layer in sorted(weights):
            if layer >= frozen:
                rate = group["lr"] * self.layer_decay ** (top - layer)
                yield {**group, "params": weights[layer], "lr": rate}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return a model's layers, from the input to the output.

    They are the children of its longest ``nn.Sequential`` or ``nn.ModuleList``, where those with
    weights count; weights before and after that stack join the first and the last layer.

    Raises:
        AdapterError: There is no such stack, or there are several.
    """
    stacks: list[list[nn.Module]] = []
    for module in model.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            children = [child for child in module.children() if _has_weights(child)]
            if len(children) > 1:
                stacks.append(children)
    longest = max((len(stack) for stack in stacks), default=0)
    best = [stack for stack in stacks if len(stack) == longest]
    if len(best) != 1:
        found = f"{len(best)} stacks of {longest} layers" if best else "no stack of layers"
        raise AdapterError(
            f"layers: {found} in {type(model).__name__}, so depth cannot be inferred; give the "
            "modules from the input to the output, such as layers=[model.stem, *model.blocks]"
        )
    return best[0]


def _has_weights(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


def _layer_of_each(model: nn.Module, layers: list[nn.Module]) -> dict[int, int]:
    """Return id of a weight -> layer; others stand with the last layer begun before them."""
    if len(layers) < 2:
        raise AdapterError(
            f"layers: {len(layers)} given; depth needs at least two modules, from the input to "
            "the output"
        )
    placed = {
        id(weight): index for index, layer in enumerate(layers) for weight in layer.parameters()
    }
    ids = [id(weight) for weight in model.parameters()]
    if not any(weight in placed for weight in ids):
        raise AdapterError("layers: none of their weights is in the model; give its own modules")
    at = 0
    for weight in ids:
        at = max(at, placed.get(weight, at))
        placed.setdefault(weight, at)
    return placed
