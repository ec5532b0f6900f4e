"""Options of one name mean one thing in every command."""

from __future__ import annotations

import json

import pytest
import typer

from trimtab.cli.main import app

pytestmark = pytest.mark.usefixtures("folder")

SHARED = ("--start", "--start-scale", "--seed", "--seeds", "--variant", "--decisions")
ALLOWED_TO_DIFFER = {
    "--start-scale": "Start at this factor times the task's tuned learning rate",
    "--variant": "Size of the task",
    "--decisions": "How often",
}


def options_of(command: str) -> dict[str, str]:
    """Return the help of each option that a command shows."""
    parameters = typer.main.get_command(app).commands[command].params
    shown = [one for one in parameters if not getattr(one, "hidden", False)]
    return {one.opts[0]: str(getattr(one, "help", "")) for one in shown}


@pytest.mark.parametrize("option", SHARED)
def test_an_option_is_told_of_alike_in_every_command(option: str) -> None:
    told = {
        options_of(name)[option]
        for name in typer.main.get_command(app).commands
        if option in options_of(name)
    }
    same = ALLOWED_TO_DIFFER.get(option)
    assert told
    if same is None:
        assert len(told) == 1
    else:
        assert all(words.startswith(same) for words in told)


@pytest.mark.parametrize("command", ["run", "tune", "demo --task", "compare"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--seed -1", "-1"),
        ("--seed 2147483648", "21474836"),
        ("--seed 1.5", "valid integer"),
        ("--start-scale 0", "is not a positive number"),
        ("--start-scale inf", "is not a positive number"),
        ("--start-scale low", "number"),
    ],
)
def test_what_it_refuses_is_refused_by_every_command(trimtab, command, asked, said):
    pytest.importorskip("pyarrow")
    status, out, error = trimtab(*command.split(), "tiny:make", *asked.split())
    assert (status, out) == (2, "")
    assert asked.split()[0] in error
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("seed", ["-1", "2147483648", "2147483640"])
def test_an_evaluation_refuses_seeds_that_others_refuse(trimtab, seed):
    status, _, error = trimtab("evaluate", "trimtab-1", "--seed", seed, "--tasks", "16")
    assert status == 2
    assert error.startswith("trimtab: --seed: ")


def test_one_factor_starts_a_run_and_a_comparison_alike(trimtab):
    pytest.importorskip("pyarrow")
    asked = ("--seed", "3", "--start-scale", "0.1", "--json")
    run = json.loads(trimtab("run", "tiny:make", "--policy", "none", *asked)[1])
    counts = ("--methods", "reference", "--seeds", "1", "--pool", "0", "--jobs", "1")
    (row,) = json.loads(trimtab("compare", "tiny:make", *counts, *asked)[1])["rows"]
    assert (row["seed"], row["start_scale"]) == (3, 0.1)
    assert row["test"] == run["test"]["loss"]


def test_the_former_name_of_the_factors_works_and_is_told_once(trimtab):
    pytest.importorskip("pyarrow")
    asked = ("compare", "tiny:make", "--methods", "reference", "--seeds", "1", "--pool", "0")
    former = trimtab(*asked, "--starts", "0.1,1", "--json")
    now = trimtab(*asked, "--start-scale", "0.1,1", "--json")
    assert [row["start_scale"] for row in json.loads(former[1])["rows"]] == [0.1, 1.0]
    assert json.loads(former[1]) == json.loads(now[1])
    assert former[2].count("--starts is now called --start-scale; it means the same") == 1
    assert "--starts" not in now[2]

    status, _, error = trimtab(*asked, "--starts", "1", "--start-scale", "1")
    assert status == 2
    assert "are one option; give --start-scale alone" in error
