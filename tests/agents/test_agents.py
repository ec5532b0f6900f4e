"""Agents: by name, on probes with known answers, saved and loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import trimtab
from tests.agents import probe_environments as probes
from trimtab.agents import base
from trimtab.agents.base import AgentKind, EpisodeBoundary, Transition
from trimtab.agents.q_learning import Discretisation, default_bins
from trimtab.controllers.learned import (
    LearnedController,
    PolicyFile,
    parameter_shapes,
    read_policy,
    write_policy,
)
from trimtab.core.errors import (
    IncompatiblePolicyError,
    PolicyFileError,
    SpecError,
    UnknownNameError,
)
from trimtab.core.spec import ControlSpec
from trimtab.envs.hyperparam_env import HyperparamEnv

QUICK: dict[str, Any] = {"variant": "tiny", "decisions": 8}


def train(agent: Any, env: Any, episodes: int, *, flags: bool = True) -> None:
    for episode in range(episodes):
        state, _ = env.reset(seed=episode)
        done = False
        while not done:
            action = agent.choose_action(state)
            following, reward, terminated, truncated, _ = env.step(action)
            ends = (terminated, truncated) if flags else ()
            agent.update(state, action, reward, following, *ends)
            state, done = following, terminated or truncated


def returns(agent: Any, env: Any, seeds: range) -> np.ndarray:
    totals = []
    for seed in seeds:
        state, _ = env.reset(seed=seed)
        if hasattr(agent, "begin_episode"):
            agent.begin_episode()
        done, total = False, 0.0
        while not done:
            action = agent.choose_action(state, explore=False)
            state, reward, terminated, truncated, _ = env.step(action)
            done, total = terminated or truncated, total + float(reward)
        totals.append(total)
    return np.array(totals)


@pytest.mark.parametrize("flags", [True, False], ids=["six arguments", "four arguments"])
@pytest.mark.parametrize("probe", [probes.Choice, probes.Reading, probes.Noise, probes.Delay])
def test_q_learning_solves_the_probes(probe: type[Any], flags: bool) -> None:
    env = probe("discrete")
    agent = trimtab.agents.make("q-learning", env)
    train(agent, env, 600, flags=flags)
    assert agent_choices_pay(agent, env, probe.best)


@pytest.mark.parametrize("probe", [probes.Choice, probes.Reading, probes.Noise])
def test_linucb_solves_the_probes_without_delay(probe: type[Any]) -> None:
    env = probe("discrete")
    agent = trimtab.agents.make("linucb", env)
    train(agent, env, 300)
    assert agent_choices_pay(agent, env, probe.best)


def test_linucb_does_not_see_a_delayed_reward() -> None:
    env = probes.Delay("discrete")
    agent = trimtab.agents.make("linucb", env)
    train(agent, env, 300)
    assert returns(agent, env, range(1000, 1010)).mean() == 0.0


def agent_choices_pay(agent: Any, env: Any, best: float) -> bool:
    """Whether the mean return of 40 episodes is the best there is, up to the noise of rewards."""
    noisy = isinstance(env, probes.Noise)
    found = returns(agent, env, range(1000, 1040)).mean()
    return abs(found - best) < (0.5 if noisy else 1e-6)


def test_q_learning_learns_to_steer() -> None:
    # 200 episodes; on 100 unseen ones +0.70 nats over doing nothing (standard error 0.12) and
    # +1.85 over chance (0.31) when this was written.
    env = HyperparamEnv(variant="tiny", decisions=10)
    agent = trimtab.agents.make("q-learning", env)
    train(agent, env, 200)
    unseen = range(10**5, 10**5 + 100)
    learned = returns(agent, env, unseen)
    for other, margin in (("reference", 0.3), ("random", 0.8)):
        gain = learned - returns(trimtab.agents.make(other, env), env, unseen)
        assert gain.mean() > margin
        assert gain.mean() > 2 * gain.std() / 10


def test_an_agent_is_made_by_the_names_of_the_contract() -> None:
    assert set(trimtab.agents.names()) >= {
        *("q-learning", "linucb", "dqn", "ppo", "sac", "recurrent-ppo"),
        *("pretrained", "reference", "random"),
    }
    with pytest.raises(UnknownNameError, match="did you mean 'q-learning'"):
        trimtab.agents.make("q-learnin", HyperparamEnv())


@pytest.mark.parametrize(
    ("name", "actions", "wanted"),
    [
        ("q-learning", "continuous", "discrete"),
        ("linucb", "multi-discrete", "discrete"),
        ("dqn", "continuous", "discrete"),
        ("sac", "discrete", "continuous"),
        ("pretrained", "discrete", "multi-discrete"),
    ],
)
def test_an_unsuitable_space_is_refused_by_name(name: str, actions: str, wanted: str) -> None:
    kind = f"agent '{name}' needs actions='{wanted}'; this environment has actions='{actions}'"
    with pytest.raises(SpecError, match=kind):
        trimtab.agents.make(name, HyperparamEnv(actions=actions))


def test_an_agent_takes_one_environment() -> None:
    envs = gymnasium.make_vec("Hyperparam-v0", num_envs=2, vectorization_mode="sync", **QUICK)
    with pytest.raises(SpecError, match="acts in one environment, not in 2 at once"):
        trimtab.agents.make("q-learning", envs)


def test_an_agent_wants_a_box() -> None:
    with pytest.raises(SpecError, match="needs a Box of observations"):
        trimtab.agents.make("random", gymnasium.make("FrozenLake-v1"))


@pytest.mark.parametrize("actions", ["discrete", "multi-discrete", "continuous"])
def test_chance_and_doing_nothing_act_in_every_space(actions: str) -> None:
    env = HyperparamEnv(actions=actions, **QUICK)
    seen, _ = env.reset(seed=0)
    for name in ("random", "reference"):
        agent = trimtab.agents.make(name, env)
        action = agent.choose_action(seen)
        assert env.action_space.contains(action) or action in env.action_space
        agent.update(seen, action, 0.0, seen)
    env.step(trimtab.agents.make("reference", env).choose_action(seen))
    assert env.episode.decisions[0].proposed == env.episode.decisions[0].applied


def test_chance_follows_its_seed() -> None:
    env = HyperparamEnv(**QUICK)
    seen, _ = env.reset(seed=0)

    def drawn(seed: int) -> list[int]:
        agent = trimtab.agents.make("random", env, seed=seed)
        return [int(agent.choose_action(seen)) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_doing_nothing_needs_a_run() -> None:
    with pytest.raises(SpecError, match="acts in Hyperparam environments only"):
        trimtab.agents.make("reference", probes.Choice("discrete"))
    with pytest.raises(SpecError, match="has no setting 'speed'"):
        trimtab.agents.make("reference", HyperparamEnv(), speed=3)


def test_the_boundary_finds_the_ends_of_episodes() -> None:
    learned: list[Transition] = []
    boundary = EpisodeBoundary(learned.append)
    a, b, c = (np.array([value]) for value in (1.0, 2.0, 3.0))
    boundary.take(a, 0, 1.0, b, None, None)
    assert learned == []
    boundary.take(b, 1, 2.0, c, None, None)  # went on
    boundary.look(a)  # another episode
    assert [(t.reward, t.terminated) for t in learned] == [(1.0, False), (2.0, True)]
    boundary.take(a, 0, 3.0, b, terminated=False, truncated=True)
    assert learned[-1][4:] == (False, True)


def test_who_needs_no_ends_learns_at_once() -> None:
    learned: list[Transition] = []
    boundary = EpisodeBoundary(learned.append, holds=False)
    boundary.take(np.zeros(1), 0, 1.0, np.ones(1), None, None)
    boundary.look(np.zeros(1))
    assert [t.reward for t in learned] == [1.0]


@pytest.mark.parametrize("name", ["q-learning", "linucb", "random", "reference"])
def test_a_loaded_agent_chooses_as_the_saved_one(name: str, tmp_path: Path) -> None:
    env = HyperparamEnv(**QUICK)
    agent = trimtab.agents.make(name, env)
    train(agent, env, 10)
    agent.save(tmp_path / "agent.safetensors")
    again = trimtab.agents.load(tmp_path / "agent.safetensors", env)
    assert again.name == name
    assert again.settings == agent.settings
    if name != "random":
        seeds = range(50, 55)
        np.testing.assert_array_equal(returns(agent, env, seeds), returns(again, env, seeds))


def test_a_loaded_table_learns_on_as_the_saved_one(tmp_path: Path) -> None:
    env = HyperparamEnv(**QUICK)
    agent = trimtab.agents.make("q-learning", env, step_size=0.1)
    train(agent, env, 5)
    agent.save(tmp_path / "agent")
    again = trimtab.agents.load(tmp_path / "agent", env)
    for one in (agent, again):
        train(one, env, 5)
    np.testing.assert_array_equal(agent.state_dict()["values"], again.state_dict()["values"])


def test_a_file_of_other_spaces_is_refused(tmp_path: Path) -> None:
    agent = trimtab.agents.make("q-learning", HyperparamEnv())
    agent.save(tmp_path / "agent")
    other = HyperparamEnv(hyperparameters=("lr", "momentum"))
    with pytest.raises(SpecError, match=r"\(58,\).*this environment has.*\(86,\)"):
        trimtab.agents.load(tmp_path / "agent", other)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("trap").touch, ())


def test_nothing_that_could_run_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    env = HyperparamEnv()
    trimtab.agents.make("linucb", env).save("good")
    good = Path("good").read_bytes()
    cases = {
        "pickle": (pickle.dumps(_Trap()), "pickle or zip archive"),
        "zip": (b"PK\x03\x04rest", "pickle or zip archive"),
        "half": (good[: len(good) // 2], "damaged or truncated"),
        "short": (b"12", "damaged or truncated"),
        "empty": (b"", "damaged or truncated"),
        "foreign": (foreign(), "has format None"),
    }
    for name, (data, words) in cases.items():
        Path(name).write_bytes(data)
        with pytest.raises(PolicyFileError, match=words):
            trimtab.agents.load(name, env)
    with pytest.raises(PolicyFileError, match="No such file"):
        trimtab.agents.load("missing", env)
    assert not Path("trap").exists()


def foreign() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


class Keeper:
    """An agent that keeps whatever state it is given."""

    name = "keeper"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.state: Any = {}

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def kept(state: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a state as it comes back from an agent's file."""
    agent, env, again = Keeper(), HyperparamEnv(), Keeper()
    agent.state = state
    kind = AgentKind("keeper", ("discrete",), lambda *_: again)  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(base.registry, "lookup", lambda *_: kind)
    spaces = (str(env.observation_space), str(env.action_space))
    base.save_agent(agent, spaces, path)  # type: ignore[arg-type]
    trimtab.agents.load(path, env)
    return again.state


