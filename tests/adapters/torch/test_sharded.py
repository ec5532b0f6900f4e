"""A model whose weights are spread by FSDP2 is steered as the whole one is; FSDP1 is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn

from tests.adapters.tiny_training import Still, examples
from tests.adapters.torch.test_distributed import in_processes
from trimtab.adapters.torch import TorchController
from trimtab.adapters.torch.checks import check_model, check_optimizers
from trimtab.core.errors import AdapterError

STEPS, BATCH, NAN = 24, 8, 11 * 8 + 5  # that batch has an example which is not finite


def batch(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([r["inputs"] for r in rows]), torch.stack([r["labels"] for r in rows])


class Training:
    """A run of which each process does its share of each batch."""

    def __init__(self, rank: int = 0, *, sharded: bool, seed: int = 0, mesh: Any = None) -> None:
        torch.manual_seed(seed)
        self.rank, self.count = rank, 1
        # Odd sizes, so that the processes' parts differ in length.
        self.model = nn.Sequential(
            nn.Linear(6, 15), nn.Tanh(), nn.BatchNorm1d(15, affine=False), nn.Linear(15, 3)
        )
        self.model[2].eval()
        if sharded:
            from torch.distributed.fsdp import fully_shard

            self.count = distributed.get_world_size()
            fully_shard(self.model[0], mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1)
        self.rows, self.held_out = examples(STEPS * BATCH, 0, nan_at=NAN), examples(32, 1)

    def validate(self) -> float:
        inputs, labels = batch(self.held_out)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.model(inputs), labels))

    def controller(self, **settings: Any) -> TorchController:
        usual = {"policy": "random", "hyperparameters": ("lr", "weight_decay"), "decisions": 6}
        return TorchController(
            self.optimizer,
            total_steps=STEPS,
            validate=self.validate,
            model=self.model,
            clip=0.5,
            keep_best=False,
            **(usual | settings),
        )

    def do(self, controller: TorchController, first: int, last: int) -> None:
        for step in range(first, last):
            mine = self.rows[BATCH * step : BATCH * (step + 1)][self.rank :: self.count]
            inputs, labels = batch(mine)
            if not torch.isfinite(batch(self.rows[BATCH * step : BATCH * (step + 1)])[0]).all():
                with torch.no_grad():  # a bad batch alone would be skipped
                    next(iter(self.model.parameters())).mul_(torch.nan)
            loss = nn.functional.cross_entropy(self.model(inputs), labels)
            loss.backward()
            controller.step(loss)

    def told(self, controller: TorchController) -> dict[str, Any]:
        from trimtab.adapters.torch.sharding import put_shards_back

        put_shards_back(self.model)
        whole = [getattr(w, "full_tensor", lambda w=w: w)() for w in self.model.parameters()]
        summary = controller.summary
        fields = ("grad_norm", "grad_cosine", "update_ratio", "val_loss", "train_loss")
        return {
            "weights": torch.cat([w.detach().flatten() for w in whole]).tolist(),
            "metrics": [
                [
                    str(float(getattr(d.metrics, name)))
                    for name in fields
                    if hasattr(d.metrics, name)
                ]
                for d in summary.decisions
            ],
            "schedule": [[row["lr"], row["weight_decay"]] for row in summary.schedule],
            "rollbacks": summary.rollbacks,
        }


def whole_run(rank: int = 0, *, sharded: bool = False, **settings: Any) -> dict[str, Any]:
    one = Training(rank, sharded=sharded, mesh=settings.pop("mesh", None))
    with one.controller(**settings) as controller:
        one.do(controller, 0, STEPS)
    return one.told(controller)


def sharded_run(rank: int, folder: Path) -> dict[str, Any]:
    del folder
    distributed.init_process_group("gloo")
    result = whole_run(rank, sharded=True)
    if distributed.get_world_size() > 1:
        from torch.distributed.device_mesh import init_device_mesh

        # Each part is held by both, so it may count once only.
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "parts"))
        result["copied"] = whole_run(rank, sharded=True, mesh=mesh)["metrics"]
    result["on disk"] = whole_run(rank, sharded=True, snapshots="disk")["weights"]
    result["resumed"] = resumed_run(rank)
    return result


def resumed_run(rank: int) -> list[float]:
    """Go on with another model and optimiser at step 14; return the last weights."""
    first = Training(rank, sharded=True)
    with first.controller() as controller:
        first.do(controller, 0, 14)
        steering = controller.state_dict()
        model = copy.deepcopy(first.model.state_dict())
        optimizer = copy.deepcopy(first.optimizer.state_dict())
        first.do(controller, 14, STEPS)
    second = Training(rank, sharded=True, seed=1)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    controller = second.controller()
    controller.load_state_dict(steering)
    with controller:
        second.do(controller, 14, STEPS)
    weights: list[float] = second.told(controller)["weights"]
    return weights


@pytest.mark.framework
@pytest.mark.parametrize("count", [1, 2])
def test_a_sharded_run_is_the_whole_one(tmp_path: Path, count: int) -> None:
    told = in_processes("sharded_run", tmp_path, module=__name__, count=count)
    alone = whole_run()
    assert alone["rollbacks"] >= 1
    for one in told:
        assert one["rollbacks"] == alone["rollbacks"]
        assert one["schedule"] == alone["schedule"]
        assert one["weights"] == pytest.approx(alone["weights"], rel=1e-3, abs=1e-5)
        assert one["resumed"] == one["on disk"] == one["weights"] == told[0]["weights"]
    # The first process decides; what it measured is what the whole model tells.
    for measured in (told[0]["metrics"], told[0].get("copied", alone["metrics"])):
        for mine, theirs in zip(measured, alone["metrics"], strict=True):
            assert [float(x) for x in mine] == pytest.approx(
                [float(x) for x in theirs], rel=1e-3, abs=1e-6, nan_ok=True
            )


def adopted_state(rank: int, folder: Path) -> list[bool]:
    """Roll back over a state that the optimiser lost; return which states are sharded."""
    del folder
    distributed.init_process_group("gloo")
    one = Training(rank, sharded=True)
    one.rows = examples(STEPS * BATCH, 0)
    with one.controller(policy=Still()) as controller:
        one.do(controller, 0, 8)
        one.optimizer.state.clear()
        controller._run.restore()
        states = [one.optimizer.state[w]["exp_avg"] for w in one.model.parameters()]
        one.do(controller, 8, STEPS)
    return [hasattr(state, "placements") for state in states]


@pytest.mark.framework
def test_a_state_that_was_lost_comes_back_sharded(tmp_path: Path) -> None:
    told = in_processes("adopted_state", tmp_path, module=__name__, count=1)
    assert told == [[True] * 4]


class FullyShardedDataParallel(nn.Linear):
    """What FSDP1's wrapper is called."""


