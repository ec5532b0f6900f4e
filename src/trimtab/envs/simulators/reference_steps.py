"""One training step of a simulated run in plain NumPy, slow and obvious: what tests compare with.

Nothing here is shared with the compiled step: forward passes are loops over layers in float64 and
gradients are central differences, so that an error in the fast version cannot hide in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = [
    "batch_places",
    "classification_loss",
    "convolution_logits",
    "numeric_gradient",
    "optimiser_step",
    "perceptron_logits",
    "transformer_logits",
]

_MASK = 0xFFFFFFFF
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
        code = _hash(seed + epoch * 0x9E3779B9)
        prime = _PRIMES[(code >> 8) % len(_PRIMES)]
        places.append((prime * place + code % 8192) % n_train)
    return places


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
    shape: Any, tensors: Mapping[str, np.ndarray], inputs: np.ndarray
) -> np.ndarray:
    """Return (B, 10) scores of a fully connected network; ``shape`` is an `mlp.Shape`."""
    hidden = inputs
    for index in range(len(shape.widths)):
        new = hidden @ tensors[f"{index}.weight"]
        if shape.norm != "none":
            axis = 1 if shape.norm == "layer" else 0
            new = _normalised(new, axis) * tensors[f"{index}.gain"]
        new = _activated(shape.activation, new + tensors[f"{index}.bias"])
        hidden = hidden + new if shape.residual and index > 0 else new
    return hidden @ tensors["head.weight"] + tensors["head.bias"]


def convolution_logits(tensors: Mapping[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Return (B, 10) scores of the two-convolution network for (B, 64) pixels."""
    image = inputs.reshape(-1, 8, 8, 1)
    for layer in (0, 1):
        n_images, side, _, channels = image.shape
        kernel = tensors[f"{layer}.weight"].reshape(3, 3, channels, -1)
        padded = np.zeros((n_images, side + 2, side + 2, channels))
        padded[:, 1:-1, 1:-1] = image
        made = np.zeros((n_images, side, side, kernel.shape[-1]))
        for row in range(side):
            for column in range(side):
                window = padded[:, row : row + 3, column : column + 3]
                made[:, row, column] = np.einsum("bijc,ijco->bo", window, kernel)
        made = np.maximum(made + tensors[f"{layer}.bias"], 0.0)
        image = 0.25 * (
            made[:, ::2, ::2] + made[:, 1::2, ::2] + made[:, ::2, 1::2] + made[:, 1::2, 1::2]
        )
    return image.reshape(len(image), -1) @ tensors["head.weight"] + tensors["head.bias"]


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
        loss: ``"cross-entropy"`` or ``"squared-error"`` (halved, summed over classes).
    """
    total = 0.0
    for scores, label in zip(logits[:, :n_classes], labels, strict=True):
        target = np.full(n_classes, smoothing / n_classes)
        target[label] += 1.0 - smoothing
        if loss == "squared-error":
            total += 0.5 * float(((scores - target) ** 2).sum())
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
    lr: float,
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
        lr: Learning rate of the step.
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
