"""Each decision is told in a line, and to a function of the user's own, which stops nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from trimtab.core.errors import TrimtabWarning

torch = pytest.importorskip("torch")

from trimtab.adapters.torch import TorchController  # noqa: E402


def steered(**options: Any) -> TorchController:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    x = torch.randn(16, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_of = lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()  # noqa: E731
    with TorchController(
        optimizer,
        total_steps=40,
        validate=lambda: loss_of().item(),
        model=model,
        decisions=8,
        **options,
    ) as controller:
        for _ in range(40):
            loss = loss_of()
            loss.backward()
            controller.step(loss)
    return controller


def test_each_decision_is_a_line_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    controller = steered(verbose=True)
    out, lines = capsys.readouterr()
    told = lines.splitlines()
    assert out == ""
    assert len(told) == len(controller.summary.decisions) == 8
    for line, decision in zip(told, controller.summary.decisions, strict=True):
        assert line.startswith(f"trimtab: decision {decision.index + 1}, step {decision.step} ")
        assert f"lr {decision.used['lr']:.3g}" in line


def test_without_a_terminal_the_log_has_the_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "trimtab"):
        steered()
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("decision ")]
    assert len(lines) == 8
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_told_by_default_and_may_be_silenced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    steered()
    assert len(capsys.readouterr().err.splitlines()) == 8
    steered(verbose=False)
    assert capsys.readouterr().err == ""


def test_a_function_is_called_with_each_decision_once_it_is_in_force() -> None:
    seen: list[tuple[int, float]] = []
    holder: list[Any] = []

    def look(decision: Any) -> None:
        seen.append((decision.step, decision.used["lr"]))

    holder.append(steered(on_decision=look))
    assert seen == [(d.step, d.used["lr"]) for d in holder[0].summary.decisions]


def test_a_function_that_raises_is_told_once_and_stops_nothing() -> None:
    calls = []

    def broken(decision: Any) -> None:
        calls.append(decision)
        raise ValueError("no")

    with pytest.warns(TrimtabWarning) as told:
        controller = steered(on_decision=broken)
    lines = [str(one.message) for one in told if "on_decision" in str(one.message)]
    assert len(lines) == 1
    assert "on_decision raised ValueError: no" in lines[0]
    assert len(calls) == 1
    assert controller.summary.finished


def test_a_name_is_the_title_of_the_record(tmp_path: Any) -> None:
    from trimtab.records.store.store import load_run

    steered(name="my run", store=f"sqlite:///{tmp_path / 'r.db'}")
    assert load_run("latest", tmp_path / "r.db").title.startswith("run 1 · my run · ")


def test_telling_changes_no_bit() -> None:
    quiet, loud = steered(), steered(on_decision=print, verbose=False)
    assert quiet.summary.schedule == loud.summary.schedule
    assert torch.equal(quiet.model.weight, loud.model.weight)


def test_a_controller_is_shown_in_ten_lines() -> None:
    controller = steered()
    assert repr(controller).startswith("TorchController: finished: 40 steps, 8 decisions")
    assert len(repr(controller).splitlines()) <= 10
