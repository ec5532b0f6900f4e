"""sentence-transformers: its trainer, with a ranking loss."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

from tests.adapters.transformers.test_sentence_transformers import pairs, trainer_of
from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STOP_AT, Probe
from tests.trainers.transformers_trainers import looked_into
from trimtab.adapters.transformers import steer

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    probe.folder = Path(tempfile.mkdtemp())
    probe.forwards = 2  # anchors, then positives
    saving = {"save_strategy": "steps", "save_steps": STOP_AT}
    trainer = trainer_of(probe.folder, pairs(8, 1), **saving)
    probe.folder = probe.folder / "out"
    with looked_into(trainer, probe):
        # lines to write
        callback = steer(trainer, validation=8, **probe.options)
        trainer.train(resume_from_checkpoint=probe.checkpoint)  # loop
        # end of lines
    return callback.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_sentence_transformers(claim: str) -> None:
    CLAIMS[claim](train)
