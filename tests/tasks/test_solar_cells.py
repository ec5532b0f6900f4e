"""Fine-tuning on photographs of solar cells: the splits, the licence, the same bits again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.core.errors import MissingDependencyError, UnknownNameError
from trimtab.core.protocols import Task, TrainingRun
from trimtab.core.registry import make_task
from trimtab.tasks import solar_cells
from trimtab.tasks.data.packages import package_folder
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.solar_cells import SolarCells


@pytest.fixture(scope="module")
def task() -> SolarCells:
    return SolarCells("tiny")


def test_it_is_a_task_that_tells_its_licence_before_loading_anything() -> None:
    task = SolarCells()

    assert isinstance(task, Task)
    assert "non-commercial" in task.notice
    assert "CC BY-NC-SA 4.0" in task.licence
    assert task.describe()["seconds"] <= 60
    assert "_data" not in vars(task)


@pytest.mark.parametrize("variant", ["tiny", "small", "default"])
def test_the_tuned_rate_lies_inside_the_bounds_at_every_start_factor(variant: str) -> None:
    task = SolarCells(variant)
    (lr,) = [item for item in task.hyperparameters if item.name == "lr"]

    for factor in (0.01, 1.0, 100.0):
        assert lr.starting_at(factor * task.tuned_lr).default == factor * task.tuned_lr
    assert [item.name for item in task.hyperparameters] == list(task.manual["values"])


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'; .*tiny"):
        SolarCells("huge")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(solar_cells._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependencyError, match="pip install no-such-package"):
        SolarCells("tiny").start(seed=0)


@pytest.mark.framework
def test_it_is_registered() -> None:
    assert isinstance(make_task("vision/solar-cells", variant="tiny"), SolarCells)


@pytest.mark.framework
def test_splits_are_disjoint_stratified_and_free_of_duplicates(task: SolarCells) -> None:
    from PIL import Image

    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])
    assert len(np.unique(rows)) == len(rows) == len(data.labels)

    share = data.labels.double().mean().item()
    for name in SPLITS:
        part = data.labels[torch.from_numpy(data.splits[name])].double()
        assert abs(part.sum().item() - share * len(part)) <= 2.0

    folder = package_folder(task.name, "elpv_dataset", "elpv-dataset") / "data"
    lines = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    contents = set()
    for photograph, label in zip(task.photographs, data.labels.tolist(), strict=True):
        assert (float(lines[photograph][1]) > 0.5) == bool(label)
        assert not 0.1 < float(lines[photograph][1]) < 0.5
        with Image.open(folder / lines[photograph][0]) as image:
            contents.add(image.tobytes())
    assert len(contents) == len(data.labels)


@pytest.mark.framework
def test_the_same_seed_gives_the_same_bits_and_another_gives_others(task: SolarCells) -> None:
    values = {"lr": np.full(3, 1e-3)}
    one, again, other = (task.start(seed=seed) for seed in (5, 5, 6))
    first, second, third = (run.advance(values, 3) for run in (one, again, other))

    assert isinstance(one, TrainingRun)
    np.testing.assert_array_equal(np.array(first), np.array(second))
    assert one.evaluate("test") == again.evaluate("test")
    assert first.train_loss != third.train_loss


@pytest.mark.framework
def test_a_cache_that_cannot_be_written_changes_nothing(
    task: SolarCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))

    fresh = SolarCells("tiny")._data
    assert torch.equal(fresh.inputs, task._data.inputs)
    for name in SPLITS:
        np.testing.assert_array_equal(fresh.splits[name], task._data.splits[name])


@pytest.mark.framework
def test_batchnorm_keeps_its_statistics_in_training(task: SolarCells) -> None:
    run = task.start(seed=0)
    before = [buffer.clone() for buffer in run.model.buffers()]
    run.advance({}, 2)

    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.buffers(), strict=True))


@pytest.mark.framework
def test_training_lowers_the_loss_and_a_ruinous_rate_is_reported(task: SolarCells) -> None:
    run = task.start(seed=0)
    start = run.evaluate("validation")
    kept = run.snapshot()
    assert abs(start["loss"] - math.log(2)) < 0.2
    assert set(start) == {"loss", "accuracy", "macro_f1", "examples"}
    ruined = run.advance({"lr": np.full(10, 1e30)}, 10)
    assert ruined.finite == 0.0
    run.restore(kept)
    assert run.evaluate("validation") == start
    run.advance({"lr": np.full(20, task.tuned_lr)}, 20)

    assert run.evaluate("validation")["loss"] < start["loss"] - 0.05
