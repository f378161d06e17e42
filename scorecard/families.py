# ruff: noqa: E501 - one family a line
"""The fault families and the tests that stand for each. A family without a test is a gap, and counted as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

READER, FAULTS, CHAT, LM = (
    "tests/tasks/test_reader.py::", "tests/tasks/test_reader_faults.py::", "tests/tasks/test_chat.py::",
    "tests/tasks/test_causal_lm.py::",
)  # fmt: skip
CLI, RUN, INDEX, LOADING = (
    "tests/cli/test_errors.py::", "tests/store/test_run.py::", "tests/test_indexing.py::", "tests/test_loading.py::",
)  # fmt: skip
OPERATORS, PRECISION, API, CREWS = (
    "tests/laws/test_operators.py::", "tests/gradients/test_precision.py::", "tests/test_api.py::",
    "tests/reliability/test_crews.py::",
)  # fmt: skip
ATOMIC, SAFETY, BROWSER, TEXT = (
    "tests/store/test_atomic.py::", "tests/architecture/test_safety.py::", "tests/report/test_browser.py::",
    "tests/report/test_text.py::",
)  # fmt: skip
TRACES, UNFINISHED = "tests/reliability/test_traces.py::", "tests/store/test_unfinished.py::"
KILLS, SIGNALS, FUZZ = (
    "tests/reliability/test_interruptions.py::",
    "tests/cli/test_signals.py::",
    "tests/fuzz/test_fuzz.py::",
)


@dataclass(frozen=True)
class Family:
    """Faults of one kind.

    Attributes:
        fault: what goes wrong.
        tests: node ids without parameters; all their cases must pass.
    """

    fault: str
    tests: Sequence[str]


def _family(fault: str, *groups: str) -> Family:
    """``groups`` are a file's prefix followed by the names of its tests, separated by blanks."""
    tests = []
    for group in groups:
        prefix, names = group.split("::", 1)
        tests += [f"{prefix}::{name}" for name in names.split()]
    return Family(fault, tuple(tests))


