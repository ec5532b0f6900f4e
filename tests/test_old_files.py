"""What trimtab 0.1.0 wrote before its modules were moved is read, and gone on with, by this one.

`old_files/make.py` made the files. What goes on from one must end as what was never interrupted: to
the last bit on a machine that computes like the one they were made on, else nearly.
"""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.old_files import agent_runs
from trimtab.cli import main
from trimtab.controllers.learned import LearnedController, read_policy
from trimtab.core.errors import SpecError
from trimtab.records.store.store import Store, load_run
from trimtab.search.comparison.journal import Journal
from trimtab.search.comparison.table import read_parquet

OLD = Path(__file__).with_name("old_files")
STUDY = ("--variant", "tiny", "--decisions", "10", "--policy", "policy.safetensors")
STUDY += ("--budget", "3", "--seed", "1", "--sampler", "random")
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the files, whose store finds its snapshots there."""
    copied = tmp_path / "old"
    shutil.copytree(OLD, copied, ignore=shutil.ignore_patterns("*.pyc", "__pycache__"))
    with sqlite3.connect(copied / "store.sqlite") as connection:
        moved = "update snapshots set path = replace(path, '/old/', ?)"
        connection.execute(moved, (f"{copied}/",))
    connection.close()
    monkeypatch.chdir(copied)
    for name in ("TRIMTAB_STORE", "TRIMTAB_SNAPSHOTS"):
        monkeypatch.delenv(name, raising=False)
    return copied


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what a command prints as JSON."""

    def made(*words: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return json.loads(printed.out)

    return made


def recorded(name: str) -> Any:
    return json.loads(Path("expected.json").read_text())[name]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield float(value)


def require_same_end(resumed: Any, unbroken: Any, old: Any) -> None:
    """Assert that what went on ends as it did then, exactly where an unbroken run does so here."""
    if unbroken == old:
        assert resumed == old
    found, expected = list(numbers(resumed)), list(numbers(old))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


# Policies, agents and trainings.


def test_a_policy_decides_as_it_did() -> None:
    policy = read_policy("policy.safetensors")
    assert (policy.name, policy.spec.decisions, policy.about["runs"]) == ("old-policy", 6, "24")
    assert [item.name for item in policy.spec.hyperparameters] == ["lr"]
    assert policy.parameters["token_w"].shape == (58, 8)
    controller = LearnedController(policy)
    controller.reset(seed=2)
    with Store("store.sqlite") as store:
        decisions = store.run(1).decisions
    actions = [controller.act(decision.observation).tolist() for decision in decisions]
    assert np.ravel(actions) == pytest.approx(np.ravel([d.action for d in decisions]), rel=1e-4)
    assert len({action[0] for action in actions}) > 5


@pytest.mark.parametrize("name", agent_runs.AGENTS)
def test_an_agent_chooses_as_it_did_and_learns_on(name: str) -> None:
    for package in agent_runs.NEEDS.get(name, ()):
        pytest.importorskip(package)
    agent, chosen = agent_runs.choices(name)
    state, expected = agent.state_dict(), recorded("agents")[name]
    given = agent_runs.AGENTS[name][1]
    assert (agent.name, {key: agent.settings[key] for key in given}) == (name, given)
    assert agent_runs.total(state) == pytest.approx(expected["total"], rel=1e-6)
    assert np.ravel(chosen) == pytest.approx(np.ravel(expected["chosen"]), rel=1e-3, abs=1e-5)
    if "counters" in state:
        assert state["counters"]["num_timesteps"] == 24
    agent_runs.learn(name, agent)
    agent.save("again.safetensors")


def test_a_training_has_its_policy_and_remembers_its_runs() -> None:
    pytest.importorskip("jax")
    from trimtab.agents.training.checkpoints import load_memory

    memory = load_memory(Path("learning"))
    assert {name: array.shape for name, array in memory.items()} == {
        "before": (1, 6, 8),
        "grid": (1, 4),
        "losses": (1, 8, 4),
        "observation": (1, 6, 8, 58),
        "place": (1, 8),
        "restore": (1, 6, 8, 2),
        "weight": (1, 6, 8),
    }
    assert float(memory["losses"].sum()) == pytest.approx(-42.0999, rel=1e-5)
    assert float(memory["observation"].sum()) == pytest.approx(241.5177, rel=1e-5)
    policy = read_policy("learning/old-policy.safetensors")
    assert (policy.about["runs"], policy.about["inner_steps"]) == ("16", "208")


@pytest.mark.slow
def test_a_training_goes_on_to_the_policy_of_an_unbroken_one(call: Call) -> None:
    pytest.importorskip("jax")
    began = json.loads(Path("learning/checkpoint.json").read_text())["iteration"]
    told = call("learn", "--config", "learning.toml", "--out", "learning", "--resume")
    assert (began, told["iteration"], told["runs"]) == (2, 3, 24)
    again, whole = read_policy(told["policy"]), read_policy("policy.safetensors")
    assert again.about["inner_steps"] == whole.about["inner_steps"]
    for name, array in again.parameters.items():
        np.testing.assert_allclose(array, whole.parameters[name], rtol=1e-3, atol=1e-5)


# Runs.


def test_a_run_is_read_with_its_decisions() -> None:
    with Store("store.sqlite") as store:
        assert store.run_ids() == [1, 2, 3, 4, 5, 6, 7]
        run = store.run(1)
        assert [store.run(name).status for name in (2, 7)] == ["stopped", "interrupted"]
    assert run.title == "run 1 · simulated/quadratic@0 · old-policy"
    assert (run.status, run.head["seed"], run.head["host"]) == ("finished", 2, "elsewhere")
    assert run.figures["test"]["loss"] == 0.2496003955602646
    assert run.figures["rollbacks"] == 1
    assert len(run.schedule["lr"]) == 40
    assert [one.step for one in run.decisions] == [0, 2, 4, 6, 10, 15, 20, 25, 30, 35]
    fourth = run.decisions[3]
    assert fourth.applied == {"lr": 0.0019553611291392116}
    assert fourth.why_of("lr") == "rolled back to the best weights; learning rate cut"
    assert fourth.metrics.val_loss == 1.7363110780715942
    assert fourth.observation.shape == (58,)


def test_a_run_that_the_store_did_not_take_is_read_from_its_lines() -> None:
    run = load_run("run.jsonl", "store.sqlite")
    assert (run.status, run.head["seed"], len(run.decisions)) == ("finished", 3, 10)
    assert run.figures["best"]["loss"] == 0.2716590464115143


@pytest.mark.parametrize("run", ["1", "2", "run.jsonl"])
def test_a_run_has_its_report(call: Call, run: str) -> None:
    pytest.importorskip("altair")
    path = call("report", run, "--store", "store.sqlite", "--out", "report.html")["report"]
    policy = "random" if run == "2" else "old-policy"
    assert policy in Path(path).read_text(encoding="utf-8")


def test_a_schedule_is_exported_as_it_was(call: Call) -> None:
    files = call("export", "1", "--to", "json,torch", "--out", "again", "--store", "store.sqlite")[
        "files"
    ]
    old = json.loads(Path("export/schedule.json").read_text())
    assert json.loads(Path(files["json"]).read_text()) == old
    assert (old["format"], old["n_steps"], old["lost"]) == ("trimtab-schedule-1", 38, [[4, 5]])
    assert constants(Path(files["torch"])) == constants(Path("export/schedule_torch.py"))


def constants(file: Path) -> dict[str, Any]:
    """Return what a module names in capitals."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target).isupper():
                found[ast.unparse(target)] = ast.literal_eval(node.value)
    assert "VALUES" in found
    return found


def test_a_torch_run_goes_on_with_its_record() -> None:
    pytest.importorskip("torch")
    from tests.old_files import torch_run

    resumed = torch_run.resumed("store.sqlite")
    require_same_end(resumed, torch_run.whole(), recorded("torch"))
    with Store("store.sqlite") as store:
        run = store.run(2)
    assert (run.status, len(run.decisions)) == ("finished", 10)
    assert run.schedule["lr"] == [row["lr"] for row in resumed["schedule"]]


# Studies and comparisons.


def test_studies_are_listed(call: Call) -> None:
    finished, interrupted = sorted(
        call("studies", "--store", "store.sqlite"), key=lambda row: row["study"]
    )
    assert (finished["status"], finished["done"], finished["spent"]) == ("finished", 3, 3.0)
    assert (interrupted["status"], interrupted["done"]) == ("interrupted", 1)
    with sqlite3.connect("store.sqlite") as connection:
        (summary,) = connection.execute("select summary from studies where id = 1").fetchone()
    connection.close()
    assert finished["validation"] == json.loads(summary)["validation"]


def test_a_finished_study_is_told_and_has_its_report(call: Call) -> None:
    pytest.importorskip("jax")
    result = call("resume", "finished", "--store", "store.sqlite")
    assert [row["kind"] for row in result["runs"]] == ["first", "reference", "restart"]
    assert result["best"]["validation"] == min(row["validation"] for row in result["runs"])
    assert len(result["best"]["schedule"]) == 40
    pytest.importorskip("altair")
    report = call("report", "finished", "--store", "store.sqlite", "--out", "report.html")
    assert "simulated/quadratic" in Path(report["report"]).read_text(encoding="utf-8")


def test_a_study_goes_on_to_the_end_of_an_unbroken_one(call: Call, folder: Path) -> None:
    pytest.importorskip("jax")
    began = Store("store.sqlite")
    n_runs, done = len(began.run_ids()), len(began.run(7).decisions)
    began.close()
    old = without_names(call("resume", "finished", "--store", "store.sqlite"))
    resumed = without_names(call("resume", "interrupted", "--store", "store.sqlite"))
    anew = call("tune", "simulated/quadratic", *STUDY, "--store", "anew.sqlite")
    require_same_end(resumed, without_names(anew), old)
    with Store("store.sqlite") as store:
        assert len(store.run_ids()) == n_runs + 1, "a run was begun anew"
        gone_on = store.run(7)
    assert 0 < done < len(gone_on.decisions) == 10
    assert gone_on.decisions[0].taken_at < gone_on.decisions[-1].taken_at - 1e6
    kept = call("gc", "interrupted", "--store", "store.sqlite")["studies"][0]
    assert kept["kept"] == 1
    assert len(list(folder.glob("store.sqlite.snapshots/interrupted/*/*"))) == 1


def without_names(result: dict[str, Any]) -> dict[str, Any]:
    """Return a study's result without its name and the time it took."""
    plain = json.loads(json.dumps(result))
    del plain["study"]
    for row in [*plain["runs"], *plain["pareto"]]:
        row.pop("seconds", None)
    return dict(plain)


def test_a_comparison_is_read_from_its_table() -> None:
    pytest.importorskip("pyarrow")
    comparison, identity = read_parquet(Path("comparison/comparison.parquet"))
    assert identity["code"] == "8f6fd84b416d7abe"
    found = {
        (one.method, one.budget, one.seed): one.outcome.result.validation
        for one in comparison.entries
    }
    assert found == {
        ("random", 2, 0): 0.27331238985061646,
        ("random", 2, 1): 0.27331238985061646,
        ("trimtab", 1, 0): 0.25328153371810913,
        ("trimtab", 1, 1): 0.2717560827732086,
    }
    task = comparison.tasks["simulated/quadratic"]
    assert task.tuned_lr == 0.0004256300169413774
    assert [run.test for run in task.pool] == [0.2712796628475189, 0.4471205174922943]


def test_a_comparison_s_results_go_on_with_the_same_code_alone(folder: Path) -> None:
    lines = (folder / "comparison" / "results.jsonl").read_text().splitlines()
    identity = json.loads(lines[0])["made by"]
    with Journal(folder / "comparison", identity) as journal:
        kinds = [json.loads(key)["kind"] for key in journal.results]
        outcomes = list(journal.results.values())
    assert {kind: kinds.count(kind) for kind in kinds} == {"tuned": 3, "pool": 2, "method": 4}
    assert all(math.isfinite(run["validation"]) for one in outcomes for run in one["runs"])
    another = {**identity, "code": "0" * 16}
    with (
        pytest.raises(SpecError, match=r"results of other code .*code 8f6fd84b416d7abe there"),
        Journal(folder / "comparison", another),
    ):
        pass


# Checkpoints of other trainers, which need their frameworks.

quietly = pytest.mark.filterwarnings("ignore")


@pytest.mark.framework
@quietly
def test_a_transformers_checkpoint_goes_on() -> None:
    runs = trainer_runs()
    resumed = runs.by_transformers(Path("anew"), runs.TRANSFORMERS.resolve())
    require_same_end(resumed, runs.by_transformers(Path("whole")), recorded("transformers"))


@pytest.mark.framework
@quietly
def test_a_lightning_checkpoint_goes_on() -> None:
    runs = trainer_runs()
    resumed = runs.by_lightning(Path("anew"), runs.LIGHTNING.resolve())
    require_same_end(resumed, runs.by_lightning(Path("whole")), recorded("lightning"))


def trainer_runs() -> Any:
    for package in ("accelerate", "lightning", "transformers"):
        pytest.importorskip(package)
    from tests.old_files import trainer_runs

    return trainer_runs


@pytest.mark.framework
def test_keras_states_go_on_in_fit_and_in_a_loop() -> None:
    for package in ("keras", "tensorflow"):
        pytest.importorskip(package)
    resumed, unbroken = keras("resumed"), keras("whole")
    for name in ("fit", "loop"):
        require_same_end(resumed[name], unbroken[name], recorded(f"keras {name}"))
    assert not list(Path("keras-fit").glob("*.safetensors")), "the run did not end"


def keras(command: str) -> Any:
    """Return what a program of its own prints, as Keras has one backend a process."""
    settings = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path()}
    done = subprocess.run(
        [sys.executable, str(OLD / "keras_runs.py"), command],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def path() -> str:
    """Return where this trimtab is, whatever the working folder is."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(Path(trimtab.__file__).parents[1]), *filter(None, known)])
