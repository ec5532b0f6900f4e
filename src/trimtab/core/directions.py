"""Which way a measured value gets better, by its name or by the object that measures it."""

from __future__ import annotations

import re
from typing import Any

from trimtab.core.errors import SpecError

MODES: tuple[str, ...] = ("auto", "min", "max")
"""What ``mode=`` takes; ``"auto"`` goes by the monitored value's name."""

_SPLITS = frozenset({"val", "valid", "validation", "eval", "evaluation", "dev", "test", "train"})


def _words_in(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CERTAIN = _words_in("loss losses error errors err")  # also a "dice_loss" is one
_LOWER = _CERTAIN | _words_in(
    """
    nll nelbo crossentropy ce bce perplexity ppl bpb bpc bpd deviance divergence kl kld mse
    rmse mae mape smape wape mase msle rmsle nrmse medae logcosh huber hinge poisson pinball
    crps logloss brier ece mce wer cer mer ter der eer wil fpr fnr far frr fid kid lpips
    hausdorff hd assd distance mistakes regret hamming fp fn
    """
)
_HIGHER = _words_in(
    """
    acc accuracy accuracies auc auroc auprc aupr aucpr prauc rocauc roc ap map mar precision
    recall sensitivity specificity tpr tnr f fscore fbeta iou miou biou jaccard dice dsc bleu
    sacrebleu rouge rougel rougelsum meteor chrf cider spice bertscore comet em exact mcc
    matthews kappa qwk pearson pearsonr spearman spearmanr kendall kendalltau correlation corr
    ndcg mrr hit hits psnr ssim msssim snr sdr sisdr pesq stoi similarity likelihood
    loglikelihood elbo gini informedness correct solved reward rewards tp tn
    """
)
_HIGHER_IN_FULL = _words_in("r2 r2score f1score")
_PHRASES = (
    (r"neg(ative)? log likelihood", "nll"),
    (r"bits per \w+", "bpb"),
    (r"cross entropy", "crossentropy"),
    (r"log loss", "logloss"),
    (r"false (positive|negative|acceptance|rejection)s?", "fpr"),
    (r"true (positive|negative)s?", "tpr"),
    (r"(r squared|r2 score|explained variance)", "r2"),
    (r"(win|success|pass|solve) rate|winrate", "hits"),
    (r"pass \d+", "hits"),
    (r"exact match", "em"),
)


def _words(name: str) -> list[str]:
    """Return a name's words in lower case, those of its split left out.

    >>> _words("eval/MeanIoU_epoch"), _words("val_f1_score")
    (['mean', 'iou', 'epoch'], ['f1', 'score'])
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name)
    words = [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]
    return [word for word in words if word not in _SPLITS]


def is_loss(name: str) -> bool:
    """Return whether a name stands for the loss itself, of whatever split.

    >>> is_loss("loss"), is_loss("eval_loss"), is_loss("dice_loss")
    (True, True, False)
    """
    return _words(name) == ["loss"]


def direction_of(name: str) -> str | None:
    """Return ``"min"`` or ``"max"`` for a value whose name says which way it gets better.

    Args:
        name: Of a loss or metric; a split before it and details behind it do not matter.

    Returns:
        None if the name is not known, or says both.

    >>> [direction_of(name) for name in ("val_loss", "eval_f1_macro", "top5_error", "quality")]
    ['min', 'max', 'min', None]
    """
    text = " ".join(_words(name))
    for phrase, word in _PHRASES:
        text = re.sub(rf"\b{phrase}\b", word, text)
    words = text.split()
    stems = {word.rstrip("0123456789") for word in words if word not in _HIGHER_IN_FULL}
    lower, higher = bool(stems & _LOWER), bool(stems & _HIGHER or set(words) & _HIGHER_IN_FULL)
    if stems & _CERTAIN:
        higher = False
    if lower == higher:
        return None
    turned = bool({"neg", "negative", "negated", "minus"} & set(words))
    return "min" if lower != turned else "max"


def direction_of_metric(metric: Any) -> str | None:
    """Return the direction that a metric object tells of itself; None if it tells none.

    Args:
        metric: Of torchmetrics (``higher_is_better``) or Keras (``_direction``), or anything else.
    """
    higher = getattr(metric, "higher_is_better", None)
    if higher is not None:
        return "max" if higher else "min"
    return {"up": "max", "down": "min"}.get(str(getattr(metric, "_direction", None)))


def check_mode(mode: Any) -> None:
    """Raise unless this is a way for a value to get better.

    Raises:
        SpecError: It is none of `MODES`.
    """
    if mode not in MODES:
        raise SpecError(f"mode: {mode!r} is neither 'auto', 'min' nor 'max'; choose one")


def mode_for(monitor: str, mode: str = "auto", known: str | None = None) -> str:
    """Return which way a monitored value gets better.

    Args:
        monitor: Its name.
        mode: ``"min"`` or ``"max"``, which holds, or ``"auto"``.
        known: What the object that measures it tells; None for nothing.

    Raises:
        SpecError: ``mode`` is none of `MODES`, or it is ``"auto"`` and nothing tells.

    >>> mode_for("val_accuracy"), mode_for("quality", known="max"), mode_for("accuracy", "min")
    ('max', 'max', 'min')
    """
    check_mode(mode)
    found = known or direction_of(monitor) if mode == "auto" else mode
    if found is None:
        raise SpecError(
            f"monitor: whether {monitor!r} gets better as it falls or as it rises is not known; "
            "say so with mode='min' or mode='max'"
        )
    return found
