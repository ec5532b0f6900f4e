"""The control that takes one rate for all tasks: by optimiser, whatever the start."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tests.search.methods.clusters import Clusters, Fixed, made_by  # noqa: E402 - needs PyTorch
from tests.tiny_task import TinyTask  # noqa: E402
from trimtab.search.methods.base import find_method  # noqa: E402

SGD = torch.optim.SGD


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (made_by(torch.optim.AdamW), 3e-4),
        (made_by(torch.optim.Adam), 3e-4),
        (made_by(SGD, momentum=0.9), 1e-2),
    ],
)
def test_the_rate_is_that_of_the_optimiser_whatever_the_start(assign, make, rate):
    task = Fixed(make)
    method = find_method("default")
    assert method.refuses(task) is None
    low, high = (method.run(assign(3, task=task, scale=scale)).result for scale in (0.01, 100.0))
    assert low.start["lr"] == high.start["lr"] == rate
    assert low.start_scale == pytest.approx(rate / 0.03)
    assert (low.validation, low.test) == (high.validation, high.test)


def test_it_is_the_reference_from_that_rate(assign):
    task = Clusters()
    own = find_method("default").run(assign(1, task=task)).result
    by_hand = find_method("reference").run(assign(1, task=task, scale=3e-4 / 0.03)).result
    assert (own.validation, own.test, own.spent) == (
        by_hand.validation,
        by_hand.test,
        by_hand.spent,
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (made_by(torch.optim.RMSprop), "the task's optimiser is RMSprop"),
        (made_by(SGD), "the task's optimiser is SGD without momentum"),
    ],
)
def test_another_optimiser_is_refused_by_its_name(make, words):
    assert words in find_method("default").refuses(Fixed(make))


def test_what_tells_no_optimiser_is_refused(quadratic):
    method = find_method("default")
    assert "give them an attribute optimizer" in method.refuses(TinyTask())
    assert "units of its own" in method.refuses(quadratic)


def test_other_hyperparameters_stay_at_the_tasks_default(assign):
    task = Clusters()
    assignment = assign(2, task=task)
    both = replace(assignment.starts, items=task.hyperparameters)
    row = find_method("default").run(replace(assignment, starts=both)).result
    assert row.start == {"lr": 3e-4, "weight_decay": 0.01}
