"""Measuring a model as its Transformers ``Trainer`` would, outside the trainer's events."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers.trainer_utils import EvalLoopOutput

from trimtab.adapters.torch.trainer import mean_over_batches
from trimtab.core.directions import is_loss
from trimtab.core.errors import AdapterError, MetricError
from trimtab.core.notices import local_variables

_NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "preparation_time", "epoch")


def inner_trainer(trainer: Any) -> Any:
    """Return the Transformers ``Trainer`` that is one, or that does a SetFit trainer's work.

    Raises:
        AdapterError: There is none.
    """
    inner = getattr(trainer, "st_trainer", trainer)
    if not isinstance(inner, transformers.Trainer):
        raise AdapterError(
            f"trainer: {type(trainer).__name__} is no transformers.Trainer; give one, or TRL's, "
            "sentence-transformers' or SetFit's, after it was made"
        )
    return inner


def calling_trainer(callback: Any) -> Any:
    """Return the trainer whose event a callback handles, or None.

    Trainer hands over to an event all that it holds, except itself.

    Args:
        callback: One of the trainer's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        one = local_variables(frame).get("self")
        if isinstance(one, transformers.Trainer) and callback in one.callback_handler.callbacks:
            return one
        frame = frame.f_back
    return None


def subset(data: Any, examples: int, seed: int) -> Any:
    """Return some examples of a data set, or of each in a dict; the first ones of a stream.

    Args:
        data: As ``eval_dataset`` holds it.
        examples: How many in all, at least 1.
        seed: Draws them.
    """
    if isinstance(data, Mapping):
        each = math.ceil(examples / max(len(data), 1))
        return {name: subset(one, each, seed) for name, one in data.items()}
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return data.take(examples) if hasattr(data, "take") else _Beginning(data, examples)
    if len(data) <= examples:
        return data
    chosen = np.random.default_rng(seed).choice(len(data), examples, replace=False)
    indices = sorted(chosen.tolist())
    return data.select(indices) if hasattr(data, "select") else Subset(data, indices)


class _Beginning(IterableDataset):  # type: ignore[type-arg]
    """The first examples of a stream, each time it is walked along."""

    def __init__(self, stream: Any, examples: int) -> None:
        self._stream, self._examples = stream, examples

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._stream), self._examples)


class EvaluationSource:
    """What `steer` was told to validate on.

    Args:
        trainer: As the user holds it.
        validation: How many examples of its ``eval_dataset``, None for all, or data.

    Raises:
        AdapterError: There is nothing to validate on.
    """

    def __init__(self, trainer: Any, validation: Any) -> None:
        self._outer = trainer
        self._examples, self._data = None, None
        if validation is not None and not isinstance(validation, int):
            self._data = validation
            return
        if validation is not None and (isinstance(validation, bool) or validation < 1):
            raise AdapterError(
                f"validation={validation!r}: give a number of examples of at least 1, None for all "
                "of eval_dataset, or data"
            )
        self._examples = validation
        if getattr(trainer, "eval_dataset", None) is None:
            raise AdapterError(
                f"validation={validation}: {type(trainer).__name__} has no eval_dataset to take "
                "examples from; make it with eval_dataset=..., or give steer(trainer, "
                "validation=data)"
            )

    def held(self, trainer: Any) -> Any:
        """Return the data, or the part of the trainer's that is taken."""
        data = trainer.eval_dataset if self._data is None else self._data
        return data if self._examples is None else subset(data, self._examples, trainer.args.seed)

    def evaluation(self, trainer: Any, monitor: str) -> TrainerEvaluation:
        """Return what measures a value.

        Args:
            trainer: The Transformers ``Trainer`` that trains now.
            monitor: Name of the value, without ``eval_``.
        """
        data = self._data
        if self._outer is not trainer and (data is not None or trainer.eval_dataset is None):
            data = _pairs(self._outer, data, self._examples)
        return TrainerEvaluation(
            trainer,
            data=data,
            examples=self._examples,
            monitor=monitor,
            loss_only=is_loss(monitor),
        )


