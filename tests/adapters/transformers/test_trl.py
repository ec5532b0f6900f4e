"""``steer`` with TRL's trainers: LoRA, packing, checkpointed gradients, accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")

from trimtab.adapters.transformers import steer  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]


@pytest.fixture(autouse=True)
def without_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def counting(n: int, seed: int) -> list[list[str]]:
    """Return texts that count on from a word."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 40, (n,), generator=generator).tolist()
    return [[f"w{(start + k) % 60}" for k in range(12)] for start in first]


def texts(n: int, seed: int) -> Any:
    return datasets.Dataset.from_dict({"text": [" ".join(row) for row in counting(n, seed)]})


def preferences(n: int, seed: int) -> Any:
    rows = counting(n, seed)
    return datasets.Dataset.from_dict(
        {
            "prompt": [" ".join(row[:6]) for row in rows],
            "chosen": [" " + " ".join(row[6:]) for row in rows],
            "rejected": [" " + " ".join(reversed(row[6:])) for row in rows],
        }
    )


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    usual = {
        "output_dir": str(folder),
        "max_length": 32,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 24,
        "learning_rate": 1e-4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "logging_steps": 8,
    }
    return usual | more


def sft(folder: Path, *, lora: bool = True, evaluation: Any = None, **more: Any) -> Any:
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return trl.SFTTrainer(
        model=llama(),
        args=trl.SFTConfig(**settings(folder, **more)),
        train_dataset=texts(96, 0),
        eval_dataset=evaluation,
        processing_class=tokenizer(),
        peft_config=config if lora else None,
    )


def dpo(folder: Path, **more: Any) -> Any:
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return trl.DPOTrainer(
        model=llama(),
        args=trl.DPOConfig(**settings(folder, **more)),
        train_dataset=preferences(48, 0),
        eval_dataset=preferences(24, 1),
        processing_class=tokenizer(),
        peft_config=config,
    )


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: w.detach().clone() for name, w in named if w.requires_grad}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 3},
        {"lora": False, "packing": True},
        {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5},
    ],
)
def test_sft_is_steered_by_one_line(tmp_path: Path, more: dict[str, Any]) -> None:
    trainer = sft(tmp_path, evaluation=texts(48, 1), **more)
    before = trained(trainer)
    callback = steer(trainer, validation=16, policy="random", decisions=6)
    trainer.train()
    summary = callback.summary
    assert summary.finished
    assert len({row["lr"] for row in summary.schedule}) > 20
    assert any(not torch.equal(before[name], weight) for name, weight in trained(trainer).items())
    assert summary.best["loss"] < summary.decisions[0].measured["loss"]


def test_what_sft_logs_and_trains_is_as_without_the_validation(tmp_path: Path) -> None:
    def course(folder: Path, *, steered: bool) -> tuple[list[dict[str, float]], Any]:
        more = {"eval_strategy": "steps", "eval_steps": 8}
        trainer = sft(folder, evaluation=texts(48, 1), **more)
        if steered:
            steer(trainer, validation=16, policy=None, keep_best=False)
        trainer.train()
        unlike = ("runtime", "per_second", "time")
        rows = [
            {name: value for name, value in row.items() if not name.endswith(unlike)}
            for row in trainer.state.log_history
        ]
        return rows, trained(trainer)

    rows, left = course(tmp_path / "plain", steered=False)
    steered_rows, steered_left = course(tmp_path / "steered", steered=True)
    assert steered_rows == rows
    assert all(torch.equal(left[name], weight) for name, weight in steered_left.items())


def test_texts_that_were_not_prepared_are_tokenised_as_by_sft(tmp_path: Path) -> None:
    raw = texts(24, 1)
    trainer = sft(tmp_path, evaluation=None)
    callback = steer(trainer, raw, policy=None, decisions=2, keep_best=False)
    trainer.train()
    evaluated = trainer.evaluate(raw)["eval_loss"]
    assert callback.summary.last["loss"] == pytest.approx(evaluated, rel=1e-5)


def test_dpo_is_steered_and_keeps_by_what_it_rewards(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, gradient_accumulation_steps=2, learning_rate=5e-3)
    callback = steer(trainer, validation=16, policy=None, decisions=6, monitor="rewards/accuracies")
    trainer.train()
    measured = [decision.measured for decision in callback.summary.decisions]
    assert callback.summary.finished
    assert {"loss", "rewards/accuracies"} <= measured[0].keys()
    assert callback.summary.best["rewards/accuracies"] == max(
        [one["rewards/accuracies"] for one in measured]
        + [callback.summary.last["rewards/accuracies"]]
    )
    assert callback.summary.last["loss"] < measured[0]["loss"]
