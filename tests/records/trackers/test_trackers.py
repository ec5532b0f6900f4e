"""Trackers: what they are told is there when it is read back, and none ever stops a training."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import (
    MissingDependencyError,
    SpecError,
    StoreError,
    TrimtabWarning,
    UnknownNameError,
)
from trimtab.core.guard import Reason
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec
from trimtab.defaults import recorder_for
from trimtab.records.store.store import load_run
from trimtab.records.trackers import fields
from trimtab.records.trackers.fan_out import Recorders, check_log_to
from trimtab.records.trackers.mlflow import _key

HERE = Path(__file__).parent
TIMEOUT = 600
INFO = RunInfo(
    task="../vision/<b>cats</b>",
    spec=ControlSpec(hyperparameters=(hyperparameter("lr", 1e-3),), decisions=3),
    total_steps=6,
    policy="trimtab-1",
)


def decision(index: int = 0, **changes: Any) -> Decision:
    shown: dict[str, Any] = {
        "index": index,
        "step": 2 * index,
        "progress": index / 3,
        "metrics": Metrics(val_loss=0.5 - index / 10, train_loss=0.7),
        "measured": {"loss": 0.5 - index / 10, "accuracy": 0.25 * index, "odd": math.nan},
        "observation": np.zeros(3, np.float32),
        "action": np.zeros(2),
        "proposed": {"lr": 4e-3},
        "applied": {"lr": 2e-3},
        "used": {"lr": 1e-3},
        "offset": np.zeros(1, np.float32),
        "reason": {"lr": int(Reason.BOUNDS)},
        "restored": False,
        "terminated": False,
        "reward": 0.125,
    }
    return Decision(**(shown | changes))


def summary() -> Summary:
    return Summary(
        best={"step": 4.0, "loss": 0.3},
        last={"step": 6.0, "loss": 0.4},
        schedule=[{"step": s, "lr": 1e-3 * (6 - s)} for s in range(6)],
        decisions=[decision(i) for i in range(3)],
        spent_steps=6,
        spent=1.0,
        finished=True,
    )


class Told(Recorder):
    """Remembers its calls, and fails at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.calls: list[str] = []
        self._fails_at = fails_at

    def _take(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self._fails_at:
            raise OSError("the server\nis gone")

    def decision(self, decision: Decision) -> None:
        self._take(f"decision {decision.index}")

    def finish(self, summary: Summary, status: str) -> None:
        self._take(status)

    def add_figures(self, figures: Any) -> None:
        self._take("figures")

    def state(self) -> dict[str, Any]:
        return {"run": 7}


def tell_all(recorder: Recorder) -> None:
    for index in range(3):
        recorder.decision(decision(index))
    recorder.finish(summary(), "finished")
    recorder.add_figures({"test": {"loss": 0.25}, "seconds": 2.0})


EVERYTHING = ["decision 0", "decision 1", "decision 2", "finished", "figures"]


# One failing tracker.


@pytest.mark.parametrize("fails_at", [1, 3, 4, 5])
def test_a_tracker_that_fails_is_told_of_once_and_left_out(fails_at):
    store, bad, good = Told(), Told(fails_at), Told()
    recorder = Recorders(store, {"mlflow": bad, "wandb": good})
    with pytest.warns(TrimtabWarning, match=r"mlflow failed .OSError: the server is gone.") as told:
        tell_all(recorder)
    assert len(told) == 1
    assert store.calls == good.calls == EVERYTHING
    assert bad.calls == EVERYTHING[:fails_at]
    assert recorder.state() == {"run": 7}


def test_where_warnings_are_errors_it_is_logged(caplog):
    recorder = Recorders(None, {"mlflow": Told(1)})
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "trimtab"):
        warnings.simplefilter("error")
        tell_all(recorder)
    assert "training goes on" in caplog.text
    assert recorder.state() == {}


def test_an_interruption_is_not_swallowed():
    class Interrupts(Recorder):
        def decision(self, decision: Decision) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Recorders(None, {"wandb": Interrupts()}).decision(decision())


