"""One training step of a simulated run in plain NumPy, slow and obvious: what tests compare with.

Nothing here is shared with the compiled step: forward passes are loops over layers in float64 and
gradients are central differences, so that an error in the fast version cannot hide in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "acting_places",
    "batch_places",
    "classification_loss",
    "convolution_logits",
    "dropout_factors",
    "numeric_gradient",
    "optimiser_step",
    "perceptron_logits",
    "transformer_logits",
]

_MASK, _GOLDEN = 0xFFFFFFFF, 0x9E3779B9
_PRIMES = (
    *(4099, 4591, 5237, 5939, 6619, 7321, 8011, 8719, 9433),
    *(10159, 10883, 11587, 12301, 13007, 13709, 14423, 15131, 15823),
)
_BLOCK = (
    *("attend.gain", "attend.shift", "query", "key", "value", "mix"),
    *("feed.gain", "feed.shift", "up", "up.bias", "down", "down.bias"),
)


def _hash(value: int) -> int:
    value &= _MASK
    value ^= value >> 16
    value = value * 0x7FEB352D & _MASK
    value ^= value >> 15
    value = value * 0x846CA68B & _MASK
    return value ^ value >> 16


def batch_places(seed: int, step: int, batch: int, n_train: int) -> list[int]:
    """Return which training samples make up the batch of a step."""
    places = []
    for element in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(element, n_train)
        code = _hash(seed + epoch * _GOLDEN)
        prime = _PRIMES[(code >> 8) % len(_PRIMES)]
        places.append((prime * place + code % 8192) % n_train)
    return places


def dropout_factors(
    seed: int, step: int, rates: Sequence[float], n_samples: int, widths: Sequence[int]
) -> list[np.ndarray]:
    """Return what dropout multiplies each layer's outputs by: (B, width) arrays of 0 or more.

    Args:
        seed: Of the run.
        step: Optimiser step of the whole run.
        rates: Dropout rate of each layer.
        n_samples: Batch size B.
        widths: Outputs of each layer.
    """
    code = _hash(seed ^ step * _GOLDEN & _MASK) ^ 0x5BD1E995
    factors = []
    for layer, (rate, width) in enumerate(zip(rates, widths, strict=True)):
        start = _hash(code + layer * 0x85EBCA6B)
        number = [(_hash(i * _GOLDEN + start) >> 8) / 2**24 for i in range(n_samples * width)]
        kept = np.reshape(number, (n_samples, width)) >= np.float32(rate)
        factors.append(kept / (1.0 - rate))
    return factors


def acting_places(network: int, n_offered: int, n_acting: int) -> list[int]:
    """Return which hyperparameters of the wide family act in a task.

    The first does, and the others with the smallest numbers.

    Args:
        network: `draws.Draw.network` of the task.
        n_offered: How many there are.
        n_acting: How many act.
    """
    code = _hash(network ^ 0x51ED270B)
    numbers = [_hash(code + place * _GOLDEN) >> 1 for place in range(n_offered)]
    others = sorted(range(1, n_offered), key=lambda place: numbers[place])
    return sorted([0, *others[: n_acting - 1]])


def _activated(name: str, values: np.ndarray) -> np.ndarray:
    if name == "relu":
        return np.maximum(values, 0.0)
    if name == "tanh":
        return np.tanh(values)
    if name == "silu":
        return values / (1.0 + np.exp(-values))
    inner = np.sqrt(2.0 / np.pi) * (values + 0.044715 * values**3)  # gelu, tanh form
    return 0.5 * values * (1.0 + np.tanh(inner))


def _normalised(values: np.ndarray, axis: int) -> np.ndarray:
    mean, variance = values.mean(axis, keepdims=True), values.var(axis, keepdims=True)
    return np.asarray((values - mean) / np.sqrt(variance + 1e-5))


def perceptron_logits(
    shape: Any,
    tensors: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    factors: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Return (B, 10) scores of a fully connected network.

    Args:
        shape: An `mlp.Shape`.
        tensors: Of the network.
        inputs: (B, 64).
        factors: From `dropout_factors`, the head's inputs last; empty without dropout.
    """
    hidden = inputs
    for index in range(len(shape.widths)):
        new = hidden @ tensors[f"{index}.weight"]
        if shape.norm != "none":
            axis = 1 if shape.norm == "layer" else 0
            new = _normalised(new, axis) * tensors[f"{index}.gain"]
        new = _activated(shape.activation, new + tensors[f"{index}.bias"])
        if factors:
            new = new * factors[index]
        hidden = hidden + new if shape.residual and index > 0 else new
    if factors and shape.drops_before_head:
        hidden = hidden * factors[-1]
    return hidden @ tensors["head.weight"] + tensors["head.bias"]


