"""Names of losses and metrics say which way they get better; what does not say so is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trimtab.core.directions import direction_of, direction_of_metric, is_loss, mode_for
from trimtab.core.errors import SpecError

LOWER = """
    loss val_loss eval_loss train/loss valLoss dice_loss loss_ce error error_rate top5_error
    max_error perplexity eval_perplexity wer val_cer mse rmse MeanSquaredError log_loss
    mean_absolute_error
    neg_log_likelihood nll bits_per_byte false_positive_rate kl_divergence brier_score hd95 fid
    sparse_categorical_crossentropy val_loss/dataloader_idx_0 neg_accuracy
"""
HIGHER = """
    accuracy val_acc acc@1 top5_acc accuracy_1 sparse_categorical_accuracy f1 eval_f1_macro F1Score
    macro-F1 auc val/auroc roc_auc_score r2 R2Score r_squared explained_variance map mAP map_50
    metrics/mAP50-95(B) iou mIoU MeanIoU dice val_dice_score bleu sacrebleu bleu4 rouge1
    eval_rougeLsum exact_match pass@1 win_rate neg_mean_squared_error log_likelihood recall@5
    ndcg@10 true_positives cosine_similarity matthews_correlation eval_sts-dev_spearman_cosine
    rewards/accuracies average_precision psnr SSIM
"""
UNKNOWN = (
    "quality score my_metric runtime samples_per_second epoch lr tpr_at_fpr entropy negative 5"
)


@pytest.mark.parametrize("name", LOWER.split())
def test_a_name_that_falls_is_known(name: str) -> None:
    assert direction_of(name) == "min"


@pytest.mark.parametrize("name", HIGHER.split())
def test_a_name_that_rises_is_known(name: str) -> None:
    assert direction_of(name) == "max"


@pytest.mark.parametrize("name", ["", *UNKNOWN.split()])
def test_a_name_that_does_not_say_is_refused(name: str) -> None:
    assert direction_of(name) is None
    with pytest.raises(SpecError, match=rf"monitor: whether '{name}' .* mode='min' or mode='max'"):
        mode_for(name)


def test_what_is_said_holds_whatever_the_name() -> None:
    assert mode_for("accuracy", "min") == "min"
    assert mode_for("quality", "max", known="min") == "max"
    with pytest.raises(SpecError, match="mode: 'most' is neither 'auto'"):
        mode_for("loss", "most")


def test_an_object_that_measures_knows_better_than_its_name() -> None:
    rises, falls = SimpleNamespace(higher_is_better=True), SimpleNamespace(_direction="down")

    assert mode_for("quality", known=direction_of_metric(rises)) == "max"
    assert mode_for("accuracy", known=direction_of_metric(falls)) == "min"
    assert direction_of_metric(SimpleNamespace(higher_is_better=None)) is None
    assert direction_of_metric(object()) is None


def test_the_loss_is_told_from_other_losses() -> None:
    assert all(map(is_loss, ("loss", "val_loss", "eval/loss", "train_loss")))
    assert not any(map(is_loss, ("dice_loss", "loss_ce", "accuracy")))
