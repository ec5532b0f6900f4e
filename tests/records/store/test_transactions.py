"""What fails at a store is waited for once, and the user is told; by a clock that is made up."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

import pytest
from sqlalchemy import text

from trimtab.core.errors import StoreError
from trimtab.records.store.transactions import (
    BUDGET_SECONDS,
    LEAST_SECONDS,
    TELL_SECONDS,
    RetryBudget,
    StoreWaitWarning,
    Transactions,
    retry_budget,
)
from trimtab.search.engines.base import quieten_worker

FULL = "the store runs.db cannot grow: the disk is full"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> RetryBudget:
    return RetryBudget(clock=clock.read, sleep=clock.sleep)


def wait_in_vain(budget: RetryBudget, clock: Clock) -> float:
    """Return how long an operation is tried that never works."""
    begun = clock.now
    with budget.begin() as wait:
        while wait.again(FULL):
            pass
    return clock.now - begun


def test_a_lasting_failure_is_told_once_after_three_seconds_with_the_time_that_is_left(
    budget: RetryBudget, clock: Clock
) -> None:
    with (
        warnings.catch_warnings(record=True) as told,
        budget.begin() as wait,
    ):
        warnings.simplefilter("always")
        begun = clock.now
        while not told:
            assert clock.now - begun < TELL_SECONDS + 1.5
            assert wait.again(FULL)
        while wait.again(FULL):
            pass
    (warning,) = told
    assert warning.category is StoreWaitWarning
    words = str(warning.message)
    assert words.startswith(f"{FULL}; waited for ")
    waited, left = (int(word.split(" ")[0]) for word in words.split(" for ")[1:])
    assert waited + 0.5 >= TELL_SECONDS
    assert waited + left == pytest.approx(BUDGET_SECONDS, abs=1.0)


def test_a_wait_that_is_soon_over_is_not_told(budget: RetryBudget, clock: Clock) -> None:
    begun = clock.now
    with budget.begin() as wait:  # a warning would be an error here
        while clock.now - begun < TELL_SECONDS - 1.0:
            assert wait.again(FULL)


@pytest.mark.filterwarnings("ignore::trimtab.records.store.transactions.StoreWaitWarning")
def test_the_operations_after_one_that_failed_wait_only_briefly(
    budget: RetryBudget, clock: Clock
) -> None:
    assert wait_in_vain(budget, clock) == pytest.approx(BUDGET_SECONDS, abs=1.5)
    for _ in range(5):
        assert wait_in_vain(budget, clock) <= LEAST_SECONDS + 1.0


def test_a_lasting_cause_is_told_once_for_all_operations(budget: RetryBudget, clock: Clock) -> None:
    with pytest.warns(StoreWaitWarning):
        wait_in_vain(budget, clock)
    for _ in range(5):  # a warning would be an error here
        wait_in_vain(budget, clock)


def test_the_budget_comes_back_with_time_and_then_it_is_told_anew(
    budget: RetryBudget, clock: Clock
) -> None:
    with pytest.warns(StoreWaitWarning):
        wait_in_vain(budget, clock)
    clock.now += 80.0
    assert wait_in_vain(budget, clock) == pytest.approx(20.0, abs=1.5)
    clock.now += 4 * BUDGET_SECONDS
    with pytest.warns(StoreWaitWarning, match="the disk is full"):
        assert wait_in_vain(budget, clock) == pytest.approx(BUDGET_SECONDS, abs=1.5)


def test_what_another_process_waited_for_is_not_told_again(
    budget: RetryBudget, clock: Clock
) -> None:
    budget.spend()
    assert wait_in_vain(budget, clock) <= LEAST_SECONDS + 1.0


@pytest.mark.filterwarnings("ignore::trimtab.records.store.transactions.StoreWaitWarning")
def test_two_operations_that_wait_at_a_time_spend_the_budget_once(
    budget: RetryBudget, clock: Clock
) -> None:
    begun = clock.now
    with budget.begin() as one, budget.begin() as other:
        while one.again(FULL) and other.again(FULL):
            pass
    assert clock.now - begun == pytest.approx(BUDGET_SECONDS, abs=2.5)
    with budget.begin() as third:  # the two are over, and count no more
        clock.now += 30.0
        assert third.again(FULL)


def test_warnings_that_are_errors_end_no_wait(
    budget: RetryBudget, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wait_in_vain(budget, clock)
    assert FULL in caplog.text


def test_a_process_has_one_budget_with_a_store() -> None:
    assert retry_budget("sqlite:///a.db") is retry_budget("sqlite:///a.db")
    assert retry_budget("sqlite:///a.db") is not retry_budget("sqlite:///b.db")


@pytest.mark.parametrize("write", [True, False])
def test_a_full_store_is_waited_for_and_told_by_its_name(
    write: bool, tmp_path: Path, budget: RetryBudget, clock: Clock
) -> None:
    store = Transactions(tmp_path / "runs.db", budget=budget)

    def fail(connection: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        from sqlalchemy.exc import OperationalError

        raise OperationalError("INSERT", {}, error)

    begun = clock.now
    with (
        pytest.warns(StoreWaitWarning, match=r"runs\.db cannot grow: the disk is full") as told,
        pytest.raises(StoreError, match="the disk is full; free some space"),
    ):
        (store.change if write else store.read)(fail)
    assert len(told) == 1
    assert clock.now - begun == pytest.approx(BUDGET_SECONDS, abs=1.5)
    assert store.change(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    store.close()


def test_a_file_size_limit_is_named_among_the_causes(tmp_path: Path) -> None:
    from trimtab.records.store.database import explain_failure

    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert "ulimit -f" in str(explain_failure(error, "sqlite:///runs.db"))


def test_a_quiet_worker_still_says_that_a_store_is_waited_for(
    budget: RetryBudget, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with warnings.catch_warnings():
            quieten_worker()
            warnings.warn("a library is deprecated", DeprecationWarning, stacklevel=1)
            wait_in_vain(budget, clock)

    work()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"trimtab: warning: {FULL}; waited for ")