def test_files_keep_arrays_numbers_and_nesting(tmp_path: Path, monkeypatch: Any) -> None:
    state = {"a": {0: {"b": np.arange(3)}, 1: [1.5, None, np.float32(2)]}, "c": np.zeros((2, 0))}
    again = kept(state, tmp_path / "x", monkeypatch)
    np.testing.assert_array_equal(again["a"][0]["b"], np.arange(3))
    assert again["a"][1] == [1.5, None, 2.0]
    assert again["c"].shape == (2, 0)


def test_words_of_ours_come_back_as_themselves(tmp_path: Path, monkeypatch: Any) -> None:
    state = {
        "text": "array:state/array",
        "list": ["array:", {"integer keys": {"0": "array:no/such"}}],
        "array": np.arange(3),
        "more": {"array": "a0", "numbered": {"1": 2}, "map": {}},
    }
    again = kept(state, tmp_path / "x", monkeypatch)
    np.testing.assert_array_equal(again.pop("array"), np.arange(3))
    assert again == {name: value for name, value in state.items() if name != "array"}


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    trimtab.agents.make("linucb", HyperparamEnv()).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PolicyFileError, match="changed after it was written"):
        trimtab.agents.load(path, HyperparamEnv())


def test_a_setting_that_is_no_json_is_refused_when_saving(tmp_path: Path) -> None:
    agent = trimtab.agents.make("linucb", HyperparamEnv())
    agent.settings = {"width": object()}
    with pytest.raises(SpecError, match="cannot be written as JSON"):
        agent.save(tmp_path / "agent")


