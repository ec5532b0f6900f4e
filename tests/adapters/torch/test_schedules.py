"""What writes the learning rates puts any number in, and fills those that are tensors in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trimtab.adapters.torch.followed_rates import FollowedRates


@pytest.mark.parametrize("rate", [1, 0.5, np.float64(0.25), np.float32(0.125), torch.tensor(0.75)])
def test_a_rate_of_any_type_is_put_back_into_a_tensor(rate: Any) -> None:
    held = torch.tensor(0.1)
    optimizer = torch.optim.AdamW([torch.zeros(2)], lr=held, capturable=True)
    rates = FollowedRates(optimizer, [], reference="constant", total_steps=4)
    rates.load_state_dict({"starts": [0.1], "multipliers": np.ones(4), "own": [rate]})

    group = optimizer.param_groups[0]
    assert group["lr"] is held
    assert float(held) == float(rate)


def test_a_rate_that_is_a_number_is_put_back_as_it_is() -> None:
    optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
    rates = FollowedRates(optimizer, [], reference="constant", total_steps=4)
    rates.load_state_dict({"starts": [0.1], "multipliers": np.ones(4), "own": [1]})

    assert optimizer.param_groups[0]["lr"] == 1
