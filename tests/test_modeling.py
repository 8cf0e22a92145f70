"""The model by itself: what it runs and differentiates, the paper's projector, attention and precision."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration as StockLlava
from transformers.utils import is_flash_attn_2_available

from modeling_llava import LlavaForConditionalGeneration
from tests import tiny
from tests.twins import assert_equal_functions, batch, blocks_of, count_calls, frozen, gradients, labels_of, models


# the frozen tower


@pytest.mark.parametrize("tower", tiny.TOWERS)
@pytest.mark.parametrize(
    ("layer", "expected"),
    [(-2, [1, 1, 0]), (-1, [1, 1, 1]), (1, [1, 0, 0]), (-4, [0, 0, 0]), ([-3, 0], [1, 0, 0]), ([1, -2], [1, 1, 0])],
)
def test_layers_above_the_feature_layer_do_not_run(tower, layer, expected):
    model = tiny.llava_model(tower, vision_feature_layer=layer)
    calls = count_calls(blocks_of(model))
    features = model.model.get_vision_features(tiny.pixels(2))
    assert calls == expected
    assert features.requires_grad

    assert not frozen(model).model.get_vision_features(tiny.pixels(2)).requires_grad
    assert calls == [2 * n for n in expected]


def test_one_trainable_weight_in_the_tower_is_enough_for_a_graph():
    model = frozen(tiny.llava_model())
    blocks_of(model)[1].mlp.fc1.bias.requires_grad_(True)
    assert model.model.get_vision_features(tiny.pixels(1)).requires_grad
    with torch.no_grad():
        assert not model.model.get_vision_features(tiny.pixels(1)).requires_grad


def test_pixels_get_their_gradient_through_a_frozen_tower():
    ours, stock = (frozen(copy.deepcopy(model)) for model in models())
    grads = []
    for model in (ours, stock):
        inputs = batch([2, 0, 1])
        inputs["pixel_values"].requires_grad_(True)
        model(**inputs, labels=labels_of(inputs)).loss.backward()
        grads.append(inputs["pixel_values"].grad)
    assert grads[0].abs().max() > 0 and torch.equal(*grads)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
def test_checkpointing_sends_no_gradient_into_a_frozen_tower(tower, reentrant):
    ours = tiny.randomize(tiny.llava_model(tower))
    stock = tiny.stock_twin(ours)
    inputs = batch([2, 0, 1])
    grads, backward = {}, {}
    for name, model in (("ours", ours), ("stock", stock)):
        frozen(model).train()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        # Inside the blocks, as transformers takes the features from the blocks before their own backward hooks.
        backward[name] = count_calls([block.mlp for block in blocks_of(model)], "register_full_backward_hook")
        grads[name] = gradients(model, inputs)

    # Stock does, through the two layers below the features; so the zeros are no accident of the hooks.
    assert backward == {"ours": [0, 0, 0], "stock": [1, 1, 0]}
    for key, grad in grads["stock"].items():
        assert (grad is None) == (grads["ours"][key] is None) == ("vision_tower" in key)
        assert grad is None or torch.equal(grads["ours"][key], grad)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_trainable_tower_gets_the_gradients_of_stock(checkpointing):
    ours, stock = (copy.deepcopy(model).train() for model in models())
    plain = gradients(ours, batch([2, 0, 1]))
    for model in (ours, stock):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
    grads, expected = (gradients(model, batch([2, 0, 1])) for model in (ours, stock))
    for key, grad in expected.items():
        assert grad is None or torch.equal(grads[key], grad) and torch.allclose(plain[key], grad, atol=1e-6)
    assert grads["model.vision_tower.embeddings.patch_embedding.weight"].abs().max() > 0
    assert grads["model.vision_tower.encoder.layers.2.mlp.fc1.weight"] is None


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_the_tower_makes_it_be_called_whole(hook):
    model = copy.deepcopy(models()[0])
    layers, whole = count_calls(blocks_of(model)), count_calls([model.model.vision_tower], hook)
    assert_equal_functions(model, models()[0])
    assert whole == [1] and layers == [1, 1, 1]


def test_a_replaced_forward_of_the_tower_is_called():
    """Accelerate places modules on devices by such a replacement."""
    model = copy.deepcopy(models()[0])
    tower, calls = model.model.vision_tower, []
    original = tower.forward
    tower.forward = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    assert_equal_functions(model, models()[0])
    assert calls == [1]


def test_a_compiled_tower_is_called():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for in_place in (True, False):
        torch._dynamo.reset()
        model = frozen(copy.deepcopy(models()[0]))
        if in_place:
            model.model.vision_tower.compile(backend=backend)
        else:
            model.model.vision_tower = torch.compile(model.model.vision_tower, backend=backend)
        assert_equal_functions(model, models()[0])
        assert graphs
        graphs.clear()


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


def test_a_wrapper_around_the_tower_is_called():
    model = copy.deepcopy(models()[0])
    model.model.vision_tower = Wrapper(model.model.vision_tower)
    assert_equal_functions(model, models()[0])
    assert model.model.vision_tower.calls == 1


# the linear projector


def test_a_linear_projector_is_one_matrix():
    model = tiny.randomize(tiny.llava_model(projector="linear"))
    features = torch.randn(3, 4, 32)
    first = model.model.multi_modal_projector.linear_1
    assert torch.equal(model.model.multi_modal_projector(features), features @ first.weight.T + first.bias)
    assert model.config.projector_hidden_act == "linear"


def is_frozen_identity(layer) -> bool:
    return (
        torch.equal(layer.weight, torch.eye(32, dtype=layer.weight.dtype))
        and not layer.bias.any()
        and not any(p.requires_grad for p in layer.parameters())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_is_frozen_in_a_new_and_in_a_loaded_model(dtype, tmp_path):
    model = tiny.llava_model(projector="linear").to(dtype)
    assert is_frozen_identity(model.model.multi_modal_projector.linear_2)
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert is_frozen_identity(loaded.model.multi_modal_projector.linear_2)
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in loaded.named_parameters() if "linear_2" not in name}
    with torch.device("meta"):
        assert not LlavaForConditionalGeneration(
            model.config
        ).model.multi_modal_projector.linear_2.weight.requires_grad


def test_a_checkpoint_without_second_layer_gets_the_identity(tmp_path):
    model = tiny.randomize(tiny.llava_model(projector="linear"))
    model.save_pretrained(tmp_path)
    tensors = {key: t for key, t in load_file(tmp_path / "model.safetensors").items() if "linear_2" not in key}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[-2] for key in info["missing_keys"]} == {"linear_2"}
    assert is_frozen_identity(loaded.model.multi_modal_projector.linear_2)
    assert_equal_functions(loaded, model)


def test_the_identity_stays_when_the_whole_projector_is_made_trainable():
    model = tiny.randomize(tiny.llava_model(projector="linear"))
    model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), lr=0.1, weight_decay=0.1)
    before = model.model.multi_modal_projector.linear_1.weight.clone()
    grads = gradients(model, batch([1]))
    optimizer.step()
    assert not torch.equal(model.model.multi_modal_projector.linear_1.weight, before)
    assert not [key for key, grad in grads.items() if "linear_2" in key and grad is not None]
    assert is_frozen_identity(model.model.multi_modal_projector.linear_2.requires_grad_(False))


def test_a_second_layer_that_was_trained_is_refused(tmp_path):
    model = tiny.randomize(tiny.llava_model(projector="linear"))
    stock = tiny.stock_twin(model)
    with torch.no_grad():
        stock.model.multi_modal_projector.linear_2.weight[0, 1] = 0.5
    stock.save_pretrained(tmp_path)
    message = (
        f"`{tmp_path}` says `projector_type: linear`, but the second layer of its projector is not the identity: "
        "something has trained it. Set `projector_type` to `mlp` in its config.json; `projector_hidden_act: linear` "
        "may stay, the function is then the one that was trained."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)

    # What the message advises is right.
    config = json.loads((tmp_path / "config.json").read_text()) | {"projector_type": "mlp"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal_functions(LlavaForConditionalGeneration.from_pretrained(tmp_path), stock)


def test_an_mlp_checkpoint_is_not_taken_for_a_linear_one(tmp_path):
    models()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the second layer of its projector is not the identity"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, projector_type="linear")


def test_a_rank_that_holds_no_weights_is_no_trained_layer(tmp_path):
    """DeepSpeed ZeRO-3 leaves an empty tensor in the place of every parameter."""
    model = tiny.llava_model(projector="linear")
    model.model.multi_modal_projector.linear_2.weight = torch.nn.Parameter(torch.empty(0))
    model._check_identity(model.model.multi_modal_projector.linear_2, "name")


# attention, precision


@pytest.mark.parametrize("attention", ["eager", {"text_config": "eager", "vision_config": "sdpa"}])
@torch.no_grad()
def test_attention_implementations_agree(attention, tmp_path):
    ours, stock = models()
    ours.save_pretrained(tmp_path)
    other = LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attention)
    assert other.model.language_model.config._attn_implementation == "eager"
    assert other.model.vision_tower.config._attn_implementation == ("eager" if attention == "eager" else "sdpa")
    inputs = batch([2, 0, 1])
    kept = inputs["attention_mask"].bool()
    assert torch.allclose(other(**inputs).logits[kept], ours(**inputs).logits[kept], atol=1e-4)
    stock = StockLlava.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(other(**inputs).logits, stock(**inputs).logits)


@pytest.mark.slow  # the first call compiles for about 50 s on a CPU
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers' own call
@torch.no_grad()
def test_flex_attention_agrees():
    ours, stock = (copy.deepcopy(model) for model in models())
    inputs = batch([2, 0, 1])
    kept = inputs["attention_mask"].bool()
    expected = ours(**inputs).logits
    for model in (ours, stock):
        model.set_attn_implementation("flex_attention")
    assert torch.equal(ours(**inputs).logits, stock(**inputs).logits)
    assert torch.allclose(ours(**inputs).logits[kept], expected[kept], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed")
@torch.no_grad()
def test_flash_attention_agrees():
    ours, stock = (copy.deepcopy(model).to("cuda", torch.bfloat16) for model in models())
    inputs = {key: value.cuda() for key, value in batch([2, 0, 1]).items()}
    kept = inputs["attention_mask"].bool()
    expected = ours(**inputs).logits
    for model in (ours, stock):
        model.set_attn_implementation("flash_attention_2")
    assert torch.equal(ours(**inputs).logits[kept], stock(**inputs).logits[kept])
    assert torch.allclose(ours(**inputs).logits[kept], expected[kept], atol=0.5)


def test_autocast_equals_stock():
    ours, stock = models()
    inputs = batch([2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = ours(**inputs).logits, stock(**inputs).logits
        features = ours.model.get_vision_features(inputs.pop("pixel_values"))
        cached = ours(**inputs, image_features=features.bfloat16()).logits
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, expected)
    assert cached.dtype == torch.bfloat16 and torch.allclose(cached, logits, atol=0.5)
