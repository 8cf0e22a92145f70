"""`llava build`: two halves on disk become one checkpoint, with every fact measured and written to both sides."""

import json

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Gemma2Config,
    LlavaConfig,
    PhiConfig,
    SiglipConfig,
    SiglipModel,
)
from transformers import LlavaForConditionalGeneration as Stock

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import build
from recipes.building.parts import load_language_model
from recipes.building.writing import write_checkpoint
from tests import tiny_text
from tests.tiny import IMAGE_SIZE, NUM_PATCHES, vision_config


CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "A red circle."},
]
RED = Image.new("RGB", (40, 30), "red")
COMBINATIONS = [
    ("clip", "llama", "llama", "vicuna_v1"),
    ("siglip", "mistral", "llama", "mistral"),
    ("clip", "qwen2", "qwen", "chatml"),
    ("siglip", "qwen3", "qwen", "chatml"),
    ("clip", "llama", "llama_3", "llama_3"),
    ("clip", "gemma", "qwen", "vicuna_v1"),
    ("siglip", "phi3", "llama", "llava_v0"),
    ("dinov2", "llama", "llama", "vicuna_v1"),
    ("dinov2_with_registers", "llama", "llama", "vicuna_v1"),
]


def write_language_model(directory, language="llama", kind="llama"):
    model, tokenizer = tiny_text.language_model_for(kind, language)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def write_whole_clip(directory):
    """As `openai/clip-vit-large-patch14-336`: a text half beside the tower."""
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(1)
    clip = CLIPModel(CLIPConfig(text_config=text | ids, vision_config=vision_config("clip").to_dict()))
    clip.save_pretrained(directory)
    tiny_text.clip_image_processor().save_pretrained(directory)
    return clip


def write_whole_siglip(directory):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    siglip = SiglipModel(SiglipConfig(text_config=text | ids, vision_config=vision_config("siglip").to_dict()))
    siglip.save_pretrained(directory)
    tiny_text.siglip_image_processor().save_pretrained(directory)
    return siglip


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("whole", [write_whole_clip, write_whole_siglip])
def test_the_command_joins_two_directories(tmp_path, capsys, whole, projector):
    vision = whole(tmp_path / "vision")
    language = write_language_model(tmp_path / "language")
    arguments = ["--vision", tmp_path / "vision", "--language", tmp_path / "language", "--out", tmp_path / "out"]
    build.main([*map(str, arguments), "--projector", projector, "--template", "vicuna_v1"])
    assert f"{NUM_PATCHES}  tokens in the text" in capsys.readouterr().out

    stock, info = Stock.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    for name, weight in vision.vision_model.state_dict().items():
        assert torch.equal(stock.model.vision_tower.state_dict()[name], weight), name
    rows = language.config.vocab_size
    for name, weight in language.model.state_dict().items():
        assert torch.equal(stock.model.language_model.state_dict()[name][: len(weight)], weight), name
    assert torch.equal(stock.lm_head.weight[:rows], language.lm_head.weight)

    processor = LlavaProcessor.from_pretrained(tmp_path / "out")
    inputs = processor.encode(CHAT, [RED], for_training=True)
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(ours(**inputs).logits, stock(**inputs).logits)


@pytest.mark.parametrize("tower, language, kind, template", COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_towers_languages_and_templates_go_together(tmp_path, tower, language, kind, template):
    built, _ = tiny_text.checkpoint(tmp_path / "out", tower, language, kind, template=template)
    processor = LlavaProcessor.from_pretrained(tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    inputs = processor.encode(CHAT, [RED], for_training=True)
    assert torch.isfinite(model(**inputs).loss)

    config = LlavaConfig.from_pretrained(tmp_path / "out")  # the stock class
    assert config.image_token_id == processor.image_token_id
    assert config.image_seq_length == processor.num_image_tokens
    assert config.vision_feature_select_strategy == processor.vision_feature_select_strategy
    assert config.vision_config.patch_size == processor.patch_size
    assert config.text_config.vocab_size == model.lm_head.weight.shape[0] >= len(processor.tokenizer)
    assert config.architectures == ["LlavaForConditionalGeneration"]

    prompt = processor.encode(CHAT[:1], [RED])
    stop = inputs["labels"][inputs["labels"] != -100][-1].item()
    if template != "llava_v0":  # its stop is text, not a token
        assert stop in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id not in (None, stop)
    model.generate(**prompt, max_new_tokens=3, do_sample=False)


def test_new_rows_are_the_mean_of_the_old_and_fill_up_to_64(tmp_path):
    before, tokenizer = tiny_text.language_model_for("llama", "llama")
    rows = before.config.vocab_size
    old_in, old_out = before.get_input_embeddings().weight.clone(), before.lm_head.weight.clone()
    model, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()), before, tokenizer, tiny_text.clip_image_processor()
    )
    assert model.lm_head.weight.shape[0] == model.config.text_config.vocab_size == -(-(rows + 1) // 64) * 64
    assert len(processor.tokenizer) == rows + 1
    for new, old in ((model.get_input_embeddings().weight, old_in), (model.lm_head.weight, old_out)):
        assert torch.equal(new[:rows], old)
        assert torch.allclose(new[rows:], old.mean(0).expand(len(new) - rows, -1), atol=1e-6)


def test_spare_rows_are_used_before_new_ones(tmp_path):
    model, tokenizer = tiny_text.language_model_for("qwen", "qwen2")
    model.resize_token_embeddings(512, mean_resizing=False)  # as Qwen, which has more rows than tokens
    joined, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()),
        model,
        tokenizer,
        tiny_text.clip_image_processor(),
        template="chatml",
    )
    assert joined.lm_head.weight.shape[0] == 512
    image_row = joined.lm_head.weight[processor.image_token_id]
    assert torch.allclose(image_row, joined.lm_head.weight[: len(tokenizer) - 1].mean(0), atol=1e-2)