FAMILIES: Mapping[str, Family] = {
    "F1": _family("invalid JSON line", FAULTS + "test_a_bad_line_is_quarantined_with_its_place"),
    "F2": _family("truncated last line", FAULTS + "test_a_cut_file_names_its_last_line_at_every_byte"),
    "F3": _family("not UTF-8, byte-order marks, UTF-16", FAULTS + "test_byte_order_marks test_utf16_is_named"),
    "F4": _family("lone surrogates, control characters", FAULTS + "test_odd_but_good_lines test_depth_and_surrogates"),
    "F5": _family("huge lines, deep nesting", FAULTS + "test_a_200_mb_line_costs_little_memory test_long_lines_are_skipped_whole"),
    "F6": _family("valid JSON of the wrong shape", FAULTS + "test_rows_of_the_wrong_shape test_more_than_half_wrong_names_the_columns"),
    "F7": _family("no rows", CLI + "test_empty_file test_all_rows_bad"),
    "F8": _family("nothing to predict", LM + "test_too_short_for_a_next_token test_empty_rows_are_not_taken_for_a_wrong_mask"),
    "F9": _family("the mask eats every token", LM + "test_a_mask_that_eats_everything_stops_with_the_rows_shown", CHAT + "test_a_chat_without_assistant_has_no_loss"),
    "F10": _family("overlong rows", LM + "test_truncation_around_the_limit test_other_policies_for_long_rows"),
    "F11": _family("duplicate ids", READER + "test_duplicate_ids_stop_with_both_places test_duplicate_ids_can_be_numbered"),
    "F12": _family("duplicate rows", READER + "test_duplicate_rows_are_kept_apart", "tests/tasks/test_language_model_loss.py::test_identical_rows_get_identical_losses_in_different_batches"),
    "F13": _family("chat templates that fail, loop or flood", CHAT + "test_a_template_without_end_is_stopped test_a_template_that_raises_fails_the_row_alone test_a_flood_of_text_is_refused"),
    "F14": _family("special tokens in people's text", CHAT + "test_an_end_of_turn_in_a_users_text_does_not_fool_the_mask", LM + "test_special_tokens_in_the_text_are_counted_or_refused"),
    "F15": _family("compressed bombs", FAULTS + "test_a_gzip_bomb_is_stopped test_cut_and_false_gzip"),
    "F16": _family("a file that changes meanwhile", READER + "test_a_file_that_changes_while_read_is_noticed", API + "test_a_file_that_changes_meanwhile_costs_nothing_but_is_told"),
    "F20": _family("NaN or infinity in one row", "tests/gradients/test_capture.py::test_a_poisoned_row_is_dropped_and_the_others_are_bitwise_the_same", API + "test_a_row_whose_gradient_is_not_finite_is_left_out"),
    "F21": _family("NaN or infinity in weights", LOADING + "test_weights_that_are_not_finite_are_named", CLI + "test_nan_weights"),
    "F22": _family("under- and overflow in half precision", PRECISION + "test_small_gradients_survive_float16 test_large_gradients_are_repeated_with_a_smaller_scale test_check_tells_what_half_precision_loses"),
    "F23": _family("overflow of stored numbers", "tests/linalg/test_codes.py::test_log_levels_are_within_half_a_step_and_keep_signs test_dense_codes_are_near_exact", PRECISION + "test_a_row_beyond_float16_is_one_row"),
    "F24": _family("gradients of exactly zero", "tests/gradients/test_capture.py::test_unused_layer_is_zero_and_all_unused_is_an_error", "tests/curvature/test_solvers.py::test_a_layer_without_curvature_gets_an_inverse_of_zero"),
    "F25": _family("cancellation in long sums", PRECISION + "test_statistics_are_summed_in_float32", "tests/tasks/test_token_loss.py::test_half_precision_is_computed_in_single"),
    "F26": _family("singular covariances", OPERATORS + "test_eigh_recomposes_and_clamps test_a_layer_without_curvature_contributes_nothing"),
    "F27": _family("damping of zero or nonsense", OPERATORS + "test_damping_must_be_above_zero test_damping_must_be_understood", CLI + "test_zero_damping"),
    "F28": _family("an eigendecomposition that fails", OPERATORS + "test_eigh_names_what_is_wrong test_non_finite_curvature_names_the_layer"),
    "F29": _family("negative eigenvalues", "tests/linalg/test_eigen.py::test_a_matrix_with_a_negative_eigenvalue_is_no_covariance", "tests/linalg/test_iterative.py::test_indefinite_matrix_is_noticed_and_explained"),
    "F30": _family("results that depend on the batch", "tests/test_check.py::test_laws_hold test_seen_padding_is_noticed test_a_mean_over_the_batch_is_noticed"),
    "F31": _family("layers that are not seen", "tests/gradients/test_experts.py::test_a_model_half_unseen_is_refused_unless_asked_for", "tests/test_check.py::test_coverage_and_loss_mask_are_told"),
    "F40": _family("killed", KILLS + "test_killed_at_every_point test_killed_at_random_times", TRACES + "test_killed_at_some_points", UNFINISHED + "test_every_damage_is_as_if_nothing_were_there test_a_piece_of_another_plan_does_not_count", "tests/cli/test_index.py::test_killed_then_run_again"),
    "F41": _family("told to stop", TRACES + "test_told_to_stop", SIGNALS + "test_one_signal test_the_second_signal_ends_at_once test_an_index_that_is_told_to_stop_goes_on"),
    "F42": _family("disk full, no permission", KILLS + "test_a_full_disk_at_every_write test_other_failures_of_the_disk", "tests/test_resuming.py::test_no_room_to_keep_anything_costs_no_run", ATOMIC + "test_a_full_disk_is_a_resource_error test_a_file_in_the_place_of_a_folder"),
    "F43": _family("power loss: order of writes", ATOMIC + "test_order_of_the_disk_calls test_a_failure_before_the_rename_leaves_the_old_file"),
    "F44": _family("flipped bits, cut files", INDEX + "test_damage_anywhere_is_found test_a_damaged_shard_is_found_before_use_and_alone_made_again", RUN + "test_every_flipped_bit_is_found"),
    "F45": _family("missing or extra files", RUN + "test_a_missing_file_is_named", INDEX + "test_no_index_there"),
    "F46": _family("formats of other versions", RUN + "test_a_newer_format_is_refused", "tests/formats/test_formats.py::test_a_kept_run_is_still_read test_a_kept_index_still_answers"),
    "F47": _family("another model, tokenizer, template or data", INDEX + "test_another_plan_is_refused_by_field test_a_changed_model_or_tokenizer_is_refused"),
    "F48": _family("two processes, one folder", CREWS + "test_two_builders_and_a_reader", RUN + "test_a_run_in_use_names_its_owner"),
    "F49": _family("stale locks", "tests/formats/test_formats.py::test_a_lock_that_a_dead_process_left_is_nobodys"),
    "F50": _family("network file systems", "tests/store/test_network_disks.py::test_without_hard_links_a_plan_is_whole test_another_failure_of_a_link_is_told test_without_flock_a_second_process_is_still_refused test_without_flock_many_processes_are_told_why", CREWS + "test_names_that_appear_late"),
    "F51": _family("out of memory", CLI + "test_out_of_memory_is_a_resource_error", "tests/test_planning.py::test_out_of_memory_is_an_answer"),
    "F52": _family("a rank that dies or is silent", CREWS + "test_a_dead_rank_is_named test_a_silent_rank_is_named test_an_array_takes_the_work_of_the_dead test_whoever_is_overtaken_goes_on test_a_job_that_is_paused_goes_on"),
    "F53": _family("umask, home, odd places", ATOMIC + "test_the_umask_counts", CLI + "test_nothing_is_written_to_the_home_or_the_folder"),
    "F54": _family("a reader that leaves, no terminal", CLI + "test_a_reader_that_leaves", "tests/cli/test_looking.py::test_progress_where_there_is_no_terminal"),
    "F55": _family("threads that fail", "tests/store/test_ahead.py::test_what_goes_wrong_is_raised_at_its_turn"),
    "F60": _family("remote code", LOADING + "test_remote_code_never_runs_by_itself"),
    "F61": _family("pickles", LOADING + "test_a_malicious_pickle_never_runs test_pickled_weights_are_refused_unless_allowed", SAFETY + "test_no_unsafe_serialisers test_no_call_that_runs_data"),
    "F62": _family("hostile parquet and arrow", FAULTS + "test_parquet_faults", FUZZ + "test_files_of_every_kind"),
    "F63": _family("hostile chat templates", CHAT + "test_a_template_without_end_is_stopped test_one_row_that_loops_does_not_stop_the_others", FUZZ + "test_files_of_every_kind"),
    "F64": _family("script in training text", BROWSER + "test_hostile_texts_stay_texts", "tests/report/test_html.py::test_policy_comes_first_and_fits test_inline_json_cannot_close_its_element"),
    "F65": _family("invisible and overriding characters", TEXT + "test_marks_are_visible test_combining_floods_are_calmed"),
    "F66": _family("terminal escapes", TEXT + "test_nothing_hostile_reaches_the_terminal", "tests/cli/test_trace.py::test_hostile_text_reaches_no_terminal"),
    "F67": _family("formulas in CSV", TEXT + "test_formulas_are_disarmed test_csv_is_safe_and_numbers_stay_numbers", BROWSER + "test_export_is_formula_safe"),
    "F68": _family("paths out of the folder", RUN + "test_a_manifest_cannot_point_outside", "tests/cli/test_evaluate.py::test_hostile_names_reach_neither_terminal_nor_page"),
    "F69": _family("overwriting what is not ours", RUN + "test_a_foreign_folder_is_refused_and_untouched", CLI + "test_output_folder_of_somebody_else"),
    "F70": _family("a viewer reached by strangers", "tests/test_viewer.py::test_strangers_are_refused test_only_this_machine_and_a_fresh_secret test_only_reading"),
    "F71": _family("secrets in results", RUN + "test_secrets_stay_out"),
    "F72": _family("network", LOADING + "test_no_network_is_said_at_once", READER + "test_what_is_not_there_is_never_asked_of_the_hub", "tests/report/test_html.py::test_no_address_and_no_sink"),
    "F73": _family("dependencies", "tests/architecture/test_environment.py::test_every_package_is_pinned test_every_core_dependency_has_its_reason"),
    "F74": _family("a hostile index", FUZZ + "test_files_of_every_kind", "tests/formats/test_formats.py::test_a_sealed_but_hostile_index_is_refused"),
}  # fmt: skip
