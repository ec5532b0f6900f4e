"""The environment: Gymnasium's rules, seeds, the session inside, saving, pictures, bad input."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import hypothesis
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import strategies as st

from tests.case_names import without_address
from tests.tiny_task import TinyTask
from trimtab.core.errors import MetricError, SpecError, UnknownNameError
from trimtab.core.features import observation_table
from trimtab.core.metrics import FORWARD_CHARGE, Metrics
from trimtab.core.session import Session
from trimtab.core.spec import REWARDS, ControlSpec
from trimtab.envs.hyperparam_env import HyperparamEnv
from trimtab.envs.simulators.tasks import quadratic

QUICK: dict[str, Any] = {"variant": "tiny", "decisions": 8}


def make(**options: Any) -> HyperparamEnv:
    env = gymnasium.make("Hyperparam-v0", **(QUICK | options)).unwrapped
    assert isinstance(env, HyperparamEnv)
    return env


def play(env: HyperparamEnv, seed: int, actions_seed: int = 0) -> list[tuple[Any, ...]]:
    """Return everything that an episode of random actions gives, observations as bytes."""
    env.action_space.seed(actions_seed)
    observation, info = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = [(observation.tobytes(), info)]
    over = False
    while not over:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rows.append((observation.tobytes(), reward, terminated, truncated, info))
        over = terminated or truncated
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decisions": 20, "variant": "default"},
        {"actions": "multi-discrete", "hyperparameters": ["lr", "momentum", "batch_size"]},
        {"actions": "continuous"},
        *({"reward": name} for name in REWARDS if name != "function"),
        {"reward": lambda before, after: float(before.val_loss - after.val_loss)},
        {"reference": "cosine", "starts": "default"},
        {"reference": lambda progress: 1.0 - progress, "starts": 0.01},
        {"starts": (0.1, 10.0), "reward_split": "validation"},
        {"task": "simulated/quadratic@17", "render_mode": "rgb_array"},
        {"control": {"front_windows": 0, "entry": 0.0}, "render_mode": "ansi"},
        {"task": "tests.tiny_task:make", "variant": None},
        {"task": TinyTask(), "variant": None, "hyperparameters": ("momentum", "lr")},
    ],
    ids=without_address,
)
@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_no_fault(options: dict[str, Any]) -> None:
    check_env(make(**options))


def test_the_bare_call_of_the_article_works() -> None:
    env = gymnasium.make("Hyperparam-v0")
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space


@pytest.mark.parametrize("actions", ["discrete", "multi-discrete", "continuous"])
def test_the_same_seed_gives_the_same_bits_and_another_others(actions: str) -> None:
    first, second = make(actions=actions), make(actions=actions)
    assert play(first, seed=3) == play(second, seed=3)
    assert play(first, seed=4) != play(second, seed=3)


def test_resets_without_a_seed_go_on_from_the_last_one() -> None:
    first, second = make(), make()
    for env in (first, second):
        env.reset(seed=1)
    assert first.reset()[1] == second.reset()[1]
    assert first.reset()[1] != second.reset(seed=1)[1]


def test_a_bare_name_draws_members_and_a_number_fixes_one() -> None:
    drawn, fixed = make(), make(task="simulated/quadratic@17")
    assert len({drawn.reset(seed=seed)[1]["task"] for seed in range(5)}) == 5
    assert {fixed.reset(seed=s)[1]["task"] for s in range(5)} == {"simulated/quadratic@17"}
    chosen = drawn.reset(seed=0, options={"member": 5, "start_scale": 0.01})[1]
    assert (chosen["task"], chosen["start_scale"]) == ("simulated/quadratic@5", 0.01)


def test_starts_follow_their_law() -> None:
    def scales(**options: Any) -> np.ndarray:
        env = make(**options)
        return np.array([env.reset(seed=seed)[1]["start_scale"] for seed in range(60)])

    usual = np.log10(scales())
    assert -2 <= usual.min() < -1.5
    assert 1.5 < usual.max() <= 2
    assert abs(usual.mean()) < 0.5
    assert set(scales(starts="default")) == {1.0}
    assert scales(starts=0.01) == pytest.approx(0.01)
    pair = scales(starts=[0.1, 1.0])
    assert 0.1 <= pair.min() < pair.max() <= 1.0
    own = make(task=TinyTask(), variant=None)
    assert own.reset(seed=0)[1]["start_scale"] == 1.0


def test_other_hyperparameters_start_off_their_default_too() -> None:
    env = make(hyperparameters=["lr", "weight_decay", "momentum"])
    starts = []
    for seed in range(30):
        env.reset(seed=seed)
        starts.append([item.default for item in env.episode.session.spec.hyperparameters[1:]])
    decay, momentum = np.array(starts).T
    assert 1e-3 <= decay.min() < 3e-3
    assert 0.03 < decay.max() <= 0.1
    assert 0.0 <= momentum.min() < 0.2
    assert 0.8 < momentum.max() <= 0.99


def test_an_episode_is_a_session_driven_by_hand() -> None:
    env = make(actions="multi-discrete", hyperparameters=("lr", "momentum"))
    env.reset(seed=5)
    settings, begin = env.settings, env.episode.begin
    task = settings.task_of(begin)
    spec = settings.start_spec(begin, task.hyperparameters)
    run, best = task.start(seed=begin.seed), []
    validation, selection = run.evaluate("validation"), run.evaluate("selection")
    examples = validation["examples"]
    session = Session(
        spec,
        total_steps=task.total_steps,
        reference=settings.multipliers,
        keep=lambda: best.append(run.snapshot()),
        restore=lambda: run.restore(best[-1]),
        budget=task.total_steps * 32.0 + 9 * FORWARD_CHARGE * examples,
    )
    seen, _ = session.observe(
        Metrics(
            val_loss=validation["loss"],
            reward_loss=selection["loss"],
            charge=FORWARD_CHARGE * examples,
        ),
        validation,
    )
    np.testing.assert_array_equal(seen, env.episode.observation)
    env.action_space.seed(0)
    over = False
    while not over:
        action = env.action_space.sample()
        found, earned, terminated, truncated, info = env.step(action)
        session.decide(action)
        steps = session.window()
        metrics = run.advance(session.values(session.steps_done, steps), steps)
        seen, reward = session.observe(metrics)
        assert found.tobytes() == seen.tobytes()
        assert earned == reward
        assert info["step"] == session.steps_done
        assert info["values"] == env.episode.values()
        over = terminated or truncated
        assert over == session.finished
    assert session.summary.schedule == env.episode.session.summary.schedule


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_an_episode_saved_in_the_middle_goes_on_bit_for_bit(actions: str) -> None:
    straight = make(actions=actions, starts=50.0)
    straight.action_space.seed(1)
    straight.reset(seed=2)
    for _ in range(4):
        straight.step(straight.action_space.sample())
    state = json.loads(json.dumps(straight.get_state()))
    other = make(actions=actions, starts=50.0)
    restored = other.set_state(state)
    np.testing.assert_array_equal(restored, straight.episode.observation)
    rest = [straight.action_space.sample() for _ in range(4)]
    for action in rest:
        one, two = straight.step(action), other.step(action)
        assert one[0].tobytes() == two[0].tobytes()
        assert one[1:] == two[1:]
    assert straight.reset()[1] == other.reset()[1]


def test_a_state_of_other_options_is_refused() -> None:
    env, other = make(), make(decisions=9)
    with pytest.raises(ResetNeeded, match="no episode has begun"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(SpecError, match="saved by an environment with other options"):
        other.set_state(env.get_state())
    with pytest.raises(SpecError, match="format None, expected 'trimtab-episode-1'"):
        env.set_state({})


class _Forgetful(TinyTask):
    """Every run is another one, whatever the seed."""

    started = 0

    def start(self, *, seed: int) -> Any:
        type(self).started += 1
        return super().start(seed=seed + 1000 * self.started)


def test_a_task_that_is_not_deterministic_is_not_continued() -> None:
    env = make(task=_Forgetful(), variant=None)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(SpecError, match="gave other observations when the actions were done again"):
        env.set_state(env.get_state())


def test_a_relative_reward_of_doing_nothing_is_nothing() -> None:
    env = make(reward="relative", control={"front_windows": 0, "explosion": 1e9, "ruin": 99.0})
    for seed in range(3):
        env.reset(seed=seed, options={"start_scale": 1.0})
        rewards = []
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(0)
            rewards.append(reward)
            over = terminated or truncated
        assert rewards == [0.0] * len(rewards)
    assert env.reset(seed=0, options={"start_scale": 1.0})
    assert env.step(3)[1] != 0.0


def test_the_rewards_of_an_episode_sum_to_what_it_achieved() -> None:
    env = make(reward="best-so-far", reward_split="validation")
    rows = play(env, seed=7)
    best, first = env.episode.session.summary.best["loss"], env.episode.metrics[0].val_loss
    expected = -np.log(best / first + 0.02) + np.log(1.02)
    divergences = 0.05 * float(env.episode.session.carry.divergences)
    assert sum(row[1] for row in rows[1:]) + divergences == pytest.approx(expected, abs=1e-4)


def test_a_reward_of_ones_own_gets_the_metrics() -> None:
    env = make(reward=lambda before, after: float(after.steps))
    assert sum(row[1] for row in play(env, seed=0)[1:]) == env.episode.session.steps_done


def test_a_reward_that_is_no_number_is_an_error() -> None:
    env = make(reward=lambda before, after: float("nan"))
    env.reset(seed=0)
    with pytest.raises(MetricError, match="the function returned nan"):
        env.step(0)


def test_the_end_of_the_budget_truncates() -> None:
    env = make(starts=0.01)
    last = play(env, seed=0)[-1]
    assert (last[2], last[3]) == (False, True)
    assert last[4]["step"] == last[4]["total_steps"]
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(0)


def test_one_divergence_too_many_terminates() -> None:
    env = make(control={"max_divergences": 1}, actions="continuous", hyperparameters=("lr",))
    env.reset(seed=0, options={"start_scale": 1e4})
    for _ in range(8):
        _, _, terminated, truncated, info = env.step(np.array([1.0, 0.0], np.float32))
        if terminated:
            break
    assert terminated
    assert not truncated
    assert info["step"] < info["total_steps"]


def test_a_divergence_is_mended_and_says_so() -> None:
    env = make()
    env.reset(seed=0, options={"start_scale": 1e4})
    reasons = " ".join(env.step(6)[4]["reason"] for _ in range(3))
    assert "rolled back to the best weights; learning rate cut" in reasons


def test_a_window_cut_short_is_made_up_for() -> None:
    env = make(task=TinyTask(nan_at=58), variant=None, decisions=4)
    rows = play(env, seed=0)
    assert rows[-1][3]
    assert rows[-1][4]["step"] == 60
    assert env.episode.session.summary.rollbacks >= 1


@hypothesis.given(
    st.lists(
        st.tuples(
            st.floats(-1, 1, width=32) | st.sampled_from([float("nan"), float("inf")]),
            st.floats(-1, 1, width=32),
        ),
        min_size=1,
        max_size=6,
    )
)
@hypothesis.settings(max_examples=25)
def test_any_action_leads_to_an_observation_within_bounds(moves: list[tuple[float, float]]) -> None:
    env = make(actions="continuous")
    env.reset(seed=1)
    for move in moves:
        observation, reward, _, _, info = env.step(np.array(move, np.float32))
        assert observation in env.observation_space
        assert np.isfinite(reward)
        item = env.episode.session.spec.hyperparameters[0]
        applied = env.episode.decisions[-1].applied["lr"]
        assert item.low <= applied <= item.high
        assert np.isfinite(info["values"]["lr"])


def test_the_documentation_has_a_row_for_every_number_of_the_observation() -> None:
    text = HyperparamEnv.__doc__ or ""
    for row in observation_table(ControlSpec()):
        cells = (
            f"| {row['index']} | ``{row['name']}`` | {row['meaning']} | {row['unit']} | -3 .. 3 |"
        )
        assert cells in text
    assert make().observation_space.shape == (len(observation_table(ControlSpec())),)


def test_the_picture_shows_the_run() -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=3, options={"start_scale": 100.0})
    first = env.render()
    for _ in range(6):
        env.step(6)
    later = env.render()
    assert later.shape == (480, 640, 3)
    assert later.dtype == np.uint8
    drawn = lambda image: (image != 255).any(-1).sum()  # noqa: E731
    assert drawn(later) > drawn(first) + 500
    red = (later == (205, 60, 50)).all(-1)
    assert red[60:240].any(0).sum() == sum(d.restored for d in env.episode.decisions)


def test_the_text_has_a_line_for_every_decision() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=3, options={"start_scale": 1e4})
    for _ in range(3):
        env.step(6)
    lines = env.render().splitlines()
    assert len(lines) == 5
    assert "rolled back to the best weights" in env.render()
    assert lines[-1].endswith("running")


def test_rendering_without_a_mode_says_what_to_do() -> None:
    env = make()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_the_spec_goes_through_json() -> None:
    env = gymnasium.make(
        "Hyperparam-v0", task="simulated/quadratic@2", hyperparameters=["lr", "momentum"], **QUICK
    )
    assert env.spec is not None
    text = env.spec.to_json()
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    assert (again.reset(seed=1)[0] == env.reset(seed=1)[0]).all()


def test_the_best_weights_are_tested_and_the_run_goes_on() -> None:
    env, other = make(), make()
    for one in (env, other):
        one.reset(seed=0)
        one.step(3)
    assert env.evaluate()["examples"] == 512
    assert env.step(2)[0].tobytes() == other.step(2)[0].tobytes()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"task": "simulated/quadratik"}, UnknownNameError, "did you mean 'simulated/quadratic'"),
        ({"task": "simulated/quadratic@x"}, SpecError, "member 'x' is not a whole number"),
        ({"task": 3, "variant": None}, SpecError, "3 is no task"),
        ({"task": TinyTask()}, SpecError, "variant: 'tiny' was asked of a task object"),
        ({"decisions": 0}, SpecError, "decisions: 0"),
        ({"actions": "discreet"}, UnknownNameError, "did you mean 'discrete'"),
        ({"reward": "log-los"}, UnknownNameError, "did you mean 'log-loss'"),
        ({"reward": "function"}, SpecError, "'function' names no function"),
        ({"reward": 3}, SpecError, "3 is neither a name nor a function"),
        ({"hyperparameters": ("lr", "learning")}, UnknownNameError, "unknown hyperparameter"),
        ({"hyperparameters": "lr"}, SpecError, r"write \('lr',\)"),
        ({"hyperparameters": ()}, SpecError, r"\(\) is empty"),
        ({"reference": "cosin"}, UnknownNameError, "did you mean 'cosine'"),
        ({"starts": "anywhere"}, UnknownNameError, "unknown starts 'anywhere'"),
        ({"starts": -1.0}, SpecError, "starts: -1.0 is not a number above 0"),
        ({"starts": (100, 0.01)}, SpecError, r"starts: \(100, 0.01\) is no pair"),
        ({"variant": "giant"}, UnknownNameError, "unknown variant 'giant'"),
        ({"shapes": 9}, SpecError, "shapes: 9 is outside 1..1"),
        ({"reward_split": "test"}, UnknownNameError, "unknown reward_split 'test'"),
        ({"control": {"decisions": 3}}, SpecError, "'decisions' has an option of its own"),
        ({"control": {"entri": 3}}, UnknownNameError, "did you mean 'entry'"),
        ({"control": {"entry": 3}}, SpecError, "entry: 3"),
    ],
    ids=without_address,
)
def test_a_bad_option_is_refused_when_the_environment_is_made(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        HyperparamEnv(**(QUICK | options))


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ansi'"):
        HyperparamEnv(render_mode="ansy")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"members": 3}, "did you mean 'member'"), ({"start_scale": 0}, "start_scale: 0 is not")],
)
def test_a_bad_reset_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((SpecError, UnknownNameError), match=words):
        make().reset(seed=0, options=options)


def test_a_member_of_a_task_that_is_no_family_is_refused() -> None:
    env = make(task=TinyTask(), variant=None)
    with pytest.raises(SpecError, match="which is no family of tasks"):
        env.reset(options={"member": 3})


@pytest.mark.parametrize(
    ("actions", "action"),
    [("discrete", 8), ("discrete", [1]), ("multi-discrete", [7, 0]), ("continuous", [0.0])],
)
def test_an_action_outside_the_space_is_refused(actions: str, action: Any) -> None:
    env = make(actions=actions)
    env.reset(seed=0)
    with pytest.raises(SpecError, match="action"):
        env.step(action)


def test_stepping_before_the_first_reset_is_refused() -> None:
    with pytest.raises(ResetNeeded, match="call reset"):
        HyperparamEnv().step(0)


def test_a_window_of_another_length_is_refused() -> None:
    env = make(task=TinyTask(forgets=1), variant=None)
    env.reset(seed=0)
    with pytest.raises(MetricError, match="after a window of"):
        env.step(0)


def test_a_task_object_is_run_as_it_is() -> None:
    env = HyperparamEnv(task=quadratic(4, "tiny"))
    assert env.reset(seed=0)[1]["task"] == "simulated/quadratic@4"
