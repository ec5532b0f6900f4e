"""A loop that is not the user's own is steered at its optimiser's steps, as `step` would."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.core.errors import AdapterError, TrimtabWarning

RANDOM: dict[str, Any] = {"policy": "random", "decisions": 6, "seed": 3}


def attached(one: Any, **settings: Any) -> TorchController:
    settings = RANDOM | {"validate": one.validate, "total_steps": one.steps} | settings
    return TorchController.attach(one.optimizer, model=one.model, **settings)


def by_tell(
    one: Any, controller: TorchController, after: Callable[[], None] = lambda: None
) -> None:
    for loss in one.losses():
        controller.tell(loss)
        one.optimizer.zero_grad()
        loss.backward()
        one.optimizer.step()
        after()


def by_tell_now_and_then(one: Any, controller: TorchController) -> None:
    for step, loss in enumerate(one.losses()):
        if step % 3 == 0:
            controller.tell(loss)
        loss.backward()
        one.optimizer.step()
        one.optimizer.zero_grad()


def by_watch(one: Any, controller: TorchController) -> None:
    given, one.loss_fn = one.loss_fn, controller.watch(one.loss_fn)
    assert one.loss_fn is given
    for loss in one.losses():
        loss.backward()
        one.optimizer.step()
        one.optimizer.zero_grad()


def by_watched_function(one: Any, controller: TorchController) -> None:
    watched = controller.watch(lambda logits, labels: {"loss": one.loss_fn(logits, labels)})
    for _ in range(one.steps):
        chosen = torch.randint(0, 200, (16,))
        watched(one.model(one.inputs[chosen]), one.labels[chosen])["loss"].backward()
        one.optimizer.step()
        one.optimizer.zero_grad()


def by_closure(one: Any, controller: TorchController) -> None:
    del controller
    losses = one.losses()

    def closure() -> torch.Tensor:
        one.optimizer.zero_grad()
        loss = next(losses)
        loss.backward()
        return loss

    for _ in range(one.steps):
        assert math.isfinite(one.optimizer.step(closure).item())


@pytest.mark.parametrize("run", [by_tell, by_watch, by_watched_function, by_closure])
@pytest.mark.parametrize(
    "settings",
    [{}, {"clip": 0.1}, {"hyperparameters": ("lr", "weight_decay", "dropout")}, {"policy": None}],
    ids=["lr", "clip", "kinds", "off"],
)
def test_hooks_give_the_same_bits_as_step(loop, equal, run: Callable[..., None], settings):
    mine, hooked = loop(wrecked={}), loop()
    summary = mine.run_steered(**RANDOM | settings).summary
    hooked.begin()
    with attached(hooked, **settings) as controller:
        run(hooked, controller)

    assert equal(hooked.state(), mine.state())
    assert hooked.rates() == mine.rates()
    assert controller.summary.schedule == summary.schedule
    assert not hooked.optimizer._optimizer_step_pre_hooks
    assert not hooked.optimizer._optimizer_step_post_hooks
    assert not hooked.loss_fn._forward_hooks


def test_a_loss_that_is_not_finite_is_rolled_back_as_by_step(loop, equal):
    wrecked = {20: math.inf, 41: math.nan}
    mine, hooked = loop(wrecked=wrecked), loop(wrecked=wrecked)
    summary = mine.run_steered(**RANDOM).summary
    hooked.begin()
    with attached(hooked) as controller:
        by_tell(hooked, controller)

    assert summary.rollbacks == 2
    assert controller.summary.rollbacks == 2
    assert equal(hooked.state(), mine.state())


def test_micro_batches_give_their_mean(loop, equal):
    def run(one: Any, each: Callable[[torch.Tensor], None], step: Callable[[Any], None]) -> None:
        losses = one.losses(2 * one.steps)
        for first, second in zip(losses, losses, strict=True):
            for loss in (first, second):
                each(loss.detach())
                (loss / 2).backward()
            step((first.detach() + second.detach()) / 2)

    mine, hooked = loop(), loop()
    mine.begin()
    with mine.controller(**RANDOM) as stepped:
        run(mine, lambda loss: None, stepped.step)
    hooked.begin()
    with attached(hooked) as controller:

        def step(loss: Any) -> None:
            hooked.optimizer.step()
            hooked.optimizer.zero_grad()

        run(hooked, controller.tell, step)

    assert equal(hooked.state(), mine.state())
    assert controller.summary.decisions[3].applied == stepped.summary.decisions[3].applied


@pytest.mark.parametrize("wrecked", [{}, {7: 1e38, 20: math.inf}], ids=["clean", "wrecked"])
def test_a_scalers_steps_count_also_those_that_it_leaves_out(loop, equal, wrecked):
    mine, hooked = loop(wrecked=wrecked), loop(wrecked=wrecked)
    mine.begin()
    ours = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=9)
    with mine.controller(scaler=ours, clip=1.0, **RANDOM) as stepped:
        for loss in mine.losses():
            ours.scale(loss).backward()
            stepped.step(loss)
    hooked.begin()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=9)
    with attached(hooked, scaler=scaler, clip=1.0) as controller:
        for loss in hooked.losses():
            controller.tell(loss)
            scaler.scale(loss).backward()
            scaler.step(hooked.optimizer)
            scaler.update()
            hooked.optimizer.zero_grad()

    assert equal(hooked.state(), mine.state())
    assert scaler.state_dict() == ours.state_dict()
    assert controller.summary.schedule == stepped.summary.schedule
    assert controller.summary.finished
    assert not {"step", "update"} & vars(scaler).keys()


def test_losses_of_the_loops_own_validation_are_left_alone(loop, equal):
    mine, hooked = loop(), loop()
    mine.run_steered(**RANDOM)
    hooked.begin()
    with attached(hooked) as controller:
        hooked.loss_fn = controller.watch(hooked.loss_fn)
        for step, loss in enumerate(hooked.losses()):
            loss.backward()
            if step % 7 == 0:
                hooked.validate()  # without gradients
                hooked.loss_fn(hooked.model(hooked.inputs[:9]), hooked.labels[:9])  # in eval mode
                hooked.model.train()
            hooked.optimizer.step()
            hooked.optimizer.zero_grad()

    assert equal(hooked.state(), mine.state())


def test_copies_of_what_is_watched_tell_nothing(loop, equal):
    mine, hooked = loop(), loop()
    mine.run_steered(**RANDOM)
    hooked.begin()
    with attached(hooked) as controller:
        controller.watch(hooked.loss_fn)
        watched = controller.watch(nn.functional.cross_entropy)
        twin = copy.deepcopy(hooked.loss_fn)
        file = io.BytesIO()
        torch.save(hooked.loss_fn, file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        others = [twin, saved, copy.deepcopy(watched), pickle.loads(pickle.dumps(watched))]
        for loss in hooked.losses():
            for other in others:
                other(torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1]))
            loss.backward()
            hooked.optimizer.step()
            hooked.optimizer.zero_grad()

    assert b"trimtab" not in file.getvalue()
    assert equal(hooked.state(), mine.state())


def test_losses_of_each_example_are_no_losses_of_the_step(loop, equal):
    mine, hooked = loop(), loop()
    mine.run_steered(**RANDOM)
    hooked.begin()
    with attached(hooked) as controller:
        mean = controller.watch(lambda losses: losses, loss_of=lambda losses: losses.mean())
        each = controller.watch(lambda losses: losses)
        for loss in hooked.losses():
            each(loss.repeat(3))
            mean(loss.repeat(4))
            loss.backward()
            hooked.optimizer.step()
            hooked.optimizer.zero_grad()

    assert equal(hooked.state(), mine.state())


class NextAdamW(torch.optim.AdamW):
    """Calls its base's step, whose hooks are called as well."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("run", [by_tell, by_closure])
