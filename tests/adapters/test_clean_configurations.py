"""Twenty runs in which nothing is wrong: none of them warns of anything."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.tiny_training import Net, examples
from trimtab import TorchController
from trimtab.core.errors import TrimtabWarning

pytestmark = [pytest.mark.framework, pytest.mark.filterwarnings("ignore")]
STEPS = 24
OPTIMIZERS = ("SGD", "Adam", "AdamW", "RAdam", "Adagrad")
REFERENCES = ("warmup-linear", "one-cycle", "scheduler")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")


def stacked(n: int, seed: int) -> dict[str, torch.Tensor]:
    rows = examples(n, seed)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loop_is_told_nothing(name: str, reference: str) -> None:
    model, batch, held_out = Net(), stacked(16, 0), stacked(16, 1)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
    chosen: Any = reference
    if reference == "scheduler":
        chosen = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        return float(model(**held_out)["loss"])

    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        with TorchController(
            optimizer, total_steps=STEPS, validate=validate, model=model, reference=chosen
        ) as controller:
            for _ in range(STEPS):
                model.train()
                loss = model(**batch)["loss"]
                loss.backward()
                controller.step(loss)
    assert controller.summary.finished


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_trainer_is_told_nothing(tmp_path: Path, scheduler: str) -> None:
    transformers = pytest.importorskip("transformers")
    from trimtab.adapters.transformers import steer

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=STEPS,
        learning_rate=1e-3,
        lr_scheduler_type=scheduler,
        warmup_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    data, held_out = examples(96, 0), examples(32, 1)
    trainer = transformers.Trainer(Net(), arguments, train_dataset=data, eval_dataset=held_out)
    callback = steer(trainer, validation=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        trainer.train()
    assert callback.summary.finished