def test_tied_embeddings_stay_tied(tmp_path):
    model, tokenizer = tiny_text.language_model_for("qwen", "qwen2")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    joined, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()), model, tokenizer, tiny_text.clip_image_processor()
    )
    write_checkpoint(joined, processor, tmp_path / "out")
    for cls in (LlavaForConditionalGeneration, Stock):
        again = cls.from_pretrained(tmp_path / "out")
        assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
        assert torch.equal(again.lm_head.weight, joined.lm_head.weight)


def test_missing_template_tokens_are_added():
    model, tokenizer = tiny_text.language_model_for("llama", "llama")
    _, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()),
        model,
        tokenizer,
        tiny_text.clip_image_processor(),
        template="chatml",
    )
    encoded = processor.encode_text(CHAT, for_training=True)
    assert encoded.input_ids.count(processor.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_own_template_is_kept_with_marks():
    model, tokenizer = tiny_text.language_model_for("qwen", "qwen2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    _, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()),
        model,
        tokenizer,
        tiny_text.clip_image_processor(),
        template="own",
    )
    encoded = processor.encode_text(CHAT, for_training=True)
    start, end = encoded.answers[0]
    assert processor.tokenizer.decode(encoded.input_ids[start:end]) == "A red circle.<|im_end|>"


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages.none.there }}"])
def test_an_own_template_that_does_not_render_is_told(template):
    model, tokenizer = tiny_text.language_model_for("qwen", "qwen2")
    tokenizer.chat_template = template
    tower, images = tiny_text.AutoModel.from_config(vision_config()), tiny_text.clip_image_processor()
    with pytest.raises(ValueError, match="own template cannot write a question and an answer .* Choose one of chatml"):
        build.join(tower, model, tokenizer, images, template="own")


def test_a_generation_config_that_cannot_be_saved_is_repaired(tmp_path):
    """Vicuna 1.5 has a temperature and top_p without sampling."""
    write_language_model(tmp_path / "language")
    path = tmp_path / "language/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.9, "top_p": 0.6}))
    write_whole_clip(tmp_path / "vision")
    arguments = ["--vision", tmp_path / "vision", "--language", tmp_path / "language", "--out", tmp_path / "out"]
    build.main(list(map(str, arguments)))
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert "temperature" not in saved and "top_p" not in saved


def test_system_prompt_is_written_into_the_template(tmp_path):
    _, processor = tiny_text.checkpoint(tmp_path / "out", system='Say "hi" {{ now }}')
    text = processor.tokenizer.decode(processor.encode_text(CHAT[:1]).input_ids)
    assert 'Say "hi" {{ now }} USER:' in text


