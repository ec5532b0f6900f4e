"""Steering Keras, on each of its backends: the claims are the names of the checks."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.framework

PROGRAM = Path(__file__).with_name("checks.py")
INSIDE_FIT = (
    "policy_off_is_the_plain_fit_with_the_same_schedule",
    "own_schedule_is_adopted",
    "sgd_settings_change_inside_the_compiled_step",
    "adam_settings_change_inside_the_compiled_step",
    "dropout_changes_inside_the_compiled_step",
    "label_smoothing_changes_inside_the_compiled_step",
    "layers_learn_at_rates_of_their_own_inside_the_compiled_step",
    "averages_are_steered_inside_the_compiled_step",
    "a_value_of_ones_own_is_read_by_the_compiled_step",
    "each_kind_is_proven_on_the_first_batch_and_leaves_every_bit",
    "what_the_step_ignores_is_refused_before_the_first_update",
    "a_first_batch_that_tells_nothing_leaves_the_proof_to_the_next",
    "step_losses_are_those_of_single_batches",
    "losses_that_wait_are_as_losses_read_at_once",
    "losses_that_wait_are_taken_in_where_somebody_asks",
    "a_nan_batch_is_rolled_back_and_told",
    "a_rollback_puts_weights_and_optimiser_back_and_the_reference_goes_on",
    "a_checkpoint_of_mid_run_is_as_without_us",
    "a_second_fit_and_one_after_an_error_begin_afresh",
    "a_trial_is_pruned_in_mid_fit_and_leaves_the_model_whole",
)
ANY_BACKEND_WILL_DO = (
    "an_exploding_rate_is_rolled_back_and_finished",
    "watching_only_changes_nothing_and_says_what_it_would",
    "what_cannot_be_steered_is_refused",
    "what_would_be_lost_is_told",
    "a_monitored_metric_gets_better_as_its_name_or_its_object_says",
)
OWN_STEPS = (
    "a_step_that_writes_its_learning_rate_is_refused_or_told",
    "a_learning_rate_that_no_step_reads_is_refused_and_nothing_is_disturbed",
    "other_optimizers_of_a_step_are_kept_and_put_back",
)
BESIDE_OTHERS = (
    "watching_leaves_every_schedule_and_callback_as_without_us",
    "early_stopping_leaves_the_best_weights_in_either_order_and_is_told",
    "windows_end_with_an_update_of_gathered_gradients",
    "a_model_compiled_again_in_fit_is_told_once_and_trains_on",
    "fits_own_validation_data_are_used",
)
CHECKS = {
    "tensorflow": (
        *OWN_STEPS,
        *BESIDE_OTHERS,
        *INSIDE_FIT,
        *ANY_BACKEND_WILL_DO,
        "a_backup_without_a_state_file_is_told",
        "what_is_not_of_keras_3_gets_one_clear_line",
        "decisions_fall_on_the_borders_of_executions",
        "a_resumed_fit_goes_on_as_if_nothing_had_been",
        "a_tape_loop_with_the_policy_off_is_the_plain_loop",
        "a_tape_loop_is_steered_measured_and_mended",
        "a_compiled_step_of_ones_own_reads_the_steered_values",
        "what_a_tape_loop_ignores_is_refused_before_the_first_update",
        "a_tape_loop_resumes",
        "mixed_precision_is_steered",
        "a_step_without_memory_is_rolled_back_and_told",
    ),
    "jax": (
        *BESIDE_OTHERS,
        *INSIDE_FIT,
        "decisions_fall_on_the_borders_of_executions",
        "a_resumed_fit_goes_on_as_if_nothing_had_been",
    ),
    "torch": (
        *OWN_STEPS,
        *BESIDE_OTHERS,
        *INSIDE_FIT,
        "what_would_be_lost_is_told",
        "a_step_without_memory_is_rolled_back_and_told",
    ),
}


@functools.cache
def results(backend: str) -> dict[str, str]:
    settings = {
        "KERAS_BACKEND": backend,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_NUMPY_RANK_PROMOTION": "allow",  # Keras' own layers promote
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *CHECKS[backend]],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("backend", "claim"),
    [(backend, claim) for backend, claims in CHECKS.items() for claim in claims],
)
def test_keras(backend: str, claim: str) -> None:
    for package in ("keras", backend):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    trouble = results(backend)[claim]
    assert not trouble, trouble
