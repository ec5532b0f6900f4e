"""What is read from a Transformers ``Trainer``: its arguments, wrappers and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.adapters.torch.state_file import read_state
from trimtab.core.errors import AdapterError

__all__ = ["STATE_FILE", "check_arguments", "saved_state", "unscale", "unwrapped"]

STATE_FILE = "trimtab.safetensors"
"""Name of the file in a checkpoint's folder."""


def unwrapped(optimizer: Any) -> tuple[Any, Any]:
    """Return PyTorch's optimiser inside Accelerate's, and the gradient scaler beside it."""
    scaler = getattr(optimizer, "scaler", None)
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer, scaler


def unscale(scaler: Any, optimizer: Any) -> None:
    """Divide the gradients by the scaler's factor, unless Trainer did so to clip them."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def check_arguments(args: Any, *, asks_trainer: bool, by_metric: bool) -> None:
    """Raise unless this training can be steered; nothing is trained yet.

    Raises:
        AdapterError: Says what has to change.
    """
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        which = "deepspeed" if getattr(args, "deepspeed", None) else "fsdp"
        raise AdapterError(
            f"{which}: weights are spread over processes, and cannot be kept or put back here; "
            "train with data parallelism (DDP), or steer without a policy"
        )
    if getattr(args, "restore_callback_states_from_checkpoint", False):
        raise AdapterError(
            "restore_callback_states_from_checkpoint=True: it makes a new callback that knows "
            "nothing of its data; leave it at False, this callback resumes by itself"
        )
    if not asks_trainer:
        return
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "no":
        raise AdapterError(
            "eval_strategy='no': Trainer does not evaluate, and steering needs a validation loss "
            "after each window; give TrimtabCallback(validation_data=...), or set eval_strategy "
            "and eval_dataset"
        )
    if by_metric:
        raise AdapterError(
            "lr_scheduler_type: the scheduler goes by Trainer's evaluations, which steering would "
            "add to; give TrimtabCallback(validation_data=...)"
        )


def saved_state(args: Any, state: Any, callback: str) -> dict[str, Any]:
    """Return the steering's state in the checkpoint that Trainer goes on from.

    Trainer does not say which folder that is. So it is looked for where ``args`` says, under the
    output folder, and where it was written; the name kept in ``trainer_state.json`` proves it.

    Args:
        args: Trainer's arguments.
        state: Trainer's state, as read from the checkpoint.
        callback: Class name under which the state was kept.

    Raises:
        AdapterError: There is none, or it is of another moment.
    """
    step = state.global_step
    known = (state.stateful_callbacks or {}).get(callback)
    known = known.get("attributes", {}) if isinstance(known, dict) else {}
    name = known.get("saved_state")
    if name is None:
        raise AdapterError(
            f"resume_from_checkpoint: the checkpoint of step {step} holds no state of this "
            "callback; resume from one that was written with it, or train anew"
        )
    given = getattr(args, "resume_from_checkpoint", None)
    folders = [Path(given)] if isinstance(given, str) and given not in ("True", "False") else []
    folders += [Path(args.output_dir) / f"checkpoint-{step}", Path(known["saved_in"])]
    for folder in folders:
        path = folder / STATE_FILE
        if path.is_file():
            kept, found = read_state(path)
            if found == name:
                return kept
    raise AdapterError(
        f"resume_from_checkpoint: no {STATE_FILE} of step {step} in "
        f"{', '.join(str(folder) for folder in folders)}; say where the checkpoint is with "
        "TrainingArguments(resume_from_checkpoint=...) as well"
    )
