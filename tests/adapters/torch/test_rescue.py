"""`trimtab.Rescue` on real loops: bit for bit until something breaks, mended when it does."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import trimtab
from trimtab.adapters.torch.saved_batch import read_event, run_again
from trimtab.adapters.torch.state import write_state
from trimtab.core.errors import AdapterError, RescueError, TrimtabWarning
from trimtab.rescue.events import Fault, Treatment

STEPS = 120
PUT_BACK = {Treatment.RESTORE, Treatment.RESTORE_STATISTICS, Treatment.RESTORE_AND_CUT}
pytestmark = pytest.mark.filterwarnings("ignore::trimtab.core.errors.TrimtabWarning")


class Loop:
    """A small classifier with BatchNorm, dropout and a scheduler; `faults` act from outside."""

    def __init__(self, seed=0, batch=16, optimizer=torch.optim.AdamW, dropout=0.1, **settings):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state that users seed
        self.model = nn.Sequential(
            nn.Linear(8, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(32, 4),
        )
        self.optimizer = optimizer(self.model.parameters(), **({"lr": 3e-3} | settings))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: max(0.0, 1 - step / STEPS)
        )
        made = torch.Generator().manual_seed(100 + seed)
        self.x = torch.randn(STEPS, batch, 8, generator=made)
        teacher = torch.randn(8, 4, generator=made)
        self.y = (self.x @ teacher).argmax(-1)

    def loss_of(self, batch):
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def batches(self):
        return zip(self.x, self.y, strict=True)

    def plain(self):
        for batch in self.batches():
            self.loss_of(batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        return self.ended()

    def ended(self):
        """Note the state at the end, that of the global generators too."""
        numbers = torch.tensor([random.random(), np.random.random()])  # noqa: NPY002 - users' own
        tensors = [*self.model.state_dict().values(), torch.get_rng_state(), numbers]
        self.end = [*tensors, torch.tensor(self.optimizer.param_groups[0]["lr"])]
        return self

    def rescued(
        self, fault=lambda step, loop: None, *, whole=True, batch=lambda s, b: b, **options
    ):
        """Train with a rescue; ``fault`` acts before each step, ``batch`` on what is loaded."""
        with trimtab.Rescue(
            self.optimizer, model=self.model, scheduler=self.scheduler, **options
        ) as rescue:
            self.rescue = rescue
            for step, loaded in enumerate(self.batches()):
                fault(step, self)
                given = batch(step, loaded)
                if whole:
                    loss = rescue.backward(self.loss_of, given, id=range(16 * step, 16 * step + 16))
                else:
                    loss = self.loss_of(given)
                    loss.backward()
                rescue.step(loss)
        return self.ended()

    def whole_loss(self):
        self.model.eval()
        with torch.no_grad():
            return float(self.loss_of((self.x.reshape(-1, 8), self.y.reshape(-1))))


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.end, two.end, strict=True))


def at(step, act):
    return lambda now, loop: act(loop) if now == step else None


@pytest.mark.parametrize("whole", [True, False], ids=["backward", "loss.backward"])
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"batch": 4},
        {"dropout": 0.5},
        {"optimizer": torch.optim.SGD, "lr": 0.1, "momentum": 0.9},
        {"optimizer": torch.optim.RMSprop},
    ],
    ids=["usual", "small batch", "dropout", "sgd", "rmsprop"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_bit_for_bit_that_without_it(seed, setting, whole):
    mine = Loop(seed, **setting).rescued(whole=whole)
    assert mine.rescue.events == []
    assert equal(mine, Loop(seed, **setting).plain())


def not_a_number(step, batch):
    x, y = batch
    if step != 60:
        return batch
    x = x.clone()
    x[3, 0] = math.nan
    return x, y


def test_a_bad_row_is_skipped_and_named_by_the_loops_own_name():
    mine = Loop().rescued(batch=not_a_number)
    (event,) = mine.rescue.events
    assert (event.step, event.fault, event.treatment) == (
        60,
        Fault.INPUT_NOT_FINITE,
        Treatment.SKIP,
    )
    assert event.batch == [16 * 60 + 3]
    assert all(torch.isfinite(tensor).all() for tensor in mine.model.state_dict().values())
    assert mine.whole_loss() <= 1.03 * Loop().plain().whole_loss()


def weight(loop):
    return loop.model[4].weight


DAMAGE = {
    "a weight": (lambda loop: weight(loop).data[0, 0].fill_(math.nan), Fault.WEIGHTS_NOT_FINITE, 0),
    "a flipped bit": (lambda loop: weight(loop).data[1, 1].fill_(1e30), None, 10),
    "scaled weights": (lambda loop: weight(loop).data.mul_(1000), Fault.MODEL_DAMAGED, 1),
    "running variance": (
        lambda loop: loop.model[1].running_var.fill_(1e12),
        Fault.BUFFERS_JUMPED,
        10,
    ),
    "running mean": (
        lambda loop: loop.model[1].running_mean[0].fill_(math.nan),
        Fault.BUFFERS_NOT_FINITE,
        10,
    ),
    "second moments": (
        lambda loop: loop.optimizer.state[weight(loop)]["exp_avg_sq"].fill_(math.inf),
        Fault.OPTIMIZER_NOT_FINITE,
        10,
    ),
    "first moments": (
        lambda loop: loop.optimizer.state[weight(loop)]["exp_avg"].fill_(1e6),
        None,
        10,
    ),
    "dead units": (lambda loop: loop.model[0].bias.data.fill_(-1e4), None, 10),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_noticed_within_ten_steps_and_put_back(name):
    act, fault, within = DAMAGE[name]
    mine = Loop().rescued(at(60, act))
    restored = [e for e in mine.rescue.events if e.treatment in PUT_BACK]
    assert restored, mine.rescue.events
    assert 60 <= restored[0].step <= 60 + within
    if name.startswith("running"):  # no weight was moved by them
        assert restored[0].treatment is Treatment.RESTORE_STATISTICS
        assert restored[0].updates_lost == 0
    else:
        assert restored[0].restored <= 60, "the state of step 60 is that before the damage"
    if fault is not None:
        assert restored[0].fault is fault
    assert mine.rescue.gave_up is None
    assert mine.whole_loss() <= 1.3 * Loop().plain().whole_loss()  # 20 of 120 updates are lost
    assert torch.isfinite(mine.model[1].running_var).all()
    assert mine.model[1].running_var.max() < 1e3


def test_a_mask_of_minus_infinity_is_no_fault():
    loop = Loop()
    loop.model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    assert loop.rescued().rescue.events == []


def test_a_zero_initialised_adapter_that_learns_fast_is_no_fault():
    loop = Loop(lr=3e-2)
    nn.init.zeros_(weight(loop))
    assert loop.rescued(whole=False).rescue.events == []


def test_a_rate_that_something_else_wrote_is_overruled():
    def wreck(loop):
        loop.optimizer.param_groups[0]["lr"] = 3.0

    mine = Loop().rescued(at(60, wreck))
    assert [e.fault for e in mine.rescue.events] == [Fault.RATE_OVERWRITTEN]
    assert equal(mine, Loop().plain())


def test_a_loader_that_raises_once_is_told_and_the_loop_goes_on():
    class Loader:
        def __iter__(self):
            self.number = -1
            return self

        def __next__(self):
            self.number += 1
            if self.number == 5:
                raise OSError("truncated image 17.jpg")
            if self.number == 10:
                raise StopIteration
            return self.number

    loop = Loop()
    with trimtab.Rescue(loop.optimizer, model=loop.model) as rescue:
        assert list(rescue.batches(Loader())) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [e.evidence for e in rescue.events] == ["truncated image 17.jpg"]


def test_a_loader_that_always_raises_ends_in_its_own_error():
    class Broken:
        def __iter__(self):
            return self

        def __next__(self):
            raise OSError("disk gone")

    loop = Loop()
    with (
        trimtab.Rescue(loop.optimizer, model=loop.model) as rescue,
        pytest.raises(OSError, match="disk gone"),
    ):
        list(rescue.batches(Broken()))


def test_memory_that_runs_out_is_met_by_smaller_parts():
    loop, sizes = Loop(), []

    def loss_of(batch):
        sizes.append(len(batch[0]))
        if len(batch[0]) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return loop.loss_of(batch)

    with trimtab.Rescue(loop.optimizer, model=loop.model) as rescue:
        for batch in list(loop.batches())[:3]:
            rescue.backward(loss_of, batch)
            rescue.step()
    assert sizes == [16, 16, 8, 8, 8, 8, 8, 8]
    assert [e.fault for e in rescue.events] == [Fault.OUT_OF_MEMORY]


def every(step, batch):
    return (batch[0] * math.nan, batch[1]) if step >= 60 else batch


def test_nan_in_every_batch_ends_with_sound_weights_and_is_told():
    with pytest.warns(TrimtabWarning, match="gave up: step 79: every batch fails"):
        mine = Loop().rescued(batch=every)
    assert mine.rescue.gave_up.fault is Fault.EVERY_BATCH
    assert all(torch.isfinite(tensor).all() for tensor in mine.model.state_dict().values())


def test_giving_up_can_raise():
    with pytest.raises(RescueError, match="step 79: every batch fails"):
        Loop().rescued(batch=every, on_giving_up="raise")


def test_a_dry_run_leaves_the_plain_loops_bits_and_the_same_evidence():
    mine = Loop().rescued(at(60, lambda loop: weight(loop).data.mul_(1000)), act=False)
    assert mine.rescue.events[0].fault is Fault.MODEL_DAMAGED
    assert not mine.rescue.events[0].acted
    plain = Loop()
    for step, batch in enumerate(plain.batches()):
        if step == 60:
            weight(plain).data.mul_(1000)
        plain.loss_of(batch).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        plain.scheduler.step()
    assert equal(mine, plain.ended())


def test_without_a_loss_a_step_says_what_to_do():
    loop = Loop()
    with (
        trimtab.Rescue(loop.optimizer, model=loop.model) as rescue,
        pytest.raises(AdapterError, match=r"pass the loss, or call backward\(\)"),
    ):
        rescue.step()


def test_a_scheduler_of_a_metric_and_an_unknown_way_of_giving_up_are_refused():
    loop = Loop()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(loop.optimizer)
    with pytest.raises(AdapterError, match="ReduceLROnPlateau steps with a metric"):
        trimtab.Rescue(loop.optimizer, model=loop.model, scheduler=plateau)
    with pytest.raises(AdapterError, match="on_giving_up='explode': one of stop, raise, go-on"):
        trimtab.Rescue(loop.optimizer, model=loop.model, on_giving_up="explode")


def test_a_scaler_whose_scale_died_gets_it_back():
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with trimtab.Rescue(loop.optimizer, model=loop.model, scaler=scaler) as rescue:
        for step, (x, y) in enumerate(loop.batches()):
            loss = loop.loss_of((x, y))
            scaler.scale(loss).backward()
            if 30 <= step < 60:
                weight(loop).grad[0, 0] = math.inf
            rescue.step(loss)
    assert scaler.get_scale() >= 1.0
    assert [e.fault for e in rescue.events] == [Fault.DEAD_SCALER]


def steered(loop, fault=lambda step, loop: None, **options):
    """Train under ``policy="guard"``; the loop calls ``loss.backward()`` itself."""
    validate = lambda: loop.whole_loss()  # noqa: E731
    controller = trimtab.TorchController(
        loop.optimizer,
        total_steps=STEPS,
        validate=validate,
        model=loop.model,
        policy="guard",
        reference=loop.scheduler,
        **options,
    )
    with controller:
        for step, batch in enumerate(loop.batches()):
            fault(step, loop)
            loss = loop.loss_of(batch)
            loss.backward()
            controller.step(loss)
    loop.controller = controller
    return loop.ended()


@pytest.mark.parametrize("seed", range(5))
def test_the_guard_policy_follows_the_users_schedule_bit_for_bit(seed):
    mine = steered(Loop(seed))
    assert mine.controller.events == []
    assert equal(mine, Loop(seed).plain())


@pytest.mark.parametrize("name", DAMAGE)
def test_the_guard_policy_puts_a_damaged_state_back(name):
    act, _, _ = DAMAGE[name]
    mine = steered(Loop(), at(60, act))
    assert [e for e in mine.controller.events if e.treatment in PUT_BACK]
    assert mine.controller.summary.finished
    assert not mine.controller.summary.diverged
    assert mine.whole_loss() <= 1.3 * Loop().plain().whole_loss()


def test_the_record_of_a_guarded_run_holds_its_events(tmp_path):
    from trimtab.records.store.store import load_run

    act, _, _ = DAMAGE[next(iter(DAMAGE))]
    mine = steered(Loop(), at(60, act), store=f"sqlite:///{tmp_path / 'runs.db'}")
    record = load_run("latest", tmp_path / "runs.db")
    assert record.head["policy"] == "guard"
    told = record.figures["events"]
    assert [each["step"] for each in told] == [e.step for e in mine.controller.events]
    assert told[0]["sentence"] == mine.controller.events[0].sentence()
    assert len(told[0]["losses"]) > 1


def test_keep_best_is_off_under_the_guard_policy_unless_asked_for():
    assert not equal(steered(Loop(), keep_best=True, decisions=5), Loop(9).plain())
    assert equal(steered(Loop()), Loop().plain())


def test_gradients_clipped_by_the_rescue_are_those_of_a_loop_that_clips_them():
    plain = Loop()
    for batch in plain.batches():
        plain.loss_of(batch).backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        plain.scheduler.step()
    plain.ended()
    mine = Loop().rescued(clip=0.5)
    assert equal(mine, plain)
    assert not equal(mine, Loop().plain())


def test_a_bad_batch_is_not_clipped_into_the_weights():
    mine = Loop().rescued(batch=not_a_number, clip=0.5)
    assert [event.fault for event in mine.rescue.events] == [Fault.INPUT_NOT_FINITE]
    assert all(torch.isfinite(tensor).all() for tensor in mine.model.state_dict().values())


def test_sparse_gradients_are_watched_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(50, 8, sparse=True), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with trimtab.Rescue(optimizer, model=model) as rescue:
        for step in range(30):
            loss = model(torch.randint(0, 50, (16, 4))).square().mean()
            loss.backward()
            if step == 15:
                model[0].weight.grad._values()[0] = math.inf
            rescue.step(loss)
    assert [event.fault for event in rescue.events] == [Fault.GRADIENT_NOT_FINITE]
    assert torch.isfinite(model[0].weight).all()


class Remade(torch.optim.Optimizer):
    """Momentum whose state is a new tensor at each step."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state[p]
                held["momentum_buffer"] = 0.9 * held.get("momentum_buffer", 0.0) + p.grad
                p.sub_(group["lr"] * held["momentum_buffer"])