def _pairs(trainer: Any, data: Any, examples: int | None) -> Any:
    """Return the pairs that a SetFit trainer makes of labelled texts, as for its training."""
    texts = trainer.eval_dataset if data is None else data
    if trainer.column_mapping is not None and data is not None:
        texts = trainer._apply_column_mapping(texts, trainer.column_mapping)
    parameters = trainer.dataset_to_parameters(texts)
    pairs, _ = trainer.get_dataset(*parameters, args=trainer.args, max_pairs=examples or -1)
    return pairs


class TrainerEvaluation:
    """Measures as ``trainer.evaluate()`` does, and leaves no trace in the trainer.

    What the trainer would walk along is found out once, by its own ``evaluate()``: so columns are
    removed, texts tokenised and batches collated as it does. Then its ``evaluation_loop`` is used,
    and with it its ``compute_loss`` and ``compute_metrics``. No callback, log, best metric or
    random number is touched, and what the trainer gathers for its next log is as it was.

    Args:
        trainer: A Transformers ``Trainer``.
        data: What is measured on: whatever ``eval_dataset`` may be, or a ``DataLoader``; None for
            the trainer's ``eval_dataset``.
        examples: How many of these are taken, drawn by the trainer's seed; None for all.
        monitor: Name of the value that has to come out, without ``eval_``.
        loss_only: Whether predictions, metrics and evaluators are left out.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        data: Any = None,
        examples: int | None = None,
        monitor: str = "loss",
        loss_only: bool = False,
    ) -> None:
        self._trainer, self._monitor, self._loss_only = trainer, monitor, loss_only
        self._walks: list[tuple[Any, bool | None, str]] = []
        self._drawn: list[tuple[torch.Generator, torch.Tensor]] = []
        if isinstance(data, DataLoader):
            alone = True if trainer.compute_metrics is None else None
            self._walks = [(data, alone, "eval")]
        elif data is not None and examples is None:
            self._find_walks(eval_dataset=data)
        else:
            held = trainer.eval_dataset if data is None else data
            chosen = held if examples is None else subset(held, examples, trainer.args.seed)
            self._find_walks(chosen)
        for loader, _, _ in self._walks:
            self._drawn += [(one, one.get_state()) for one in _generators(loader)]

    def __call__(self) -> dict[str, float]:
        """Return what was measured, without ``eval_``.

        Of several data sets each value bears its set's name in front, and what all of them have
        comes without a name as well: the mean over all examples.

        Raises:
            MetricError: The value that is watched is not there.
        """
        measured: dict[str, float] = {}
        parts: list[tuple[int, dict[str, float]]] = []
        trainer = self._trainer
        for generator, state in self._drawn:  # in the same batches each time
            generator.set_state(state)
        for loader, alone, prefix in self._walks:
            if callable(getattr(loader, "set_epoch", None)):
                loader.set_epoch(0)
            with apart(trainer) as gathered, _left_in_mode(trainer.optimizer), self._bare():
                output = trainer.evaluation_loop(
                    loader,
                    "Validation",
                    prediction_loss_only=True if self._loss_only else alone,
                    metric_key_prefix=prefix,
                )
                values = gathered() | _numbers(output.metrics, prefix)
            parts.append((int(output.num_samples), values))
            if len(self._walks) > 1:
                name = prefix.removeprefix("eval_")
                measured |= {f"{name}_{key}": value for key, value in values.items()}
        measured |= _means(parts)
        if self._monitor not in measured:
            raise MetricError(
                f"Trainer evaluated and did not return 'eval_{self._monitor}' (it has "
                f"{', '.join(sorted(measured)) or 'nothing'}); set monitor= to one of these, or "
                "label_names= of TrainingArguments where the loss is missing"
            )
        return measured

    def _find_walks(self, chosen: Any = None, **given: Any) -> None:
        trainer = self._trainer

        def capture(dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
            del args
            alone, prefix = kwargs.get("prediction_loss_only"), kwargs["metric_key_prefix"]
            self._walks.append((dataloader, alone, prefix))
            return EvalLoopOutput(predictions=None, label_ids=None, metrics={}, num_samples=1)

        stand_ins: dict[str, Any] = {"evaluation_loop": capture, "_eval_dataloaders": {}}
        if not given:
            stand_ins["eval_dataset"] = chosen
        with apart(trainer, **stand_ins):
            trainer.evaluate(**given)

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Leave sentence-transformers' evaluator out, or its file alone."""
        evaluator = getattr(self._trainer, "evaluator", None)
        if evaluator is None:
            yield
        elif self._loss_only:
            with _standing_in(self._trainer, evaluator=None):
                yield
        else:
            with _standing_in(evaluator, write_csv=False):
                yield


