"""Import paths that documentation has named keep working after what they named has moved."""

from __future__ import annotations

import importlib

import pytest

FORMER_PLACES = {
    "trimtab.agents.imitation": (
        "Imitator Lessons begin_imitation cost_at imitate lessons_of read_lessons remembered_by"
        " unseen_cost write_lessons"
    ),
    "trimtab.agents.imitation_settings": "ImitationSettings",
    "trimtab.agents.learn_settings": "FamilyShare LearnSettings read_settings",
    "trimtab.adapters.torch": "TorchController",
    "trimtab.adapters.torch_values": "SteeredValue TrimtabBatchSampler averaging",
    "trimtab.search.optuna_integration": "SteeredTrial Steering record_summary trimtab_callback",
    "trimtab.search.storable": "StorableRun is_storable",
    "trimtab.search.study": "resume tune",
    "trimtab.tasks.splits": (
        "SPLITS first_of_duplicates scaled_shares splits_from_arrays splits_to_arrays"
        " stratified_splits"
    ),
    "trimtab.tasks.torch_run": "ShuffledBatches TorchRun TorchSetup adamw decay_groups",
}
WITH_A_FRAMEWORK = {
    "trimtab.adapters.keras": "KerasController SteeredValue TrimtabCallback",
    "trimtab.adapters.keras_controller": "KerasController",
    "trimtab.adapters.keras_values": "SteeredValue",
    "trimtab.adapters.lightning": "TrimtabCallback",
    "trimtab.adapters.transformers": "TrimtabCallback",
}


def missing(module: str, names: str) -> list[str]:
    loaded = importlib.import_module(module)
    return [name for name in names.split() if not hasattr(loaded, name)]


@pytest.mark.parametrize(("module", "names"), FORMER_PLACES.items(), ids=FORMER_PLACES)
def test_a_former_place_still_has_its_names(module: str, names: str) -> None:
    assert missing(module, names) == []


@pytest.mark.framework
@pytest.mark.parametrize(("module", "names"), WITH_A_FRAMEWORK.items(), ids=WITH_A_FRAMEWORK)
def test_a_former_place_of_a_framework_still_has_its_names(module: str, names: str) -> None:
    assert missing(module, names) == []


@pytest.mark.slow  # with the tests that need Ray
def test_the_former_place_of_the_ray_scheduler_still_has_its_names() -> None:
    names = "DECISIONS_FILE TrimtabScheduler read_decisions"
    assert missing("trimtab.search.ray_scheduler", names) == []
