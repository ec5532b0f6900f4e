"""The policies that ship: they load, they steer, and they never fall back by mistake."""

from pathlib import Path

import numpy as np
import pytest

import trimtab
from trimtab.controllers.learned import LearnedController, read_policy
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.registry import names
from trimtab.core.session import Session
from trimtab.defaults import controller_for, policy_path

FOLDER = Path(trimtab.__file__).parent / "policies"
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def test_each_policy_that_ships_is_registered_under_the_name_of_its_file() -> None:
    assert SHIPPED
    assert set(SHIPPED) <= set(names("policy"))
    assert {policy_path(name) for name in SHIPPED} == set(FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("count", [1, 3])
def test_a_shipped_policy_steers_a_usual_run(name: str, count: int) -> None:
    items = tuple(hyperparameter(kind) for kind in ("lr", "weight_decay", "dropout")[:count])
    spec, controller = controller_for(name, items)
    reference = reference_multipliers("warmup-linear", 200)
    session = Session(spec, controller, total_steps=200, reference=reference)
    generator = np.random.default_rng(0)
    session.step(Metrics(val_loss=2.3))
    while not session.finished:
        loss = 0.4 + 1.9 * (1 - session.steps_done / 200) ** 2
        session.step(
            Metrics(
                train_loss=loss,
                train_loss_first=loss * 1.02,
                train_loss_change=-0.01,
                train_loss_std=0.1,
                val_loss=loss + 0.02 * generator.normal(),
                grad_norm=1.0,
                grad_cosine=0.2,
                update_ratio=1e-3,
                steps=session.window(),
            )
        )
    decisions = session.summary.decisions
    assert len(decisions) == spec.decisions
    assert not [decision.note for decision in decisions if decision.note]
    assert session.summary.frozen == 0
    assert max(abs(decision.offset[0]) for decision in decisions[8:]) > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_is_small_and_has_its_card_and_settings(name: str) -> None:
    file = policy_path(name)
    assert file.stat().st_size <= 200_000
    assert file.with_suffix(".md").read_text().startswith(f"# {name}")
    assert f'name = "{name}"' in file.with_suffix(".toml").read_text()
    assert isinstance(LearnedController(read_policy(file)), LearnedController)
