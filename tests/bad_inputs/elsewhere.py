"""Every bad input that an issue names, with where it is tried: a row of the table by its title, or a test by file and name."""

from __future__ import annotations

CORRECT = "tests/bad_inputs/test_correct.py::"
LOCATE = "tests/bad_inputs/test_locate.py::"
RUNS = "tests/bad_inputs/test_runs.py::"
STAGES = "tests/run/test_stages.py::"
SWEEP = "tests/locate/test_sweep.py::"
TEXT = "tests/edit/test_text_editors.py::"
COMPRESS = "tests/run/test_compress.py::"

NAMED: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "a missing npz": ("run, a file: missing",),
        "a truncated npz": ("run, a file: truncated",),
        "a corrupt npz": ("run, a file: corrupt", "run, a file: not a zip", "run, a file: pickle"),
        "an npz of the wrong layout": (
            "run, a file: other names", "run, a file: float images", "run, a file: four channels", "run, a file: fewer labels",
            "run, a file: no images",
        ),
        "labels out of range": ("run, a file: label out of range", "run, a file: negative label"),
        "an empty split": ("run, a file: an empty split",),
        "--held-out-ratio of 0 or 1": ("run: --held-out-ratio 0", "run: --held-out-ratio 1"),
        "an unknown stage": ("run: --stage edti",),
        "an unknown layer": (CORRECT + "test_layers_out_of_range",),
        "an unknown method": ("run: --edit-method alphaedti",),
        "a checkpoint of another architecture": (CORRECT + "test_a_checkpoint_of_another_architecture",),
        "a checkpoint of another class count": (CORRECT + "test_a_checkpoint_of_another_class_count",),
        "a full disk": (STAGES + "test_a_full_disk_in_each_stage",),
        "Ctrl-C in each stage": (STAGES + "test_ctrl_c_in_each_stage_leaves_earlier_results_and_resumes",),
        "a killed training": (STAGES + "test_a_killed_training_resumes_to_the_same_weights",),
        "edits on a model that has no errors": (CORRECT + "test_a_model_without_errors",),
    },
    3: {
        "pairs of different size": (LOCATE + "test_pairs_of_different_size",),
        "a corruption that changes nothing": (
            LOCATE + "test_pairs_that_do_not_differ", SWEEP + "test_a_corruption_that_changes_nothing_is_refused",
            "locate patch: --min-gap 1e9",
        ),
        "a head out of range": (SWEEP + "test_sites_that_are_not_there_are_told_in_one_sentence",),
        "a token out of range": ("locate patch: --tokens 9999", "locate trace, prompts: --tokens 0,9"),
        "a layer out of range": ("locate patch: --window 5", SWEEP + "test_sites_that_are_not_there_are_told_in_one_sentence"),
        "a model with no CLS token": ("locate trace, prompts: --tokens cls", "locate trace, prompts: --tokens patches"),
        "eager and SDPA differ": (SWEEP + "test_eager_attention_gives_the_same",),
        "a hook raising in the middle": (SWEEP + "test_the_model_is_left_as_it_was",),
        "no hook of the user's removed": ("tests/laws/test_families.py::test_hooks_of_the_user_stay_and_are_called",),
    },
    4: {
        "a subject that is not in the prompt": ("edit, a file of facts: a subject that is not in its prompt",),
        "an empty target": ("edit, a file of facts: an empty target",),
        "a target of several tokens": (TEXT + "test_edits_are_reached_and_the_model_is_untouched",),
        "duplicate requests": (TEXT + "test_a_request_said_twice_counts_once_and_is_named",),
        "contradictory requests": (
            "edit, a file of facts: contradictory requests", TEXT + "test_requests_that_contradict_each_other_are_named",
        ),
        "more edits than null-space dimensions": (
            "tests/edit/test_solver.py::test_more_edits_than_room_are_refused_without_ridge",
        ),
        "NaN in keys": (TEXT + "test_a_model_that_overflows_is_refused_and_left_whole",),
        "a tokenizer that pads left": (TEXT + "test_a_tokenizer_that_pads_left_changes_nothing",),
        "a layer out of range": ("edit: --edit-layers 40",),
        "a statistics cache of another model": (
            "tests/measure/test_moments.py::test_a_sum_of_another_model_is_not_taken_up",
            "tests/measure/test_moments.py::test_other_weights_samples_or_sites_are_measured_anew",
        ),
        "a sharded model": ("tests/merge/test_checkpoint.py::test_every_source_gives_the_same",),
        "a half-precision model": (TEXT + "test_a_model_of_half_precision_is_edited",),
        "a model half-edited": (TEXT + "test_a_model_that_overflows_is_refused_and_left_whole",),
    },
    5: {
        "a journal cut off in the middle of a record": (
            "tests/stream/test_journal.py::test_an_operation_that_was_cut_off_anywhere_is_dropped",
        ),
        "an adapter for another base": ("tests/test_adapters.py::test_an_adapter_for_another_base_is_refused",),
        "the same edit twice": ("tests/stream/test_stream.py::test_the_same_edit_twice_is_left_out_while_it_holds",),
        "contradictory edits": ("tests/stream/test_stream.py::test_a_later_edit_overrules_an_earlier_one_and_says_so",),
        "removing an edit that is not there": ("tests/run/test_edits.py::test_bad_journals",),
        "a trust set that overlaps the edits": (
            "tests/stream/test_trust_and_replay.py::test_samples_that_judge_are_not_edited",
            "tests/stream/test_trust_and_replay.py::test_text_that_says_what_is_edited_judges_nothing",
        ),
    },
    6: {
        "a threshold of 0 or below": (
            "compress: --acdc-thresholds 0", "compress: --acdc-thresholds 0.1 -1", "compress: --acdc-thresholds nan",
        ),
        "a ratio outside (0, 1]": ("compress: --eap-keep-ratios 0", "compress: --eap-keep-ratios 1.1"),
        "everything pruned away": ("compress: --eap-keep-ratios 0.001",),
        "classes missing from the folder": (COMPRESS + "test_a_broken_folder",),
        "a truncated JPEG": (COMPRESS + "test_a_broken_folder",),
        "annotations that name unknown images": (COMPRESS + "test_a_broken_folder",),
        "a width that does not divide": (COMPRESS + "test_networks_that_cannot_be",),
        "a baseline that is not there": ("compress: --skip-training", "evaluate: --model-paths {rivals}/runs/absent"),
    },
    7: {
        "missing, extra, renamed, mis-shaped tensors": ("tests/merge/test_merging.py::test_tensors_that_do_not_fit",),
        "another architecture": ("tests/merge/test_merging.py::test_another_architecture",),
        "bf16 with fp32": ("tests/merge/test_merging.py::test_widths_that_differ_are_told_and_what_rounding_took",),
        "integer buffers that differ": ("tests/merge/test_merging.py::test_integer_buffers_that_differ_are_the_bases",),
        "a pickle file": ("tests/merge/test_checkpoint.py::test_pickles_and_other_files",),
        "an output folder on a full disk": ("tests/merge/test_merging.py::test_a_full_disk_leaves_nothing",),
        "NaN in a source": ("tests/merge/test_merging.py::test_tensors_that_do_not_fit",),
        "a base listed among the models": ("merge: --models {near}/one {near}/base",),
        "a negative weight": ("merge: --method linear --weights 1 -1",),
        "a shard that is missing": ("tests/merge/test_checkpoint.py::test_indices_and_shards_that_do_not_fit",),
    },
    8: {
        "labels with HTML in them": (
            "tests/report/test_page.py::test_text_from_data_is_escaped_everywhere",
            "tests/run/bench/test_markup.py::test_class_names_are_text_everywhere",
        ),
        "10,000 classes": (
            "tests/report/test_many_pages.py::test_a_run",
            "tests/run/test_many_classes.py::test_ten_thousand_classes_are_scored_and_written_in_seconds",
        ),
        "images of odd modes": (
            "tests/data/test_decode.py::test_sixteen_bits_are_scaled_and_not_cut_off",
            "tests/data/test_decode.py::test_a_palette_gives_its_colours",
            "tests/data/test_decode.py::test_exif_turns_the_image_upright",
            "tests/data/test_folder.py::test_every_mode_becomes_eight_bit_colour",
        ),
        "a run folder of an older version or half a run": (
            RUNS + "test_half_runs_and_older_ones", RUNS + "test_what_cannot_be_gone_on_with",
        ),
        "a port in use": ("tests/run/bench/test_commands.py::test_a_port_in_use",),
        "two people at one bench": (
            "tests/run/bench/test_commands.py::test_one_bench_a_run",
            "tests/run/bench/test_page.py::test_the_browser_is_told_when_a_preview_is_behind",
        ),
    },
    9: {
        "a full disk at each write": (
            STAGES + "test_a_full_disk_in_each_stage", "tests/test_files.py::test_a_full_disk_leaves_the_old_folder",
            "tests/run/test_full_disk.py::test_a_stream_of_edits_goes_on_after_the_disk_was_full",
            "tests/run/test_full_disk.py::test_a_merge_finds_the_disk_full_at_every_write",
        ),
        "corrupt, truncated or swapped cache entries": (
            "tests/measure/test_moments.py::test_a_damaged_entry_is_measured_again",
            "tests/data/test_npz.py::test_an_unpacked_file_that_is_another_is_unpacked_again",
            "tests/measure/test_kept.py::test_json_that_was_swapped_or_changed_is_told",
        ),
        "two runs sharing one cache": (
            "tests/measure/test_moments.py::test_two_processes_share_a_cache",
            "tests/data/test_npz.py::test_unpacking_at_the_same_time_does_no_harm",
            "tests/run/test_shared_cache.py::test_processes_that_share_a_cache",
        ),
        "another clock": (
            "tests/run/test_clock.py::test_a_stage_that_was_redone_under_an_earlier_clock_counts",
            "tests/run/test_clock.py::test_files_of_the_future_and_of_the_past",
        ),
        "another locale": (
            "tests/cli/test_locale.py::test_a_locale_that_cannot_name_a_file_is_told",
            "tests/cli/test_locale.py::test_plain_c_reads_and_writes_utf8",
        ),
        "out of memory": (
            "tests/test_batches.py::test_predictions", "tests/test_batches.py::test_key_statistics",
            "tests/test_batches.py::test_a_sweep", "tests/test_batches.py::test_a_training_takes_the_same_steps",
            "tests/edit/test_memory.py::test_images", "tests/edit/test_memory.py::test_texts",
            "tests/evaluate/test_memory.py::test_generated_texts",
            "tests/prune/test_memory.py::test_the_same_of_fewer_at_a_time",
        ),
        "an archive that names other places": (
            "tests/data/test_npz.py::test_members_that_name_other_places_are_written_nowhere",
            "tests/merge/test_checkpoint.py::test_indices_and_shards_that_do_not_fit",
        ),
        "pickled weights": ("tests/test_adapters.py::test_a_pickle_is_not_opened", "run, a file: pickle"),
        "image bombs": ("tests/data/test_folder.py::test_an_image_just_over_the_limit_is_refused_too",),
        "names from data in HTML": ("tests/report/test_page.py::test_text_from_data_is_escaped_everywhere",),
        "names from data in a path": (
            "tests/run/test_many_classes.py::test_odd_names_come_back_from_tables_and_do_no_harm_in_cards",
            "compress: --baseline-name ../up",
        ),
        "a bench that others reach": ("tests/run/bench/test_guard.py::test_loopback",),
        "a foreign origin at the bench": ("tests/run/bench/test_guard.py::test_a_foreign_page_is_refused",),
        "damaged files of every reader": (
            "tests/fuzz/test_readers.py::test_damaged_files_read_well_or_are_refused_in_a_sentence",
        ),
    },
}  # fmt: skip
"""Issue → what it names → where."""
