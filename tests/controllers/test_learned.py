"""Policy files: round trip, and everything that has to be refused."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from trimtab.controllers.learned import (
    LearnedController,
    PolicyFile,
    parameter_shapes,
    read_policy,
    read_policy_header,
    write_policy,
)
from trimtab.core.errors import IncompatiblePolicyError, PolicyFileError, SpecError
from trimtab.core.features import GLOBAL_FEATURES, observation_size
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.spec import ControlSpec


def _policy(spec: ControlSpec | None = None) -> PolicyFile:
    generator = np.random.default_rng(0)
    parameters = {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in parameter_shapes(8).items()
    }
    novelty = {
        "novelty_mean": np.zeros(len(GLOBAL_FEATURES), np.float32),
        "novelty_scale": np.ones(len(GLOBAL_FEATURES), np.float32),
        "novelty_limit": np.array([4.0], np.float32),
    }
    return PolicyFile("probe", spec or ControlSpec(), parameters, novelty, {"runs": "1"})


def test_a_policy_reads_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    policy = _policy()
    write_policy(file, policy)
    back = read_policy(file)
    assert (back.name, back.spec, back.about) == (policy.name, policy.spec, policy.about)
    for name, value in policy.parameters.items():
        assert np.array_equal(back.parameters[name], value)
    assert read_policy_header(file)["spec_hash"] == policy.spec.compatibility_hash()


def test_a_file_that_is_exchanged_while_it_is_read_is_one_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header and arrays are of one content: of that which the only reading saw."""
    file, other = tmp_path / "probe.safetensors", tmp_path / "other.safetensors"
    policy = _policy()
    write_policy(file, policy)
    write_policy(other, replace(_policy(ControlSpec(decisions=7)), name="other"))
    read, readings = Path.read_bytes, []

    def exchanged(path: Path) -> bytes:
        readings.append(path)
        data = read(path)
        other.replace(file)
        return data

    monkeypatch.setattr(Path, "read_bytes", exchanged)
    back = read_policy(file)
    assert readings == [file]
    assert (back.name, back.spec) == (policy.name, policy.spec)


def test_the_same_observations_give_the_same_actions_after_a_restart() -> None:
    spec = ControlSpec(hyperparameters=(hyperparameter("lr"), hyperparameter("dropout")))
    first, second = LearnedController(_policy(spec)), LearnedController(_policy(spec))
    generator = np.random.default_rng(1)
    seen = generator.normal(size=(6, observation_size(spec))).astype(np.float32)
    first.reset(seed=0)
    second.reset(seed=0)
    expected = [first.act(row) for row in seen]
    early = [second.act(row) for row in seen[:3]]
    state = json.loads(json.dumps(second.state_dict()))
    third = LearnedController(_policy(spec))
    third.load_state_dict(state)
    for mine, theirs in zip([*early, *(third.act(row) for row in seen[3:])], expected, strict=True):
        assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize(("over_best", "asks"), [(-1.0, 0.0), (0.0, 0.0), (0.01, 1.0)])
def test_a_restore_is_asked_for_only_where_something_better_was_seen(
    over_best: float, asks: float
) -> None:
    policy = _policy()
    eager = dict(policy.parameters, restore_b=np.array([0.0, 50.0], np.float32))
    controller = LearnedController(replace(policy, parameters=eager))
    controller.reset(seed=0)
    generator = np.random.default_rng(2)
    seen = generator.normal(size=(20, observation_size(ControlSpec()))).astype(np.float32)
    seen[:, [name for name, *_ in GLOBAL_FEATURES].index("val_over_best")] = over_best
    assert [controller.act(row)[-1] for row in seen] == [asks] * len(seen)


def test_what_was_never_met_in_training_is_novel() -> None:
    controller = LearnedController(_policy())
    usual = np.zeros(observation_size(ControlSpec()), np.float32)
    assert not controller.is_novel(usual)
    assert controller.is_novel(usual + 3.0)


@pytest.mark.parametrize("kind", ["pickle", "zip", "truncated", "text", "empty", "foreign"])
def test_files_that_are_no_policy_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.safetensors"
    write_policy(file, _policy())
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", b"x")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "text":
        file.write_text("not a policy at all, only words")
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(save({"a": np.zeros(3, np.float32)}))
    expected = {"pickle": "pickle", "zip": "pickle", "foreign": "format None"}
    with pytest.raises(PolicyFileError, match=expected.get(kind, "bad.safetensors")):
        read_policy(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"nothing\.safetensors"):
        read_policy(tmp_path / "nothing.safetensors")


def test_an_array_of_another_shape_is_named(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    policy = _policy()
    write_policy(
        file, replace(policy, parameters={**policy.parameters, "move_b": np.zeros(3, np.float32)})
    )
    with pytest.raises(PolicyFileError, match="move_b"):
        read_policy(file)


def test_arrays_that_are_not_finite_are_named(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    policy = _policy()
    broken = {**policy.parameters, "mix_b": np.full(8, np.nan, np.float32)}
    write_policy(file, replace(policy, parameters=broken))
    with pytest.raises(PolicyFileError, match="mix_b"):
        read_policy(file)


def test_a_changed_contract_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    policy = _policy(ControlSpec(ruin=0.9))
    write_policy(file, policy)
    with pytest.raises(IncompatiblePolicyError, match=r"ruin: 0\.9 there, 0\.5 here"):
        ControlSpec().require_compatible(read_policy(file).spec)
    text = file.read_bytes()
    assert load_file(file)  # still a sound file ...
    file.write_bytes(text.replace(b'\\"cut\\": 0.7', b'\\"cut\\": 0.9'))
    with pytest.raises(PolicyFileError, match="contract"):  # ... but not the one that was hashed
        read_policy(file)


def test_a_policy_for_another_kind_of_actions_is_refused() -> None:
    with pytest.raises(SpecError, match="continuous"):
        LearnedController(_policy(ControlSpec(actions="continuous")))
