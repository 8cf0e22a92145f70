"""PEFT adapters go from our class to the stock one and back; bitsandbytes leaves tower and projector alone."""

import copy
import importlib.util
import json
from collections import Counter

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaForConditionalGeneration, LlavaModel
from tests import tiny
from tests.twins import assert_equal_functions, batch, labels_of


TARGETS = {
    "language model": {"target_modules": r".*language_model.*\.(q_proj|v_proj|gate_proj)"},
    "language model, projector in full": {
        "target_modules": r".*language_model.*\.(q_proj|v_proj)",
        "modules_to_save": ["multi_modal_projector"],
    },
    "everything": {"target_modules": "all-linear"},
    "projector": {"target_modules": ["linear_1", "linear_2"]},
}


def adapted(model, target: str, steps: int = 2) -> PeftModel:
    """The model with an adapter that has learned something."""
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=16, **TARGETS[target])).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    inputs = batch([2, 0, 1])
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=labels_of(inputs)).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trained_on", ["ours", "stock"])
def test_an_adapter_moves_to_the_other_class(trained_on, target, projector, tmp_path):
    ours = tiny.randomize(tiny.llava_model(projector=projector))
    stock = tiny.stock_twin(ours)
    source, other = (ours, stock) if trained_on == "ours" else (stock, ours)

    trained = adapted(source, target)
    with torch.no_grad():
        before, after = source(**batch([1])).logits, trained(**batch([1])).logits
    assert (before - after).abs().max() > 1e-3  # it has learned something

    trained.save_pretrained(tmp_path / "adapter")
    assert_equal_functions(PeftModel.from_pretrained(copy.deepcopy(other), tmp_path / "adapter"), trained)
    assert_equal_functions(PeftModel.from_pretrained(copy.deepcopy(source), tmp_path / "adapter"), trained)
    fresh = copy.deepcopy(other)
    if "modules_to_save" not in TARGETS[target]:  # transformers' own way of loading adapters knows LoRA weights alone
        fresh.load_adapter(tmp_path / "adapter")
        assert_equal_functions(fresh, trained)

    merged = copy.deepcopy(trained).merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(merged(**batch([1])).logits, after, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert_equal_functions(StockLlava.from_pretrained(tmp_path / "merged"), merged)


def test_both_classes_save_adapters_under_the_same_names(tmp_path):
    ours = tiny.randomize(tiny.llava_model(projector="linear"))
    for target in TARGETS:
        names = []
        for model in (ours, tiny.stock_twin(ours)):
            adapted(model, target, steps=0).save_pretrained(tmp_path)
            config = json.loads((tmp_path / "adapter_config.json").read_text())
            found = config["target_modules"]
            found = found if isinstance(found, str) else sorted(found)
            names.append((found, load_file(tmp_path / "adapter_model.safetensors").keys()))
        assert names[0] == names[1]


@pytest.mark.parametrize("target", ["language model, projector in full", "language model"])
def test_the_identity_of_a_linear_projector_is_not_trained(target):
    model = adapted(tiny.randomize(tiny.llava_model(projector="linear")), target)
    layers = [m for name, m in model.named_modules() if name.endswith("linear_2")]
    assert len(layers) == (2 if "full" in target else 1)
    for layer in layers:
        assert torch.equal(layer.weight, torch.eye(32)) and not layer.bias.any()
        assert layer.weight.grad is None


def test_an_adapter_on_the_language_model_leaves_the_tower_frozen():
    model = adapted(tiny.randomize(tiny.llava_model()), "language model, projector in full")
    inputs = batch([1])
    llava = model.get_base_model().model
    assert llava.get_vision_features(inputs["pixel_values"]).grad_fn is None
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    moved = {name.split(".")[3] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"language_model", "multi_modal_projector"}


# bitsandbytes


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the `qlora` extra)"
)
PACKED = {4: "Linear4bit", 8: "Linear8bitLt"}


def linear_layers(model) -> dict[str, set[str]]:
    kinds = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kinds.setdefault(name.removeprefix("model.").split(".")[0], set()).add(type(module).__name__)
    return kinds


@pytest.fixture(scope="module", params=["linear", "mlp"])
def checkpoint(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.randomize(tiny.llava_model(projector=request.param)).save_pretrained(folder)
    return folder


@needs_bitsandbytes
@pytest.mark.parametrize("bits", PACKED)
@pytest.mark.parametrize("load", [LlavaForConditionalGeneration, AutoModelForImageTextToText, LlavaModel])
@pytest.mark.parametrize("form", ["config", "dict", "dict with method"])
def test_quantization_leaves_tower_and_projector_alone(form, load, bits, checkpoint):
    given = {f"load_in_{bits}bit": True} | ({"quant_method": "bitsandbytes"} if form == "dict with method" else {})
    given = BitsAndBytesConfig(**given) if form == "config" else given
    before = copy.deepcopy(given if isinstance(given, dict) else given.to_dict())
    model = load.from_pretrained(checkpoint, quantization_config=given, dtype=torch.float16)
    assert before == (given if isinstance(given, dict) else given.to_dict())  # the caller's own is not written to

    expected = {
        "vision_tower": {"Linear"},
        "multi_modal_projector": {"Linear", "IdentityLinear"} if "linear" in checkpoint.name else {"Linear"},
        "language_model": {PACKED[bits]},
        "lm_head": {"Linear"},
    }
    if load is LlavaModel:
        del expected["lm_head"]
    assert linear_layers(model) == expected
    with torch.no_grad():
        assert model(**batch([2, 0, 1]))[0].isfinite().all()


@needs_bitsandbytes
def test_a_choice_of_modules_is_respected(checkpoint):
    chosen = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.multi_modal_projector", "lm_head"])
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, quantization_config=chosen)
    assert linear_layers(model)["vision_tower"] == {"Linear4bit"}


@needs_bitsandbytes
@pytest.mark.parametrize("bits", PACKED)
def test_a_quantized_checkpoint_loads_in_both_classes(bits, checkpoint, tmp_path):
    """Here the configuration on disk carries the choice; what stock packed, the tower too, stays packed.

    (A `linear` projector packed by the stock class loads in the stock class only: ours has an identity there.)
    """
    options = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), "dtype": torch.float16}
    for writer in (LlavaForConditionalGeneration, StockLlava):
        if writer is StockLlava and "linear" in checkpoint.name:
            continue
        written = writer.from_pretrained(checkpoint, **options)
        folder = tmp_path / writer.__module__
        written.save_pretrained(folder)
        tower = {"Linear"} if writer is LlavaForConditionalGeneration else {PACKED[bits]}
        for reader in (LlavaForConditionalGeneration, StockLlava):
            read = reader.from_pretrained(folder, dtype=torch.float16)
            assert linear_layers(read)["vision_tower"] == linear_layers(written)["vision_tower"] == tower
            assert_equal_functions(read, written)


@needs_bitsandbytes
def test_qlora_trains_the_projector_beside_the_adapter(checkpoint):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, quantization_config=quantization)
    trained = get_peft_model(model, LoraConfig(r=4, **TARGETS["language model, projector in full"])).train()
    inputs = batch([2, 0, 1])
    trained(**inputs, labels=labels_of(inputs)).loss.backward()
    moved = Counter(name.split(".")[3] for name, p in trained.named_parameters() if p.grad is not None)
    assert moved.keys() == {"language_model", "multi_modal_projector"}
    assert moved["multi_modal_projector"] == (2 if "linear" in checkpoint.name else 4)  # weights and biases