# What is asked for.


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, ()),
        ((), ()),
        ("runs", (("tensorboard", "runs"),)),
        (Path("a/b"), (("tensorboard", "a/b"),)),
        ("tensorboard:runs", (("tensorboard", "runs"),)),
        ("./wandb", (("tensorboard", "./wandb"),)),
        ("C:/runs", (("tensorboard", "C:/runs"),)),
        ("mlflow:", (("mlflow", ""),)),
        ("mlflow:sqlite:///m.db", (("mlflow", "sqlite:///m.db"),)),
        (["wandb:cats", "runs"], (("wandb", "cats"), ("tensorboard", "runs"))),
    ],
)
def test_trackers_are_named_by_a_text(asked, found):
    assert check_log_to(asked) == found


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("mlfow:x", UnknownNameError, "unknown tracker 'mlfow'; did you mean 'mlflow'"),
        ("wandb:", SpecError, "'wandb:' names no place; wandb needs a project"),
        (
            "wandb",
            SpecError,
            r"'wandb' names a service and no place; write wandb:PROJECT, or ./wandb",
        ),
        ("mlflow", SpecError, "write mlflow:URI"),
        ("", SpecError, "'' names no place; tensorboard needs a folder"),
        (["a", "b"], SpecError, "tensorboard is asked for twice"),
        ([3], SpecError, "3 is no text"),
    ],
)
def test_a_wrong_request_is_refused_before_the_store_is_opened(tmp_path, asked, error, message):
    with pytest.raises(error, match=message):
        recorder_for(str(tmp_path / "runs.db"), replace(INFO, log_to=asked))
    assert not (tmp_path / "runs.db").exists()


def test_a_tracker_that_cannot_be_opened_closes_the_run_as_failed(tmp_path, monkeypatch):
    store = str(tmp_path / "runs.db")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(MissingDependencyError, match=r"mlflow needs .*trimtab\[trackers\]"):
        recorder_for(store, replace(INFO, log_to="mlflow:"))
    (tmp_path / "file").write_text("")
    pytest.importorskip("tensorboard")
    with pytest.raises(StoreError, match="tensorboard cannot be opened"):
        recorder_for(store, replace(INFO, log_to=str(tmp_path / "file" / "inside")))
    assert load_run("latest", store).status == "failed"


def test_without_trackers_a_store_is_all_there_is(tmp_path):
    assert recorder_for(None, INFO) is None
    assert type(recorder_for(str(tmp_path / "a.db"), INFO)).__name__ == "StoreRecorder"


# What is told.


def test_a_decision_is_told_in_finite_numbers_and_in_words():
    numbers = fields.decision_numbers(decision(1))
    assert numbers == {
        "used/lr": 1e-3,
        "applied/lr": 2e-3,
        "proposed/lr": 4e-3,
        "validation/loss": 0.4,
        "validation/accuracy": 0.25,
        "training/loss": 0.7,
        "decision/reward_nats": 0.125,
        "decision/restored": 0.0,
    }
    words = "decision 2 at step 2: lr = 0.001, peak 0.002 (asked for 0.004): held at its bound"
    words += "; it broke"
    assert fields.explain(decision(1, note="it broke")) == words


def test_a_long_schedule_is_thinned_evenly_and_keeps_its_last_step():
    rows = [{"step": s, "lr": 1.0 / (s + 1)} for s in range(25_001)]
    points = fields.schedule_points(Summary(schedule=rows))
    steps = [step for step, _ in points]
    assert len(steps) <= fields.MOST_POINTS + 1
    assert (steps[0], steps[1], steps[-1]) == (0, 3, 25_000)
    assert points[-1][1] == {"schedule/lr": 1.0 / 25_001}
    assert fields.schedule_points(Summary()) == []


@given(st.text())
def test_a_name_is_one_part_of_a_path(name):
    safe = fields.safe_name(name)
    assert Path("root", safe).resolve().parent == Path("root").resolve()
    assert safe == Path(safe).name
    assert len(safe) <= 80


@given(st.text(max_size=40))
def test_mlflow_gets_names_that_it_takes(name):
    import posixpath
    import re

    key = _key(f"applied/{name}")
    assert re.fullmatch(r"[/\w.\- :]+", key, re.ASCII)
    assert posixpath.normpath(key).startswith("applied")
    assert ".." not in key.split("/")


