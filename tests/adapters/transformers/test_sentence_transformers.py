"""``steer`` with the trainers of sentence-transformers and SetFit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.core.errors import AdapterError

transformers = pytest.importorskip("transformers")
sentences = pytest.importorskip("sentence_transformers")
datasets = pytest.importorskip("datasets")
losses = pytest.importorskip("sentence_transformers.losses")

from trimtab.adapters.transformers import TrimtabCallback, steer  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"w{i}" for i in range(60))]


@pytest.fixture(autouse=True)
def without_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()


def encoder(folder: Path) -> Any:
    from sentence_transformers import models
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    words = models.Transformer(str(folder), max_seq_length=24)
    return sentences.SentenceTransformer(modules=[words, models.Pooling(32)], device="cpu")


def sentence(topic: int, generator: torch.Generator) -> str:
    drawn = torch.randint(0, 10, (8,), generator=generator).tolist()
    return " ".join(f"w{topic * 10 + word}" for word in drawn)


def pairs(n: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randint(0, 6, (n,), generator=generator).tolist()
    return datasets.Dataset.from_dict(
        {
            "anchor": [sentence(topic, generator) for topic in topics],
            "positive": [sentence(topic, generator) for topic in topics],
        }
    )


def trainer_of(folder: Path, evaluation: Any, **more: Any) -> Any:
    usual = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 24,
        "learning_rate": 1e-4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    model = encoder(folder / "encoder")
    return sentences.SentenceTransformerTrainer(
        model,
        sentences.SentenceTransformerTrainingArguments(**(usual | more)),
        train_dataset=pairs(96, 0),
        eval_dataset=evaluation,
        loss=losses.MultipleNegativesRankingLoss(model),
    )


@pytest.mark.parametrize("several", [False, True])
def test_sentence_transformers_are_steered_by_one_line(tmp_path: Path, several: bool) -> None:
    evaluation = {"a": pairs(32, 1), "b": pairs(16, 2)} if several else pairs(48, 1)
    trainer = trainer_of(tmp_path, evaluation)
    callback = steer(trainer, validation=16, policy="random", decisions=6)
    trainer.train()
    assert callback.summary.finished
    assert callback.summary.best["loss"] < callback.summary.decisions[0].measured["loss"]


def test_pairs_of_ones_own_are_evaluated_as_the_trainer_does(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, None)
    callback = steer(trainer, pairs(32, 1), policy=None, decisions=2, keep_best=False)
    trainer.train()
    assert callback.summary.last["loss"] == pytest.approx(
        trainer.evaluate(pairs(32, 1))["eval_loss"], rel=1e-5
    )


class TestSetFit:
    """Steering what SetFit trains: the model's body."""

    def trainer_of(self, folder: Path, *, callbacks: Any = None, **more: Any) -> Any:
        setfit = pytest.importorskip("setfit")
        linear = pytest.importorskip("sklearn.linear_model")
        generator = torch.Generator().manual_seed(0)
        rows = {
            "text": [sentence(k % 3, generator) for k in range(24)],
            "label": [k % 3 for k in range(24)],
        }
        data = datasets.Dataset.from_dict(rows)
        model = setfit.SetFitModel(
            model_body=encoder(folder / "encoder"), model_head=linear.LogisticRegression()
        )
        arguments = setfit.TrainingArguments(
            output_dir=str(folder / "out"),
            batch_size=8,
            num_epochs=1,
            max_steps=24,
            report_to="none",
            body_learning_rate=(1e-3, 1e-3),
            **more,
        )
        return setfit.Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            callbacks=callbacks,
            metric=lambda predicted, true: {"accuracy": float((predicted == true).mean())},
        )

    @pytest.mark.parametrize("more", [{}, {"eval_strategy": "steps", "eval_steps": 10}])
    def test_the_body_is_steered_by_one_line(self, tmp_path: Path, more: dict[str, Any]) -> None:
        trainer = self.trainer_of(tmp_path, **more)
        before = [weight.detach().clone() for weight in trainer.model.model_body.parameters()]
        callback = steer(trainer, validation=16, policy="random", decisions=6)
        trainer.train()
        after = trainer.model.model_body.parameters()
        assert callback.summary.finished
        assert callback.summary.spent_steps == 24
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert callback.summary.best["loss"] < callback.summary.decisions[0].measured["loss"]

    def test_a_callback_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        callback = TrimtabCallback(policy=None)
        trainer = self.trainer_of(tmp_path, callbacks=[callback])
        with pytest.raises(AdapterError, match=r"steer\(trainer\)"):
            trainer.train()
