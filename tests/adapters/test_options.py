"""The keywords of every adapter are those of `RunOptions`: in signatures, help and the API page."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from trimtab.adapters.options import OPTIONAL, RunKeywords, RunOptions

ROOT = Path(__file__).parents[2]
KEYWORDS = {item.name: item.default for item in OPTIONAL}
ADAPTERS = {
    "trimtab.adapters.torch": "TorchController",
    "trimtab.adapters.transformers": "TrimtabCallback",
    "trimtab.adapters.lightning": "TrimtabCallback",
    "trimtab.adapters.keras": "TrimtabCallback",
    "trimtab.adapters.keras.controller": "KerasController",
}


def test_every_option_has_a_default_but_two_and_is_a_keyword_for_those_who_check_types() -> None:
    assert set(inspect.signature(RunOptions).parameters) - set(KEYWORDS) == {
        "hyperparameters",
        "reference",
    }
    hints = get_type_hints(RunOptions)
    assert get_type_hints(RunKeywords) == {name: hints[name] for name in KEYWORDS}


@pytest.mark.parametrize(
    "module",
    [
        name if name.endswith("torch") else pytest.param(name, marks=pytest.mark.framework)
        for name in ADAPTERS
    ],
)
def test_an_adapter_takes_each_option_and_says_what_it_means(module: str) -> None:
    pytest.importorskip(module.split(".")[2])
    adapter: Any = getattr(importlib.import_module(module), ADAPTERS[module])
    parameters = inspect.signature(adapter).parameters

    assert {name: parameters[name].default for name in KEYWORDS} == KEYWORDS
    assert not any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    lines = inspect.getdoc(adapter).splitlines()
    told = [line.strip().partition(":")[0] for line in lines if line.startswith("    ")]
    missing = [name for name in parameters if name not in told]
    assert missing == []


def test_a_keyword_that_is_none_is_an_error() -> None:
    torch = pytest.importorskip("torch")
    from trimtab.adapters.torch import TorchController

    model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="'decision'"):
        TorchController(
            torch.optim.SGD(model.parameters(), lr=0.1),
            total_steps=10,
            validate=lambda: 1.0,
            model=model,
            decision=5,  # type: ignore[call-arg]
        )


def test_hyperparameters_are_a_list_that_can_be_gone_through_twice() -> None:
    assert RunOptions(hyperparameters="lr", reference=None).hyperparameters == ["lr"]
    given = RunOptions(hyperparameters=(kind for kind in ("lr", "clip")), reference=None)
    assert [list(given.hyperparameters), list(given.hyperparameters)] == [["lr", "clip"]] * 2


def test_the_api_page_shows_the_keywords_with_their_defaults() -> None:
    griffe = pytest.importorskip("griffe")
    page = griffe.load(
        "trimtab.adapters.torch.controller",
        search_paths=[ROOT / "src"],
        extensions=griffe.load_extensions(str(ROOT / "docs_hooks" / "keywords.py")),
    )["TorchController"]
    shown = {item.name: item.default for item in page.members["__init__"].parameters}

    assert {name: shown[name] for name in KEYWORDS} == {k: repr(v) for k, v in KEYWORDS.items()}
    assert "options" not in shown
    assert "    watch_only: Follow the reference" in page.docstring.value
