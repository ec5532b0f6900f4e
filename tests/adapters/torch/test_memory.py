"""A batch that runs out of memory is done again in parts, as if it had been cut from the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.snapshots import is_out_of_memory
from trimtab.adapters.torch.memory import MicroBatches, parts_of
from trimtab.core.errors import TrimtabWarning


class Narrow(nn.Module):
    """Takes at most so many examples at once; one of them is lost in the backward pass."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 3))
        self.register_buffer("calls", torch.zeros(()))
        self.most, self.error = most, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = self.body(x)
        if len(x) > self.most:
            logits.register_hook(self.fail)
        return logits

    def fail(self, gradient: torch.Tensor) -> None:
        self.body[2].bias.grad = torch.ones(3)  # part of the backward pass is done
        raise self.error


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def backward_of(model: nn.Module) -> Any:
    def backward(part: Any, share: float) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(part["x"]), part["y"]) * share
        loss.backward()
        return loss.detach()

    return backward


def batch_of(n: int) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(n, 4, generator=torch.Generator().manual_seed(1)),
        "y": torch.arange(n) % 3,
    }


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_done_again_is_one_that_was_cut_from_the_start(error: Exception) -> None:
    ends = []
    for most, parts in ((3, 1), (8, 4)):
        model = Narrow(most, error)
        memory = MicroBatches(model, told=lambda _: None)
        memory.parts = parts
        torch.manual_seed(5)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)  # of a micro-batch before
        loss = memory.run(batch_of(8), backward_of(model))
        assert memory.parts == 4
        assert memory.retries == (2 if most == 3 else 0)
        ends.append([loss, model.calls, torch.rand(1), *(w.grad for w in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_batch_that_fits_is_the_plain_one() -> None:
    plain, model = Narrow(8, MemoryError()), Narrow(8, MemoryError())
    torch.manual_seed(5)
    nn.functional.cross_entropy(plain(batch_of(8)["x"]), batch_of(8)["y"]).backward()
    torch.manual_seed(5)
    MicroBatches(model).run(batch_of(8), backward_of(model))
    pairs = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_one_example_that_does_not_fit_is_the_users_to_see() -> None:
    model = Narrow(0, MemoryError("no room"))
    memory = MicroBatches(model, told=lambda _: None)
    with pytest.raises(MemoryError, match="no room"):
        memory.run(batch_of(2), backward_of(model))
    assert all(weight.grad is None for weight in model.parameters())


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_parts_hold_every_example_once_with_its_share() -> None:
    cut = parts_of((torch.arange(7), {"y": torch.arange(7), "all": torch.arange(3)}), 3)
    assert torch.equal(torch.cat([part[0] for part, _ in cut]), torch.arange(7))
    assert all(torch.equal(part[1]["all"], torch.arange(3)) for part, _ in cut)
    assert sum(share for _, share in cut) == pytest.approx(1.0)


def test_a_steered_loop_reports_what_was_done_again(loop: Any) -> None:
    it = loop()
    it.begin()
    failed = []

    def loss_of(batch: Any) -> torch.Tensor:
        if len(batch[0]) > 8 and not failed:
            failed.append(len(batch[0]))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return it.loss_fn(it.model(batch[0]), batch[1])

    def train() -> Any:
        with it.controller() as run:
            for step in range(it.steps):
                chosen = torch.arange(step, step + 16)
                run.step(run.backward(loss_of, (it.inputs[chosen], it.labels[chosen])))
        return run

    with pytest.warns(TrimtabWarning, match="memory ran out .* 2 parts"):
        run = train()
    assert failed == [16]
    assert run.summary.memory_retries == 1
    assert run.summary.finished