DeepSpeedEngine = type("DeepSpeedEngine", (nn.Linear,), {"__module__": "deepspeed.runtime.engine"})


@pytest.mark.parametrize("policy", ["trimtab-1", None])
@pytest.mark.parametrize("wrapper", [FullyShardedDataParallel, DeepSpeedEngine])
def test_other_ways_to_spread_weights_are_refused(wrapper: Any, policy: Any) -> None:
    model = nn.Sequential(wrapper(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AdapterError, match=r"model: .* use fully_shard \(FSDP2\)"):
        TorchController(optimizer, total_steps=4, validate=lambda: 1.0, model=model, policy=policy)


def test_an_optimiser_of_deepspeed_is_refused() -> None:
    kind = type(
        "DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"}
    )
    with pytest.raises(AdapterError, match="optimizer: DeepSpeed"):
        check_optimizers(kind())
    check_model(nn.Linear(2, 2))


def refuse_in_transformers() -> None:
    from trimtab.adapters.transformers.trainer import check_arguments

    args = SimpleNamespace(fsdp=["full_shard"], deepspeed=None)
    check_arguments(args, asks_trainer=False, by_metric=False)


def refuse_in_lightning() -> None:
    from trimtab.adapters.lightning.trainer import check_strategy

    check_strategy(SimpleNamespace(strategy=type("FSDPStrategy", (), {})()))


@pytest.mark.framework
@pytest.mark.parametrize("refuse", [refuse_in_transformers, refuse_in_lightning])
def test_what_a_trainer_advises_is_not_refused_again(refuse: Any) -> None:
    pytest.importorskip(refuse.__name__.rpartition("_")[2])
    with pytest.raises(AdapterError, match=r"\(DDP\)|'ddp'") as error:
        refuse()
    assert "without a policy" not in str(error.value)
    assert "leave this callback out" in str(error.value)
