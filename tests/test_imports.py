"""What a fresh interpreter loads: steering must not cost a user the start-up of five frameworks."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = frozenset(
    {
        "ConfigSpace",
        "alembic",
        "altair",
        "hyperopt",
        "jax",
        "jaxlib",
        "keras",
        "lightning",
        "matplotlib",
        "optax",
        "optuna",
        "pandas",
        "peft",
        "pyarrow",
        "ray",
        "sb3_contrib",
        "scipy",
        "sklearn",
        "sqlalchemy",
        "stable_baselines3",
        "tensorflow",
        "torch",
        "transformers",
        "vl_convert",
    }
)
# Gymnasium, NumPy (cython_runtime is its random module) and what Gymnasium itself loads.
ALLOWED = frozenset(
    {
        "cloudpickle",
        "cython_runtime",
        "farama_notifications",
        "gymnasium",
        "numpy",
        "trimtab",
        "typing_extensions",
    }
)

LOADED_BY = """
import json, sys
before = set(sys.modules)
{statement}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(loaded - sys.stdlib_module_names)))
"""


def output_of(*command: str | Path) -> str:
    """Return what a command prints; it must succeed without a word on standard error."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def packages_loaded_by(statement: str) -> set[str]:
    """Return the top-level packages, the standard library's aside, that a statement loads."""
    printed = output_of(sys.executable, "-c", LOADED_BY.format(statement=statement))
    return set(json.loads(printed.splitlines()[-1]))


def test_importing_trimtab_loads_gymnasium_and_numpy_only() -> None:
    loaded = packages_loaded_by("import trimtab")
    assert loaded >= {"gymnasium", "numpy", "trimtab"}
    assert {name for name in loaded if not name.startswith("_")} <= ALLOWED


@pytest.mark.parametrize(
    "statement",
    [
        "import trimtab; dir(trimtab), trimtab.Task, trimtab.ControlSpec, trimtab.hyperparameter",
        "import trimtab; trimtab.run_task, trimtab.tune, trimtab.TuneResult, trimtab.Summary",
        "import trimtab.testing",
        "import trimtab.core.session, trimtab.core.registry",
        "import trimtab; trimtab.agents",
        "import gymnasium, trimtab; gymnasium.make('Hyperparam-v0').reset(seed=0)",
        "from trimtab.cli.main import main; main",
        "import trimtab.adapters.ray.member, trimtab.tasks.keras_credit",
    ],
)
def test_everyday_use_loads_nothing_heavy(statement: str) -> None:
    assert packages_loaded_by(statement) & HEAVY == set()


@pytest.mark.parametrize(
    "statements",
    [
        "import trimtab, gymnasium",
        "import gymnasium, trimtab",
        "import trimtab.core.spec, gymnasium",
        "import gymnasium; gymnasium.make('trimtab:Hyperparam-v0')",
        "import trimtab, gymnasium, importlib; importlib.reload(trimtab)",
    ],
)
def test_the_environment_is_registered_whatever_the_import_order(statements: str) -> None:
    check = f"{statements}; print(gymnasium.spec('Hyperparam-v0').id)"
    assert output_of(sys.executable, "-W", "error", "-c", check) == "Hyperparam-v0\n"


def test_help_is_shown_and_its_cost_printed(record_property: pytest.RecordProperty) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = output_of(Path(sys.executable).with_name("trimtab"), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("help_cpu_seconds", seconds)
    print(f"trimtab --help: {seconds:.2f} s of CPU time")  # noqa: T201
    assert "Usage" in printed
