"""`llava convert`: whole checkpoints of the original give the logits they had, from the ids they had."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import (
    AutoProcessor,
    CLIPVisionModel,
    LlamaTokenizer,
)
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from processing.chat_templates import TEMPLATE_NAMES
from recipes import cli
from recipes.convert import convert, main, parser
from tests.originals import (
    IMAGE,
    VOCAB,
    assert_same_function,
    logits_by_hand,
    logits_of,
    projector_tensors,
    write_full,
    write_tokenizer,
    write_weights,
)
from tests.originals import spm as spm
from tests.originals import tower as tower
from tests.tiny import NUM_PATCHES, pixels


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("form", ["bin", "shards", "safetensors"])
def test_full_checkpoint_gives_the_logits_of_the_original(tmp_path, spm, tower, kind, form):
    config, tensors = write_full(tmp_path / "original", spm, tower, form, kind)
    convert(str(tmp_path / "original"), tmp_path / "out")
    assert_same_function(tmp_path / "out", tensors, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"mm_vision_select_feature": "cls_patch"},
        {"mm_vision_select_layer": -1},
        {"language": "mistral", "architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"},
        # The first release: another model type, no projector type, -1 for "no padding token".
        {"kind": "linear", "mm_projector_type": "absent", "model_type": "llava", "pad_token_id": -1},
        {"rope_theta": 500.0},
    ],
    ids=str,
)
def test_facts_of_the_config_are_kept(tmp_path, spm, tower, changes):
    config, tensors = write_full(tmp_path / "original", spm, tower, **changes)
    convert(str(tmp_path / "original"), tmp_path / "out")
    if "rope_theta" in changes:
        with pytest.raises(AssertionError, match="not close"):
            assert_same_function(tmp_path / "out", tensors, config)  # the reference does not know it
        assert StockLlava.from_pretrained(tmp_path / "out").config.text_config.rope_parameters["rope_theta"] == 500.0
    else:
        assert_same_function(tmp_path / "out", tensors, config)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = processor.image_token_id
    ids = processor(text="<image>", images=torch.zeros(3, 28, 28), return_tensors="pt").input_ids[0]
    assert (ids == image).sum() == NUM_PATCHES + (config["mm_vision_select_feature"] == "cls_patch")


def test_weights_of_the_tower_in_the_checkpoint_are_used_and_buffers_left_out(tmp_path, spm, tower):
    config, tensors = write_full(tmp_path / "original", spm, tower)
    own = CLIPVisionModel.from_pretrained(tower).state_dict()
    prefix = "model.vision_tower.vision_tower.vision_model."
    tensors |= {prefix + key: tensor + 0.05 * torch.randn(tensor.shape) for key, tensor in own.items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(NUM_PATCHES + 1)[None]
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    write_weights(tmp_path / "original", tensors, "bin")

    report = convert(str(tmp_path / "original"), tmp_path / "out")
    assert_same_function(tmp_path / "out", tensors, config)
    assert "2 tensors  rotary frequencies, computed from the config" in report
    assert "1 tensors  position numbers" in report
    assert f"{len(own)} tensors  from `{tmp_path / 'original'}`" in report


def test_converted_directory_loads_without_this_project(tmp_path, spm, tower):
    config, tensors = write_full(tmp_path / "original", spm, tower)
    main(["--from", str(tmp_path / "original"), "--out", str(tmp_path / "out")])
    ids = [1, 20, IMAGE, 30, 31]
    torch.save(logits_by_hand(tensors, config, ids, pixels(1)), tmp_path / "wanted.pt")
    torch.save(pixels(1), tmp_path / "pixels.pt")
    script = f"""
