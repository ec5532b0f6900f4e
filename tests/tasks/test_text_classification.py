"""Texts, their tokens and splits; MiniLM in full and by adapters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.core.errors import MissingDependencyError, SpecError, UnknownNameError
from trimtab.core.registry import make_task
from trimtab.tasks import text_classification
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.text_classification import (
    TextClassification,
    TextNetwork,
    first_layers,
    last_layers,
    newsgroups,
    read_texts,
    reuters,
)
from trimtab.testing import check_task

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

VARIANTS = {"default": 60, "small": 20, "tiny": 5}


class Answer:
    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden


class Lookup(nn.Module):
    """An encoder that sees each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.widths: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Answer:
        self.widths.append(input_ids.shape[1])
        return Answer(self.table(input_ids))


@pytest.fixture(scope="module", params=[newsgroups, reuters])
def task(request: pytest.FixtureRequest) -> Any:
    return request.param("tiny")


def test_padding_changes_no_logit_and_is_not_computed() -> None:
    network = TextNetwork(Lookup(), 4, 3, seed=0).eval()
    short = network(torch.tensor([[5, 6]]))
    padded = network(torch.tensor([[5, 6, 0, 0]]))
    beside = network(torch.tensor([[5, 6, 0, 0], [1, 2, 3, 0]]))

    assert torch.equal(short, padded)
    torch.testing.assert_close(short[0], beside[0])
    assert network.encoder.widths == [2, 2, 3]  # type: ignore[union-attr]


def test_lines_without_a_text_are_no_texts() -> None:
    assert read_texts("a\nb\nc\ngrain\twheat\r\nship\t \n\ncorn\ta\tb\n") == [
        ("grain", "wheat"),
        ("corn", "a\tb"),
    ]


def test_a_text_is_used_once_with_its_first_label() -> None:
    pairs = [("a", "x"), ("b", "y"), ("c", "x"), ("b", "y")]

    assert text_classification._once_each(pairs) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("make", [newsgroups, reuters])
@pytest.mark.parametrize("suffix", ["", "-lora"])
def test_a_task_tells_about_itself_before_loading_anything(make: Any, suffix: str) -> None:
    for variant, limit in VARIANTS.items():
        task = make(variant + suffix)
        described = task.describe()
        assert described["seconds"] <= limit
        assert "Apache-2.0" in described["licence"]
        assert [item.name for item in task.hyperparameters] == list(task.manual["values"])
        assert task.manual["values"]["lr"] == (5e-4 if suffix else 5e-5)
        (lr,) = [item for item in task.hyperparameters if item.name == "lr"]
        for factor in (0.01, 100.0):
            assert lr.starting_at(factor * task.tuned_lr).default == factor * task.tuned_lr
        assert not {"_data", "_encoder"} & set(vars(task))
    assert ("research" in task.notice) == (make is reuters)
    with pytest.raises(UnknownNameError, match=r"unknown variant 'huge'"):
        make("huge")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(text_classification._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependencyError, match=r"pip install .*no-such-package"):
        reuters("tiny").start(seed=0)


@pytest.mark.parametrize("variant", ["small", "default"])
def test_newsgroups_has_steps_enough_to_be_steered(variant: str) -> None:
    assert newsgroups(variant).total_steps >= 100


@pytest.mark.framework
def test_they_are_registered() -> None:
    for name in ("text/newsgroups", "text/reuters"):
        task = make_task(name, variant="tiny-lora")
        assert isinstance(task, TextClassification)
        assert task.name == name


@pytest.mark.framework
def test_splits_are_disjoint_and_free_of_copies(task: TextClassification) -> None:
    data = task._data
    rows = np.concatenate([data.splits[name] for name in SPLITS])

    assert len(np.unique(rows)) == len(rows) == len(data.labels)
    assert data.inputs.shape == (len(rows), 16)
    assert (data.inputs[:, 0] == 101).all()  # [CLS]
    n_classes = 20 if task.name == "text/newsgroups" else 8
    assert len(data.labels[torch.from_numpy(data.splits["train"])].unique()) == n_classes


@pytest.mark.framework
@pytest.mark.parametrize("variant", ["tiny", "tiny-lora"])
def test_it_keeps_its_promises_and_learns(variant: str) -> None:
    task = reuters(variant)
    check_task(task, steps=2)
    run = task.start(seed=0)
    trained = sum(item.numel() for item in run.model.parameters() if item.requires_grad)
    assert (trained < 200_000) == variant.endswith("lora")
    start = run.evaluate("train")
    assert abs(start["loss"] - math.log(8)) < 0.3
    run.advance({"lr": np.full(12, 4 * task.manual["values"]["lr"])}, 12)

    assert run.evaluate("train")["loss"] < start["loss"] - 0.1


def test_adapters_offer_their_rank_and_other_variants_do_not() -> None:
    assert [choice.name for choice in reuters("tiny").offers] == ["optimizer", "momentum"]
    assert reuters("tiny-lora").offers[-1].options == (8, 4, 16)
    with pytest.raises(SpecError, match="rank: 4 in the variant 'tiny'; give a whole number"):
        reuters("tiny").start(seed=0, rank=4)
    with pytest.raises(SpecError, match="rank: 0 in the variant 'tiny-lora'"):
        reuters("tiny-lora").start(seed=0, rank=0)


@pytest.mark.framework
def test_the_rank_that_was_asked_for_is_trained() -> None:
    task = reuters("tiny-lora")
    sizes = [
        sum(
            item.numel()
            for item in task.start(seed=0, **given).model.parameters()
            if item.requires_grad
        )
        for given in ({}, {"rank": 8}, {"rank": 4})
    ]
    head = 8 * 384 + 8
    assert sizes[0] == sizes[1]
    assert sizes[0] - head == 2 * (sizes[2] - head)


@pytest.mark.framework
def test_last_layers_go_on_where_the_first_ones_ended() -> None:
    task = newsgroups("tiny")
    tokens = task._data.inputs[:6].clone()
    tokens[0, 5:] = 0
    whole = TextNetwork(task._encoder, 384, 3, seed=0).eval()
    for n_layers in (1, 4):
        hidden = torch.from_numpy(first_layers(task._encoder, tokens.numpy(), n_layers))
        upper = last_layers(task._encoder, n_layers)
        split = TextNetwork(upper, 384, 3, seed=0).eval()

        assert hidden.dtype == torch.float16
        assert not hidden[0, 5:].any()
        assert len(upper.encoder.layer) == 6 - n_layers
        with torch.no_grad():
            torch.testing.assert_close(split(hidden.float()), whole(tokens), atol=2e-4, rtol=0)
    assert len(task._encoder.encoder.layer) == 6


@pytest.mark.framework
def test_the_encoder_carries_the_published_weights(task: TextClassification) -> None:
    from safetensors import safe_open

    with safe_open(task._model_folder / "model.safetensors", framework="pt") as file:
        expected = file.get_tensor("encoder.layer.5.output.dense.weight")
    weights = task._encoder.state_dict()

    assert torch.equal(weights["encoder.layer.5.output.dense.weight"], expected)
