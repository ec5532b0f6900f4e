"""`TrimtabScheduler` on the real Ray: bounds, seeds, restore; one Ray session for all of it."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LOW, HIGH = 3e-3, 3e-1
MEMBERS, TOTAL, INTERVAL = 4, 16, 2
INTERRUPTED_AT = 11  # iterations, in the middle of a window


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

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
        yield ray
        ray.shutdown()


def trainable() -> Any:
    """Return a descent on a parabola."""
    from ray import tune

    class Descent(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.config = config
            self.place = 2.0 + config["member"]
            self.origin = config["member"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.place -= self.config["lr"] * self.place
            return {"val_loss": self.place**2 + 0.01, "origin": self.origin, **self.values()}

        def values(self) -> dict[str, float]:
            return {name: float(self.config[name]) for name in ("lr", "weight_decay")}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            state = json.dumps({"place": self.place, "origin": self.origin})
            (Path(checkpoint_dir) / "state.json").write_text(state)

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            state = json.loads((Path(checkpoint_dir) / "state.json").read_text())
            self.place, self.origin = state["place"], state["origin"]

    return Descent


def interruption(marker: Path) -> Any:
    """Return a callback that interrupts the whole experiment once, in the middle of a window."""
    from ray import tune

    class Interruption(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any):
            if result["training_iteration"] == INTERRUPTED_AT and not marker.exists():
                marker.touch()
                signal.raise_signal(signal.SIGINT)

    return Interruption()


def scheduler() -> Any:
    from trimtab.adapters.ray.scheduler import TrimtabScheduler

    return TrimtabScheduler(
        metric="val_loss",
        mode="min",
        perturbation_interval=INTERVAL,
        max_t=TOTAL,
        hyperparam_bounds={"lr": [LOW, HIGH], "weight_decay": [0.0, 0.1]},
        perturbation_factors=(30.0, 0.03),
        seed=7,
    )


def tuner(folder: Path, callbacks: Sequence[Any] = ()) -> Any:
    from ray import tune

    return tune.Tuner(
        trainable(),
        param_space={"member": tune.grid_search(list(range(MEMBERS)))},
        tune_config=tune.TuneConfig(scheduler=scheduler(), reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            name="steered",
            stop={"training_iteration": TOTAL},
            callbacks=list(callbacks),
            verbose=0,
        ),
    )


def decisions(folder: Path) -> list[dict[str, Any]]:
    from trimtab.adapters.ray.scheduler import read_decisions

    return [
        {key: value for key, value in row.items() if key != "trial"}
        for row in read_decisions(folder / "steered")
    ]


@pytest.fixture(scope="module")
def quiet(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("quiet")
    return folder, tuner(folder).fit()


def test_values_stay_in_their_bounds_whatever_the_factors(quiet: tuple[Path, Any]) -> None:
    folder, results = quiet
    rows = decisions(folder)
    assert {row["member"] for row in rows} == set(range(MEMBERS))
    assert any(row["source"] != f"member {row['member']}" for row in rows), "nobody was replaced"
    for row in rows:
        assert LOW <= row["values"]["lr"] <= HIGH
        assert 0.0 <= row["values"]["weight_decay"] <= 0.1
    assert len({row["values"]["lr"] for row in rows}) > MEMBERS
    for result in results:
        assert result.error is None
        assert result.metrics["training_iteration"] == TOTAL
        assert LOW <= result.metrics["lr"] <= HIGH


def test_values_decided_are_values_trained_with_and_weights_are_those_copied(
    quiet: tuple[Path, Any],
) -> None:
    folder, results = quiet
    rows = decisions(folder)
    origin = {member: member for member in range(MEMBERS)}
    for time in sorted({row["time"] for row in rows}):
        now = [row for row in rows if row["time"] == time]
        before = dict(origin)
        for row in now:
            origin[row["member"]] = before[int(row["source"].split()[1])]
    for result in results:
        member = int(result.metrics["trial_id"].split("_")[1])  # a copy has the other's config
        last = [row for row in rows if row["member"] == member][-1]
        assert result.metrics["lr"] == pytest.approx(last["values"]["lr"])
        assert result.metrics["origin"] == origin[member]


def test_equal_seeds_decide_alike_even_across_a_restore(
    quiet: tuple[Path, Any], cluster: Any, tmp_path: Path
) -> None:
    from ray import tune

    tuner(tmp_path, [interruption(tmp_path / "interrupted")]).fit()
    expected = decisions(quiet[0])
    assert 0 < len(decisions(tmp_path)) < len(expected)
    restored = tune.Tuner.restore(str(tmp_path / "steered"), trainable())
    results = restored.fit()
    assert not results.errors
    assert [one.metrics["training_iteration"] for one in results] == [TOTAL] * MEMBERS
    repeated = (tmp_path / "steered" / "trimtab_decisions.jsonl").read_text().splitlines()
    assert len(expected) <= len(repeated) < 2 * len(expected), "it went on, not from the start"
    assert decisions(tmp_path) == expected


def test_a_scheduler_is_sent_to_another_process_as_it_is(cluster: Any) -> None:
    assert pickle.loads(pickle.dumps(scheduler()))._shared == scheduler()._shared


def test_what_has_no_bounds_is_refused_by_name(cluster: Any) -> None:
    from ray import tune

    from trimtab.adapters.ray.scheduler import TrimtabScheduler
    from trimtab.core.errors import SpecError

    with pytest.raises(SpecError, match=r"lr: .* has no bounds that could be kept"):
        TrimtabScheduler(max_t=9, hyperparam_mutations={"lr": lambda: 0.1})
    with pytest.raises(SpecError, match="in hyperparam_mutations and in hyperparam_bounds"):
        TrimtabScheduler(
            max_t=9,
            hyperparam_mutations={"lr": tune.uniform(0, 1)},
            hyperparam_bounds={"lr": [0, 1]},
        )
    with pytest.raises(SpecError, match=r"lr: \[1\.0\] is no pair"):
        TrimtabScheduler(max_t=9, hyperparam_bounds={"lr": [1.0]})
