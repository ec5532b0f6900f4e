"""How well class probabilities fit: log-loss, accuracy and macro-F1, as the field defines them."""

from __future__ import annotations

import numpy as np


def classification_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return ``loss`` (nats), ``accuracy``, ``macro_f1`` (unit interval) and ``examples``.

    The loss is the mean negative log of the softmax at the true class, in float64; it is nan or
    infinite where logits are. Macro-F1 is scikit-learn's, over the classes among the labels and
    the predictions; a class that is never predicted counts 0.

    Args:
        logits: (n, n_classes) float, n at least 1.
        labels: (n,) int, in 0..n_classes-1.
    """
    from sklearn.metrics import f1_score

    scores = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(shifted).sum(axis=1))
        losses = log_total - shifted[np.arange(len(labels)), labels]
        loss = float(losses.mean())
    predicted = scores.argmax(axis=1)
    return {
        "loss": loss,
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "examples": float(len(labels)),
    }