# Read back, as each service reads it.

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_trackers as t
from dataclasses import replace
from trimtab.defaults import recorder_for
info = replace(t.INFO, log_to=sys.argv[2])
recorder = recorder_for("runs.db", info, awaits_figures=True)
t.tell_all(recorder)
again = recorder_for("runs.db", info)  # a second run of the same name
again.decision(t.decision(0))
again.decision(t.decision(1))
del again  # killed here
back = recorder_for("runs.db", info, run=2)
back.decision(t.decision(1, applied={"lr": 5e-4}))
back.finish(t.summary(), "stopped")
assert not {"tensorflow", "torch"} & set(sys.modules), "a tracker loaded a framework"
"""


def told(folder: Path, log_to: str, reader: str) -> Any:
    """Return what a reader prints as JSON, after the runs of `SCRIPT` were told to a tracker.

    The reader is a process of its own: services write their last bytes when a process ends.
    """
    printed = ""
    for text in (SCRIPT, f"import json, sys\n{reader}"):
        ended = subprocess.run(
            [sys.executable, "-c", text, str(HERE), log_to],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=folder,
            env={**os.environ, "WANDB_SILENT": "true", "GIT_PYTHON_REFRESH": "quiet"},
        )
        assert ended.returncode == 0, ended.stderr
        printed = ended.stdout
    return json.loads(printed.splitlines()[-1])


TENSORBOARD = """
import types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")  # not TensorFlow's file system
from pathlib import Path
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for folder in sorted(Path("tb").iterdir()):
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    found[folder.name] = {
        "scalars": {tag: [(e.step, e.value) for e in reader.Scalars(tag)]
                    for tag in reader.Tags()["scalars"]},
        "texts": {tag: [(e.step, e.tensor_proto.string_val[0].decode())
                        for e in reader.Tensors(tag)] for tag in reader.Tags()["tensors"]},
    }
print(json.dumps(found))
"""


@pytest.mark.framework
def test_tensorboard_reads_numbers_reasons_schedule_and_summary(tmp_path):
    pytest.importorskip("tensorboard")
    found = told(tmp_path, "tb", TENSORBOARD)
    name = "vision_b_cats_b-trimtab-1-run-"
    assert list(found) == [f"{name}1", f"{name}2"]
    scalars, texts = found[f"{name}1"]["scalars"], found[f"{name}1"]["texts"]
    assert scalars["applied/lr"] == [[s, pytest.approx(2e-3)] for s in (0, 2, 4)]
    assert scalars["validation/accuracy"] == [[0, 0.0], [2, 0.25], [4, 0.5]]
    assert scalars["schedule/lr"] == [[s, pytest.approx(1e-3 * (6 - s))] for s in range(6)]
    assert scalars["best/loss"] == [[6, pytest.approx(0.3)]]
    assert scalars["test/loss"] == [[6, 0.25]]
    assert [step for step, _ in texts["decisions"]] == [0, 2, 4]
    assert texts["decisions"][0][1].endswith(r"\(asked for 0.004\): held at its bound")
    assert texts["summary"][0][1].startswith("finished after 6 steps and 3 decisions")
    assert r"| task | ../vision/\<b\>cats\</b\> |" in texts["run"][0][1]
    # What the killed process wrote from that step on is forgotten.
    assert found[f"{name}2"]["scalars"]["applied/lr"] == [
        [0, pytest.approx(2e-3)],
        [2, pytest.approx(5e-4)],
    ]


MLFLOW = """
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[2].partition(":")[2])
experiment = client.get_experiment_by_name("trimtab").experiment_id
found = []
for run in client.search_runs([experiment], order_by=["attributes.start_time ASC"]):
    history = {key: sorted((m.step, m.value) for m in client.get_metric_history(
        run.info.run_id, key)) for key in run.data.metrics}
    found.append({"name": run.info.run_name, "status": run.info.status, "metrics": history,
                  "params": run.data.params, "tags": run.data.tags,
                  "artifacts": [f.path for f in client.list_artifacts(run.info.run_id)]})
