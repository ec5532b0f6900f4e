"""Commands as the pages show them."""

from __future__ import annotations

import pytest

commands = pytest.importorskip("benchmarks.commands")  # absent beside an installed wheel


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/me/o", "o"),
        ("/home/me/o/", "o"),
        ("--out=/home/me/o", "--out=o"),
        ("sqlite:////home/me/runs.db", "sqlite:///runs.db"),
        ("--store=sqlite:////home/me/runs.db", "--store=sqlite:///runs.db"),
        (r"C:\runs\o", "o"),
    ],
)
def test_an_absolute_path_is_shown_by_its_last_part(word, shown):
    assert commands.shown_command(["trimtab", "compare", word]) == f"trimtab compare {shown}"


@pytest.mark.parametrize(
    "word",
    ["o/x", "../o", "--starts=0.01,1", "lr=1e-3", "sqlite:///runs.db", "module:factory", "/"],
)
def test_every_other_word_stays_as_it_was_given(word):
    assert commands.shown_command(["trimtab", "tune", word]) == f"trimtab tune {word}"


def test_a_program_is_shown_as_it_is_called_anywhere():
    assert commands.shown_command(["/x/bin/trimtab", "tasks"]) == "trimtab tasks"
    assert commands.shown_command(["/x/trimtab/__main__.py", "tasks"]) == "python -m trimtab tasks"
    assert commands.shown_command([]) == ""


def test_a_module_called_without_arguments_takes_none_from_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--out", "/home/me/o 1"])
    assert commands.called("benchmarks.rewards", []) == "python -m benchmarks.rewards"
    shown = "python -m benchmarks.rewards --out 'o 1'"
    assert commands.called("benchmarks.rewards", None) == shown
