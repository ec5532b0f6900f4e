"""A reinforcement-learning agent that steers the hyperparameters of a fine-tuning run.

Importing the package registers the Gymnasium environment ``Hyperparam-v0`` and loads nothing
heavier than Gymnasium and NumPy; every other name is loaded when it is first used.

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
    from trimtab.core.hyperparameters import Hyperparameter as Hyperparameter
    from trimtab.core.metrics import Metrics as Metrics
    from trimtab.core.protocols import Snapshot as Snapshot
    from trimtab.core.protocols import Task as Task
    from trimtab.core.protocols import TrainingRun as TrainingRun
    from trimtab.core.spec import ControlSpec as ControlSpec
    from trimtab.search.study.tune import tune as tune

__version__ = "0.1.0"

__all__ = [
    "ControlSpec",
    "Hyperparameter",
    "Metrics",
    "Snapshot",
    "Task",
    "TrainingRun",
    "__version__",
    "agents",
    "tune",
]

# Public name -> where it lives: "module:attribute", or a module.
_HOMES = MappingProxyType(
    {
        "ControlSpec": "trimtab.core.spec:ControlSpec",
        "Hyperparameter": "trimtab.core.hyperparameters:Hyperparameter",
        "Metrics": "trimtab.core.metrics:Metrics",
        "Snapshot": "trimtab.core.protocols:Snapshot",
        "Task": "trimtab.core.protocols:Task",
        "TrainingRun": "trimtab.core.protocols:TrainingRun",
        "agents": "trimtab.agents",
        "tune": "trimtab.search.study.tune:tune",
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
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})


_register_environments()
