"""What a person does wrong in putting trimtab into a loop is caught in its first steps."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from trimtab.adapters.torch import TorchController, total_steps
from trimtab.adapters.torch.proofs import Proofs
from trimtab.core.errors import (
    AdapterError,
    MetricError,
    SpecError,
    TrimtabWarning,
    UnknownNameError,
)


def run(it, before=lambda loss, step: loss.backward(), steps=60, **settings):
    it.begin()
    with it.controller(policy="trimtab-1", **settings) as controller:
        for step, loss in enumerate(it.losses(steps)):
            before(loss, step)
            controller.step(loss)
    return controller


def test_a_forgotten_backward_is_an_error_in_the_first_window(loop):
    it = loop()
    with pytest.raises(AdapterError, match=r"no weight .* call loss\.backward\(\) before it"):
        run(it, lambda loss, step: None)


def step_myself(it):
    def before(loss, step):
        loss.backward()
        it.optimizer.step()
        it.optimizer.zero_grad()

    return before


def clear_too_early(it):
    def before(loss, step):
        loss.backward()
        it.optimizer.zero_grad()

    return before


def double_step(it):
    def before(loss, step):
        loss.backward()
        it.optimizer.step()

    return before


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        (step_myself, r"AdamW was stepped elsewhere.* take optimizer\.step\(\)"),
        (double_step, "AdamW was stepped elsewhere"),
        (clear_too_early, r"no weight .* no zero_grad\(\)"),
    ],
)
def test_lines_left_in_the_loop_are_an_error(loop, habit, said):
    it = loop()
    with pytest.raises(AdapterError, match=said):
        run(it, habit(it))


def test_a_scaler_that_the_loop_steps_itself_is_an_error(loop):
    it, scaler = loop(), torch.amp.GradScaler("cpu", init_scale=8.0)

    def before(loss, step):
        scaler.scale(loss).backward()
        scaler.step(it.optimizer)
        scaler.update()

    with pytest.raises(AdapterError, match="pass scaler=scaler here"):
        run(it, before)


def test_gradients_cleared_to_zero_are_told(loop):
    it = loop()

    def before(loss, step):
        loss.backward()
        it.optimizer.zero_grad(set_to_none=False)

    with pytest.warns(TrimtabWarning, match="all gradients were zero in the first 3 steps"):
        run(it, before)


def test_weights_that_were_replaced_are_an_error(loop):
    it = loop()

    def before(loss, step):
        if not step:
            for layer in (it.model[0], it.model[1], it.model[4]):
                for name, weight in list(layer.named_parameters()):
                    setattr(layer, name, nn.Parameter(weight.detach().clone()))
        it.loss_fn(it.model(it.inputs), it.labels).backward()
        if not step:
            it.optimizer.zero_grad()

    with pytest.raises(AdapterError, match="weights that the model has now"):
        run(it, before)


@pytest.mark.parametrize("keep", [(0,), (0, 1), (1, 2)])
def test_single_steps_without_gradients_are_fine(loop, keep):
    it = loop()

    def before(loss, step):
        if step not in keep[1:]:
            (loss * (step not in keep)).backward()

    run(it, before)


def test_a_first_loss_that_is_not_finite_is_fine(loop):
    it = loop(wrecked={0: math.nan, 1: math.inf})
    run(it, lambda loss, step: loss.backward() if torch.isfinite(loss) else None)


def test_what_a_scaler_leaves_out_is_fine(loop):
    it, scaler = loop(), torch.amp.GradScaler("cpu", init_scale=2.0**120)
    run(it, lambda loss, step: scaler.scale(loss).backward(), scaler=scaler, clip=1.0)


def test_frozen_parts_and_steps_before_the_block_are_fine(loop):
    it = loop()
    it.model[0].requires_grad_(False)
    controller = it.controller(policy=None)
    next(it.losses()).backward()
    it.optimizer.step()
    it.optimizer.zero_grad()
    with controller:
        for loss in it.losses():
            loss.backward()
            controller.step(loss)
    assert not it.optimizer._optimizer_step_post_hooks


def test_an_optimiser_in_the_backward_pass_is_an_error(loop):
    it = loop()

    def stepped(weight):
        it.optimizer.step()
        it.optimizer.zero_grad()

    it.model[4].bias.register_post_accumulate_grad_hook(stepped)
    with pytest.raises(AdapterError, match="was stepped elsewhere"):
        run(it)


def test_an_optimiser_of_another_model_is_refused(loop):
    it, other = loop(), loop()
    with pytest.raises(AdapterError, match="none of the 6 weights of AdamW is in the model Seq"):
        TorchController(other.optimizer, total_steps=9, validate=lambda: 1.0, model=it.model)


def test_a_dummy_optimiser_is_refused(loop):
    dummy = torch.optim.SGD([torch.randn(1, 1)], lr=0.1)
    with pytest.raises(AdapterError, match=r"none of the 1 weights .* layer-wise"):
        TorchController(dummy, total_steps=9, validate=lambda: 1.0, model=loop().model)


def test_weights_that_are_not_the_models_are_told(loop):
    it, centre = loop(), nn.Parameter(torch.zeros(7, 2))
    it.optimizer.add_param_group({"params": [centre]})
    with pytest.warns(TrimtabWarning, match=r"1 of its 7 weights .*\(shape \(7, 2\) in group 1"):
        it.controller()


def test_a_clean_run_says_nothing(loop):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(loop())
    assert not told


def test_too_many_announced_steps_are_told_once(loop):
    with pytest.warns(TrimtabWarning, match="only 20 of the 60 .* total_steps=20") as told:
        run(loop(), steps=20)
    assert len(told) == 1


def test_an_end_that_is_meant_or_forced_or_nearly_there_is_not_told(loop):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        it = loop()
        with it.controller() as controller:
            controller.close()
        with pytest.raises(ZeroDivisionError):
            run(it, lambda loss, step: 1 / 0)
        run(loop(), steps=58)
    assert not told


def test_the_steps_of_a_loop_are_counted():
    data = torch.utils.data.TensorDataset(torch.zeros(21))
    loader = torch.utils.data.DataLoader(data, batch_size=2)

    assert total_steps(loader) == 11
    assert total_steps(loader, epochs=3, accumulation=4) == 9
    assert total_steps(loader, epochs=3, accumulation=4, drop_last=True) == 6
    for wrong in ({"epochs": 0}, {"accumulation": 2.5}, {"accumulation": 20, "drop_last": True}):
        with pytest.raises(SpecError, match=r"epochs: 0|accumulation: 2.5|11 batches make no"):
            total_steps(loader, **wrong)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


@pytest.mark.parametrize("kind", [torch.utils.data.DataLoader, iter])
def test_a_loader_without_a_length_is_refused(kind):
    with pytest.raises(SpecError, match="does not know how many batches it has"):
        total_steps(kind(Endless()))


class Noam(torch.optim.Adam):
    """Writes a rate of its own at each step."""

    n = 0

    def step(self, closure=None):
        self.n += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.n
        return super().step(closure)


@pytest.mark.parametrize("kind", [Noam, torch.optim.Rprop])
def test_a_learning_rate_that_is_not_used_is_refused(kind):
    model = nn.Linear(2, 1)
    optimizer = kind(model.parameters(), lr=0.1)
    settings = {"total_steps": 9, "validate": lambda: 1.0, "model": model}
    with pytest.raises(AdapterError, match=f"lr: {kind.__name__} makes the same update"):
        TorchController(optimizer, **settings)
    with pytest.raises(AdapterError, match=f"lr: {kind.__name__} makes the same update"):
        TorchController.attach(optimizer, **settings)
    TorchController(optimizer, policy=None, **settings)  # the loop's own business


class Counts(torch.optim.SGD):
    """Keeps things outside its state, and draws random numbers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.log, self.steps, self.held = torch.zeros(1), [1], 0, {"a": 1}

    def step(self, closure=None):
        self.seen += torch.rand(1)
        self.log.append(2)
        self.steps += 1
        self.held["b"] = self.new = 3
        return super().step(closure)


