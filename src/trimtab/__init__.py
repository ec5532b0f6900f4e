"""A reinforcement-learning agent that steers the hyperparameters of a fine-tuning run.

Importing the package registers the Gymnasium environment ``Hyperparam-v0`` and loads nothing
heavier than Gymnasium and NumPy; a name is loaded when it is used. `TorchController` and
`SteeredValue` are those of `trimtab.adapters.torch`; the other frameworks' names stand in
`trimtab.adapters.keras`, `.lightning`, `.transformers` and `.ray`, since they are called alike.

>>> import gymnasium
>>> gymnasium.spec("Hyperparam-v0").id
'Hyperparam-v0'
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab import agents as agents
    from trimtab.adapters.torch import Rescue as Rescue
    from trimtab.adapters.torch import SteeredValue as SteeredValue
    from trimtab.adapters.torch import TorchController as TorchController
    from trimtab.core.decision import Decision as Decision
    from trimtab.core.decision import Summary as Summary
    from trimtab.core.errors import TrimtabError as TrimtabError
    from trimtab.core.hyperparameters import Hyperparameter as Hyperparameter
    from trimtab.core.hyperparameters import hyperparameter as hyperparameter
    from trimtab.core.metrics import Metrics as Metrics
    from trimtab.core.protocols import Controller as Controller
    from trimtab.core.protocols import Snapshot as Snapshot
    from trimtab.core.protocols import Task as Task
    from trimtab.core.protocols import TrainingRun as TrainingRun
    from trimtab.core.spec import ControlSpec as ControlSpec
    from trimtab.core.static_choice import StaticChoice as StaticChoice
    from trimtab.search.study.coordinator import TuneResult as TuneResult
    from trimtab.search.study.tune import resume as resume
    from trimtab.search.study.tune import tune as tune
    from trimtab.tasks.run import run_task as run_task

__version__ = "0.1.0"

__all__ = [
    "ControlSpec",
    "Controller",
    "Decision",
    "Hyperparameter",
    "Metrics",
    "Rescue",
    "Snapshot",
    "StaticChoice",
    "SteeredValue",
    "Summary",
    "Task",
    "TorchController",
    "TrainingRun",
    "TrimtabError",
    "TuneResult",
    "__version__",
    "agents",
    "hyperparameter",
    "resume",
    "run_task",
    "tune",
]

# Public name -> the module that holds it, or that it is.
_HOMES = MappingProxyType(
    {
        "ControlSpec": "trimtab.core.spec",
        "Controller": "trimtab.core.protocols",
        "Decision": "trimtab.core.decision",
        "Hyperparameter": "trimtab.core.hyperparameters",
        "Metrics": "trimtab.core.metrics",
        "Rescue": "trimtab.adapters.torch",
        "Snapshot": "trimtab.core.protocols",
        "StaticChoice": "trimtab.core.static_choice",
        "SteeredValue": "trimtab.adapters.torch",
        "Summary": "trimtab.core.decision",
        "Task": "trimtab.core.protocols",
        "TorchController": "trimtab.adapters.torch",
        "TrainingRun": "trimtab.core.protocols",
        "TrimtabError": "trimtab.core.errors",
        "TuneResult": "trimtab.search.study.coordinator",
        "agents": "trimtab.agents",
        "hyperparameter": "trimtab.core.hyperparameters",
        "resume": "trimtab.search.study.tune",
        "run_task": "trimtab.tasks.run",
        "tune": "trimtab.search.study.tune",
    }
)


def _register_environments() -> None:
    """Register ``Hyperparam-v0`` with Gymnasium; a second call changes nothing."""
    from gymnasium.envs.registration import register, registry

    if "Hyperparam-v0" not in registry:
        register(
            id="Hyperparam-v0",
            entry_point="trimtab.envs.hyperparam_env:HyperparamEnv",
            vector_entry_point="trimtab.envs.vector_env:HyperparamVectorEnv",
        )


def __getattr__(name: str) -> Any:
    """Load a public name when it is used.

    Raises:
        AttributeError: There is no such name.
        MissingDependencyError: It needs a package that is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        from trimtab.core.registry import missing_dependency

        raise missing_dependency(f"trimtab.{name}", error) from error
    return home if home.__name__ == f"trimtab.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    """Return the public names, loaded or not, and nothing else."""
    return list(__all__)


_register_environments()
