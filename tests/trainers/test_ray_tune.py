"""Ray Tune: a scheduler in the place of PBT; trials report and save, and Ray keeps checkpoints."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.claims import CLAIMS, WARNINGS

ray = pytest.importorskip("ray")
tune = pytest.importorskip("ray.tune")

from trimtab.adapters.ray import TrimtabScheduler  # noqa: E402
from trimtab.adapters.ray.scheduler import read_decisions  # noqa: E402

# Slow as all tests that start Ray. After other trainers in one process the first one failed and
# the next hung, for a reason that was not found; alone they pass.
pytestmark = [pytest.mark.slow, pytest.mark.framework, *WARNINGS]
REFUSED = {
    "rescued": "a trial whose metric is not a number takes over another's weights instead",
    "validated": "the trainable validates and reports, whenever it does",
    "kept best": "Ray keeps checkpoints: `results.get_best_result()`",
}
TOTAL, STARTS, STOP_AT, FAULT_AT = 12, [1e-3, 1e-2], 8, 6


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AIR_NEW_OUTPUT", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
        yield
        ray.shutdown()


def descent() -> Any:
    """Return a trainable that descends on a parabola; its loss may be no number once."""

    class Descent(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.config, self.place = config, 3.0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.place *= (1 - self.config["lr"]) ** 20
            is_fault = self.config["start"] == 1e-3 and self.iteration + 1 == self.config["fault"]
            loss = math.nan if is_fault else 0.01 + self.place**2
            return {"val_loss": loss, "lr": self.config["lr"], "place": self.place}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "state.json").write_text(json.dumps(self.place))

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            self.place = json.loads((Path(checkpoint_dir) / "state.json").read_text())

    return Descent


class Watcher(tune.Callback):  # type: ignore[misc]
    """Notes each report, and interrupts the experiment once if it is given a file to remember."""

    def __init__(self, stopped: Path | None = None) -> None:
        self.rates: dict[tuple[str, int], float] = {}
        self._stopped = stopped

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any):
        time = result["training_iteration"]
        self.rates[trial.trial_id, time] = result["lr"]
        if time == STOP_AT and self._stopped is not None and not self._stopped.exists():
            self._stopped.touch()
            signal.raise_signal(signal.SIGINT)


def tuner(folder: Path, watcher: Watcher, fault: int = 0, **options: Any) -> Any:
    options["perturbation_interval"] = 3
    # lines to write
    scheduler = TrimtabScheduler(
        metric="val_loss", mode="min", hyperparam_bounds={"lr": [1e-5, 1e-1]}, **options
    )
    # end of lines
    starts = tune.grid_search(STARTS)
    lr = tune.sample_from(lambda config: config["start"])
    return tune.Tuner(
        descent(),
        param_space={"start": starts, "lr": lr, "fault": fault},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="steered",
            stop={"training_iteration": TOTAL},
            callbacks=[watcher],
            verbose=0,
        ),
    )


def decisions(folder: Path) -> list[dict[str, Any]]:
    return read_decisions(folder / "steered")


def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "trial"} for row in rows]


def steered(folder: Path) -> None:
    """Trials train with the rates that were decided, and other ones than without a policy."""
    watcher, plain = Watcher(), Watcher()
    results = tuner(folder / "policy", watcher).fit()
    tuner(folder / "plain", plain, policy=None).fit()
    rows = decisions(folder / "policy")
    assert [one.metrics["training_iteration"] for one in results] == [TOTAL] * len(STARTS)
    assert len(watcher.rates) == TOTAL * len(STARTS)
    for (trial, time), rate in watcher.rates.items():
        decided = [row for row in rows if row["trial"] == trial and row["time"] < time]
        if decided:
            assert rate == decided[-1]["values"]["lr"]
    unsteered = list(plain.rates.values())
    used = list(watcher.rates.values())
    assert any(abs(a - b) > 0.1 * b for a, b in zip(used, unsteered, strict=True))


def resumed(folder: Path) -> None:
    """An experiment that is interrupted and restored ends as if nothing had been."""
    whole = tuner(folder / "whole", Watcher()).fit()
    tuner(folder / "parts", Watcher(folder / "stopped")).fit()
    expected = without_ids(decisions(folder / "whole"))
    assert 0 < len(decisions(folder / "parts")) < len(expected)
    restored = tune.Tuner.restore(str(folder / "parts" / "steered"), descent()).fit()
    assert without_ids(decisions(folder / "parts")) == expected
    places = [[one.metrics["place"] for one in results] for results in (whole, restored)]
    assert sorted(places[0]) == sorted(places[1])


SHOWN: dict[str, Callable[[Path], None]] = {"steered": steered, "resumed": resumed}


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in REFUSED])
def test_ray_tune(claim: str, tmp_path: Path) -> None:
    SHOWN[claim](tmp_path)


def test_refused_rescued_validated_kept_best(tmp_path: Path) -> None:
    watcher = Watcher()
    results = tuner(tmp_path, watcher, fault=FAULT_AT).fit()
    rows = decisions(tmp_path)
    (lost,) = [row for row in rows if row["member"] == 0 and row["time"] == FAULT_AT]
    assert lost["source"] == "member 1"
    assert len(watcher.rates) == TOTAL * len(STARTS)  # each report, which is the trainable's own
    assert [one.metrics["training_iteration"] for one in results] == [TOTAL] * len(STARTS)
    best = results.get_best_result("val_loss", "min")
    with best.checkpoint.as_directory() as folder:
        assert json.loads((Path(folder) / "state.json").read_text()) == best.metrics["place"]
