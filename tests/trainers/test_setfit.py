"""SetFit: the body of its model."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
setfit = pytest.importorskip("setfit")

from tests.adapters.transformers import test_sentence_transformers as sentences  # noqa: E402
from tests.trainers.claims import CLAIMS, WARNINGS  # noqa: E402
from tests.trainers.probe import Probe  # noqa: E402
from tests.trainers.transformers_trainers import looked_into  # noqa: E402
from trimtab.adapters.transformers import steer  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]
REFUSED = {"resumed": "SetFit's own `train` takes no checkpoint to go on from"}


def train(probe: Probe) -> Any:
    probe.folder = Path(tempfile.mkdtemp())
    probe.forwards = 2  # both sentences of a pair
    trainer = sentences.TestSetFit().trainer_of(probe.folder)
    with looked_into(trainer.st_trainer, probe):
        # lines to write
        callback = steer(trainer, validation=8, **probe.options)
        trainer.train()  # loop
        # end of lines
    return callback.summary


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in REFUSED])
def test_setfit(claim: str) -> None:
    CLAIMS[claim](train)


def test_refused_resumed() -> None:
    taken = inspect.signature(setfit.Trainer.train).parameters
    assert "resume_from_checkpoint" not in taken
    source = inspect.getsource(setfit.Trainer.train_embeddings)
    assert "self.st_trainer.train()" in source  # nothing is handed on