def test_states_are_numbered_by_their_bins() -> None:
    states = Discretisation([(0, [0.0]), (2, [-1.0, 1.0])], size=3)
    assert states.n_states == 6
    found = {states.state(np.array([a, 9.0, b])) for a in (-1.0, 1.0) for b in (-2.0, 0.0, 2.0)}
    assert found == set(range(6))
    assert Discretisation(default_bins(ControlSpec(), 58), 58).n_states == 540


@pytest.mark.parametrize(
    ("bins", "words"),
    [
        ([(3, [0.0])], "index 3 is outside 0..2"),
        ([(0, [1.0, 0.0])], "do not rise"),
        ([(0, list(range(1000))), (1, list(range(1000)))], "more than 1000000"),
    ],
)
def test_bins_that_make_no_states_are_refused(bins: list[Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Discretisation(bins, size=3)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("q-learning", {"discount": 2.0}, r"discount: 2.0 is outside \[0, 1\]"),
        ("linucb", {"ridge": 0.0}, "ridge 0.0 above 0"),
    ],
)
def test_a_bad_setting_is_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        trimtab.agents.make(name, HyperparamEnv(), **settings)


def test_the_loop_of_the_article_runs(monkeypatch: Any, capsys: Any) -> None:
    from examples import article_loop

    monkeypatch.setattr("sys.argv", ["article_loop", "--episodes", "3", "--test-episodes", "2"])
    article_loop.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("random", "reference", "q-learning"),
    ]


def written_policy(path: Path, spec: ControlSpec) -> Path:
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in parameter_shapes(8).items()
    }
    write_policy(path, PolicyFile("tried", spec, arrays, {}, {}))
    return path


def test_the_shipped_kind_of_policy_acts_as_in_a_live_run(tmp_path: Path) -> None:
    env = HyperparamEnv(actions="multi-discrete", **QUICK)
    path = written_policy(tmp_path / "tried.safetensors", env.control_spec)
    agent = trimtab.agents.make("pretrained", env, policy=str(path))
    controller = LearnedController(read_policy(path))
    for seed in range(2):  # its memory begins anew with each episode
        seen, _ = env.reset(seed=seed)
        controller.reset(seed=0)
        done = False
        while not done:
            action = agent.choose_action(seen)
            np.testing.assert_array_equal(action, controller.act(seen))
            seen, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
    agent.save(tmp_path / "agent")
    again = trimtab.agents.load(tmp_path / "agent", env)
    assert again.settings == {"policy": str(path)}


def test_a_policy_of_another_contract_is_refused(tmp_path: Path) -> None:
    path = written_policy(tmp_path / "tried.safetensors", ControlSpec(reward="best-so-far"))
    env = HyperparamEnv(actions="multi-discrete", **QUICK)
    with pytest.raises(IncompatiblePolicyError, match="reward: 'best-so-far' there, 'log-loss'"):
        trimtab.agents.make("pretrained", env, policy=str(path))
