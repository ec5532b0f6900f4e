"""The study of rewards: what its figures count, and what its page says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
rewards = pytest.importorskip("benchmarks.rewards")  # absent beside an installed wheel


def test_a_rate_collapses_where_the_first_third_lies_a_decade_below_the_tuned_one():
    ends = np.array([2, 10, 30])
    low = np.array([[0.0], [-1.5], [3.0]])  # 2 steps, 8 steps; the last window is not looked at
    assert rewards.collapse_share(low, np.array([1.0]), ends) == 1.0
    assert rewards.collapse_share(low, np.array([10.0]), ends) == 0.0  # came down to a sane rate
    two = np.concatenate([low, low + 1.0], axis=1)
    assert rewards.collapse_share(two, np.ones(2), ends) == 0.5


def test_a_short_ramp_from_below_is_no_collapse():
    ends = np.array([2, 30])
    assert rewards.collapse_share(np.array([[-2.0], [0.0]]), np.ones(1), ends) == 0.0


def figures(regret: float, spread: float = 0.1) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - spread, "high": value + spread}

    return {
        "regret": around(regret),
        "n_star": around(8.0),
        "harm_over_floor": around(0.02),
        "diverged": around(0.0),
        "collapse": 0.25,
        "test": 0.4,
        "test_reference": 0.9,
    }


def test_the_recommendation_keeps_to_what_the_intervals_tell_apart():
    found = {
        "best-so-far": figures(0.15),
        "log-loss": figures(0.1),
        "final": figures(0.9),
    }
    told = rewards.recommendation(found)
    assert told.startswith("**Recommendation.** `log-loss` ended lowest")
    assert "do not tell it from `best-so-far`" in told
    assert "no reason here to leave `best-so-far`" in told
    assert "Avoid `final`" in told
    order = [line.split("`")[1] for line in rewards.table(found).splitlines() if "`" in line]
    assert order == ["log-loss", "best-so-far", "final"]


def test_every_reward_is_trained_with_the_same_settings():
    from dataclasses import replace

    made = [rewards.settings_for(name, 10) for name in rewards.REWARDS]
    alike = {str(replace(one, name="", spec={**one.spec, "reward": ""})) for one in made}
    assert len(alike) == 1
    assert [one.spec["reward"] for one in made] == list(rewards.REWARDS)


def test_a_page_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    rewards.write(page, "new")
    rewards.write(page, "newer")
    assert page.read_text() == (
        "above\n<!-- results -->\n\nnewer\n\n<!-- end of results -->\nbelow\n"
    )
    page.write_text("no marks")
    with pytest.raises(ValueError, match="put them back"):
        rewards.write(page, "new")


def test_the_page_shows_no_path_of_the_machine(tmp_path, monkeypatch):
    from trimtab.agents.training import learn as meta_training

    monkeypatch.setattr(meta_training, "learn", lambda *given, **more: None)
    monkeypatch.setattr(rewards, "prepare_jax", lambda: None)
    monkeypatch.setattr(rewards, "_iterations", lambda *given: 10)
    monkeypatch.setattr(rewards, "_evaluated", lambda *given: figures(0.1))
    page = tmp_path / "page.md"
    page.write_text("<!-- results --><!-- end of results -->")
    rewards.main(["--out", str(tmp_path / "o"), "--page", str(page)])
    told = page.read_text(encoding="utf-8")
    assert "`python -m benchmarks.rewards --out o --page page.md`" in told
    assert str(tmp_path) not in told


def test_only_some_rewards_are_trained_and_a_stopped_training_goes_on(tmp_path, monkeypatch):
    from trimtab.agents.training import learn as meta_training
    from trimtab.agents.training.checkpoints import Checkpoint, save_checkpoint

    learned = []

    def learn(settings, folder, **more):
        learned.append((settings.name, settings.iterations, more["resume"]))

    monkeypatch.setattr(meta_training, "learn", learn)
    monkeypatch.setattr(rewards, "prepare_jax", lambda: None)
    monkeypatch.setattr(rewards, "_iterations", lambda *given: 10)
    for name, done in (("final", 10), ("log-loss", 8)):  # a policy is there with each checkpoint
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").write_bytes(b"")
        save_checkpoint(tmp_path / name, Checkpoint({}, done, {}, np.zeros((2, 0)), {}))
    chosen = "final,log-loss,relative"
    rewards.main(["--only", chosen, "--out", str(tmp_path), "--page", str(tmp_path / "none.md")])
    assert learned == [("log-loss", 10, True), ("relative", 5, True)]
    assert not (tmp_path / "none.md").exists()


def test_an_unknown_reward_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        rewards.main(["--only", "finel", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "'finel' is none of best-so-far, log-loss" in capsys.readouterr().err