print(json.dumps(found))
"""


@pytest.mark.framework
def test_mlflow_reads_parameters_metrics_reasons_and_status(tmp_path):
    pytest.importorskip("mlflow")
    first, second = told(tmp_path, f"mlflow:sqlite:///{tmp_path}/mlflow.db", MLFLOW)
    assert first["name"] == "vision_b_cats_b-trimtab-1-run-1"
    assert (first["status"], second["status"]) == ("FINISHED", "FINISHED")
    metrics = first["metrics"]
    assert metrics["applied/lr"] == [[0, 2e-3], [2, 2e-3], [4, 2e-3]]
    assert metrics["schedule/lr"] == [[s, 1e-3 * (6 - s)] for s in range(6)]
    assert metrics["test/loss"] == [[6, 0.25]]
    assert first["params"]["task"] == "../vision/<b>cats</b>"
    assert first["params"]["start/lr"] == "0.001"
    assert "held at its bound" in first["tags"]["trimtab.decision"]
    assert first["tags"]["trimtab.summary"].startswith("finished after 6 steps")
    assert first["artifacts"] == ["decisions.txt"]
    assert [0, 2e-3] in second["metrics"]["applied/lr"]
    assert [2, 5e-4] in second["metrics"]["applied/lr"]


WANDB = """
import wandb
from pathlib import Path
from wandb.proto import wandb_internal_pb2 as pb

def records(path):
    data, place, whole = path.read_bytes(), 7, b""  # LevelDB's log format after a header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part, place = data[place + 7 : place + 7 + size], place + 7 + size
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(whole)
            yield record

found = []
for path in Path("wandb").glob("offline-run-*/run-*.wandb"):
    run = {"config": {}, "history": [], "summary": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "project": record.run.project}
            run["config"] |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "history":
            run["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json)
                                   for i in record.history.item})
        elif kind == "summary":
            run["summary"] |= {i.key or "/".join(i.nested_key): json.loads(i.value_json)
                               for i in record.summary.update}
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    found.append(run)
print(json.dumps(sorted(found, key=lambda run: (run["name"], len(run["history"])))))
"""


@pytest.mark.framework
def test_wandb_keeps_settings_numbers_reasons_and_summary_offline(tmp_path):
    pytest.importorskip("wandb")
    found = told(tmp_path, "wandb:cats", WANDB)
    first = found[0]
    assert (first["name"], first["project"]) == ("vision_b_cats_b-trimtab-1-run-1", "cats")
    assert first["exit"] == 0
    assert first["config"]["task"] == "../vision/<b>cats</b>"
    rows = [row for row in first["history"] if "applied/lr" in row]
    assert [(row["step"], row["applied/lr"]) for row in rows] == [(0, 2e-3), (2, 2e-3), (4, 2e-3)]
    assert rows[0]["decisions"].endswith("held at its bound")
    schedule = [
        (row["step"], row["schedule/lr"]) for row in first["history"] if "schedule/lr" in row
    ]
    assert schedule == [(s, 1e-3 * (6 - s)) for s in range(6)]
    assert first["summary"]["best/loss"] == 0.3
    assert first["summary"]["test/loss"] == 0.25
    assert first["summary"]["summary"].startswith("finished after 6 steps")
    # The run that went on is a second one of its name and group.
    assert [run["name"][-5:] for run in found] == ["run-1", "run-2", "run-2"]
    later = [row["applied/lr"] for row in found[2]["history"] if "applied/lr" in row]
    assert later == [5e-4]


@pytest.mark.framework
def test_a_controller_and_the_command_line_tell_trackers(tmp_path):
    pytest.importorskip("tensorboard")
    torch = pytest.importorskip("torch")
    from trimtab.adapters.torch import TorchController

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(4, 3)

    def validate() -> float:
        return float(model(x).detach().pow(2).mean())

    with TorchController(
        optimizer,
        total_steps=6,
        decisions=3,
        validate=validate,
        model=model,
        policy="random",
        log_to=str(tmp_path / "tb"),
    ) as controller:
        for _ in range(6):
            loss = model(x).pow(2).mean()
            loss.backward()
            controller.step(loss.detach())
    (folder,) = (tmp_path / "tb").iterdir()
    assert folder.name.startswith("Linear-random-")
    (file,) = folder.iterdir()
    assert file.read_bytes().count(b"schedule/lr") == 6
    asked = "run simulated/quadratic --policy none --store none --log-to cli --json"
    ended = subprocess.run(
        [sys.executable, "-m", "trimtab", *asked.split()],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "cli").iterdir()
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    assert content.count(b"schedule/lr") == json.loads(ended.stdout)["spent_steps"]
    assert b"test/loss" in content
