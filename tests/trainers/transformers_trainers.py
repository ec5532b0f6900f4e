"""Looking into what Transformers' Trainer and its kin do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.trainers.probe import Probe


@contextmanager
def looked_into(trainer: Any, probe: Probe) -> Iterator[None]:
    """Watch a trainer's model, its losses in evaluations (one batch each) and its updates."""
    probe.look_into(trainer.model, None)
    computed = trainer.compute_loss

    def compute_loss(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = computed(model, *args, **kwargs)
        if model.training:
            return found
        loss, *rest = found if isinstance(found, tuple) else (found,)
        told = torch.full_like(loss, probe.measured(float(loss)))
        return (told, *rest) if isinstance(found, tuple) else told

    def note(optimizer: Any, *_: Any) -> None:
        if sum(len(group["params"]) for group in optimizer.param_groups) == trained:
            probe.rates.append([float(group["lr"]) for group in optimizer.param_groups])

    trained = sum(weight.requires_grad for weight in trainer.model.parameters())
    trainer.compute_loss = compute_loss
    hook = register_optimizer_step_post_hook(note)
    try:
        yield
    finally:
        hook.remove()
