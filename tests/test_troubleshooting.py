"""docs/troubleshooting.md: what stands behind each of its answers."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from processing.images import open_image
from recipes import cli
from tests import training


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
# The words in bold that an answer begins with -> the tests that keep it true.
EVIDENCE = {
    "A training stops in the middle at a picture.": [
        "test_train_careless.py::test_rows_without_what_they_need_are_counted_and_named",
        "test_images.py::test_every_format_opens_as_pillow_decodes_it",
    ],
    "`IndexError`, or answers about the wrong picture.": ["test_data_page.py::test_the_error_is_said"],
    "Somebody's text has `<image>` or `</s>` in it.": ["test_encoding.py::test_text_never_becomes_a_control_token"],
    "Several pictures in a conversation.": ["test_encoding.py::test_images_in_a_later_turn_and_several_at_once"],
    "Rows without pictures, or only such rows.": ["test_trainer.py::test_rows_of_text_alone_and_rows_of_nothing"],
    "The original's JSON does not load.": ["test_llava_json.py::test_what_cannot_be_read_has_a_reason"],
    "Where is the script that wrote the data?": [
        "test_generate_docs.py::test_every_command_runs",
        "test_captions.py::test_pairs_become_balanced_rows",
    ],
    "`tokenization mismatch`, a loss of 0.": ["test_encoding.py::test_supervised_ids_decode_to_exactly_the_answers"],
    "Answers are cut by the length.": [
        "test_encoding.py::test_truncation_drops_whole_turns_from_the_end",
        "test_train_careless.py::test_conversations_that_are_cut_are_counted",
    ],
    "The loss becomes NaN.": [
        "test_trainer.py::test_a_loss_of_nan_stops_the_run_and_names_the_conversations",
        "test_recipes.py::test_what_learns_is_in_float32",
    ],
    "Out of memory.": [
        "test_trees.py::test_gradient_checkpointing_changes_nothing",
        "test_distributed.py::test_two_processes_equal_one_that_accumulates",
        "test_adapters.py::test_qlora_trains_the_projector_beside_the_adapter",
    ],
    "flash-attn does not install.": ["test_trees.py::test_loss_and_gradients_equal_stock_one_at_a_time"],
    "How does one see overfitting?": [
        "test_train_watching.py::test_the_held_out_loss_is_that_of_all_its_tokens",
        "test_train_watching.py::test_the_page_shows_answers_with_their_pictures",
    ],
    "A run does not go on from its checkpoint.": [
        "test_resume.py::test_killed_and_started_again",
        "test_distributed.py::test_two_processes_killed_and_started_again",
    ],
    "It hangs on several GPUs when some rows have no picture.": [
        "test_distributed.py::test_held_out_loss_with_a_process_that_sees_no_picture"
    ],
    "Saving fails at the end, over `temperature` and `do_sample`": [
        "test_build.py::test_a_generation_config_that_cannot_be_saved_is_repaired"
    ],
    "Which rate has the projector?": ["test_trainer.py::test_each_part_has_its_rate"],
    "Training the vision tower.": [
        "test_trainer.py::test_train_vision_trains_all_that_is_used_and_nothing_else",
        "test_train_careless.py::test_lora_on_chosen_layers_leaves_the_tower_alone",
    ],
    "The disk is full.": ["test_train_careless.py::test_a_full_disk_is_told_and_leaves_no_half_checkpoint"],
    "Where is `mm_projector.bin`?": [
        "test_train.py::test_a_lora_is_merged_into_a_checkpoint_for_stock",
        "test_troubleshooting.py::test_a_checkpoint_of_a_lora_run_is_merged",
        "test_convert_joined.py::test_projector_goes_back_as_it_came",
    ],
    "Does the name of a folder matter?": ["test_convert_joined.py::test_lora_is_merged"],
    "`has nan in its weight`.": ["test_parts.py::test_a_checkpoint_that_is_not_whole_is_told"],
    "Another language model than Llama.": [
        "test_build.py::test_towers_languages_and_templates_go_together",
        "test_build.py::test_heads_that_llava_has_no_place_for_are_refused",
    ],
    "LLaVA-1.6, resamplers, S2.": ["test_convert_careless.py::test_configs_that_do_not_fit_are_refused"],
    "Another version of transformers breaks it.": [
        "test_stock.py::test_a_saved_directory_gives_the_same_without_this_project"
    ],
    "Answers are empty, or never end.": ["test_encoding.py::test_the_prompt_at_generation_is_the_prompt_in_training"],
    "After stage 1 it says little of sense.": ["test_templates.py::test_plain_refuses_what_it_would_leave_out"],
    "Answers are slow.": [
        "test_answer.py::test_each_picture_is_seen_once",
        "test_answer_resume.py::test_two_processes_go_on_where_one_was_killed",
    ],
    "Answers differ from run to run, or with the batch.": [
        "test_answer.py::test_answers_do_not_depend_on_the_batch",
        "test_answer.py::test_draws_depend_on_the_seed_alone",
    ],
    "It says yes to everything.": ["test_score.py::test_pope"],
    "ScienceQA is far from what was published.": [
        "test_scienceqa_score.py::test_a_letter_is_read_in_the_order_of_forms"
    ],
    "LLaVA-Bench scores move.": [
        "test_judge.py::test_replies_without_scores_are_asked_again_then_left_out_and_counted"
    ],
    "A page that says `network error`.": ["test_demo.py::test_what_is_no_picture_changes_nothing"],
    "An API for other programs.": ["test_serving.py::test_the_snippet_and_llava_answer_get_the_words_of_our_classes"],
    "`Another run writes into` the place.": [
        "test_writing.py::test_a_second_run_into_one_place_is_refused",
        "test_writing.py::test_what_a_killed_run_left_is_removed_and_told",
    ],
    "A `~` in a path.": [
        "test_cli.py::test_a_home_after_an_equals_sign_is_written_out",
        "test_train_careless.py::test_paths_of_a_yaml_may_begin_at_home",
    ],
    "`nobody reads what it prints any more`.": ["test_cli.py::test_a_reader_that_has_gone_is_no_error_of_ours"],
    "macOS, Windows.": [],
}
NOTHING_CLAIMED = ["macOS, Windows."]  # but that it has not been tried


def test_every_answer_has_a_test():
    assert re.findall(r"^\*\*(.+?)\*\*", PAGE, re.MULTILINE) == list(EVIDENCE)
    assert [words for words, tests in EVIDENCE.items() if not tests] == NOTHING_CLAIMED


@pytest.mark.parametrize("test", sorted({test for tests in EVIDENCE.values() for test in tests}))
def test_the_test_is_there(test):
    file, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_a_gif_that_is_called_jpg_opens(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", "GIF")
    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 0, 0)


def test_a_checkpoint_of_a_lora_run_is_merged(tmp_path, monkeypatch):
    """In a folder whose name says nothing of LLaVA or LoRA."""
    monkeypatch.chdir(tmp_path)
    training.write_data_and_start(tmp_path)
    training.run(tmp_path, use_peft=True, lora_r=4, save_strategy="steps", save_steps=1, output_dir="out")
    assert cli.main(["merge", "--adapter", "out/checkpoint-1", "--out", "merged"]) == 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("start", "merged"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {re.match(r"(?:model\.)?(\w+)", name)[1] for name in changed} == {"language_model", "multi_modal_projector"}
