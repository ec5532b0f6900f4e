"""No trial under `TrimtabScheduler` ends before its stop, with the real Ray and two workers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TOTAL, INTERVAL = 12, 3
STARTS = [1e-5, 1e-3, 1e-2]  # a trial more than there are workers
TRIALS = len(STARTS)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AIR_NEW_OUTPUT", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
        yield ray
        ray.shutdown()


def function(saves_every: int = 1, fails_at: int = 0, marks: Path | None = None) -> Any:
    """Return a function that descends on a parabola, and saves at some of its reports."""

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        place, done = [3.0] * 8, 0
        checkpoint = tune.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                state = json.loads((Path(folder) / "state.json").read_text())
                place, done = state["place"], state["done"]
        while True:
            for _ in range(20):
                place = [x - config["lr"] * (1 + i) * x for i, x in enumerate(place)]
            done += 1
            if done == fails_at and marks is not None:
                mark = marks / tune.get_context().get_trial_id()
                if not mark.exists():
                    mark.touch()
                    raise RuntimeError("once")
            report = {"val_loss": 0.01 + sum(x * x for x in place), "lr": config["lr"]}
            if done % saves_every:
                tune.report({**report, "done_steps": done})
                continue
            with tempfile.TemporaryDirectory() as folder:
                state = json.dumps({"place": place, "done": done})
                (Path(folder) / "state.json").write_text(state)
                saved = tune.Checkpoint.from_directory(folder)
                tune.report({**report, "done_steps": done}, checkpoint=saved)

    return train


def trainable_class() -> Any:
    """Return the same descent as a class."""
    from ray import tune

    class Descent(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.rate, self.place, self.done = config["lr"], 3.0, 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.place *= (1 - self.rate) ** 20
            self.done += 1
            return {"val_loss": self.place**2 + 0.01, "lr": self.rate, "done_steps": self.done}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            state = json.dumps({"place": self.place, "done": self.done})
            (Path(checkpoint_dir) / "state.json").write_text(state)

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            state = json.loads((Path(checkpoint_dir) / "state.json").read_text())
            self.place, self.done = state["place"], state["done"]

    return Descent


def scheduler(**settings: Any) -> Any:
    from trimtab.adapters.ray.scheduler import TrimtabScheduler

    given = {
        "metric": "val_loss",
        "mode": "min",
        "perturbation_interval": INTERVAL,
        "max_t": TOTAL,
        "hyperparam_bounds": {"lr": [1e-6, 1e-1]},
        "seed": 0,
    }
    return TrimtabScheduler(**(given | settings))


def fit(folder: Path, train: Any, steering: Any, reuse: bool = True, **settings: Any) -> Any:
    """Run an experiment; return its results, each of which must be without an error."""
    from ray import tune

    run = {"stop": {"training_iteration": TOTAL}, **settings}
    results = tune.Tuner(
        train,
        param_space={"lr": tune.grid_search(STARTS)},
        tune_config=tune.TuneConfig(scheduler=steering, reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=str(folder), name="steered", verbose=0, **run),
    ).fit()
    assert results.errors == []
    return results


def ends(results: Any) -> list[int]:
    return [result.metrics["training_iteration"] for result in results]


def decisions_of(folder: Path) -> list[dict[str, Any]]:
    from trimtab.adapters.ray.scheduler import read_decisions

    return read_decisions(folder / "steered")


@pytest.mark.parametrize("synch", [True, False], ids=["in step", "each for itself"])
@pytest.mark.parametrize("reuse", [False, True], ids=["new actors", "reused actors"])
def test_functions_that_save_at_each_report_reach_their_stop(
    tmp_path: Path, synch: bool, reuse: bool
) -> None:
    results = fit(tmp_path, function(), scheduler(synch=synch), reuse)
    assert ends(results) == [TOTAL] * TRIALS
    assert [one.metrics["done_steps"] for one in results] == [TOTAL] * TRIALS
    rows = decisions_of(tmp_path)
    assert any(row["source"] != f"member {row['member']}" for row in rows), "nobody was replaced"


@pytest.mark.parametrize("saves_every", [2, 3])
def test_functions_that_save_now_and_then_reach_their_stop(
    tmp_path: Path, saves_every: int
) -> None:
    results = fit(tmp_path, function(saves_every), scheduler())
    assert ends(results) == [TOTAL] * TRIALS


@pytest.mark.parametrize("frequency", [1, 3])
def test_classes_that_save_now_and_then_reach_their_stop(tmp_path: Path, frequency: int) -> None:
    from ray import tune

    saving = tune.CheckpointConfig(checkpoint_frequency=frequency, checkpoint_at_end=True)
    results = fit(tmp_path, trainable_class(), scheduler(), checkpoint_config=saving)
    assert ends(results) == [TOTAL] * TRIALS


def test_few_kept_checkpoints_end_no_trial(tmp_path: Path) -> None:
    from ray import tune

    kept = tune.CheckpointConfig(num_to_keep=1)
    results = fit(tmp_path, function(), scheduler(), checkpoint_config=kept)
    assert ends(results) == [TOTAL] * TRIALS


@pytest.mark.parametrize("synch", [True, False], ids=["in step", "each for itself"])
def test_a_trial_that_failed_once_is_steered_to_its_stop(tmp_path: Path, synch: bool) -> None:
    from ray import tune

    marks = tmp_path / "marks"
    marks.mkdir()
    train = function(fails_at=5, marks=marks)
    allowed = tune.FailureConfig(max_failures=1)
    results = fit(tmp_path, train, scheduler(synch=synch), failure_config=allowed)
    assert ends(results) == [TOTAL] * TRIALS
    late = {row["member"] for row in decisions_of(tmp_path) if row["time"] > 6}
    assert late == set(range(TRIALS))


def test_without_max_t_the_stop_says_how_long_a_trial_is(tmp_path: Path) -> None:
    given, taken = tmp_path / "given", tmp_path / "taken"
    assert ends(fit(given, function(), scheduler())) == [TOTAL] * TRIALS
    assert ends(fit(taken, function(), scheduler(max_t=None))) == [TOTAL] * TRIALS
    plain = [{**row, "trial": ""} for row in decisions_of(given)]
    assert [{**row, "trial": ""} for row in decisions_of(taken)] == plain


def test_without_max_t_and_stop_it_is_said_what_to_give(tmp_path: Path) -> None:
    from ray import tune

    stop = tune.stopper.MaximumIterationStopper(TOTAL)
    with pytest.raises(Exception, match="max_t: None, and stop names no 'training_iteration'"):
        fit(tmp_path, function(), scheduler(max_t=None), stop=stop)