def test_a_step_inside_a_step_counts_once(loop, equal, run):
    mine, hooked = loop(make_optimizer=NextAdamW), loop(make_optimizer=NextAdamW)
    torch.optim.AdamW(nn.Linear(1, 1).parameters())
    mine.run_steered(**RANDOM)
    hooked.begin()
    with attached(hooked) as controller:
        run(hooked, controller)

    assert equal(hooked.state(), mine.state())


def test_a_loss_that_nobody_told_is_an_error_at_the_first_step(loop):
    def run_untold() -> None:
        with attached(one):
            for loss in one.losses():
                loss.backward()
                one.optimizer.step()

    one = loop()
    one.begin()
    with pytest.raises(AdapterError, match=r"controller\.watch\(loss_fn\)"):
        run_untold()
    assert not one.optimizer._optimizer_step_pre_hooks


def test_a_later_step_without_a_loss_is_told_once(loop):
    one = loop()
    one.begin()
    with attached(one) as controller, pytest.warns(TrimtabWarning, match="a new loss") as told:
        by_tell_now_and_then(one, controller)
    assert len(told) == 1
    assert controller.summary.finished


def test_a_scheduler_that_the_loop_steps_is_overruled_and_told(loop, equal):
    mine, hooked = loop(), loop()
    mine.run_steered(**RANDOM)
    scheduler = torch.optim.lr_scheduler.StepLR(hooked.optimizer, 5)
    hooked.begin()
    said = "something else set the learning rate"
    with attached(hooked) as controller, pytest.warns(TrimtabWarning, match=said):
        by_tell(hooked, controller, scheduler.step)
    assert equal(hooked.state(), mine.state())


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=61)


