"""`llava convert`: checkpoints of the original, written here in its documented layout, give the logits they had.

The reference is a computation by hand from the original's tensors: CLIP, `nn.Sequential`, splice, Llama.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
)
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.convert_original import load_projector
from processing import LlavaProcessor
from processing.chat_templates import TEMPLATE_NAMES
from recipes import cli
from recipes.convert import convert, main, parser
from tests.tiny import IMAGE_SIZE, NUM_PATCHES, llava_model, pixels, vision_config


VISION_WIDTH, TEXT_WIDTH, VOCAB = 24, 32, 400
IMAGE = -200  # what stands for an image in the original's ids
SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: A cat.",
    "### Human: Why does it purr? ### Assistant: the quick brown fox jumps over the lazy dog, and so on.",
] * 20


@pytest.fixture(scope="module")
def spm(tmp_path_factory) -> Path:
    """A tokenizer.model as those of Llama and Vicuna: BPE, bytes for what is unknown, a space put before a text."""
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(prefix),
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("clip")
    CLIPVisionModel(vision_config("clip", hidden_size=VISION_WIDTH)).save_pretrained(directory)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory, spm) -> Path:
    """The language model alone, as Vicuna is published."""
    directory = tmp_path_factory.mktemp("vicuna")
    language_model(seed=2).save_pretrained(directory)
    write_tokenizer(directory, spm)
    return directory


def language_fields(vocab_size: int = VOCAB) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def language_model(seed: int, kind: str = "llama", vocab_size: int = VOCAB) -> nn.Module:
    torch.manual_seed(seed)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[kind]
    model = model_class(config_class(**language_fields(vocab_size))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # logits far apart, norms that are not 1
    return model


def projector_tensors(kind: str, seed: int = 3, prefix: str = "model.mm_projector.") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = {"": (TEXT_WIDTH, VISION_WIDTH)}
    if kind == "mlp2x_gelu":
        shapes = {"0.": (TEXT_WIDTH, VISION_WIDTH), "2.": (TEXT_WIDTH, TEXT_WIDTH)}
    tensors = {}
    for layer, shape in shapes.items():
        tensors[f"{prefix}{layer}weight"] = torch.randn(shape) / shape[1] ** 0.5
        tensors[f"{prefix}{layer}bias"] = torch.randn(shape[0])
    return tensors


def original_config(tower: Path, kind: str = "mlp2x_gelu", vocab_size: int = VOCAB, **changes) -> dict:
    fields = language_fields(vocab_size) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "image_aspect_ratio": "pad",
        "max_length": 4096,
        "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": kind,
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
    }
    fields |= changes
    return {key: value for key, value in fields.items() if value != "absent"}


def write_json(file: Path, value):
    file.write_text(json.dumps(value))


def write_tokenizer(directory: Path, spm: Path, added: dict | None = None, **settings):
    (directory / "tokenizer.model").write_bytes(spm.read_bytes())
    tokens = {
        name: {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True, "rstrip": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    fields = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "pad_token": None}
    fields |= {"model_max_length": 2048, "padding_side": "right", "sp_model_kwargs": {}}
    write_json(directory / "tokenizer_config.json", tokens | fields | settings)
    plain = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", plain)
    if added:
        write_json(directory / "added_tokens.json", added)


def write_weights(directory: Path, tensors: dict[str, torch.Tensor], form: str):
    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    if form == "bin":
        torch.save(tensors, directory / "pytorch_model.bin")
    elif form == "safetensors":
        save_file(tensors, directory / "model.safetensors")
    else:
        keys = list(tensors)
        halves = {"pytorch_model-00001-of-00002.bin": keys[::2], "pytorch_model-00002-of-00002.bin": keys[1::2]}
        for name, half in halves.items():
            torch.save({key: tensors[key] for key in half}, directory / name)
        weight_map = {key: name for name, half in halves.items() for key in half}
        write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def write_full(directory: Path, spm: Path, tower: Path, form="bin", kind="mlp2x_gelu", language="llama", **changes):
    """A full checkpoint; returns its config and tensors."""
    directory.mkdir(exist_ok=True)
    config = original_config(tower, kind, **changes)
    tensors = language_model(4, language, config["vocab_size"]).state_dict() | projector_tensors(kind)
    write_json(directory / "config.json", config)
    write_weights(directory, tensors, form)
    write_tokenizer(directory, spm)
    return config, tensors


def features_by_hand(tensors: dict, config: dict, pixel_values: torch.Tensor) -> torch.Tensor:
    tower = CLIPVisionModel.from_pretrained(config["mm_vision_tower"]).eval()
    prefix = "model.vision_tower.vision_tower.vision_model."
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if own:
        own.pop("embeddings.position_ids")
        tower.load_state_dict(own)
    hidden = tower(pixel_values, output_hidden_states=True).hidden_states[config["mm_vision_select_layer"]]
    features = hidden if config["mm_vision_select_feature"] == "cls_patch" else hidden[:, 1:]

    first = nn.Linear(VISION_WIDTH, TEXT_WIDTH)
    projector = nn.Sequential(first, nn.GELU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH))
    if config.get("mm_projector_type", "linear") == "linear":
        projector = first
    inner = {k.rpartition("mm_projector.")[2]: tensor for k, tensor in tensors.items() if "mm_projector." in k}
    projector.load_state_dict(inner)
    return projector(features)


@torch.no_grad()
def logits_by_hand(tensors: dict, config: dict, ids: list[int], pixel_values: torch.Tensor) -> torch.Tensor:
    """The original's forward: the embedded pieces of text with the projected features between them."""
    is_mistral = "LlavaMistralForCausalLM" in config["architectures"]
    language = {k: t for k, t in tensors.items() if k.startswith(("model.layers", "model.embed", "model.norm", "lm_"))}
    language = {key: tensor for key, tensor in language.items() if "inv_freq" not in key}
    model = language_model(0, "mistral" if is_mistral else "llama", len(language["lm_head.weight"]))
    model.load_state_dict(language)
    images = iter(features_by_hand(tensors, config, pixel_values))
    pieces = [next(images) if i == IMAGE else model.model.embed_tokens(torch.tensor([i])) for i in ids]
    return model(inputs_embeds=torch.cat(pieces)[None]).logits[0]


