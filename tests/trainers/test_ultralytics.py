"""Ultralytics: YOLO, where its trainer's optimiser is made; its own schedule is followed."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

images = pytest.importorskip("PIL.Image")
detect = pytest.importorskip("ultralytics.models.yolo.detect")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]
REFUSED = {"resumed": "its checkpoints hold weights in half precision only"}


def data_in(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for k in range(STEPS):
        picture = generator.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        picture[16:48, 16:48] = 220
        images.fromarray(picture).save(folder / "images" / f"{k}.png")
        (folder / "labels" / f"{k}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {{0: box}}\n")
    return file


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    usual = {"imgsz": 64, "batch": 1, "nbs": 1, "device": "cpu", "workers": 0, "epochs": 1}
    off = dict.fromkeys(("plots", "amp", "val", "save", "pretrained", "verbose"), False)
    trainer = detect.DetectionTrainer(
        overrides={
            "model": "yolov8n.yaml",
            "data": str(data_in(folder)),
            "project": str(folder),
            "optimizer": "SGD",
            "lr0": 1e-4,
            "warmup_epochs": 0,
            "mosaic": 0.0,
            **usual,
            **off,
        }
    )
    found: list[Any] = []

    def begin(trainer: Any) -> None:
        probe.look_into(trainer.model, trainer.optimizer)
        batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))

        @probe.validation
        @torch.no_grad()
        def validate() -> float:
            trainer.model.train()  # this mode alone returns losses
            return float(trainer.model(batch)[0].sum())

        found.append(steer(trainer, validate, probe))

    def end(trainer: Any) -> None:
        found[0].close()

    trainer.add_callback("on_train_start", begin)
    trainer.add_callback("on_train_end", end)
    trainer.train()
    return found[0].summary


def steer(trainer: Any, validate: Any, probe: Probe) -> Any:
    model, optimizer = trainer.model, trainer.optimizer
    # lines to write
    controller = TorchController.attach(
        optimizer,
        total_steps=STEPS,
        validate=validate,
        model=model,
        reference=None,
        averaged=trainer.ema,
        **probe.options,
    )
    controller.watch(model, loss_of=lambda found: found[0].sum())
    controller.__enter__()  # in the callback on_train_start; controller.close() in on_train_end
    # end of lines
    return controller


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in REFUSED])
def test_ultralytics(claim: str) -> None:
    CLAIMS[claim](train)


def test_refused_resumed() -> None:
    assert ".half()" in inspect.getsource(detect.DetectionTrainer.save_model)
