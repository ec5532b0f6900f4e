"""Two real processes that train one model together: the first decides, the other applies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.adapters.tiny_training import Still
from trimtab.adapters.torch import controller as torch_adapter
from trimtab.adapters.torch.distributed import Processes, RankZeroController, RankZeroValidation
from trimtab.adapters.validation import Validated
from trimtab.core.errors import MetricError, TrimtabError
from trimtab.core.spec import ControlSpec
from trimtab.records.trackers import fan_out

ROOT = Path(__file__).parents[3]


def leave() -> None:
    """End a process whose result is written.

    A group that a trainer left open is closed by both at once, and the interpreter's own end is
    skipped: gloo's threads were seen to abort there, now and then, with nothing of ours running.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)


def in_two_processes(work: str, folder: Path) -> list[Any]:
    """Run ``work(rank, folder)`` of this file in two processes; return what each one gave."""
    return in_processes(work, folder, module=__name__, count=2)


def in_processes(work: str, folder: Path, *, module: str, count: int) -> list[Any]:
    """Run ``work(rank, folder)`` of a module of tests in processes; return what each one gave."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import json, os, sys; from pathlib import Path; "
        f"import {module} as t; from tests.adapters.torch.test_distributed import leave; "
        f"result = t.{work}(int(os.environ['RANK']), Path(sys.argv[1])); "
        "Path(sys.argv[1], os.environ['RANK'] + '.json').write_text(json.dumps(result)); "
        "leave()"
    )
    running = []
    for rank in range(count):
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        command = [sys.executable, "-W", "ignore", "-c", script, str(folder)]
        running.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    for process in running:
        try:
            _, said = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            for one in running:
                one.kill()
            raise
        assert process.returncode == 0, said.decode()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


# The words between them.


class Failing(Still):
    def act(self, observation: Any) -> Any:
        raise RuntimeError("no idea")


class GivenValidation:
    last_loss = 0.5

    def __init__(self, seen: Validated | None) -> None:
        self._seen = seen

    def first(self) -> Validated:
        if self._seen is None:
            raise MetricError("validate() raised")
        return self._seen

    later = first


def exchange(rank: int, folder: Path) -> dict[str, Any]:
    distributed.init_process_group("gloo")
    processes, spec = Processes(), ControlSpec()
    mean = float(processes.mean(torch.tensor([1.0, 4.0][rank])))
    nothing = float(processes.mean(float("nan") if rank else 1.0))
    told = processes.broadcast([rank + 0.1, rank + 7.0])
    seen = Validated(0.25, {"accuracy": 0.5}, monitored=0.75, rank=0.2) if rank == 0 else None
    followed = RankZeroValidation(GivenValidation(seen), processes).first()  # type: ignore[arg-type]
    errors = []
    for attempt in (
        lambda: RankZeroValidation(GivenValidation(None), processes).first(),  # type: ignore[arg-type]
        lambda: RankZeroController(Failing(), spec, processes).act(torch.zeros(1).numpy()),
    ):
        try:
            attempt()
        except (TrimtabError, RuntimeError) as error:
            errors.append(str(error))
    action = RankZeroController(Still(), spec, processes).act(torch.zeros(1).numpy())
    distributed.destroy_process_group()
    return {
        "mean": mean,
        "nothing": str(nothing),
        "told": told,
        "seen": [followed.loss, followed.monitored, followed.rank],
        "errors": errors,
        "action": action.tolist(),
    }


def test_the_first_process_is_heard_by_the_other(tmp_path: Path) -> None:
    first, second = in_two_processes("exchange", tmp_path)
    for result in (first, second):
        assert result["mean"] == 2.5
        assert result["nothing"] == "nan"
        assert result["told"] == [0.1, 7.0]
        assert result["seen"] == [0.25, 0.75, 0.2]
        assert result["action"] == [3, 0]
    assert first["errors"] == ["validate() raised", "no idea"]
    assert second["errors"] == [
        "validate() failed in the first process; its message says why",
        "the controller failed in the first process",
    ]


def test_one_process_sends_nothing() -> None:
    processes = Processes()
    assert (processes.count, processes.is_main_process) == (1, True)
    assert processes.mean(2.0) == 2.0
    assert processes.broadcast([1.0]) == [1.0]


# Whole runs. The second process's validation and policy would say something else.


def trainer_run(rank: int, folder: Path) -> dict[str, Any]:
    from tests.adapters.tiny_training import Net, examples, weights
    from tests.adapters.transformers import test_transformers as one
    from trimtab.adapters.transformers import TrimtabCallback

    callback = TrimtabCallback(
        policy="random" if rank == 0 else Failing(),
        hyperparameters=("lr", "weight_decay"),
        validation_data=examples(32, seed=1 + rank),
        decisions=6,
    )
    data = examples(96, seed=0, nan_at=53)  # one process's part of one batch
    settings = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False, "max_steps": 12}
    trainer = one.train(folder, [callback], data=data, model=Net(), **settings)
    return told_of(callback, weights(trainer.model))


def lightning_run(rank: int, folder: Path) -> dict[str, Any]:
    from tests.adapters.lightning import test_lightning as one
    from tests.adapters.tiny_training import examples, weights
    from trimtab.adapters.lightning import TrimtabCallback

    callback = TrimtabCallback(
        policy="random" if rank == 0 else Failing(),
        hyperparameters=("lr", "weight_decay"),
        decisions=6,
    )
    module = one.Module()
    data = examples(96, seed=0, nan_at=53)
    one.fit(module, [callback], data=data, devices=2, strategy="ddp", max_epochs=1)
    return told_of(callback, weights(module))


def loop_run(rank: int, folder: Path, **more: Any) -> dict[str, Any]:
    """Train a loop of one's own under DDP; each process has its own half of each batch."""
    from tests.adapters.tiny_training import Net, examples, weights
    from trimtab.adapters.torch import TorchController

    del folder
    distributed.init_process_group("gloo")
    net = torch.nn.parallel.DistributedDataParallel(Net())
    data = examples(96, seed=0, nan_at=53)  # one process's part of one batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)

    def batch_of(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def validate() -> float:
        return float(net.module(**batch_of(examples(32, seed=1 + rank)))["loss"])

    with TorchController(
        optimizer,
        total_steps=12,
        validate=validate,
        model=net,
        policy="random" if rank == 0 else Failing(),
        hyperparameters=("lr", "weight_decay", "layer_decay"),
        decisions=6,
        **more,
    ) as steering:
        for step in range(12):
            first = 8 * step + 4 * rank
            loss = net(**batch_of(data[first : first + 4]))["loss"]
            loss.backward()
            steering.step(loss)
    return told_of(steering, weights(net))


def tracked_run(rank: int, folder: Path) -> list[str]:
    """Train the loop with a tracker; return which ones were opened here."""
    opened: list[str] = []

    def open_trackers(log_to: Any, *_: Any, **__: Any) -> dict[str, Any]:
        opened.extend(service for service, _ in log_to)
        return {}

    fan_out.open_trackers = open_trackers
    loop_run(rank, folder, log_to=str(folder / "told"))
    return opened


def told_of(callback: Any, final: list[torch.Tensor]) -> dict[str, Any]:
    summary = callback.summary
    return {
        "schedule": summary.schedule,
        "rollbacks": summary.rollbacks,
        "finished": summary.finished,
        "weights": [weight.flatten().tolist() for weight in final],
    }


@pytest.mark.framework
@pytest.mark.parametrize(
    ("run", "needs"),
    [("loop_run", "torch"), ("trainer_run", "transformers"), ("lightning_run", "lightning")],
)
def test_both_processes_end_with_the_same_weights(tmp_path: Path, run: str, needs: str) -> None:
    pytest.importorskip(needs)
    first, second = in_two_processes(run, tmp_path)
    assert first == second
    assert first["finished"]
    assert first["rollbacks"] >= 1
    assert len({row["lr"] for row in first["schedule"]}) > 5
    assert all(value == value for weight in first["weights"] for value in weight)


@pytest.mark.framework
def test_the_first_of_two_processes_alone_tells_trackers(tmp_path: Path) -> None:
    assert in_two_processes("tracked_run", tmp_path) == [["tensorboard"], []]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_controller_tells_store_and_trackers_from_the_first_process(
    rank: int, monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    class Ranked(Processes):
        def __init__(self) -> None:
            self.count, self.rank = 1, rank

    told: list[Any] = []
    monkeypatch.setattr(torch_adapter, "Processes", Ranked)
    monkeypatch.setattr(
        "trimtab.defaults.recorder_for", lambda store, info, **_: told.append((store, info.log_to))
    )
    loop(steps=8).run_steered(store="runs.db", log_to="told", decisions=2)
    assert told == [("runs.db", "told") if rank == 0 else (None, None)]
