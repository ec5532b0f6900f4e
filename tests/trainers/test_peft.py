"""PEFT: LoRA on a tiny Llama; the frozen weights stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import STEPS, Probe

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


def train(probe: Probe) -> Any:
    torch.manual_seed(0)
    ids = torch.randint(0, 64, (STEPS, 2, 12))
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe.look_into(model, optimizer)

    @probe.validation
    @torch.no_grad()
    def validate() -> float:
        model.eval()
        return float(model(input_ids=ids[0], labels=ids[0]).loss)

    # lines to write
    controller = TorchController(
        optimizer, total_steps=STEPS, validate=validate, model=model, **probe.options
    )
    probe.resume(controller)  # test
    with controller:
        for step in probe.steps():  # loop
            loss = model(input_ids=ids[step], labels=ids[step]).loss  # loop
            loss.backward()  # loop
            controller.step(loss)  # instead of optimizer.step() and zero_grad()
    # end of lines
    return controller.summary


@pytest.mark.parametrize("claim", CLAIMS)
def test_peft(claim: str) -> None:
    CLAIMS[claim](train)
