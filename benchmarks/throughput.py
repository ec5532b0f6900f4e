"""Inner training steps a second of the simulator, beside PyTorch and this machine's limit.

All train a 64-32-32-10 ReLU network with Adam on batches of 32 drawn from the same data, and
measure the loss on 256 validation samples after every 20 steps:

* ``ours``: ``simulated/mlp``, variant 0, learning rate steered, for N = 1 to 1024 runs at once;
* ``torch``: a PyTorch loop in a process a core, one thread each, one run at a time;
* ``vmap``: 256 networks by ``torch.func.vmap`` and ``grad``, one process with all cores;
* ``limit``: the step's matrix products alone, batched over 256 runs, nothing between them;
* ``dacbench``: DACBench's SGD benchmark with this network and these samples, in an environment of
  its own (``make venv-dacbench``): one environment, as it comes, and one a core beside it.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --json

Times are on the wall; the load average is printed, since on a busy machine they mean little.
Without DACBench's environment its figure is null, with the reason beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# JAX reads these when it is first imported, inside the functions below.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_CORES = os.cpu_count() or 1
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false "
    f"--xla_force_host_platform_device_count={_CORES} " + os.environ.get("XLA_FLAGS", "")
)

ROOT = Path(__file__).resolve().parent.parent
DACBENCH_PYTHON = ROOT / ".venv-dacbench" / "bin" / "python"
BATCH, WINDOW, VALIDATION = 32, 20, 256
SIZES = (64, 32, 32, 10)
RUNS = (1, 4, 16, 64, 256, 1024)
BAR_STEPS, BAR_TORCH, BAR_DACBENCH = 20_000.0, 5.0, 100.0


def best_rate(work: Callable[[], Any], n_steps: int, *, repeats: int) -> float:
    """Return steps a second of the fastest repeat, after one to warm up.

    Args:
        work: Does ``n_steps`` steps and returns when they are done.
        n_steps: What one call does.
        repeats: Timed calls.
    """
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return n_steps / min(times)


def simulator_rate(n_runs: int, *, windows: int, repeats: int) -> float:
    """Return inner steps a second of ``n_runs`` simulated runs in lockstep."""
    import jax
    import jax.numpy as jnp

    from trimtab.envs.simulators.batch import programs
    from trimtab.envs.simulators.families.registry import make_family
    from trimtab.envs.simulators.family import FamilyOptions

    family = make_family("simulated/mlp", FamilyOptions(hyperparameters=("lr",)))
    compiled = programs(family, 0)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), n_runs))
    runs, _ = compiled.prepare(keys, keys)
    rate = np.asarray(compiled.default_lr(runs))[:, None]
    nothing = np.zeros(n_runs, np.float32)
    steps, reference = np.full(n_runs, WINDOW, np.int32), jnp.ones(windows * WINDOW)

    def work() -> None:
        now = runs
        for window in range(windows):
            first = np.full(n_runs, window * WINDOW, np.int32)
            now, metrics = compiled.window(now, nothing, nothing, rate, reference, first, steps)
        jax.block_until_ready(metrics)

    return best_rate(work, n_runs * windows * WINDOW, repeats=repeats)


def _samples() -> tuple[np.ndarray, np.ndarray]:
    from trimtab.envs.simulators.datasets import data_set

    table = data_set("digits")
    return table.inputs, table.labels.astype(np.int64)


def _torch_loop(n_steps: int) -> float:
    """Return seconds of one process's plain PyTorch loop."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    inputs, labels = (torch.from_numpy(array) for array in _samples())
    layers: list[nn.Module] = []
    for before, after in pairwise(SIZES):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    loss_of = nn.CrossEntropyLoss()

    def run(steps: int) -> None:
        for step in range(steps):
            rows = torch.randint(len(labels), (BATCH,))
            optimizer.zero_grad()
            loss_of(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
            if step % WINDOW == WINDOW - 1:
                with torch.no_grad():
                    loss_of(model(inputs[:VALIDATION]), labels[:VALIDATION]).item()

    run(WINDOW)
    begin = time.perf_counter()
    run(n_steps)
    return time.perf_counter() - begin


def torch_rate(n_steps: int) -> float:
    """Return steps a second of PyTorch loops, one process a core, all together."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(_CORES) as pool:
        seconds = pool.map(_torch_loop, [n_steps] * _CORES, chunksize=1)
    return float(sum(n_steps / each for each in seconds))


def vmap_rate(n_runs: int, n_steps: int, repeats: int) -> float:
    """Return steps a second of ``n_runs`` networks under ``torch.func.vmap``."""
    import torch
    from torch.func import grad, vmap
    from torch.nn import functional

    torch.set_num_threads(_CORES)
    inputs, labels = (torch.from_numpy(array) for array in _samples())
    weights = {}
    for index, (before, after) in enumerate(pairwise(SIZES)):
        weights[f"w{index}"] = torch.randn(n_runs, before, after) * before**-0.5
        weights[f"b{index}"] = torch.zeros(n_runs, after)

    def loss_of(own: dict[str, Any], rows: Any, classes: Any) -> Any:
        hidden = rows
        for index in range(len(SIZES) - 1):
            hidden = hidden @ own[f"w{index}"] + own[f"b{index}"]
            hidden = hidden.relu() if index < len(SIZES) - 2 else hidden
        return functional.cross_entropy(hidden, classes)

    slope = vmap(grad(loss_of))
    measure = vmap(loss_of, in_dims=(0, None, None))

    @torch.no_grad()
    def work() -> None:
        own = dict(weights)
        first = {name: torch.zeros_like(value) for name, value in own.items()}
        second = {name: torch.zeros_like(value) for name, value in own.items()}
        for step in range(1, n_steps + 1):
            rows = torch.randint(len(labels), (n_runs, BATCH))
            gradient = slope(own, inputs[rows], labels[rows])
            for name, value in gradient.items():
                first[name] = 0.9 * first[name] + 0.1 * value
                second[name] = 0.999 * second[name] + 0.001 * value * value
                mean = first[name] / (1 - 0.9**step)
                root = (second[name] / (1 - 0.999**step)).sqrt_().add_(1e-8)
                own[name] = own[name] - 1e-3 * mean / root
            if step % WINDOW == 0:
                measure(own, inputs[:VALIDATION], labels[:VALIDATION])

    return best_rate(work, n_runs * n_steps, repeats=repeats)


def product_limit(n_runs: int, repeats: int) -> float:
    """Return steps a second if a step were its eight matrix products and nothing else."""
    import torch

    torch.set_num_threads(_CORES)
    pairs = []
    for index, (before, after) in enumerate(pairwise(SIZES)):
        rows, out = torch.randn(n_runs, BATCH, before), torch.randn(n_runs, BATCH, after)
        weight = torch.randn(n_runs, before, after)
        pairs += [(rows, weight), (rows.transpose(1, 2), out)]
        if index:  # nobody needs the slope of the inputs
            pairs.append((out, weight.transpose(1, 2)))

    def work() -> None:
        for left, right in pairs:
            torch.bmm(left, right)

    return best_rate(work, n_runs, repeats=repeats)


def dacbench_rates(env_steps: int, repeats: int) -> tuple[float, float] | str:
    """Return DACBench's steps a second of one environment and of one a core; or why not.

    One step of its environment is an epoch of 20 batches and a validation.
    """
    if not DACBENCH_PYTHON.exists():
        return "not run: there is no .venv-dacbench; make venv-dacbench makes it"
    inputs, labels = _samples()
    kept = WINDOW * BATCH + VALIDATION
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.npz"
        np.savez(samples, inputs=inputs[:kept], labels=labels[:kept])
        script = str(Path(__file__).with_name("throughput_dacbench.py"))
        command = [str(DACBENCH_PYTHON), "-W", "ignore", script, str(samples)]
        command += ["--env-steps", str(env_steps), "--repeats", str(repeats)]

        def rates(count: int) -> list[float]:
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            found = []
            for process in running:
                out, errors = process.communicate()
                if process.returncode:
                    raise RuntimeError((errors.strip().splitlines() or ["no message"])[-1])
                found.append(float(json.loads(out.splitlines()[-1])["steps_per_second"]))
            return found

        try:
            return rates(1)[0], sum(rates(_CORES))
        except RuntimeError as error:
            return f"failed: {error}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def measured(*, quick: bool) -> dict[str, Any]:
    """Return every figure as JSON-able data."""
    windows, repeats = (1, 2) if quick else (10, 5)
    ours = {
        n_runs: simulator_rate(n_runs, windows=windows, repeats=repeats)
        for n_runs in (RUNS[:3] if quick else RUNS)
    }
    top = max(ours.values())
    loop = torch_rate(40 if quick else 2000)
    vmap = vmap_rate(16 if quick else 256, WINDOW, repeats)
    limit = product_limit(256, 3 * repeats)
    dacbench = dacbench_rates(2 if quick else 20, repeats)
    alone, together = (None, None) if isinstance(dacbench, str) else dacbench
    return {
        "inner_steps_per_second": top,
        "over_torch": top / loop,
        "over_dacbench": None if alone is None else top / alone,
        "share_of_gemm_limit": top / limit,
        "steps_per_second_by_runs": {str(n_runs): rate for n_runs, rate in ours.items()},
        "torch_steps_per_second": loop,
        "torch_vmap_steps_per_second": vmap,
        "gemm_limit_steps_per_second": limit,
        "dacbench_steps_per_second": alone,
        "dacbench_steps_per_second_one_a_core": together,
        "dacbench_reason": dacbench if isinstance(dacbench, str) else None,
        "cores": _CORES,
        "load_average": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.throughput" + (" --quick" if quick else ""),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; with ``--json`` as one document on standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="seconds, and figures of no worth")
    given = parser.parse_args(arguments)
    figures = measured(quick=given.quick)
    if given.json:
        json.dump(figures, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return 0
    for n_runs, rate in figures["steps_per_second_by_runs"].items():
        print(f"{n_runs:>5} runs at once  {rate:>10,.0f} steps/s")
    print(f"best              {figures['inner_steps_per_second']:>10,.0f} (bar {BAR_STEPS:,.0f})")
    print(f"over torch loop   {figures['over_torch']:>10.1f} (bar {BAR_TORCH:.0f})")
    print(f"torch vmap        {figures['torch_vmap_steps_per_second']:>10,.0f} steps/s")
    print(f"share of products {figures['share_of_gemm_limit']:>10.1%}")
    if figures["over_dacbench"] is None:
        print(f"over DACBench     {figures['dacbench_reason']}")
    else:
        print(f"over DACBench     {figures['over_dacbench']:>10.1f} (bar {BAR_DACBENCH:.0f})")
        print(
            f"DACBench          {figures['dacbench_steps_per_second']:>10,.0f} steps/s, as it comes"
        )
        every = figures["dacbench_steps_per_second_one_a_core"]
        print(f"  one a core      {every:>10,.0f} steps/s")
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    print(f"load average {figures['load_average']:.1f} on {figures['cores']} cores; {versions}")
    print(f"{figures['command']}, {figures['date']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
