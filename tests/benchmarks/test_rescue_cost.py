"""What a rescue costs, on a size that takes a second; its limit is held on an idle machine."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from benchmarks import rescue_cost


def test_each_arm_has_a_row_with_its_share_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--nets", "transformer", "--cycles", "1", "--warm-up", "0"]
    assert rescue_cost.main(options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in rows] == list(rescue_cost.ARMS)
    for row in rows:
        assert row["share"] == pytest.approx(
            row["added_us_per_step"] / (1e3 * row["ms_per_step"]), rel=1e-6
        )


def test_an_unknown_network_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rescue_cost.main(["--nets", "transformer,lstm"])
    assert "unknown lstm (have: perceptron," in capsys.readouterr().err
