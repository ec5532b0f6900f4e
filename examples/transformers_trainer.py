"""Fine-tune a small text classifier with Transformers, steered from a bad start: one callback."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from trimtab.adapters.transformers import TrimtabCallback


def sentences(n, seed):
    """Return sentences of 12 words each; the label says whether word 7 stands in them."""
    words = torch.randint(1, 30, (n, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": (row == 7).any().long()} for row in words]


torch.manual_seed(0)
shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(vocab_size=30, intermediate_size=64, **shape))
steering = TrimtabCallback(validation_data=sentences(256, seed=1))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=200,
        learning_rate=1e-5,  # a hundred times too low for this network
        per_device_train_batch_size=32,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    ),
    train_dataset=sentences(2048, seed=0),
    eval_dataset=sentences(512, seed=2),
    callbacks=[steering],
)
trainer.train()
print("held out:", round(trainer.evaluate()["eval_loss"], 3), "steered:", steering.summary.best)