def _generators(loader: Any) -> Iterator[torch.Generator]:
    """Yield what a loader and its samplers draw from, besides the global generators."""
    found = [loader]
    for one in found:
        held = [getattr(one, name, None) for name in _SAMPLERS] + list(
            getattr(one, "batch_samplers", None) or []
        )
        for value in held:
            if isinstance(value, torch.Generator):
                yield value
            elif value is not None and all(value is not other for other in found):
                found.append(value)


_SAMPLERS = ("generator", "sampler", "batch_sampler", "base_sampler")


@contextmanager
def apart(trainer: Any, **stand_ins: Any) -> Iterator[Any]:
    """Let a trainer evaluate without its callbacks, logs and gathered values noticing.

    Yields a function that returns the means of what TRL's trainers gather beside the loss.
    """
    quiet = copy.copy(trainer.callback_handler)
    quiet.callbacks = []
    kept = {
        name: copy.deepcopy(vars(trainer)[name])
        for name in ("_metrics", "accum_loss_components")  # of TRL, of sentence-transformers
        if name in vars(trainer)
    }
    gathered = getattr(trainer, "_metrics", None)
    gathered = gathered.get("eval") if isinstance(gathered, dict) else None
    if isinstance(gathered, dict):
        gathered.clear()

    def means() -> dict[str, float]:
        if not isinstance(gathered, dict):
            return {}
        return {name: float(sum(all_) / len(all_)) for name, all_ in gathered.items() if all_}

    alone = {
        "callback_handler": quiet,
        "control": copy.copy(trainer.control),
        "log": _unheard,
    }
    try:
        with _standing_in(trainer, **(alone | stand_ins)):
            yield means
    finally:
        vars(trainer).update(kept)


def alone(trainer: Any, data: Any) -> Callable[[], dict[str, float]]:
    """Return what measures the loss in one of several processes, without the others.

    The trainer's own evaluation would wait for all of them. So the loss is the one that the model
    returns, the mean over batches, weighted by examples.

    Args:
        trainer: Whose model and collation are used.
        data: A data set, a dict of them, or a ``DataLoader``.
    """
    model = trainer.model
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "Validation")
    size = trainer.args.per_device_eval_batch_size
    loaders = [
        one if isinstance(one, DataLoader) else DataLoader(one, batch_size=size, collate_fn=collate)
        for one in parts
    ]

    def measure(batch: Any, index: int) -> dict[str, Any]:
        del index
        outputs = model(**batch)
        return {"loss": outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]}

    device = next(model.parameters()).device
    return lambda: mean_over_batches(model, itertools.chain(*loaders), measure, device)


def _unheard(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


@contextmanager
def _standing_in(owner: Any, **stand_ins: Any) -> Iterator[None]:
    """Put values in the place of an object's own, for a while."""
    held = vars(owner)
    kept = {name: held[name] for name in stand_ins if name in held}
    try:
        for name, value in stand_ins.items():
            held[name] = value
        yield
    finally:
        for name in stand_ins:
            held.pop(name, None)
        held.update(kept)


@contextmanager
def _left_in_mode(optimizer: Any) -> Iterator[None]:
    """Give an optimiser that has modes (schedule-free) its training mode back."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    trains = bool(groups[0].get("train_mode"))
    try:
        yield
    finally:
        if trains and callable(getattr(optimizer, "train", None)):
            optimizer.train()


def _numbers(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    named = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in named.items()
        if np.ndim(value) == 0
        and np.asarray(value).dtype.kind in "fiub"
        and not name.endswith(_NOT_METRICS)
    }


def _means(parts: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    if len(parts) == 1:
        return parts[0][1]
    total = sum(count for count, _ in parts)
    shared = set.intersection(*(set(values) for _, values in parts)) if parts else set()
    return {
        name: sum(count * values[name] for count, values in parts) / max(total, 1)
        for name in sorted(shared)
    }