def test_state_that_an_optimiser_makes_anew_is_looked_at():
    def damage(loop):
        loop.optimizer.state[weight(loop)]["momentum_buffer"][0, 0] = math.nan
        weight(loop).requires_grad_(False)  # no update brings it into the weights
        weight(loop).grad = None

    class Frozen(Remade):
        def step(self, closure=None):
            held = [p for p in self.param_groups[0]["params"] if p.grad is not None]
            self.param_groups[0]["params"], kept = held, self.param_groups[0]["params"]
            super().step()
            self.param_groups[0]["params"] = kept

    mine = Loop(optimizer=Frozen, lr=1e-2).rescued(at(75, damage))
    assert mine.rescue.events[0].fault is Fault.OPTIMIZER_NOT_FINITE
    assert mine.rescue.events[0].step <= 85


def test_a_restore_costs_the_updates_since_the_last_look_where_good_batches_allow_it():
    mine = Loop().rescued(at(115, lambda loop: weight(loop).data[0, 0].fill_(math.nan)))
    assert mine.rescue.events[0].updates_lost <= 10


@pytest.mark.parametrize("kind", ["black", "words"])
def test_batches_that_begin_alike_are_not_the_same_batch(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 4)) if kind == "black" else nn.EmbeddingBag(50, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def loaded(step, stuck):
        drawn = torch.Generator().manual_seed(0 if stuck else step)
        if kind == "black":  # images with a black border
            x = torch.zeros(8, 200)
            x[4:, 90:110] = torch.rand(4, 20, generator=drawn)
        else:
            x = torch.randint(0, 50, (8, 20), generator=drawn)
            x[:, 10:] = 0  # padding
        return x, torch.zeros(8, dtype=torch.long)

    for stuck in (False, True):
        with trimtab.Rescue(optimizer, model=model) as rescue:
            for step in range(60):
                rescue.backward(
                    lambda b: functional.cross_entropy(model(b[0]), b[1]),
                    loaded(step, stuck and step >= 30),
                )
                rescue.step()
        faults = [event.fault for event in rescue.events]
        assert faults == ([Fault.STUCK_LOADER] if stuck else [])
        assert not stuck or rescue.events[0].step <= 42


@pytest.mark.parametrize("name", ["running variance", "scaled weights"])
def test_a_run_that_was_rescued_whole_is_not_called_diverged(name):
    """Damaged right before a validation, which would see a loss of many times the first one."""
    mine = steered(Loop(), at(STEPS // 4 - 1, DAMAGE[name][0]), decisions=4)
    assert [e for e in mine.controller.events if e.treatment in PUT_BACK]
    assert not mine.controller.summary.diverged


def test_a_run_that_was_given_up_is_called_diverged():
    def poison(step, loop):
        if step >= 60:
            loop.x[step] = math.nan

    assert steered(Loop(), poison).controller.summary.diverged


def attached(loop, fault=lambda step, loop: None, poison=-1):
    """Train under ``policy="guard"`` in a loop that steps its optimiser and scheduler itself."""
    controller = trimtab.TorchController.attach(
        loop.optimizer,
        total_steps=STEPS,
        validate=loop.whole_loss,
        model=loop.model,
        policy="guard",
        reference=None,
    )
    with controller:
        for step, (x, y) in enumerate(loop.batches()):
            fault(step, loop)
            loss = loop.loss_of((x * math.nan if step == poison else x, y))
            controller.tell(loss)
            loss.backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            loop.scheduler.step()
    loop.controller = controller
    return loop.ended()


@pytest.mark.parametrize("seed", range(5))
def test_the_guard_policy_that_is_attached_leaves_the_loops_bits(seed):
    mine = attached(Loop(seed))
    assert mine.controller.events == []
    assert equal(mine, Loop(seed).plain())


def test_the_guard_policy_that_is_attached_skips_and_restores():
    mine = attached(Loop(), at(80, DAMAGE["a weight"][0]), poison=50)
    skipped, restored = mine.controller.events
    assert (skipped.step, skipped.treatment) == (50, Treatment.SKIP)
    assert (restored.step, restored.fault) == (80, Fault.WEIGHTS_NOT_FINITE)
    assert not mine.controller.summary.diverged
    assert mine.whole_loss() <= 1.3 * Loop().plain().whole_loss()


def test_averages_of_the_weights_are_left_to_the_loop_under_the_guard_policy():
    ended = []
    for policy in (None, "guard"):
        loop = Loop()
        average = torch.optim.swa_utils.AveragedModel(loop.model)
        controller = trimtab.TorchController(
            loop.optimizer,
            total_steps=STEPS,
            validate=loop.whole_loss,
            model=loop.model,
            averaged=average,
            policy=policy,
            keep_best=False,
            reference=loop.scheduler,
        )
        with controller:
            for batch in loop.batches():
                loss = loop.loss_of(batch)
                loss.backward()
                controller.step(loss)
                average.update_parameters(loop.model)
        assert controller.events == []
        ended.append([*loop.ended().end, *average.state_dict().values()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*ended, strict=True))


def test_a_batch_is_kept_where_that_is_asked_for_and_runs_again_as_it_ran(tmp_path):
    mine = Loop(dropout=0.5).rescued(batch=not_a_number, save_batch=tmp_path)
    (event,) = mine.rescue.events
    (path,) = tmp_path.iterdir()
    assert event.saved == str(path)
    assert f"trimtab replay {path} runs it again" in event.sentence()
    assert read_event(path) == event
    again = run_again(path, mine.model, mine.loss_of)
    assert math.isnan(again.loss)
    assert again.first_not_finite == "0 (Linear)"


def test_a_kept_batch_has_the_random_state_that_it_had(tmp_path):
    drawn = []

    def loss_of(batch):
        drawn.append(torch.rand(1).item() + random.random())
        return loop.loss_of(batch) * (math.inf if len(drawn) == 7 else 1.0)

    loop = Loop()
    with trimtab.Rescue(loop.optimizer, model=loop.model, save_batch=tmp_path) as rescue:
        for batch in list(loop.batches())[:12]:
            rescue.backward(loss_of, batch)
            rescue.step()
    (path,) = tmp_path.iterdir()
    seen = []

    def look(batch):
        seen.append(torch.rand(1).item() + random.random())
        return loop.loss_of(batch)

    run_again(path, loop.model, look)
    assert seen == [drawn[6], drawn[6]]


def test_no_batch_is_kept_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Loop().rescued(batch=not_a_number).rescue.events[0].saved == ""
    assert list(tmp_path.iterdir()) == []


def test_at_most_ten_batches_are_kept(tmp_path):
    Loop().rescued(batch=every, save_batch=tmp_path)
    assert len(list(tmp_path.iterdir())) == 10


def test_a_batch_that_no_file_can_hold_is_told(tmp_path):
    loop = Loop()
    with trimtab.Rescue(loop.optimizer, model=loop.model, save_batch=tmp_path) as rescue:
        for step, (x, y) in enumerate(list(loop.batches())[:5]):
            given = {"x": x * math.nan if step == 3 else x, "y": y, "note": object()}
            rescue.backward(lambda b: loop.loss_of((b["x"], b["y"])), given)
            rescue.step()
    assert "the batch could not be kept" in rescue.events[0].not_done
    assert rescue.events[0].saved == ""


def test_a_file_that_is_no_event_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    write_state(path, {"format": "something"})
    with pytest.raises(AdapterError, match="format 'something' is none of an event"):
        read_event(path)
