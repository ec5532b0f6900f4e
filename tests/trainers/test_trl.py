"""TRL: SFTTrainer with LoRA."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("trl")

from tests.adapters.transformers.test_trl import sft, texts
from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STOP_AT, Probe
from tests.trainers.transformers_trainers import looked_into
from trimtab.adapters.transformers import steer

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    probe.folder = Path(tempfile.mkdtemp())
    saving = {"save_strategy": "steps", "save_steps": STOP_AT}
    trainer = sft(probe.folder, evaluation=texts(8, 1), **saving)
    with looked_into(trainer, probe):
        # lines to write
        callback = steer(trainer, validation=8, **probe.options)
        trainer.train(resume_from_checkpoint=probe.checkpoint)  # loop
        # end of lines
    return callback.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_trl(claim: str) -> None:
    CLAIMS[claim](train)
