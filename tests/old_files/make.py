"""Made the files beside it, in a new folder: ``python -m tests.old_files.make /old``.

That was done once, by trimtab 0.1.0 at commit df198f0; `made_with.json` says beside what. They
stand for the files that users have, so they are not made anew when a format changes: a newer
trimtab reads them. The imports below are those of that commit, and are left as they were.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import trimtab
from tests.old_files import agent_runs, torch_run, trainer_runs
from tests.old_files.agent_runs import POLICY
from trimtab.agents.learn_settings import read_settings
from trimtab.agents.meta_training import Progress, learn
from trimtab.cli import main as command
from trimtab.records.recorder import StoreRecorder
from trimtab.search.engines.inline import InlineEngine
from trimtab.search.study import tune

HERE = Path(__file__).parent
STORE = "store.sqlite"
LONG_AGO = 1_700_000_000
TASK = ("simulated/quadratic", "--variant", "tiny", "--decisions", "10")
PACKAGES = (
    "gymnasium",
    "jax",
    "keras",
    "lightning",
    "numpy",
    "pyarrow",
    "safetensors",
    "sb3-contrib",
    "sqlalchemy",
    "stable-baselines3",
    "tensorflow-cpu",
    "torch",
    "transformers",
)


def call(*words: str) -> None:
    sys.argv = ["trimtab", *words]  # what the record says
    with suppress(SystemExit):
        command(words)


def training() -> None:
    """A training by imitation that was stopped, and the policy of one that was not."""
    settings = read_settings(HERE / "learning.toml")
    learn(settings, "whole").rename(POLICY)
    shutil.rmtree("whole")

    def stop(progress: Progress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        learn(settings, "learning", on_progress=stop, checkpoint_every=1)


def remembered(name: str) -> dict[str, Any]:
    agent, chosen = agent_runs.choices(name)
    return {"chosen": chosen, "total": agent_runs.total(agent.state_dict())}


def runs() -> None:
    """Run 1 of the store, one that the store did not take, and one that was interrupted."""
    call("run", *TASK, "--policy", POLICY, "--start-scale", "100", "--store", STORE, "--seed", "2")
    with mock.patch.object(StoreRecorder, "_try", return_value=False), suppress(UserWarning):
        call("run", *TASK, "--policy", POLICY, "--store", "full.sqlite", "--seed", "3")
    (spilled,) = Path().glob("trimtab-run-*.jsonl")
    spilled.rename("run.jsonl")
    Path("full.sqlite").unlink()
    sys.argv = ["loop.py"]
    with suppress(KeyboardInterrupt):
        torch_run.write(f"sqlite:///{STORE}")


def studies() -> None:
    """Two studies that are the same, but that one is interrupted in its second run."""
    sys.argv = ["trimtab", "tune", "simulated/quadratic"]

    def spend(name: str) -> None:
        tune(
            "simulated/quadratic",
            variant="tiny",
            budget=3,
            seed=1,
            policy=POLICY,
            decisions=10,
            store=STORE,
            study=name,
            sampler="random",
            snapshot_seconds=0.0,
            engine=InlineEngine(),
        )

    spend("finished")
    stopper = threading.Thread(target=_interrupt_second_run, args=("interrupted",))
    stopper.start()
    with suppress(KeyboardInterrupt):
        spend("interrupted")
    stopper.join()
    call("gc", "finished", "--store", STORE)
    with sqlite3.connect(STORE) as connection:
        connection.execute("vacuum")
    connection.close()


def _interrupt_second_run(study: str) -> None:
    """Press Ctrl-C when the second unit's run has taken a few decisions."""
    text = (
        "select max(s.decision) from snapshots s join runs r on r.id = s.run_id "
        "join studies t on t.id = r.study_id where t.name = ? and r.place = 1"
    )
    connection = sqlite3.connect(f"file:{STORE}?mode=ro", uri=True, timeout=5)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        (decision,) = connection.execute(text, (study,)).fetchone()
        if decision is not None and decision >= 3:
            os.kill(os.getpid(), 2)
            break
    connection.close()


def comparison() -> None:
    methods = "trimtab,random:2"
    words = ("--methods", methods, "--seeds", "2", "--pool", "2", "--policy", POLICY)
    call("compare", *TASK, *words, "--jobs", "1", "--out", "comparison")
    Path("comparison/comparison.html").unlink(missing_ok=True)


def keras(word: str) -> str:
    program = [sys.executable, str(HERE / "keras_runs.py"), word]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(program, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir()
    os.chdir(folder)
    socket.gethostname = lambda: "elsewhere"
    time.time = lambda: LONG_AGO + time.monotonic()  # else a claim may hold a while yet
    training()
    agent_runs.write()
    runs()
    studies()
    call("export", "1", "--to", "json,torch", "--out", "export", "--store", STORE)
    comparison()
    trainer_runs.write_transformers()
    trainer_runs.write_lightning()
    keras("write")
    ends = {
        "agents": {name: remembered(name) for name in agent_runs.AGENTS},
        "torch": torch_run.whole(),
        "transformers": trainer_runs.by_transformers(Path("anew")),
        "lightning": trainer_runs.by_lightning(Path("anew")),
        **{f"keras {name}": found for name, found in json.loads(keras("whole")).items()},
    }
    shutil.rmtree("anew")
    Path("expected.json").write_text(json.dumps(ends) + "\n")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    made = {
        "trimtab": trimtab.__version__,
        "commit": "df198f0",
        "python": platform.python_version(),
    }
    Path("made_with.json").write_text(json.dumps(made | versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
