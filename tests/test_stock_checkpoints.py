"""Checkpoints go from our classes to those of stock transformers and back, under old names and new ones."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers import LlavaConfig as StockConfig
from transformers import LlavaForConditionalGeneration as StockLlava
from transformers import LlavaModel as StockLlavaModel

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from tests import tiny
from tests.twins import BATCHES, MATRIX, PROJECTORS, assert_equal_functions, labels_of, models


def tensors_in(folder) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.parametrize(("projector", "tower", "language"), MATRIX)
def test_our_checkpoint_is_a_stock_checkpoint(projector, tower, language, tmp_path):
    ours, stock = models(projector, tower, language)
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")

    saved, expected = tensors_in(tmp_path / "ours"), tensors_in(tmp_path / "stock")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in expected)
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "stock").iterdir()}

    config, stock_config = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "stock"))
    assert config.pop("projector_type") == stock_config.pop("projector_type") == projector
    assert config == stock_config
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
    assert not {"auto_map", "quantization_config"} & config.keys()

    reloaded, info = StockLlava.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(reloaded.config) is StockConfig
    assert_equal_functions(reloaded, ours)


@pytest.mark.parametrize(("projector", "tower", "language"), MATRIX)
def test_a_stock_checkpoint_loads_in_ours(projector, tower, language, tmp_path):
    ours, stock = models(projector, tower, language)
    stock.save_pretrained(tmp_path)
    reloaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(reloaded.config) is LlavaConfig and reloaded.config.projector_type == projector
    assert_equal_functions(reloaded, stock)

    backbone = LlavaModel.from_pretrained(tmp_path)
    inputs = BATCHES["one image"]
    assert torch.equal(backbone(**inputs).last_hidden_state, stock.model(**inputs).last_hidden_state)


def test_a_config_without_projector_type_is_an_mlp(tmp_path):
    ours, stock = models()
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["projector_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    reloaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.projector_type == "mlp"
    assert_equal_functions(reloaded, ours)


def old_name(key: str, tower: str) -> str:
    """Names as in the `llava-hf` checkpoints on the Hub, written by transformers before 4.52."""
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    key = key.removeprefix("model.").replace("language_model.", "language_model.model.")
    return key.replace("vision_tower.", "vision_tower.vision_model.") if tower in ("clip", "siglip") else key


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("projector", PROJECTORS)
def test_old_names_load(tower, projector, tmp_path):
    ours, _ = models(projector, tower, "llama")
    ours.save_pretrained(tmp_path)
    tensors = {old_name(key, tower): value for key, value in ours.state_dict().items()}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in tensors
    assert "language_model.lm_head.weight" in tensors and "multi_modal_projector.linear_1.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    for load in (LlavaForConditionalGeneration, AutoModelForImageTextToText, StockLlava):
        reloaded, info = load.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        assert_equal_functions(reloaded, ours)
    inputs = BATCHES["one image"]
    for load in (LlavaModel, StockLlavaModel):
        hidden = load.from_pretrained(tmp_path)(**inputs).last_hidden_state
        assert torch.equal(hidden, ours.model(**inputs).last_hidden_state)

    # ... and transformers writes the names that it has read, for older versions' sake.
    for load, folder in ((LlavaForConditionalGeneration, "ours"), (StockLlava, "stock")):
        load.from_pretrained(tmp_path).save_pretrained(tmp_path / folder)
        assert tensors_in(tmp_path / folder).keys() == tensors.keys()


def test_new_names_load(tmp_path):
    """Those of the parameters, which transformers writes with `save_original_format=False`."""
    ours, stock = models()
    for source in (ours, stock):
        source.save_pretrained(tmp_path, save_original_format=False)
        assert tensors_in(tmp_path).keys() == ours.state_dict().keys()
        for load in (LlavaForConditionalGeneration, StockLlava):
            reloaded, info = load.from_pretrained(tmp_path, output_loading_info=True)
            assert not any(info.values()), info
            assert_equal_functions(reloaded, ours)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_our_config_loads_in_stock_with_the_same_values(projector, tmp_path):
    changes = {"vision_feature_layer": [-2, -3], "multimodal_projector_bias": False, "image_seq_length": 7}
    config = tiny.llava_config("clip", "qwen2", projector, **changes)
    config.save_pretrained(tmp_path)
    stock = StockConfig.from_pretrained(tmp_path)
    ignored = {"projector_type", "_name_or_path"}
    ours = {key: value for key, value in config.to_dict().items() if key not in ignored}
    assert ours == {key: value for key, value in stock.to_dict().items() if key not in ignored}
    assert stock.projector_hidden_act == ("linear" if projector == "linear" else "gelu")
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlavaConfig
    assert LlavaConfig.from_pretrained(tmp_path).vision_feature_layer == [-2, -3]


@pytest.mark.parametrize("language", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("in_text_config", [True, False])
def test_tied_embeddings_go_there_and_back(language, in_text_config, tmp_path):
    config = tiny.llava_config("clip", language)
    config.text_config.tie_word_embeddings = in_text_config
    config = LlavaConfig(**(config.to_dict() | {"tie_word_embeddings": True}))
    torch.manual_seed(0)
    ours = tiny.randomize(LlavaForConditionalGeneration(config).eval())
    assert ours.lm_head.weight is ours.model.language_model.embed_tokens.weight

    ours.save_pretrained(tmp_path / "ours")
    assert "lm_head.weight" not in tensors_in(tmp_path / "ours")
    stock = StockLlava.from_pretrained(tmp_path / "ours")
    assert stock.lm_head.weight is stock.model.language_model.embed_tokens.weight
    assert_equal_functions(ours, stock)

    stock.save_pretrained(tmp_path / "stock")
    assert tensors_in(tmp_path / "ours").keys() == tensors_in(tmp_path / "stock").keys()
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock")
    assert back.lm_head.weight is back.model.language_model.embed_tokens.weight
    assert_equal_functions(ours, back)


def test_sharded_checkpoints(tmp_path):
    ours, stock = models()
    ours.save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    stock.save_pretrained(tmp_path / "stock", max_shard_size="60KB")
    index, expected = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("ours", "stock")
    )
    assert index == expected and len(set(index["weight_map"].values())) > 1
    assert_equal_functions(StockLlava.from_pretrained(tmp_path / "ours"), ours)
    assert_equal_functions(LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock"), ours)


def test_a_checkpoint_after_resizing_the_vocabulary(tmp_path):
    for language in ("llama", "gemma"):
        ours = tiny.randomize(tiny.llava_model(language=language))
        stock = tiny.stock_twin(ours)
        for model in (ours, stock):
            torch.manual_seed(1)
            model.resize_token_embeddings(131, pad_to_multiple_of=64)
        assert ours.config.text_config.vocab_size == ours.lm_head.out_features == 192
        assert_equal_functions(ours, stock)
        ours.save_pretrained(tmp_path / language)
        assert_equal_functions(StockLlava.from_pretrained(tmp_path / language), ours)
        assert_equal_functions(LlavaForConditionalGeneration.from_pretrained(tmp_path / language), ours)
        inputs = BATCHES["one image"]
        assert torch.equal(
            ours(**inputs, labels=labels_of(inputs)).loss, stock(**inputs, labels=labels_of(inputs)).loss
        )