import sys
for name in ("modeling_llava", "processing", "recipes"):
    sys.modules[name] = None  # importing it now is an error
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained("out")
image = [processor.image_token_id] * {NUM_PATCHES}
ids = torch.tensor([[1, 20, *image, 30, 31]])
logits = model(input_ids=ids, pixel_values=torch.load("pixels.pt")).logits[0, :, :{VOCAB}]
torch.testing.assert_close(logits, torch.load("wanted.pt"), atol=1e-5, rtol=0)
assert processor.tokenizer.model_max_length == 2048
conversation = [dict(role="user", content=[dict(type="image"), dict(type="text", text="What is it?")])]
print(processor.apply_chat_template(conversation, add_generation_prompt=True))
"""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "curious user" in run.stdout
    assert "USER: <image>\nWhat is it? ASSISTANT:" in run.stdout


def ids_in_the_original(spm: Path, text: str, special: dict[str, int], legacy: bool) -> list[int]:
    """Its two steps by hand: cut at the images, then tokenize each piece with SentencePiece, around control tokens."""
    model = sentencepiece.SentencePieceProcessor(str(spm))
    newline = model.encode("\n")
    ids = [1]
    for number, piece in enumerate(text.split("<image>")):
        ids += [IMAGE] if number else []
        first = True
        while piece:
            places = {piece.find(token): token for token in special if token in piece}
            end = min(places, default=len(piece))
            if end:
                # Not legacy: only the first words of a piece get a space before them.
                bare = piece[:end]
                ids += model.encode(bare) if first or legacy else model.encode("\n" + bare)[len(newline) :]
            first = False
            if places:
                ids.append(special[places[end]])
                end += len(places[end])
            piece = piece[end:]
    return ids


@pytest.mark.parametrize("legacy", [None, True, False])
def test_prompts_are_tokenized_as_in_the_original(tmp_path, spm, tower, legacy):
    _, _ = write_full(tmp_path / "original", spm, tower)
    write_tokenizer(tmp_path / "original", spm, **({} if legacy is None else {"legacy": legacy}))
    report = convert(str(tmp_path / "original"), tmp_path / "out")
    assert "tokenized a little differently" not in report

    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"
        "USER: Why? ASSISTANT:"
    )
    wanted = ids_in_the_original(spm, text, {"</s>": 2}, legacy is not False)
    processor = LlavaProcessor.from_pretrained(tmp_path / "out")  # saved and read again: `legacy` must survive
    image = processor.image_token_id
    wanted = [token for i in wanted for token in ([image] * NUM_PATCHES if i == IMAGE else [i])]
    assert processor.encode_text(messages).input_ids == wanted
    stock = AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = stock.apply_chat_template(messages, add_generation_prompt=True).replace(
        "<image>", "<image>" * NUM_PATCHES
    )
    for tokenizer in (stock.tokenizer, LlamaTokenizer.from_pretrained(tmp_path / "out")):
        assert tokenizer(prompt, add_special_tokens=False).input_ids == wanted


@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_every_template_can_be_brought_to_the_tokens_of_the_original(tmp_path, spm, tower, template):
    write_full(tmp_path / "original", spm, tower)
    write_tokenizer(tmp_path / "original", spm, legacy=False)
    report = convert(str(tmp_path / "original"), tmp_path / "out", template=template)
    assert "tokenized a little differently" not in report


START_END = {"[PAD]": VOCAB, "<im_patch>": VOCAB + 1, "<im_start>": VOCAB + 2, "<im_end>": VOCAB + 3}


@pytest.mark.parametrize("saved", [True, False], ids=["tokens in files", "tokens added while loading"])
def test_first_chat_models_wrap_each_image_in_start_and_end(tmp_path, spm, tower, saved):
    added = START_END if saved else {"[PAD]": VOCAB}
    changes = {"vocab_size": VOCAB + 4, "mm_use_im_start_end": True, "mm_use_im_patch_token": "absent"}
    config, tensors = write_full(tmp_path / "original", spm, tower, kind="linear", **changes)
    write_tokenizer(tmp_path / "original", spm, added)
    report = convert(str(tmp_path / "original"), tmp_path / "out", template="llava_v0")
    assert "writes `<im_start>` and `<im_end>` around each image" in report

    text = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.\n\n### Human: <im_start><image><im_end>\n"
        "What is it?\n### Assistant:"
    )
    ids = ids_in_the_original(spm, text, START_END, legacy=True)
    assert ids.count(IMAGE) == 1
    processor = LlavaProcessor.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    image = [processor.image_token_id] * NUM_PATCHES
    assert processor.encode_text(messages).input_ids == [t for i in ids for t in (image if i == IMAGE else [i])]
    for model_class in (LlavaForConditionalGeneration, StockLlava):
        logits = logits_of(tmp_path / "out", model_class, ids, pixels(1))[:, : VOCAB + 4]
        torch.testing.assert_close(logits, logits_by_hand(tensors, config, ids, pixels(1)), atol=1e-5, rtol=0)


def test_commands_of_the_page_parse():
    page = Path(__file__).parent.parent / "docs" / "convert.md"
    commands = re.findall(r"^llava convert (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        parser().parse_args(command.split())


@pytest.mark.parametrize("arguments", [[], ["--from", "a", "--to-original", "b"]])
def test_one_direction_at_a_time(arguments):
    with pytest.raises(SystemExit) as raised:
        parser().parse_args([*arguments, "--out", "c"])
    assert raised.value.code == 2


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_dtype_is_that_of_the_weights_or_as_asked(tmp_path, spm, tower, dtype):
    _, tensors = write_full(tmp_path / "original", spm, tower)
    write_weights(tmp_path / "original", {key: tensor.half() for key, tensor in tensors.items()}, "bin")
    report = convert(str(tmp_path / "original"), tmp_path / "out", dtype=dtype)
    wanted = torch.float16 if dtype == "auto" else torch.bfloat16
    model = StockLlava.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert f"({str(wanted).removeprefix('torch.')})" in report


def test_report_says_what_came_from_where(tmp_path, spm, tower, capsys):
    write_full(tmp_path / "original", spm, tower, image_aspect_ratio="absent")
    torch.save(projector_tensors("mlp2x_gelu"), tmp_path / "original" / "mm_projector.bin")
    assert cli.main(["convert", "--from", str(tmp_path / "original"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    source = f"`{tmp_path / 'original'}`"
    assert lines[0] == f"Converted the full checkpoint {source} to `{tmp_path / 'out'}` (float32)"
    assert lines[1] == f"  language model    21 tensors  from {source}"
    assert lines[2] == f"  projector          4 tensors  from {source}, mlp"
    assert lines[3].startswith("  vision tower") and lines[3].endswith(f"from `{tower}`")
    assert lines[4] == "  patches of layer -2, aspect square, template vicuna_v1"
    assert "note: config.json does not say: `image_aspect_ratio` is `square`, the original's default" in lines[5]
    assert "mm_projector.bin is not read" in lines[6]