OPTIMIZERS = [
    lambda p: Counts(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
    lambda p: torch.optim.Adagrad(p, lr=0.1),
    lambda p: torch.optim.ASGD(p, lr=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    lambda p: torch.optim.Adafactor(p, lr=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_proof_of_the_learning_rate_leaves_every_bit(make):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = make(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()

    def everything():
        held = {k: v for k, v in vars(optimizer).items() if k != "_optimizer_step_post_hooks"}
        weights = [*model.parameters(), *(w.grad for w in model.parameters())]
        return repr((held, weights, torch.get_rng_state().tolist()))

    before, ids = everything(), {k: id(v) for k, v in vars(optimizer).items()}
    Proofs([], optimizer, lr=True)

    assert everything() == before
    assert {k: id(v) for k, v in vars(optimizer).items()} == ids


@pytest.mark.parametrize(
    ("name", "meant"),
    [("learning_rate", "lr"), ("Learning-Rate", "lr"), ("wd", "weight_decay"), ("betas", "beta1")],
)
def test_a_name_from_elsewhere_is_understood(loop, name, meant):
    with pytest.raises(UnknownNameError, match=f"'{name}'; did you mean '{meant}'"):
        loop().controller(hyperparameters=(name,))


def test_a_model_without_numbers_is_refused():
    model = nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AdapterError, match="model: its weight 'weight' is on the device 'meta'"):
        TorchController(optimizer, total_steps=9, validate=lambda: 1.0, model=model)


def test_validation_data_on_another_device_are_told(loop):
    it = loop()

    def validate():
        return float(it.model(it.inputs.to("meta")).sum())

    with (
        pytest.raises(MetricError, match="validation data to one device"),
        it.controller(validate=validate),
    ):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("place", ["local", "attribute"])
def test_a_scaler_that_was_not_handed_over_is_told(loop, place):
    it, used = loop(), torch.amp.GradScaler("cpu", init_scale=8.0)
    used.scale(torch.ones(1))  # of another training, over by now

    class Trainer:
        def __init__(self):
            self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

        def train(self, **settings):
            scaler = self.scaler if place == "local" else None
            with it.controller(**settings) as controller:
                for loss in it.losses(5):
                    (scaler or self.scaler).scale(loss).backward()
                    controller.step(loss)
                controller.close()

    with pytest.warns(TrimtabWarning, match="scales the loss in this loop by 16.* pass scaler="):
        Trainer().train()


def test_scalers_that_are_handed_over_switched_off_or_old_are_fine(loop):
    it, used = loop(), torch.amp.GradScaler("cpu", init_scale=8.0)
    used.scale(torch.ones(1))
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    given = torch.amp.GradScaler("cpu", init_scale=8.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(it, lambda loss, step: disabled.scale(loss).backward())
        run(loop(), lambda loss, step: given.scale(loss).backward(), scaler=given)
    assert not told