def test_the_same_seed_gives_the_same_checkpoint(tmp_path):
    write_whole_clip(tmp_path / "vision")
    write_language_model(tmp_path / "language")
    for out in ("a", "b"):
        build.main(
            ["--vision", f"{tmp_path}/vision", "--language", f"{tmp_path}/language", "--out", f"{tmp_path}/{out}"]
        )
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_an_occupied_place_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is a directory with something in it"):
        tiny_text.checkpoint(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(LlavaProcessor, "save_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_text.checkpoint(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", fail)
    with pytest.raises(ValueError, match="No space is left on the disk of .* or give another --out"):
        tiny_text.checkpoint(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_heads_that_llava_has_no_place_for_are_refused():
    _, tokenizer = tiny_text.language_model_for("llama", "llama")
    tower, images = tiny_text.AutoModel.from_config(vision_config()), tiny_text.clip_image_processor()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    phi = AutoModelForCausalLM.from_config(PhiConfig(**sizes, intermediate_size=64, num_key_value_heads=4))
    with pytest.raises(ValueError, match="The output head of `phi` has a bias"):
        build.join(tower, phi, tokenizer, images)
    gemma = AutoModelForCausalLM.from_config(
        Gemma2Config(**sizes, intermediate_size=64, num_key_value_heads=4, head_dim=8, final_logit_softcapping=0.1)
    )
    with pytest.raises(ValueError, match="Joined, `gemma2` gives other logits on text"):
        build.join(tower, gemma, tokenizer, images)


def test_what_cannot_be_used_is_refused_before_writing(tmp_path):
    write_whole_clip(tmp_path / "vision")
    write_language_model(tmp_path / "language")
    weights = load_file(tmp_path / "language/model.safetensors")

    def build_with(words, *extra, language=tmp_path / "language", vision=tmp_path / "vision"):
        with pytest.raises((ValueError, OSError), match=words):
            build.main(["--vision", str(vision), "--language", str(language), "--out", str(tmp_path / "out"), *extra])
        assert not (tmp_path / "out").exists()

    build_with("is no directory", language="./none")
    build_with("wanted a vision transformer", vision=tmp_path / "language")
    build_with("which holds more than a language model", language=tmp_path / "vision")
    build_with("spells the control tokens <image>", "--system", "look at <image>")
    build_with("spells the control tokens </s>", "--system", "be </s> kind")
    build_with("`--system` holds bytes that are no UTF-8", "--system", "\udcff")

    weights.pop(next(name for name in weights if "up_proj" in name))
    save_file(weights, tmp_path / "language/model.safetensors", metadata={"format": "pt"})
    build_with("lacks 1 of its weights, such as `model.layers.0.mlp.up_proj.weight`")
    (tmp_path / "language/model.safetensors").write_bytes(b"cut")
    build_with("A weight file of .* cannot be read: .* cut off or damaged")


def test_a_tokenizer_config_may_be_silent_about_its_class(tmp_path):
    write_language_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("tokenizer_class")
    path.write_text(json.dumps(settings))
    _, tokenizer = load_language_model(str(tmp_path))
    assert tokenizer("USER: a").input_ids == tiny_text.tokenizer("llama")("USER: a").input_ids


def test_a_tokenizer_without_an_end_is_refused():
    model, tokenizer = tiny_text.language_model_for("llama", "llama")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="Tokenizer and chat template do not go together: .*`eos_token`"):
        build.join(
            tiny_text.AutoModel.from_config(vision_config()), model, tokenizer, tiny_text.clip_image_processor()
        )


def test_tokenizers_may_leave_out_numbers():
    model, tokenizer = tiny_text.language_model_for("llama", "llama")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"].append({**backend["added_tokens"][-1], "id": len(tokenizer) + 30, "content": "<far>"})
    tokenizer = tiny_text.PreTrainedTokenizerFast(
        tokenizer_object=tiny_text.Tokenizer.from_str(json.dumps(backend)), **tokenizer.special_tokens_map
    )
    joined, processor = build.join(
        tiny_text.AutoModel.from_config(vision_config()), model, tokenizer, tiny_text.clip_image_processor()
    )
    assert joined.lm_head.weight.shape[0] > max(processor.tokenizer.get_vocab().values())


def test_a_multimodal_language_model_is_refused(tmp_path):
    tiny_text.checkpoint(tmp_path / "llava")
    with pytest.raises(ValueError, match="is a `llava`, which holds more than a language model"):
        load_language_model(str(tmp_path / "llava"))


def test_pictures_have_the_size_of_the_tower(tmp_path):
    _, processor = tiny_text.checkpoint(tmp_path / "out")
    assert processor.pixel_values([RED]).shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_stock_counts_image_tokens_as_we_do(tmp_path, tower, aspect):
    """vLLM plans its memory with this method of the stock processor."""
    _, joined = tiny_text.checkpoint(tmp_path / "out", tower, aspect=aspect)
    stock = AutoProcessor.from_pretrained(tmp_path / "out")
    assert stock._get_num_multimodal_tokens(image_sizes=[(30, 20)])["num_image_tokens"] == [joined.num_image_tokens]
    assert stock(images=RED, text="<image>")["input_ids"][0].count(joined.image_token_id) == joined.num_image_tokens


def test_tokenizer_files_round_trip(tmp_path):
    tiny_text.checkpoint(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "left"
