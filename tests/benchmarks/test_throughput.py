from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="runs in a checkout")
def test_every_figure_is_printed_and_a_missing_one_says_why() -> None:
    command = [sys.executable, "-m", "benchmarks.throughput", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["inner_steps_per_second"] > 0
    assert figures["over_torch"] > 0
    assert 0 < figures["share_of_gemm_limit"] < 1.5
    assert (figures["over_dacbench"] is None) == bool(figures["dacbench_reason"])
    by_runs = figures["steps_per_second_by_runs"]
    assert max(by_runs.values()) == figures["inner_steps_per_second"]
