"""`trimtab learn` and `trimtab evaluate` refuse what is wrong before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab import cli

pytest.importorskip("jax")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds settings and a file named taken."""
    (tmp_path / "settings.toml").write_text('families = [{ name = "simulated/quadratic" }]\n')
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate trimtab-1 --seed -1", "--seed: -1 is below 0"),
        ("evaluate trimtab-1 --jobs -1", "--jobs: -1 is below 0"),
        ("evaluate trimtab-1 --tasks 0", "--tasks: 0 is below 1"),
        ("evaluate trimtab-1 --ring z", "unknown ring 'z'; (have: a, b, c, kinds, wide)"),
        ("evaluate trimtab-1 --out=", "'--out': '' names no folder; name one, or . for"),
        ("learn --config settings.toml --out=", "'--out': '' names no folder; name one, or . for"),
        ("evaluate trimtab-1 --out taken", "--out taken cannot be written"),
        ("evaluate trimtab-1 --hyperparameters foo", "of ring a 'foo'; (have: batch_size, clip,"),
        ("evaluate trimtab-1 --hyperparameters=", "unknown hyperparameter of ring a ''"),
        ("evaluate trimtab-1 --hyperparameters lr,lr", "'lr,lr' does not begin with lr, or names"),
        ("evaluate trimtab-1 --hyperparameters momentum,lr", "name each once, lr first"),
        ("evaluate trimtab-1 --ring wide --hyperparameters lr,dropout", "mean 'dropout.8'?"),
        ("evaluate zero", "unknown policy 'zero'; (have: trimtab-0"),
        ("learn --config settings.toml --out taken", "--out taken cannot be written"),
        ("learn --config settings.toml --out o --minutes nan", "--minutes: nan is not above 0"),
        ("learn --config settings.toml --out o --minutes 0", "--minutes: 0 is not above 0"),
        ("learn --config settings.toml --out o --initial=", "unknown policy ''; (have: trimtab-0"),
        ("learn --config settings.toml --out o --remember none", "none holds no training; name"),
        ("learn --config nowhere.toml --out o", "nowhere.toml"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split(" "))
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not Path("o").exists()
    assert not Path("evaluation").exists()


def test_what_cannot_be_told_of_a_ring_is_a_dash_and_said(capsys, monkeypatch):
    from trimtab.agents.evaluation import evaluate

    nothing = dict.fromkeys(("value", "low", "high"), float("nan"))
    some = dict.fromkeys(nothing, 0.25)
    found = {"n_star": nothing, "untold": some, "n_star_by_start": {"1": nothing}, "tasks": 4}
    monkeypatch.setattr(evaluate, "evaluate_policy", lambda *_, **__: found)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "trimtab-1", "--tasks", "4"])
    told = capsys.readouterr()
    assert ended.value.code is None or ended.value.code == 0
    assert "ring a: n*, regret and harm are told without 1 of 4 tasks" in told.err
    assert "nan" not in told.out
    assert told.out.count("–") == 4


def test_a_key_that_a_settings_file_lacks_is_named(tmp_path):
    from trimtab.agents.training.settings import read_settings
    from trimtab.core.errors import SpecError

    file = tmp_path / "settings.toml"
    file.write_text('name = "mine"\n')
    with pytest.raises(SpecError, match="'families' is missing; see the file beside"):
        read_settings(file)
