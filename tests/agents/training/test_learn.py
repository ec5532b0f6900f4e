"""Meta-training: settings, interruption and resuming, and that it learns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")

from safetensors.numpy import load_file

from trimtab.agents.training.checkpoints import checkpoint_file, iterations_done
from trimtab.agents.training.settings import LearnSettings, read_settings
from trimtab.core.errors import SpecError, UnknownNameError

pytestmark = pytest.mark.usefixtures("quick_compiling")

SETTINGS = """
name = "probe"
seed = 3
iterations = 4
tasks = 2
siblings = 2
decisions = [6]
steps_per_decision = [2.0, 2.5]
width = 16
[spec]
undo = 0.0
hyperparameters = ["lr"]
[[families]]
name = "simulated/quadratic"
[ppo]
epochs = 1
minibatches = 1
"""

CODE = """
import sys
from trimtab.agents.training.settings import read_settings
from trimtab.agents.training.learn import learn
learn(read_settings(sys.argv[1]), sys.argv[2], resume=True, checkpoint_every=1)
"""


def _learn(config: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(config), str(out)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )


def test_settings_read_back_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS)
    settings = read_settings(file)
    assert settings.decisions == (6,)
    assert settings.families[0].name == "simulated/quadratic"
    assert settings.ppo.epochs == 1
    assert settings.aversion == LearnSettings().aversion


def test_unknown_settings_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS.replace("seed = 3", "sede = 3"))
    with pytest.raises(SpecError, match="sede"):
        read_settings(file)
    with pytest.raises(SpecError, match=r"nowhere\.toml"):
        read_settings(tmp_path / "nowhere.toml")


@pytest.mark.slow
def test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    config = tmp_path / "probe.toml"
    config.write_text(SETTINGS.replace("iterations = 4", "iterations = 80"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _learn(config, whole).wait(timeout=600) == 0
    process = _learn(config, killed)
    while process.poll() is None and not checkpoint_file(killed):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < iterations_done(killed) < 80
    assert _learn(config, killed).wait(timeout=600) == 0
    first, second = (load_file(folder / "probe.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
    steps = [
        [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    last = [rows[-1] for rows in steps]
    assert last[0]["return"] == last[1]["return"]
    assert np.isfinite(last[0]["return"])


def test_starts_are_drawn_around_the_centre_of_their_optimiser() -> None:
    import jax

    from trimtab.agents.training.rollout import fair_lr
    from trimtab.agents.training.settings import FamilyShare
    from trimtab.agents.training.task_sampling import family_of
    from trimtab.envs.simulators.batch import programs

    bucket = programs(family_of(FamilyShare("simulated/mlp", options={"networks": 9}), ("lr",)), 6)
    keys = jax.random.split(jax.random.key(1), 32)
    runs, _ = bucket.prepare(keys, keys)
    usual, moved = fair_lr(bucket, runs), fair_lr(bucket, runs, {"sgd": 0.5, "adam": 1.0})
    found = np.log10(moved / usual)
    code = np.asarray(runs.draw.optimiser)
    assert set(code.tolist()) == {0, 1, 2}
    for optimiser, decades in ((0, 1.0), (1, 0.0), (2, 0.5)):
        assert np.allclose(found[code == optimiser], decades, atol=1e-5)
    with pytest.raises(UnknownNameError, match="lion"):
        fair_lr(bucket, runs, {"lion": 1.0})


def test_a_share_of_the_starts_lies_near_a_fair_one(monkeypatch, tmp_path: Path) -> None:
    from dataclasses import replace

    from trimtab.agents.training import learn as meta_training

    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS.replace("iterations = 4", "iterations = 1"))
    seen = []
    plain = meta_training.start_values

    def watched(items, fair, decades, *others):
        seen.append(decades)
        return plain(items, fair, decades, *others)

    monkeypatch.setattr(meta_training, "start_values", watched)
    for share in (0.0, 0.4, 1.0):
        settings = replace(read_settings(file), near_share=share, siblings=100)
        meta_training.learn(settings, tmp_path / str(share))
    near = [np.mean(np.abs(decades) <= 0.3) for decades in seen]
    assert near[0] < 0.25
    assert 0.35 < near[1] < 0.65
    assert near[2] == 1.0


def test_a_training_begins_from_a_policy_file(tmp_path: Path) -> None:
    from dataclasses import replace

    from trimtab.agents.training.learn import learn
    from trimtab.controllers.learned import read_policy
    from trimtab.defaults import policy_path

    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS.replace("width = 16", "width = 64"))
    settings = replace(read_settings(file), iterations=2, critic_first=1)
    begun = read_policy(policy_path("trimtab-1"))
    unsaid = replace(settings, spec={"hyperparameters": ["lr"]})
    with pytest.raises(SpecError, match=r"undo: .* made with 0.005, .* say undo = 0.005 under"):
        learn(unsaid, tmp_path / "forgotten", initial=policy_path("trimtab-1"))
    assert begun.spec.undo != 0.01  # what the guard undoes may differ from what it was made under
    settings = replace(settings, spec={**settings.spec, "undo": 0.01})
    alone = replace(settings, iterations=1)
    after = {
        name: read_policy(learn(each, tmp_path / name, initial=policy_path("trimtab-1")))
        for name, each in (("critic", alone), ("both", settings))
    }
    for name, array in begun.parameters.items():
        assert np.array_equal(after["critic"].parameters[name], array), name
    moved = after["both"].parameters["token_w"] - begun.parameters["token_w"]
    assert 0 < np.abs(moved).max() < 0.1
    assert after["both"].spec.undo == 0.01
    runs = int(begun.about["runs"])
    assert [int(policy.about["runs"]) - runs for policy in after.values()] == [4, 8]


def test_what_a_training_cannot_begin_from_is_named(tmp_path: Path) -> None:
    from dataclasses import replace

    from trimtab.agents.training.learn import learn
    from trimtab.core.errors import IncompatiblePolicyError
    from trimtab.defaults import policy_path

    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS)
    settings = read_settings(file)
    with pytest.raises(SpecError, match=r"width: 16 is not the 64 of .*set width = 64"):
        learn(settings, tmp_path / "narrow", initial=policy_path("trimtab-1"))
    with pytest.raises(SpecError, match="nothing-there holds no training"):
        learn(settings, tmp_path / "none", initial=tmp_path / "nothing-there")
    assert not list((tmp_path / "none").iterdir())  # another try with other settings is no clash
    other = replace(settings, width=64, spec={"hyperparameters": ["lr"], "front_windows": 4})
    with pytest.raises(IncompatiblePolicyError, match="front_windows: 6 there, 4 here"):
        learn(other, tmp_path / "other", initial=policy_path("trimtab-1"))


def test_the_time_of_what_a_training_begins_from_is_not_its_own(tmp_path: Path) -> None:
    from dataclasses import replace

    from trimtab.agents.training.learn import learn
    from trimtab.controllers.learned import read_policy
    from trimtab.defaults import policy_path

    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS.replace("width = 16", "width = 64"))
    settings = replace(read_settings(file), iterations=3)
    begun = policy_path("trimtab-1")
    made = read_policy(learn(settings, tmp_path / "out", initial=begun, minutes=10))
    earlier = read_policy(begun).about
    assert float(earlier["minutes"]) > 10
    assert int(made.about["runs"]) == int(earlier["runs"]) + 3 * 4


def test_a_second_stage_goes_on_without_being_told_what_it_began_from(tmp_path: Path) -> None:
    from dataclasses import replace

    from trimtab.agents.training.learn import learn
    from trimtab.defaults import policy_path

    file = tmp_path / "probe.toml"
    file.write_text(SETTINGS.replace("width = 16", "width = 64"))
    settings = replace(read_settings(file), iterations=2)
    begun = policy_path("trimtab-1")
    whole = learn(settings, tmp_path / "whole", initial=begun)
    cut = tmp_path / "cut"
    learn(settings, cut, initial=begun, minutes=1e-9)  # over after its first iteration
    assert iterations_done(cut) == 1
    resumed = learn(settings, cut, resume=True)
    first, second = load_file(whole), load_file(resumed)
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