def convolution_logits(tensors: Mapping[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Return (B, 10) scores of the two-convolution network for (B, 64) pixels."""
    image = np.zeros((len(inputs), 10, 10, 1))
    image[:, 1:-1, 1:-1, 0] = inputs.reshape(-1, 8, 8)
    image = _convolved(image, tensors["0.weight"], tensors["0.bias"], stride=2)
    image = _convolved(image, tensors["1.weight"], tensors["1.bias"], stride=1)
    return image.reshape(len(image), -1) @ tensors["head.weight"] + tensors["head.bias"]


def _convolved(
    image: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, stride: int
) -> np.ndarray:
    """Return a (B, s, s, c) image after a 3 x 3 convolution without padding, and ReLU."""
    n_images, side, _, channels = image.shape
    kernel = weight.reshape(3, 3, channels, -1)
    places = range(0, side - 2, stride)
    made = np.zeros((n_images, len(places), len(places), kernel.shape[-1]))
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            window = image[:, row : row + 3, column : column + 3]
            made[:, i, j] = np.einsum("bijc,ijco->bo", window, kernel)
    return np.maximum(made + bias, 0.0)


def transformer_logits(
    size: Any, tensors: Mapping[str, np.ndarray], tokens: np.ndarray
) -> np.ndarray:
    """Return (B, 10) scores of a transformer; ``size`` is a `transformer.Size`."""
    scores = []
    for sentence in tokens:
        stream = tensors["token"][sentence] + tensors["position"]  # (T, width)
        for block in range(size.n_blocks):
            own = {key: tensors[f"{block}.{key}"] for key in _BLOCK}
            seen = _normalised(stream, 1) * own["attend.gain"] + own["attend.shift"]
            heads = []
            width = size.width // size.n_heads
            for head in range(size.n_heads):
                part = slice(head * width, (head + 1) * width)
                query, key, value = (
                    (seen @ own[name])[:, part] for name in ("query", "key", "value")
                )
                weight = np.exp(query @ key.T / np.sqrt(width))
                heads.append(weight / weight.sum(1, keepdims=True) @ value)
            stream = stream + np.concatenate(heads, axis=1) @ own["mix"]
            seen = _normalised(stream, 1) * own["feed.gain"] + own["feed.shift"]
            inner = np.maximum(seen @ own["up"] + own["up.bias"], 0.0)
            stream = stream + inner @ own["down"] + own["down.bias"]
        pooled = _normalised(stream.mean(0), 0) * tensors["last.gain"] + tensors["last.shift"]
        scores.append(pooled @ tensors["head.weight"] + tensors["head.bias"])
    return np.asarray(scores)


def classification_loss(
    logits: np.ndarray, labels: np.ndarray, n_classes: int, smoothing: float, loss: str
) -> float:
    """Return the mean loss of a batch over the first ``n_classes`` scores.

    Args:
        logits: (B, 10).
        labels: (B,).
        n_classes: Of the task.
        smoothing: Label smoothing.
        loss: ``"cross-entropy"``, ``"squared-error"`` (halved, summed over classes) or
            ``"margin"`` (squared hinges, summed over wrong classes).
    """
    total = 0.0
    for scores, label in zip(logits[:, :n_classes], labels, strict=True):
        target = np.full(n_classes, smoothing / n_classes)
        target[label] += 1.0 - smoothing
        if loss == "squared-error":
            total += 0.5 * float(((scores - target) ** 2).sum())
        elif loss == "margin":
            for right in range(n_classes):
                for wrong in range(n_classes):
                    if wrong != right:
                        shortfall = max(0.0, 1.0 + float(scores[wrong] - scores[right]))
                        total += float(target[right]) * shortfall**2
        else:
            largest = scores.max()
            log_total = largest + np.log(np.exp(scores - largest).sum())
            total -= float(target @ (scores - log_total))
    return total / len(labels)


def numeric_gradient(
    loss: Callable[[np.ndarray], float], point: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """Return the derivatives of ``loss`` at ``point`` along some elements, by central differences.

    Args:
        loss: Of a (P,) float64 vector.
        point: (P,) float64.
        elements: (n,) indices.
    """
    slopes = []
    for element in elements:
        step = 1e-6 * max(1.0, abs(point[element]))
        ahead, behind = point.copy(), point.copy()
        ahead[element] += step
        behind[element] -= step
        slopes.append((loss(ahead) - loss(behind)) / (2 * step))
    return np.asarray(slopes)


def optimiser_step(
    name: str,
    weights: np.ndarray,
    gradient: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray, int],
    *,
    lr: float | np.ndarray,
    momentum: float,
    coupled_decay: np.ndarray,
    decoupled_decay: np.ndarray,
) -> np.ndarray:
    """Return the weights after one step of SGD, Adam, AdamW or RMSprop, as PyTorch defines them.

    Args:
        name: One of `family.OPTIMISERS`.
        weights: (P,).
        gradient: (P,), without decay.
        moments: (P,) first and second moments, and the number of updates behind them.
        lr: Learning rate of the step, one for all weights or (P,).
        momentum: Of SGD, or beta1 of Adam and AdamW; RMSprop has none.
        coupled_decay: (P,), added to the gradient as this times the weights.
        decoupled_decay: (P,), the share of each weight that is taken off, over ``lr``.
    """
    first, second, count = moments
    pulled = gradient + coupled_decay * weights
    if name == "sgd":
        return weights - lr * (momentum * first + pulled)
    if name == "rmsprop":
        second = 0.99 * second + 0.01 * pulled**2
        return np.asarray(weights - lr * pulled / (np.sqrt(second) + 1e-8))
    first = momentum * first + (1 - momentum) * pulled
    second = 0.999 * second + 0.001 * pulled**2
    mean = first / (1 - momentum ** (count + 1))
    root = np.sqrt(second / (1 - 0.999 ** (count + 1)))
    return np.asarray(weights - lr * mean / (root + 1e-8) - lr * decoupled_decay * weights)
