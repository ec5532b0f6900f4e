"""Snapshots: what goes in comes out, and a full disk stops nothing."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.adapters.snapshots import Snapshots
from trimtab.adapters.torch.snapshots import TrainingState, optimizer_state_bytes
from trimtab.core.errors import TrimtabWarning, UnknownNameError

PLACES = ["memory", "cpu", "disk"]
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "fused": partial(torch.optim.AdamW, fused=True),
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(8, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def parts(kind: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
    model[0].bias.requires_grad_(False)
    model.register_buffer("mask", torch.ones(3), persistent=False)
    return model, OPTIMIZERS[kind]([w for w in model.parameters() if w.requires_grad])


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    kept = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        kept += [v for v in optimizer.state.get(weight, {}).values() if torch.is_tensor(v)]
    return [tensor.detach().clone() for tensor in kept]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_run_goes_on_as_from_the_first_time(equal, kind, place):
    model, optimizer = parts(kind)
    train(model, optimizer)
    snapshots = Snapshots(place, TrainingState(model, optimizer))
    snapshots.keep()
    train(model, optimizer)
    expected = everything(model, optimizer)
    model.mask.zero_()
    for _ in range(2):
        snapshots.restore()
        train(model, optimizer)
        assert equal(everything(model, optimizer), expected)


@pytest.mark.parametrize("place", PLACES)
def test_a_state_that_was_not_there_yet_is_gone_again(place):
    model, optimizer = parts()
    snapshots = Snapshots(place, TrainingState(model, optimizer))
    snapshots.keep()
    train(model, optimizer)
    snapshots.restore()

    assert not optimizer.state


def test_tensors_are_filled_in_place():
    model, optimizer = parts()
    train(model, optimizer)
    snapshots = Snapshots("cpu", TrainingState(model, optimizer))
    snapshots.keep()
    held = optimizer.state[model[0].weight]["exp_avg"]
    train(model, optimizer)
    snapshots.restore()

    assert optimizer.state[model[0].weight]["exp_avg"] is held


def test_steered_entries_of_a_group_stay_and_the_others_go_back():
    model, optimizer = parts()
    optimizer.param_groups[0]["estimate"] = 3.0  # as Prodigy keeps its own
    snapshots = Snapshots("cpu", TrainingState(model, optimizer))
    snapshots.keep()
    optimizer.param_groups[0].update(lr=7.0, weight_decay=0.7, betas=(0.1, 0.2), estimate=9.0)
    snapshots.restore()
    group = optimizer.param_groups[0]

    assert (group["lr"], group["weight_decay"], group["betas"]) == (7.0, 0.7, (0.1, 0.2))
    assert group["estimate"] == 3.0


def test_weights_outside_the_model_are_kept_too():
    model, _ = parts()
    extra = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([*model.parameters(), extra], lr=0.1)
    snapshots = Snapshots("cpu", TrainingState(model, optimizer))
    snapshots.keep()
    with torch.no_grad():
        extra.zero_()
    snapshots.restore()

    assert extra.tolist() == [1.0] * 4


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_size_said_first_is_the_size_taken(kind):
    torch.manual_seed(0)
    model = nn.Linear(300, 200)
    optimizer = OPTIMIZERS[kind](model.parameters())
    snapshots = Snapshots("cpu", TrainingState(model, optimizer))
    said = snapshots.bytes
    model(torch.randn(4, 300)).square().mean().backward()
    optimizer.step()
    snapshots.keep()

    assert said == pytest.approx(snapshots.bytes, rel=0.05)
    assert optimizer_state_bytes(optimizer) == pytest.approx(said - 60200 * 4, rel=0.05, abs=2e4)


def test_the_size_is_logged_before_the_first_step(loop, caplog):
    it = loop()
    with caplog.at_level(logging.INFO, logger="trimtab"):
        controller = it.controller()

    assert f"{controller.snapshot_bytes / 1e6:.1f} MB in main memory" in caplog.text
    assert controller.snapshot_bytes > 0


def test_nothing_is_kept_where_nobody_goes_back(loop):
    assert loop().controller(keep_best=False).snapshot_bytes == 0
    assert loop().controller(watch_only=True, policy="random").snapshot_bytes == 0


def test_without_snapshots_a_run_still_ends(loop, caplog):
    it = loop(wrecked={20: float("nan")})
    with caplog.at_level(logging.INFO, logger="trimtab"):
        summary = it.run_steered(policy="random", snapshots="none").summary

    assert summary.finished
    assert "no snapshots" in caplog.text


def test_an_unknown_place_is_refused_with_the_nearest(loop):
    with pytest.raises(UnknownNameError, match=r"'dsk'; did you mean 'disk'"):
        loop().controller(snapshots="dsk")


@pytest.fixture
def tiny_files() -> Iterator[None]:
    """Let no file grow beyond 1 kB, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("tiny_files")
def test_a_full_disk_is_told_once_and_main_memory_takes_over(loop):
    it = loop(learning_rate=0.3)
    with pytest.warns(TrimtabWarning, match="could not be written") as said:
        summary = it.run_steered(policy="random", snapshots="disk").summary

    assert len(said) == 1
    assert it.validate()["loss"] == summary.best["loss"]


def test_a_folder_that_cannot_be_made_falls_back_too():
    model, optimizer = parts()
    missing = "/nowhere/at/all"
    snapshots = Snapshots("disk", TrainingState(model, optimizer), folder=missing)
    with pytest.warns(TrimtabWarning, match="could not be written"):
        snapshots.keep()

    assert snapshots.place == "cpu"
    assert snapshots.kept


def test_the_temporary_folder_is_gone_at_the_end(tmp_path: Path):
    model, optimizer = parts()
    snapshots = Snapshots("disk", TrainingState(model, optimizer), folder=str(tmp_path))
    snapshots.keep()
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    snapshots.close()

    assert files == ["best.safetensors"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_a_kept_state_moves_to_another_process(tmp_path, equal, place):
    model, optimizer = parts()
    train(model, optimizer)
    snapshots = Snapshots(place, TrainingState(model, optimizer))
    snapshots.keep()
    expected = everything(model, optimizer)
    torch.save(snapshots.state_dict(), tmp_path / "state.pt")
    fresh, other = parts()
    again = Snapshots(place, TrainingState(fresh, other))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.restore()

    assert equal(everything(fresh, other), expected)