def exponential(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


@pytest.mark.parametrize("make", [one_cycle, exponential])
def test_the_loops_own_scheduler_is_followed(loop, equal, make):
    plain, hooked, steered = loop(), loop(), loop()
    scheduler = make(plain.optimizer)
    plain.run_plainly(scheduler)
    for one, policy in ((hooked, None), (steered, "random")):
        of_loop = make(one.optimizer)
        one.begin()
        with attached(one, reference=None, policy=policy, keep_best=False) as controller:
            by_tell(one, controller, of_loop.step)
        assert one.rates() == plain.rates()
        assert of_loop.get_last_lr() == scheduler.get_last_lr()

    assert equal(hooked.state(), plain.state())
    assert not equal(steered.state(), plain.state())
    assert controller.summary.decisions[-1].applied["lr"] != 1.0


@pytest.mark.parametrize("make", [one_cycle, exponential])
def test_a_followed_rate_is_multiplied_for_the_step_alone(loop, make):
    one = loop()
    scheduler = make(one.optimizer)
    used: list[float] = []
    one.optimizer.register_step_post_hook(lambda *_: used.append(one.rates()[0]))
    own: list[float] = []
    one.begin()
    with attached(one, reference=None) as controller:
        for loss in one.losses():
            controller.tell(loss)
            own += one.rates()
            loss.backward()
            one.optimizer.step()
            one.optimizer.zero_grad()
            scheduler.step()

    multipliers = [u / o for u, o in zip(used, own, strict=True)]
    assert len({round(m, 9) for m in multipliers}) > 3
    recorded = [row["lr"] for row in controller.summary.schedule]
    assert recorded == pytest.approx(used)


def test_a_rate_that_a_trainer_sets_again_when_it_begins_is_no_schedule(loop, equal):
    mine, hooked = loop(), loop()
    mine.run_steered(**RANDOM)
    hooked.begin()
    with attached(hooked) as controller:
        hooked.optimizer.param_groups[0]["lr"] = hooked.learning_rate
        by_tell(hooked, controller)
    assert equal(hooked.state(), mine.state())


@pytest.mark.filterwarnings("ignore:only 0 of the 60 announced steps were done")
def test_a_block_without_a_step_is_told(loop):
    one = loop()
    with pytest.warns(TrimtabWarning, match="no step of AdamW was seen"), attached(one):
        pass


def test_what_cannot_be_attached_to_is_refused(loop):
    one = loop()

    class Own:
        param_groups = one.optimizer.param_groups
        state = one.optimizer.state

        def step(self) -> None: ...

        def zero_grad(self) -> None: ...

    settings = {"total_steps": 9, "validate": one.validate, "model": one.model}
    with pytest.raises(AdapterError, match="Own calls no hooks"):
        TorchController.attach(Own(), **settings)
    with pytest.raises(AdapterError, match="LBFGS evaluates the loss itself"):
        TorchController.attach(torch.optim.LBFGS(one.model.parameters()), **settings)
    with pytest.raises(AdapterError, match="made by attach"):
        attached(one).step(1.0)
    with pytest.raises(AdapterError, match=r"TorchController\.attach"):
        one.controller().tell(1.0)
    with pytest.raises(AdapterError, match="'x' cannot be called"):
        attached(one).watch("x")
    with pytest.raises(AdapterError, match=r"tell\(loss\): a tensor of shape \(2,\)"):
        attached(one).tell(torch.zeros(2))
