"""Exported schedules: the values to the last bit, without trimtab, whatever the names are."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.controllers.fixed import RandomController
from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import SpecError, StoreError, UnknownNameError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec
from trimtab.records.export.export import EXPORT_TARGETS, export_run, export_text
from trimtab.records.export.schedule import Replay, replay_of
from trimtab.records.store.rows import (
    RunRecord,
    decision_row,
    finish_row,
    read_decision,
    read_run,
    run_row,
)

TIMEOUT = 600
ITEMS = (
    hyperparameter("lr", 3e-3),
    hyperparameter("weight_decay", 0.1),
    hyperparameter("beta1", 0.9),
    hyperparameter("dropout", 0.1),
)


class Wander(RandomController):
    """Moves at random, and never goes back by itself."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        action = np.array(super().act(observation))
        action[-1] = 0
        return action


class Unguarded(Wander):
    """Is never rolled back."""

    guarded = False


class Rows(Recorder):
    """Keeps what a store would write."""

    def __init__(self) -> None:
        self.decisions: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None

    def decision(self, decision: Decision) -> None:
        self.decisions.append(decision_row(decision))

    def finish(self, summary: Summary, status: str) -> None:
        self.end = finish_row(summary, status)


def record_of(
    losses: list[float],
    *,
    items: tuple[Any, ...] = ITEMS,
    reference: str = "cosine",
    policy: type[RandomController] = Wander,
    ended: bool = True,
    steps: int = 40,
) -> tuple[RunRecord, list[int], Session]:
    """Return a run's record, and the steps that its last weights have really seen.

    A loss that is not finite also cuts its window short.
    """
    spec = ControlSpec(hyperparameters=items, decisions=len(losses))
    controller = policy(spec)
    rows = Rows()
    path: list[int] = []
    kept: list[int] = []

    def keep() -> None:
        kept[:] = path

    def restore() -> None:
        path[:] = kept

    session = Session(
        spec,
        controller,
        total_steps=steps,
        reference=reference_multipliers(reference, steps),
        keep=keep,
        restore=restore,
        recorder=rows,
        seed=1,
    )
    session.step(Metrics(val_loss=1.0))
    for loss in losses:
        window = session.window()
        if not window:
            break
        done = window if math.isfinite(loss) else max(window // 2, 1)
        path += range(session.steps_done, session.steps_done + done)
        finite = float(math.isfinite(loss))
        session.step(Metrics(val_loss=loss, train_loss=0.5, steps=float(done), finite=finite))
    if ended:
        session.close()
        if session.carry.must_restore:
            restore()
    info = RunInfo(task="t", spec=spec, total_steps=steps, reference=reference)
    head = {"id": 3, **run_row(info), **((rows.end or {}) if ended else {})}
    return read_run(head, tuple(map(read_decision, rows.decisions))), path, session


CALM = [0.9, 0.8, 0.7, 0.75, 0.6, 0.5]


def module_of(text: str) -> dict[str, Any]:
    """Return the constants of an exported source, read without running it."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if name == "VALUES":  # *[0.1] * 4 is no literal: counted here
                assert isinstance(node.value, ast.Dict)
                keys = [ast.literal_eval(key) for key in node.value.keys if key is not None]
                found[name] = dict(zip(keys, map(numbers, node.value.values), strict=True))
            else:
                found[name] = ast.literal_eval(node.value)
    return found


def numbers(node: ast.expr) -> list[float]:
    assert isinstance(node, ast.List)
    found: list[float] = []
    for item in node.elts:
        if isinstance(item, ast.Starred):
            assert isinstance(item.value, ast.BinOp)
            found += ast.literal_eval(item.value.left) * ast.literal_eval(item.value.right)
        else:
            found.append(ast.literal_eval(item))
    return found


# Which steps are replayed.


def test_a_run_without_rollbacks_is_replayed_whole_and_bit_for_bit():
    record, _, session = record_of(CALM)
    replay = replay_of(record)
    rows = session.summary.schedule
    assert replay.steps == tuple(range(40))
    assert replay.lost == ()
    for item in ITEMS:
        assert replay.values[item.name] == [row[item.name] for row in rows]
    assert replay.best_after == 40


@given(
    st.lists(
        st.one_of(st.floats(0.01, 3.0), st.sampled_from([math.nan, math.inf, 1e9, 1.0, 0.3])),
        min_size=1,
        max_size=12,
    )
)
def test_the_surviving_steps_are_those_that_the_last_weights_have_seen(losses):
    record, path, _ = record_of(losses, steps=60, policy=RandomController)
    replay = replay_of(record)
    assert list(replay.steps) == path or (not path and replay.steps == ())
    undone = [step for first, last in replay.lost for step in range(first, last + 1)]
    assert sorted([*undone, *replay.steps]) == list(range(record_steps(record)))
    assert all(len(column) == len(path) for column in replay.values.values())


def record_steps(record: RunRecord) -> int:
    return len(record.schedule["lr"])


def test_all_steps_keep_what_a_rollback_undid():
    record, path, session = record_of([0.9, 0.5, math.nan, 0.45, 0.44, 0.4])
    surviving, everything = replay_of(record), replay_of(record, all_steps=True)
    assert list(surviving.steps) == path
    assert len(path) < len(everything.steps) == len(session.summary.schedule)
    assert everything.lost == surviving.lost != ()
    at = session.summary.best["step"]
    assert everything.best_after == at
    assert surviving.steps[surviving.best_after - 1] == at - 1


def test_a_killed_run_is_rebuilt_from_its_decisions_bit_for_bit():
    killed, _, session = record_of(CALM[:4], ended=False, steps=40)
    replay = replay_of(killed)
    last = killed.decisions[-1].step
    assert replay.rebuilt
    assert 0 < len(replay.steps) == last
    for item in ITEMS:
        assert replay.values[item.name] == [
            row[item.name] for row in session.summary.schedule[:last]
        ]


def test_a_killed_run_on_a_schedule_of_its_own_is_refused():
    killed, _, _ = record_of(CALM[:4], ended=False)
    own = replace(killed, head={**killed.head, "reference": "LambdaLR"})
    with pytest.raises(StoreError, match=r"follows a schedule of its own .'LambdaLR'."):
        replay_of(own)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.1", True, [1.0]])
def test_a_value_that_is_no_finite_number_is_refused(value):
    record, _, _ = record_of(CALM)
    odd = replace(record, schedule={**record.schedule, "lr": [value] * 40})
    with pytest.raises(StoreError, match=r"lr is .* at step 0"):
        replay_of(odd)


def test_a_run_without_a_step_is_refused():
    record, _, _ = record_of(CALM)
    with pytest.raises(StoreError, match="trained no step; there is nothing to replay"):
        replay_of(replace(record, schedule={item.name: [] for item in ITEMS}, decisions=()))


# What is written.


def test_the_json_holds_the_values_to_the_last_bit(tmp_path):
    record, _, session = record_of(CALM)
    paths = export_run(record, ["json"], tmp_path / "new" / "folder")
    document = json.loads(paths["json"].read_text())
    assert document["format"] == "trimtab-schedule-1"
    assert document["n_steps"] == 40
    assert [item["kind"] for item in document["hyperparameters"]] == [i.kind for i in ITEMS]
    for item in ITEMS:
        assert document["values"][item.name] == [row[item.name] for row in session.summary.schedule]


@pytest.mark.parametrize("target", [name for name in EXPORT_TARGETS if name != "json"])
def test_a_source_holds_the_values_to_the_last_bit_and_is_ascii(target):
    record, _, _ = record_of(CALM)
    replay = replay_of(record)
    text = export_text(replay, target)
    assert text.isascii()
    assert "@@" not in text
    module = module_of(text)
    assert module["VALUES"] == dict(replay.values)
    assert module["KINDS"] == dict(replay.kinds)
    assert module["N_STEPS"] == 40
    assert module["ABOUT"]["task"] == "t"


def test_of_two_hyperparameters_of_a_kind_the_one_named_like_it_takes_the_place():
    body, head = hyperparameter("lr", 1e-3), hyperparameter("head_lr", 1e-2, kind="lr")
    record, _, _ = record_of(CALM, items=(body, head))
    assert module_of(export_text(replay_of(record), "torch"))["PLACES"] == {"lr": "lr"}
    record, _, _ = record_of(CALM, items=(replace(body, name="body_lr"), head))
    assert module_of(export_text(replay_of(record), "torch"))["PLACES"] == {}


def test_the_header_tells_what_was_left_out():
    record, _, _ = record_of([0.9, 0.5, math.nan, 0.45, 0.44, 0.4])
    words = ast.get_docstring(ast.parse(export_text(replay_of(record), "torch"))) or ""
    assert "went back to an earlier state 1 times" in words
    assert "They are left out" in words
    everything = replay_of(record, all_steps=True)
    assert "a replay\nmay diverge too" in export_text(everything, "torch").replace(" may", "\nmay")


def test_wrong_requests_are_refused(tmp_path):
    record, _, _ = record_of(CALM)
    with pytest.raises(UnknownNameError, match="unknown export 'torhc'; did you mean 'torch'"):
        export_run(record, ["torhc"], tmp_path)
    with pytest.raises(SpecError, match="nothing is asked for"):
        export_run(record, [], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="the export cannot be written"):
        export_run(record, ["json"], tmp_path / "file")


HOSTILE = [
    '"""\nimport os\nos.abort()\n"""',
    "'''",
    "\\",
    "a\\",
    '"]}\nprint(1)\n',
    "@@CONSTANTS@@\n",
    "@@REPLAY@@",
    "{0}%s$x",
    "\u202e\u2066lr",
    "\ud800",
    "\x00",
    "lr\r\nimport os",
    "__import__('os').abort()",
    "",
]


def skeleton(text: str) -> str:
    """Return a source without the constants, normalised."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if not isinstance(node, ast.Assign)]
    return ast.unparse(tree)


@cache
def plain_replay() -> Replay:
    return replay_of(record_of(CALM, items=(hyperparameter("lr", 1e-3),))[0])


def check_hostile(name: str, task: str) -> None:
    plain = plain_replay()
    about = {**plain.about, "task": task, "variant": name, "policy": task, "start": {name: 1e-3}}
    replay = replace(plain, values={name: plain.values["lr"]}, kinds={name: "lr"}, about=about)
    for target in EXPORT_TARGETS:
        text = export_text(replay, target)
        assert text.isascii()
        if target == "json":
            document = json.loads(text)
            assert document["values"] == dict(replay.values)
            assert document["about"]["task"] == task
            continue
        compile(text, target, "exec")
        module = module_of(text)
        assert module["VALUES"] == dict(replay.values)
        assert module["KINDS"] == {name: "lr"}
        assert module["ABOUT"]["task"] == module["ABOUT"]["policy"] == task
        assert skeleton(text) == skeleton(export_text(plain, target))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_a_text(name):
    check_hostile(name, name[::-1])


@given(st.text(st.characters(exclude_categories=()), max_size=30), st.text(max_size=30))
def test_any_name_stays_a_text(name, task):
    check_hostile(name, task)


# Replayed, in a process that has no trimtab.

WITHOUT_TRIMTAB = (
    "import json, sys\n"
    "for name in ('trimtab',):\n"
    "    sys.modules[name] = None\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "try:\n"
    "    import trimtab\n"
    "except ImportError:\n"
    "    pass\n"
    "else:\n"
    "    raise SystemExit('trimtab is here')\n"
)


def replayed(folder: Path, script: str, **environment: str) -> Any:
    """Return what a script prints as JSON, run beside the exported files and without trimtab."""
    import os

    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRIMTAB + script, str(folder)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


TORCH_VALUES = """
import torch
from schedule_torch import N_STEPS, Schedule, VALUES, value
w = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
optimizer = torch.optim.AdamW(
    [{"params": [w[0]]}, {"params": [w[1]], "weight_decay": 0.0, "betas": (0.5, 0.9)},
     {"params": [w[2]], "lr": 2e-3}], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
seen, applied = {name: [] for name in VALUES}, []
other, half = [], None
schedule = Schedule(optimizer, apply={"dropout": applied.append})
for step in range(N_STEPS + 3):
    groups = optimizer.param_groups
    seen["lr"].append(groups[0]["lr"])
    seen["weight_decay"].append(groups[0]["weight_decay"])
    seen["beta1"].append(groups[0]["betas"][0])
    seen["dropout"].append(applied[-1])
    other.append((groups[1]["weight_decay"], groups[1]["betas"][0], groups[2]["lr"]))
    assert schedule.get_last_lr()[0] == groups[0]["lr"]
    optimizer.step()
    schedule.step()
    if step == 9:
        half = schedule.state_dict(), optimizer.state_dict()
    if step == 20:
        after = [dict(g, params=None) for g in optimizer.param_groups]
resumed = torch.optim.AdamW(
    [{"params": [w[0]]}, {"params": [w[1]], "weight_decay": 0.0, "betas": (0.5, 0.9)},
     {"params": [w[2]], "lr": 2e-3}], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
again = Schedule(resumed, apply={"dropout": None})
again.load_state_dict(half[0]); resumed.load_state_dict(half[1])
for _ in range(11):
    resumed.step(); again.step()
assert [dict(g, params=None) for g in resumed.param_groups] == after
refused = []
for apply in ({}, {"dropuot": None}, {"dropout": None, "lr": None}):
    try:
        Schedule(optimizer, apply=apply)
    except ValueError as error:
        refused.append(str(error))
try:
    Schedule(torch.optim.SGD(w, lr=0.1), apply={"dropout": None})
except ValueError as error:
    refused.append(str(error))
print(json.dumps({"seen": seen, "other": other, "refused": refused}))
"""


def test_torch_replays_every_value_bit_for_bit(tmp_path):
    pytest.importorskip("torch")
    record, _, _ = record_of(CALM)
    export_run(record, ["torch"], tmp_path)
    found = replayed(tmp_path, TORCH_VALUES)
    replay = replay_of(record)
    for name, column in replay.values.items():
        assert found["seen"][name] == column + [column[-1]] * 3
    decay, beta, rate = zip(*found["other"], strict=True)
    assert set(decay) == {0.0}
    lr, beta1 = replay.values["lr"], replay.values["beta1"]
    assert rate[:40] == pytest.approx([2 * value for value in lr], rel=1e-15)
    assert beta[:40] == pytest.approx([1 - 5 * (1 - value) for value in beta1])
    assert ["'dropout'" in found["refused"][0], "'dropuot'" in found["refused"][1]] == [True] * 2
    assert len(found["refused"]) == 3
    assert "no parameter group has a" in found["refused"][2]


TRAINING = """
import hashlib
import torch
def train(steer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=3e-3, weight_decay=0.05)
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    advance = steer(model, optimizer, x, y)
    for step in range(60):
        loss = torch.nn.functional.cross_entropy(model(x[step % 4 :: 4]), y[step % 4 :: 4])
        loss.backward()
        advance(loss)
    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()
"""

TORCH_TRAINING = """
from schedule_torch import Schedule
def steer(model, optimizer, x, y):
    schedule = Schedule(optimizer)
    def advance(loss):
        optimizer.step(); optimizer.zero_grad(); schedule.step()
    return advance
print(json.dumps(train(steer)))
"""


def test_training_with_the_torch_schedule_gives_the_steered_runs_last_weights(tmp_path):
    pytest.importorskip("torch")
    import torch

    from trimtab.adapters.torch import TorchController
    from trimtab.records.store.store import load_run

    store = f"sqlite:///{tmp_path}/runs.db"
    controllers: list[TorchController] = []

    def steer(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        def validate() -> float:
            with torch.no_grad():
                return float(torch.nn.functional.cross_entropy(model(x), y))

        controller = TorchController(
            optimizer,
            total_steps=60,
            validate=validate,
            model=model,
            hyperparameters=("lr", hyperparameter("weight_decay", high=1e4), "beta1"),
            decisions=12,
            policy=Unguarded(ControlSpec(hyperparameters=ITEMS[:3])),
            keep_best=False,
            store=store,
            seed=4,
        )
        controllers.append(controller.__enter__())
        return controller.step

    space: dict[str, Any] = {}
    exec(TRAINING, space)
    wanted = space["train"](steer)
    controllers[0].close()
    summary = controllers[0].summary
    assert summary.restores == 0
    assert len({row["weight_decay"] for row in summary.schedule}) > 3
    export_run(load_run("latest", store), ["torch"], tmp_path)
    assert replayed(tmp_path, TRAINING + TORCH_TRAINING) == wanted


OPTAX = """
import jax, optax
import jax.numpy as jnp
from schedule_optax import N_STEPS, VALUES, inject, schedule, value
single = {name: [float(schedule(name)(step)) for step in range(N_STEPS + 2)] for name in VALUES}
optimizer = inject(optax.adamw)(b2=0.9)
params = {"w": jnp.ones(3, jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)}
state = optimizer.init(params)
update = jax.jit(optimizer.update)
seen = {name: [] for name in ("learning_rate", "weight_decay", "b1")}
for step in range(N_STEPS):
    updates, state = update({"w": params["w"] * 0.1}, state, params)
    for name in seen:
        seen[name].append(float(state.hyperparams[name]))
refused = ""
try:
    inject(optax.sgd)
except ValueError as error:
    refused = str(error)
print(json.dumps({"single": single, "seen": seen, "refused": refused,
                  "exact": {n: [value(n, s) for s in range(N_STEPS)] for n in VALUES}}))
"""


@pytest.mark.parametrize("exact", [True, False])
def test_optax_replays_every_value(tmp_path, exact):
    pytest.importorskip("optax")
    record, _, _ = record_of(CALM)
    export_run(record, ["optax"], tmp_path)
    found = replayed(tmp_path, OPTAX, JAX_ENABLE_X64=str(int(exact)))
    columns = replay_of(record).values
    assert found["exact"] == columns
    for name, column in columns.items():
        wanted = column if exact else [float(np.float32(number)) for number in column]
        assert found["single"][name] == [*wanted, wanted[-1], wanted[-1]]
        place = {"lr": "learning_rate", "beta1": "b1"}.get(name, name)
        if place in found["seen"]:
            assert found["seen"][place] == wanted
    assert "takes none of them" in found["refused"]


TRANSFORMERS = """
import torch, transformers
from schedule_transformers import N_STEPS, VALUES, ReplayCallback, get_schedule, value
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(6, 2)
    def forward(self, inputs, labels=None):
        logits = self.body(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
data = [{"inputs": torch.randn(6), "labels": torch.tensor(i % 2)} for i in range(16)]
seen, applied = {name: [] for name in VALUES}, []
class Watch(transformers.TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        group = kwargs["optimizer"].param_groups[0]
        seen["lr"].append(group["lr"])
        seen["weight_decay"].append(group["weight_decay"])
        seen["beta1"].append(group["betas"][0])
        seen["clip"].append(args.max_grad_norm)
        seen["dropout"].append(applied[-1])
def arguments(**more):
    return transformers.TrainingArguments(
        "out", max_steps=N_STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        weight_decay=0.01, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        logging_steps=1, **more)
trainer = transformers.Trainer(
    Net(), arguments(), train_dataset=data,
    callbacks=[ReplayCallback(apply={"dropout": applied.append}), Watch()])
trainer.train()
logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
given = []
class WatchRate(transformers.TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        given.append(kwargs["optimizer"].param_groups[0]["lr"])
transformers.Trainer(
    model, arguments(), train_dataset=data, callbacks=[WatchRate()],
    optimizers=(optimizer, get_schedule(optimizer))).train()
print(json.dumps({"seen": seen, "logged": logged, "given": given}))
"""


@pytest.mark.framework
def test_transformers_replays_every_value_bit_for_bit(tmp_path):
    pytest.importorskip("transformers")
    record, _, _ = record_of(CALM, items=(*ITEMS, hyperparameter("clip", 1.0)))
    export_run(record, ["transformers"], tmp_path)
    found = replayed(tmp_path, TRANSFORMERS)
    columns = replay_of(record).values
    assert found["seen"] == columns
    assert found["given"] == columns["lr"]
    assert found["logged"] == columns["lr"]


KERAS = """
import keras
import numpy as np
from schedule_keras import N_STEPS, VALUES, Replay, Schedule, value
x = np.random.default_rng(0).normal(size=(2 * N_STEPS, 4)).astype("float32")
y = x[:, :1]
seen, applied = {name: [] for name in VALUES}, []
class Watch(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        if not LEARNING_RATE_ONLY:
            seen["weight_decay"].append(optimizer.weight_decay)
            seen["beta1"].append(optimizer.beta_1)
            seen["dropout"].append(applied[-1])
        seen["lr"].append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
def fit(eager):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(
        keras.optimizers.AdamW(Schedule(), weight_decay=0.01), "mse", run_eagerly=eager)
    callbacks = [Watch()]
    if not LEARNING_RATE_ONLY:
        callbacks.insert(0, Replay(apply={"dropout": applied.append}))
    model.fit(x, y, batch_size=2, epochs=1, verbose=0, callbacks=callbacks)
    return model
LEARNING_RATE_ONLY = True
model = fit(eager=False)
compiled, seen["lr"] = seen["lr"], []
model.save("saved.keras")
again = keras.models.load_model("saved.keras")
assert type(again.optimizer._learning_rate) is Schedule
LEARNING_RATE_ONLY, refused = False, ""
try:
    fit(eager=False)
except ValueError as error:
    refused = str(error)
fit(eager=True)
print(json.dumps({"compiled": compiled, "seen": seen, "refused": refused}))
"""


@pytest.mark.framework
def test_keras_replays_every_value_inside_fit(tmp_path):
    pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    record, _, _ = record_of(CALM)
    export_run(record, ["keras"], tmp_path)
    found = replayed(tmp_path, KERAS, KERAS_BACKEND="tensorflow")
    columns = dict(replay_of(record).values)
    rates = [float(np.float32(number)) for number in columns["lr"]]
    assert found["compiled"] == rates
    assert found["seen"] == {**columns, "lr": rates}
    assert "a compiled training step keeps the first values" in found["refused"]