@torch.no_grad()
def logits_of(directory: Path, model_class, ids: list[int], pixel_values: torch.Tensor) -> torch.Tensor:
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    image = [model.config.image_token_id] * model.config.image_seq_length
    ids = [token for i in ids for token in (image if i == IMAGE else [i])]
    return model(input_ids=torch.tensor([ids]), pixel_values=pixel_values).logits[0]


def assert_same_function(directory: Path, tensors: dict, config: dict):
    ids = [1, 20, 21, IMAGE, 30, 31, 2, 40, IMAGE, 350]
    wanted = logits_by_hand(tensors, config, ids, pixels(2))
    assert wanted.std() > 0.1
    for model_class in (LlavaForConditionalGeneration, StockLlava):
        logits = logits_of(directory, model_class, ids, pixels(2))
        torch.testing.assert_close(logits[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector."])
def test_projector_of_stage_1_joins_its_base(tmp_path, spm, tower, base, kind, prefix):
    config = original_config(tower, kind, tune_mm_mlp_adapter=True)
    projector = projector_tensors(kind, prefix=prefix)
    write_json(tmp_path / "config.json", config)
    torch.save(projector, tmp_path / "mm_projector.bin")
    arguments = ["--from", str(tmp_path), "--base", str(base), "--vision", str(tower), "--template", "plain"]
    main([*arguments, "--out", str(tmp_path / "out")])
    assert_same_function(tmp_path / "out", language_model(2).state_dict() | projector, config)


def test_a_lone_projector_file_needs_a_tower_and_says_what_it_assumes(tmp_path, tower, base):
    projector = projector_tensors("linear")
    torch.save(projector, tmp_path / "pretrain-projector.bin")
    with pytest.raises(ValueError, match="does not name its vision tower. Add `--vision`"):
        convert(str(tmp_path / "pretrain-projector.bin"), tmp_path / "out", base=str(base))
    report = convert(str(tmp_path / "pretrain-projector.bin"), tmp_path / "out", base=str(base), vision=str(tower))
    assert "config.json does not say: `mm_vision_select_layer` is -2" in report
    config = original_config(tower, "linear")
    assert_same_function(tmp_path / "out", language_model(2).state_dict() | projector, config)


@pytest.mark.parametrize("num_rows", [2, VOCAB + 3])
def test_stage_1_rows_of_start_and_end_are_used(tmp_path, tower, base, num_rows):
    changes = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True}
    write_json(tmp_path / "config.json", original_config(tower, "linear", **changes))
    rows = torch.randn(num_rows, TEXT_WIDTH)
    torch.save(projector_tensors("linear") | {"model.embed_tokens.weight": rows}, tmp_path / "mm_projector.bin")
    convert(str(tmp_path), tmp_path / "out", base=str(base), template="llava_v0")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    tokenizer = LlavaProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [VOCAB, VOCAB + 1, VOCAB + 2]
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(table[VOCAB + 1 : VOCAB + 3], rows[-2:])
    language = language_model(2)
    assert torch.equal(table[:VOCAB], language.get_input_embeddings().weight)
    torch.testing.assert_close(head[VOCAB + 1], language.get_output_embeddings().weight.mean(0))


def test_embeddings_that_stage_1_only_copied_are_left_out_and_others_refused(tmp_path, tower, base):
    write_json(tmp_path / "config.json", original_config(tower))
    rows = language_model(2).get_input_embeddings().weight.data
    file = tmp_path / "mm_projector.bin"
    torch.save(projector_tensors("mlp2x_gelu") | {"model.embed_tokens.weight": rows.half()}, file)
    report = convert(str(tmp_path), tmp_path / "out", base=str(base))
    assert "1 tensors  embeddings, the same as the base's" in report
    torch.save(projector_tensors("mlp2x_gelu") | {"model.embed_tokens.weight": rows + 0.1 * rows.roll(1)}, file)
    with pytest.raises(ValueError, match="embeddings that are not those of"):
        convert(str(tmp_path), tmp_path / "other", base=str(base))


def write_lora(directory: Path, tower: Path, base_tensors: dict, form: str = "bin") -> tuple[dict, dict]:
    """An adapter directory; returns the config and the tensors of the merged model, computed by hand."""
    directory.mkdir()
    torch.manual_seed(5)
    model = language_model(0)
    model.load_state_dict(base_tensors)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora)
    adapter = {
        key.replace(".default", ""): torch.randn_like(tensor) * 0.2
        for key, tensor in wrapped.state_dict().items()
        if "lora_" in key
    }
    merged = dict(base_tensors)
    for key, matrix in adapter.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            merged[name] = merged[name] + (8 / 4) * adapter[key.replace("lora_A", "lora_B")] @ matrix
    assert len(adapter) == 2 * 7 * 2
    if form == "bin":
        torch.save(adapter, directory / "adapter_model.bin")
    else:
        save_file(adapter, directory / "adapter_model.safetensors")
    # The fields that peft 0.4, of the time of the original, wrote.
    old = {"base_model_name_or_path": "lmsys/vicuna-7b-v1.5", "bias": "none", "fan_in_fan_out": False}
    old |= {"inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "modules_to_save": None}
    old |= {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "revision": None}
    write_json(directory / "adapter_config.json", old | {"target_modules": targets, "task_type": "CAUSAL_LM"})
    config = original_config(tower)
    write_json(directory / "config.json", config)
    projector = projector_tensors("mlp2x_gelu", prefix="base_model.model.model.mm_projector.")
    torch.save(projector, directory / "non_lora_trainables.bin")
    return config, merged | projector


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_lora_is_merged(tmp_path, tower, base, form):
    config, merged = write_lora(tmp_path / "lora", tower, language_model(2).state_dict(), form)
    report = convert(str(tmp_path / "lora"), tmp_path / "out", base=str(base))
    assert "28 adapter tensors" in report
    assert_same_function(tmp_path / "out", merged, config)


def test_lora_on_an_original_llava(tmp_path, spm, tower):
    _, tensors = write_full(tmp_path / "base", spm, tower)
    language = {key: tensor for key, tensor in tensors.items() if "mm_projector" not in key}
    config, merged = write_lora(tmp_path / "lora", tower, language)
    convert(str(tmp_path / "lora"), tmp_path / "out", base=str(tmp_path / "base"))
    assert_same_function(tmp_path / "out", merged, config)


def test_adapters_that_cannot_be_merged_whole_are_refused(tmp_path, tower, base):
    write_lora(tmp_path / "lora", tower, language_model(2).state_dict())
    file = tmp_path / "lora" / "adapter_model.bin"
    adapter = torch.load(file)
    key = (
        "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    )
    torch.save(adapter | {key: torch.zeros(4, VISION_WIDTH)}, file)
    with pytest.raises(ValueError, match="also changes 1 tensors outside the language model"):
        convert(str(tmp_path / "lora"), tmp_path / "out", base=str(base))
    torch.save(dict(list(adapter.items())[2:]), file)
    with pytest.raises(ValueError, match="adapter of .* lacks 2 tensors .*layers.0.self_attn.q_proj.lora_A"):
        convert(str(tmp_path / "lora"), tmp_path / "out", base=str(base))
    (tmp_path / "lora" / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no non_lora_trainables.bin, which holds the projector"):
        convert(str(tmp_path / "lora"), tmp_path / "out", base=str(base))
    with pytest.raises(ValueError, match="Add `--base` .* \\(this one names `lmsys/vicuna-7b-v1.5`\\)"):
        convert(str(tmp_path / "lora"), tmp_path / "out")


def test_delta_is_added(tmp_path, spm, tower, base):
    """ours - base, but for the rows that only ours has, and the projector, which are ours."""
    base_tensors = language_model(2).state_dict()
    torch.manual_seed(6)
    delta, ours = {}, {}
    for key, tensor in base_tensors.items():
        delta[key] = 0.02 * torch.randn(tensor.shape)
        ours[key] = tensor + delta[key]
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            new = torch.randn(1, TEXT_WIDTH)
            delta[key], ours[key] = torch.cat([delta[key], new]), torch.cat([ours[key], new])
    config = original_config(tower, "linear", vocab_size=VOCAB + 1)
    projector = projector_tensors("linear")
    (tmp_path / "delta").mkdir()
    write_json(tmp_path / "delta" / "config.json", config)
    write_weights(tmp_path / "delta", delta | projector, "shards")
    write_tokenizer(tmp_path / "delta", spm, {"[PAD]": VOCAB})

    report = convert(str(tmp_path / "delta"), tmp_path / "out", base=str(base), template="llava_v0")
    assert f"`{tmp_path / 'delta'}` added to `{base}`" in report
    assert_same_function(tmp_path / "out", ours | projector, config)
    with pytest.raises(ValueError, match="are a difference to a base model .* Add `--base`"):
        convert(str(tmp_path / "delta"), tmp_path / "other")
    write_weights(tmp_path / "delta", ours | projector, "shards")
    with pytest.raises(ValueError, match="full checkpoint and no difference .* Leave out `--base`"):
        convert(str(tmp_path / "delta"), tmp_path / "other", base=str(base))
    write_weights(tmp_path / "delta", {k: t[: VOCAB - 1] for k, t in delta.items()} | projector, "shards")
    with pytest.raises(ValueError, match="it may only have more rows"):
        convert(str(tmp_path / "delta"), tmp_path / "other", base=str(base))


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_projector_goes_back_as_it_came(tmp_path, spm, tower, kind):
    write_full(tmp_path / "original", spm, tower, kind=kind)
    convert(str(tmp_path / "original"), tmp_path / "out")
    main(["--to-original", str(tmp_path / "out"), "--out", str(tmp_path / "mm_projector.bin")])
    back = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    wanted = projector_tensors(kind)
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in wanted.items())
    with pytest.raises(ValueError, match="exists. Choose another name"):
        main(["--to-original", str(tmp_path / "out"), "--out", str(tmp_path / "mm_projector.bin")])


def test_projectors_without_an_original_form_do_not_go_back(tmp_path):
    model = llava_model(projector="linear")
    model.model.multi_modal_projector.linear_2.weight.data[0, 1] = 0.5
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match="second layer is not the identity"):
        main(["--to-original", str(tmp_path / "trained"), "--out", str(tmp_path / "p.bin")])
    llava_model(vision_feature_layer=[-2, -1]).save_pretrained(tmp_path / "layers")
    with pytest.raises(ValueError, match="features of several layers"):
        main(["--to-original", str(tmp_path / "layers"), "--out", str(tmp_path / "p.bin")])
    assert not (tmp_path / "p.bin").exists()


class Payload:
    """Unpickled without care, this writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", ["full", "shard", "projector", "adapter", "non_lora", "base", "tower"])
def test_pickles_of_more_than_tensors_are_refused_and_not_run(tmp_path, spm, tower, base, place):
    marker, directory = tmp_path / "executed", tmp_path / "original"
    arguments = {"base": str(base)}
    if place in ("full", "shard", "tower"):
        write_full(directory, spm, tower, "shards" if place == "shard" else "bin")
        file = directory / ("pytorch_model-00002-of-00002.bin" if place == "shard" else "pytorch_model.bin")
        arguments = {}
    elif place in ("adapter", "non_lora"):
        write_lora(directory, tower, language_model(2).state_dict())
        file = directory / ("adapter_model.bin" if place == "adapter" else "non_lora_trainables.bin")
    else:
        directory.mkdir()
        write_json(directory / "config.json", original_config(tower))
        torch.save(projector_tensors("mlp2x_gelu"), directory / "mm_projector.bin")
        file = directory / "mm_projector.bin"
    if place in ("base", "tower"):
        other = tmp_path / "other"
        other.mkdir()
        for source in (base if place == "base" else tower).iterdir():
            if source.suffix != ".safetensors":
                (other / source.name).write_bytes(source.read_bytes())
        file = other / "pytorch_model.bin"
        arguments["base" if place == "base" else "vision"] = str(other)

    torch.save({"model.embed_tokens.weight": Payload(marker)}, file)
    named = other if place in ("base", "tower") else file
    with pytest.raises(
        ValueError, match=f"`{named}` was not loaded: .*it asks for `posix.system`.*would run"
    ) as raised:
        convert(str(directory), tmp_path / "out", **arguments)
    assert "weights_only" not in str(raised.value)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_projector_of_the_wrong_width_says_what_would_fit():
    model = llava_model()
    model.config.vision_config._name_or_path = "openai/clip-vit-base-patch16"
    tensors = {
        "model.mm_projector.0.weight": torch.empty(5120, 1024, device="meta"),
        "model.mm_projector.0.bias": torch.empty(5120, device="meta"),
        "model.mm_projector.2.weight": torch.empty(5120, 5120, device="meta"),
        "model.mm_projector.2.bias": torch.empty(5120, device="meta"),
    }
    with pytest.raises(ValueError) as raised:
        load_projector(model, tensors, "mm_projector.bin")
    assert str(raised.value) == (
        "The projector of `mm_projector.bin` maps 1024-wide features to a 5120-wide language model (fits CLIP "
        "ViT-L/14 and a 13B Llama such as vicuna-13b), but `openai/clip-vit-base-patch16` has width 32 and `llama` "
        "has width 32. Give the tower and the language model that it was trained with."
    )


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_load_projector_copies_into_a_model(kind):
    model = llava_model(projector="linear" if kind == "linear" else "mlp").half()
    tensors = {key: torch.randn(TEXT_WIDTH, *([32] * (t.dim() - 1))) for key, t in projector_tensors(kind).items()}
    load_projector(model, tensors, "file")
    projector = model.model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, next(iter(tensors.values())).half())
    if kind == "linear":
        assert torch.equal(projector.linear_2.weight, torch.eye(32).half())
    with pytest.raises(ValueError, match="of type `linear`, but the model's is `mlp`. Build the model with"):
        load_projector(llava_model(), projector_tensors("linear"), "file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "projector of type `mlp3x_gelu`.*exactly two projector layers"),
        ({"mm_projector_type": "identity"}, "projector of type `identity`"),
        ({"mm_projector_type": "ldpnet"}, "projector of type `ldpnet`"),
        ({"mm_projector_type": "linear"}, "says that its projector is `linear`, but the tensors are those of a `mlp`"),
        ({"image_aspect_ratio": "anyres"}, "`image_aspect_ratio: anyres`.*LlavaNextForConditionalGeneration"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "`mm_patch_merge_type: spatial_unpad`"),
        ({"s2": True}, "`s2: True`"),
        ({"mm_vision_select_feature": "cls"}, "`mm_vision_select_feature: cls`, wanted `patch` or `cls_patch`"),
        ({"architectures": ["LlavaMPTForCausalLM"], "model_type": "llava_mpt"}, "is a `LlavaMPTForCausalLM`"),
        ({"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"}, "is a `LlavaQwenForCausalLM`"),
        ({"mm_vision_tower": "/nowhere/clip"}, "vision tower `/nowhere/clip` cannot be loaded.*`--vision`"),
        ({"hidden_size": 48}, "32-wide language model, but .* has width 48"),
        (
            {"intermediate_size": 80},
            "has 6 tensors of another shape than config.json.*mlp.*\\(64, 32\\), wanted \\(80, 32\\)",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 tensors \\(`model.layers.2.input_layernorm.weight`.* and 5 more\\)"),
        ({"num_hidden_layers": 1}, "has 9 tensors without a place \\(`model.layers.1.input"),
        ({"hidden_size": "absent"}, "does not say `hidden_size`"),
        ({"mm_vision_tower": 3}, "says `mm_vision_tower: 3`, wanted a Hub id or directory"),
        ({"mm_vision_select_layer": "a"}, "says `mm_vision_select_layer: 'a'`, wanted the number of a layer"),
        ({"num_attention_heads": 0}, "says `num_attention_heads: 0`, wanted a whole number from 1"),
        ({"mm_use_im_start_end": True}, "the 400 rows of the language model leave no place for `<im_start>`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, spm, tower, capsys, changes, words):
    write_full(tmp_path / "original", spm, tower)
    write_json(tmp_path / "original" / "config.json", original_config(tower, **{"kind": "mlp2x_gelu"} | changes))
    assert cli.main(["convert", "--from", str(tmp_path / "original"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # after the bars of what was loaded
    assert error.startswith("llava convert: error: ")
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


def rewrite(directory: Path, change):
    """Rewrites the weights after `change` has worked on their dict."""
    tensors = torch.load(directory / "pytorch_model.bin")
    change(tensors)
    torch.save(tensors, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json` is no JSON in UTF-8"),
        (lambda d: write_json(d / "config.json", {"model_type": "llama"}), "no `mm_\\*` key.*use `llava build`"),
        (lambda d: write_json(d / "config.json", {"text_config": {}}), "in the stock format already"),
        (lambda d: (d / "pytorch_model.bin").unlink(), "has no weights. Looked for"),
        (
            lambda d: (d / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut off"),
            "pytorch_model.bin` cannot be read",
        ),
        (lambda d: os.truncate(d / "pytorch_model.bin", 5000), "pytorch_model.bin` .*(cannot be read|not loaded)"),
        (lambda d: torch.save([1, 2], d / "pytorch_model.bin"), "holds a `list`"),
        (lambda d: torch.save({"a": {"b": torch.ones(1)}}, d / "pytorch_model.bin"), "holds a `dict` of other things"),
        (lambda d: (d / "model.safetensors").write_bytes(b"nothing"), "model.safetensors` cannot be read"),
        (
            lambda d: write_json(d / "pytorch_model.bin.index.json", {"weight_map": {"a": "x.bin", "b": "y.bin"}}),
            "lacks 2 of the 2 files in pytorch_model.bin.index.json: x.bin, y.bin",
        ),
        (
            lambda d: write_json(d / "pytorch_model.bin.index.json", {"weight_map": {"a": "../x.bin"}}),
            "does not list the weight files of its directory",
        ),
        (
            lambda d: write_json(d / "pytorch_model.bin.index.json", {"weight_map": ["x.bin"]}),
            "does not list the weight files of its directory",
        ),
        (lambda d: (d / "pytorch_model.bin").write_text("hello"), "pytorch_model.bin` cannot be read as a file of to"),
        (
            lambda d: (d / "pytorch_model.bin").write_bytes(b""),
            "pytorch_model.bin` cannot be read .*EOFError",
        ),
        (
            lambda d: rewrite(d, lambda t: t["model.mm_projector.2.bias"].fill_(float("nan"))),
            "pytorch_model.bin` has nan in its weight `model.mm_projector.2.bias`",
        ),
        (
            lambda d: rewrite(d, lambda t: t["lm_head.weight"].fill_(float("inf"))),
            "pytorch_model.bin` has inf in its weight `lm_head.weight`",
        ),
        (lambda d: write_json(d / "config.json", []), "config.json` holds a list, wanted an object"),
        (lambda d: write_json(d / "generation_config.json", []), "generation_config.json` holds a list, wanted an"),
        (lambda d: write_json(d / "added_tokens.json", []), "added_tokens.json` holds a list, wanted an object"),
        (lambda d: (d / "tokenizer.model").unlink(), "has no vocabulary. Put its tokenizer.model"),
        (
            lambda d: rewrite(d, lambda t: t.pop("lm_head.weight")),
            "language model of .* lacks 1 tensor \\(`lm_head.weight`\\)",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"model.image_newline": torch.ones(32)})),
            "language model of .* has 1 tensor without a place \\(`model.image_newline`\\)",
        ),
        (
            lambda d: rewrite(d, lambda t: [t.pop(key) for key in list(t) if "mm_projector" in key]),
            "projector of .* consists of nothing",
        ),
        (
            lambda d: rewrite(d, lambda t: t.pop("model.mm_projector.2.bias")),
            "projector of .* lacks 1 tensor \\(`2.bias`\\)",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"model.mm_projector.4.weight": torch.ones(32, 32)})),
            "wanted `mm_projector.weight` and `.bias` \\(linear\\)",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"model.mm_projector.2.weight": torch.ones(32, 31)})),
            "projector of .* has 1 tensor of another shape",
        ),
        (
            lambda d: rewrite(
                d, lambda t: t.update({"model.vision_tower.vision_tower.vision_model.x": torch.ones(1)})
            ),
            "vision tower of .* lacks .* and has 1 tensor without a place \\(`x`\\), compared with",
        ),
        (
            lambda d: write_json(d / "added_tokens.json", {"<a>": VOCAB}),
            "tokenizer of .* has 401 tokens, .* has 400 rows",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, spm, tower, capsys, spoil, words):
    write_full(tmp_path / "original", spm, tower)
    spoil(tmp_path / "original")
    assert cli.main(["convert", "--from", str(tmp_path / "original"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # after the bars of what was loaded
    assert error.startswith("llava convert: error: ")
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


def test_places_that_do_not_fit_are_refused(tmp_path, tower, base):
    write_json(tmp_path / "config.json", original_config(tower))
    torch.save(projector_tensors("mlp2x_gelu"), tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="holds a projector of stage 1, which needs .* Add `--base`"):
        convert(str(tmp_path), tmp_path / "out")
    with pytest.raises(OSError, match="no-such"):
        convert(str(tmp_path), tmp_path / "out", base="no-such/model")
    with pytest.raises(OSError, match="nothing-here` does not exist here"):
        convert(str(tmp_path), tmp_path / "out", base=str(tmp_path / "nothing-here"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="base `.*` has no config.json"):
        convert(str(tmp_path), tmp_path / "out", base=str(tmp_path / "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is a directory with something in it"):
        convert(str(tmp_path), tmp_path / "full", base=str(base))
    with pytest.raises(OSError, match="`no-such/llava` does not exist here"):
        convert("no-such/llava", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist, and is no Hub id"):
        convert("/no/such/directory", tmp_path / "out")
    llava_model().save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="is more than a language model"):
        convert(str(tmp_path), tmp_path / "out", base=str(tmp_path / "stock"))
    with pytest.raises(ValueError, match="no `text_config`"):
        main(["--to-original", str(tmp_path), "--out", str(tmp_path / "p.bin")])


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
