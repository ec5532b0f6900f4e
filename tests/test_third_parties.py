"""A package of somebody else joins by an entry point of each kind, and is used by its names."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import pytest

from trimtab import agents, cli
from trimtab.core import registry
from trimtab.core.decision import RunInfo
from trimtab.core.errors import PolicyFileError, SpecError, UnknownNameError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.registry import make_task
from trimtab.core.spec import ControlSpec
from trimtab.defaults import controller_for, policy_path, recorder_for
from trimtab.search.methods.base import find_method
from trimtab.testing import check_agent, check_controller, check_store

LR = (hyperparameter("lr"),)

ENTRY_POINTS = """
[trimtab.agents]
parrot = birdsong:PARROT
[trimtab.charts]
sonogram = birdsong:sonogram
[trimtab.controllers]
owl = birdsong:Owl
stone = birdsong:Stone
[trimtab.methods]
migration = birdsong:MIGRATION
[trimtab.policies]
wren = birdsong.policies
gone = birdsong.policies
wild = birdsong.wild
[trimtab.rewards]
loudness = birdsong:loudness
[trimtab.stores]
nest = birdsong:Nest
leaky = birdsong:Leaky
[trimtab.tasks]
audio/birds = birdsong:birds
"""

SOURCE = '''
import dataclasses, json, pathlib
import numpy as np
from trimtab.agents.base import AgentKind
from trimtab.agents.baselines import RandomAgent
from trimtab.core.control import no_action
from trimtab.core.decision import Recorder
from trimtab.core.registry import make_task
from trimtab.search.methods.schedules import CONSTANT

PARROT = AgentKind("parrot", ("discrete",), lambda env, settings: RandomAgent(env, **settings))
MIGRATION = dataclasses.replace(CONSTANT, name="migration")


def birds():
    return make_task("simulated/quadratic", variant="tiny", default_member=0)


def sonogram(summary):
    return f"{summary.spent_steps} steps"


def loudness(before, after):
    return 42.0


class Owl:
    """Raises the rate once, at night."""

    name, guarded = "owl", True

    def __init__(self, spec):
        self.spec = dataclasses.replace(spec, actions="continuous")
        self.made = 0

    def reset(self, *, seed):
        self.made = 0

    def act(self, observation):
        action = no_action(self.spec)
        action[0] = 1.0 if self.made == 3 else 0.0
        self.made += 1
        return action

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made = state["made"]


class Stone:
    def __init__(self, spec):
        self.name = "stone"


class Nest(Recorder):
    """Keeps a run in a file: a line for each call."""

    def __init__(self, store, info, *, run=None):
        self.path = pathlib.Path(store.removeprefix("nest://"))
        self.run = 3 if run is None else run
        self.write({"task": info.task})

    def write(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\\n")

    def decision(self, decision):
        self.write({"decision": decision.index})

    def finish(self, summary, status):
        self.write({"status": status})

    def state(self):
        return {"run": self.run}


class Leaky(Nest):
    def decision(self, decision):
        raise OSError("the nest has a hole")

    def __init__(self, store, info, *, run=None):
        super().__init__(store.replace("leaky", "nest"), info, run=run)
'''


@pytest.fixture(scope="module", autouse=True)
def birdsong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package: a folder on the path, with what an installer writes beside it."""
    site = tmp_path_factory.mktemp("site-packages")
    shipped = policy_path("trimtab-0")
    (site / "birdsong" / "policies").mkdir(parents=True)
    (site / "birdsong" / "__init__.py").write_text(SOURCE)
    (site / "birdsong" / "wild.py").write_text("")
    (site / "birdsong" / "policies" / "__init__.py").write_text("")
    shutil.copy(shipped, site / "birdsong" / "policies" / "wren.safetensors")
    (site / "birdsong-1.0.dist-info").mkdir()
    (site / "birdsong-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: birdsong\nVersion: 1.0\n"
    )
    (site / "birdsong-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    registry._offers.cache_clear()
    yield site
    sys.path.remove(str(site))
    registry._offers.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "birdsong"]:
        del sys.modules[name]


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trimtab(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a command line in this process; gives status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_the_package_offers_something_of_every_kind() -> None:
    for kind, group in registry.GROUPS.items():
        names = ENTRY_POINTS.partition(f"[{group}]\n")[2].partition("\n[")[0].splitlines()
        assert names
        assert {name.partition(" = ")[0] for name in names} <= set(registry.names(kind))


def test_a_task_a_method_and_a_reward_are_found() -> None:
    assert make_task("audio/birds").name.startswith("simulated/quadratic")
    assert find_method("migration").name == "migration"
    env = gymnasium.make("Hyperparam-v0", task="audio/birds", reward="loudness", decisions=4)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[1] == 42.0


def test_a_chart_of_a_summary_is_found() -> None:
    from trimtab.core.decision import Summary

    assert registry.lookup("chart", "sonogram")(Summary(spent_steps=7)) == "7 steps"


def test_an_agent_is_made_and_keeps_what_is_promised() -> None:
    env = gymnasium.make("Hyperparam-v0", decisions=4)
    check_agent(lambda: agents.make("parrot", env), env)


def test_a_controller_steers_under_the_spec_that_it_asks_for() -> None:
    spec, controller = controller_for("owl", LR, decisions=12)
    assert (controller.name, spec.actions, spec.decisions) == ("owl", "continuous", 12)
    check_controller(controller, spec)


def test_the_command_line_runs_a_controller_by_its_name(trimtab: Run) -> None:
    status, out, err = trimtab(
        "run", "audio/birds", "--policy", "owl", "--reference", "constant", "--json"
    )
    assert status == 0, err
    rates = {row["lr"] for row in json.loads(out)["schedule"]}
    assert len(rates) > 1


def test_what_makes_no_controller_is_refused_with_what_is_missing() -> None:
    with pytest.raises(SpecError, match="made a Stone without guarded, reset, act, state_dict"):
        controller_for("stone", LR)


def test_a_policy_is_found_wherever_one_is_named(birdsong: Path, trimtab: Run) -> None:
    assert policy_path("wren") == birdsong / "birdsong" / "policies" / "wren.safetensors"
    _, controller = controller_for("wren", LR)
    assert controller.name == "trimtab-0"  # the name inside the file
    status, out, err = trimtab("policies", "--json")
    assert status == 0
    assert "wren" in {row["name"] for row in json.loads(out)}
    assert "gone: policy" in err  # the other names are listed all the same
    assert "wild: policy" in err


def test_a_policy_without_its_file_or_package_is_refused() -> None:
    with pytest.raises(PolicyFileError, match=r"gone.safetensors: No such file"):
        controller_for("gone", LR)
    with pytest.raises(SpecError, match=r"policy 'wild': .* is no package"):
        controller_for("wild", LR)
    with pytest.raises(UnknownNameError, match="unknown policy 'wrenn'; did you mean 'wren'"):
        controller_for("wrenn", LR)


def test_a_store_keeps_what_is_promised(birdsong: Path, tmp_path: Path) -> None:
    nest = registry.lookup("store", "nest")
    check_store(nest, f"nest://{tmp_path / 'checked'}")


def test_the_command_line_records_into_a_store_by_its_scheme(trimtab: Run, tmp_path: Path) -> None:
    store = f"nest://{tmp_path / 'kept'}"
    status, out, err = trimtab("run", "audio/birds", "--store", store, "--json")
    assert status == 0, err
    assert json.loads(out)["run"] == 3
    lines = [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]
    assert "task" in lines[0]
    assert lines[1] == {"decision": 0}
    assert lines[-1] == {"status": "finished"}


def test_a_store_that_fails_is_told_of_once_and_stops_nothing(tmp_path: Path) -> None:
    info = RunInfo(task="audio/birds", spec=ControlSpec(), total_steps=20)
    recorder = recorder_for(f"leaky://{tmp_path / 'kept'}", info)
    assert recorder is not None
    with pytest.warns(match="store: it failed .OSError: the nest has a hole.; it is told"):
        recorder.decision(None)  # type: ignore[arg-type]
    recorder.decision(None)  # type: ignore[arg-type] # warnings are errors here


def test_a_store_of_another_package_is_not_read_as_a_database(trimtab: Run) -> None:
    status, _, err = trimtab("report", "1", "--store", "nest://somewhere")
    assert status == 1
    assert "'nest://somewhere' is no database address" in err
