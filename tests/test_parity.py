"""Logits, gradients and outputs against stock transformers, which nobody here wrote.

Differences are compared with 0, not with a tolerance; where the operations are the same, so are the numbers.
"""

import pytest
import torch

from tests import tiny
from tests.twins import BATCHES, MATRIX, batch, gradients, labels_of, models


def test_the_models_differ_where_they_should():
    """The parity below would be empty if the weights were too small for images and padding to matter."""
    for matrix in MATRIX:
        ours, _ = models(*matrix)
        inputs = BATCHES["one image"]
        logits = ours(**inputs).logits
        assert logits.std() > 0.1, matrix
        assert (logits - ours(**inputs | {"pixel_values": tiny.pixels(1, seed=5)}).logits).abs().max() > 0.05, matrix


@pytest.mark.parametrize(("projector", "tower", "language"), MATRIX)
@pytest.mark.parametrize("name", BATCHES)
def test_logits_and_gradients_equal_stock(name, projector, tower, language):
    ours, stock = models(projector, tower, language)
    inputs = BATCHES[name]

    ours_out, stock_out = ours(**inputs, labels=labels_of(inputs)), stock(**inputs, labels=labels_of(inputs))
    assert torch.equal(ours_out.logits, stock_out.logits)
    assert torch.equal(ours_out.loss, stock_out.loss)

    ours_grads, stock_grads = gradients(ours, inputs), gradients(stock, inputs)
    assert ours_grads.keys() == stock_grads.keys()
    for key, grad in stock_grads.items():
        if projector == "linear" and "linear_2" in key or grad is None:
            assert ours_grads[key] is None, key
        else:
            assert torch.equal(ours_grads[key], grad), key
    with_gradient = {key.split(".")[1] for key, grad in ours_grads.items() if grad is not None}
    parts = (
        {"vision_tower", "multi_modal_projector", "language_model"} if "pixel_values" in inputs else {"language_model"}
    )
    assert with_gradient >= parts


@pytest.mark.parametrize(("projector", "tower", "language"), MATRIX)
@torch.no_grad()
def test_prefill_and_decoding_with_a_cache_equal_stock(projector, tower, language):
    ours, stock = models(projector, tower, language)
    inputs = BATCHES["left-padded"]
    caches, mask = {}, inputs["attention_mask"]
    whole = dict(inputs)
    for step in range(4):
        logits = {}
        for name, model in (("ours", ours), ("stock", stock)):
            fed = inputs if step == 0 else {"input_ids": whole["input_ids"][:, -1:], "attention_mask": mask}
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed["input_ids"].shape[1] :]
            out = model(**fed, position_ids=position_ids, past_key_values=caches.get(name), use_cache=True)
            caches[name], logits[name] = out.past_key_values, out.logits
        assert torch.equal(logits["ours"], logits["stock"])

        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        uncached = ours(**whole, position_ids=position_ids, use_cache=False).logits
        assert torch.allclose(logits["ours"][:, -1], uncached[:, -1], atol=1e-5)

        new = torch.full((len(mask), 1), 5 + step)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        whole = {**whole, "input_ids": torch.cat([whole["input_ids"], new], dim=1), "attention_mask": mask}


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_a_batch_equals_its_samples(padding_side):
    ours, _ = models()
    inputs = batch([2, 0, 1], padding_side)
    mask = inputs["attention_mask"]
    logits = ours(**inputs, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    for i, images in enumerate([slice(0, 2), None, slice(2, 3)]):
        alone = {"input_ids": inputs["input_ids"][i : i + 1, mask[i].bool()]}
        if images is not None:
            alone["pixel_values"] = inputs["pixel_values"][images]
        assert torch.allclose(logits[i][mask[i].bool()], ours(**alone).logits[0], atol=1e-5)


# towers, feature layers and strategies


FEATURES = [
    ("clip", -2, "full"),
    ("clip", -1, "default"),
    ("clip", 1, "default"),
    ("clip", -4, "default"),
    ("clip", [-2, -3], "default"),
    ("clip", [3, 0, -1], "full"),
    ("siglip", -1, "full"),
    ("siglip", [-2, -3], "full"),
    ("dinov2", -2, "default"),
    ("dinov2", [-1, -3], "full"),
    ("dinov2_with_registers", -2, "default"),
    ("dinov2_with_registers", -1, "full"),
]
# How many tokens stand before the patches, by tower.
EXTRA_TOKENS = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_with_registers": 5}


@pytest.mark.parametrize(("tower", "layer", "strategy"), FEATURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_tower_layer_and_strategy_equals_stock(tower, layer, strategy, attention):
    changes = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    ours = tiny.randomize(tiny.llava_model(tower, **changes))
    stock = tiny.stock_twin(ours)
    for model in (ours, stock):
        model.set_attn_implementation(attention)

    num_tokens = tiny.NUM_PATCHES + EXTRA_TOKENS[tower] - (strategy == "default")
    row = [1, 9, 8, *tiny.image_ids(1, num_tokens), 7, *tiny.image_ids(1, num_tokens), 6, 5]
    inputs = {"input_ids": torch.tensor([row]), "pixel_values": tiny.pixels(2)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    assert torch.equal(ours(**inputs).logits, stock(**inputs).logits)
    ours_grads, stock_grads = gradients(ours, inputs), gradients(stock, inputs)
    for key, grad in stock_grads.items():
        assert (grad is None) == (ours_grads[key] is None), key
        assert grad is None or torch.equal(ours_grads[key], grad), key

    features = ours.model.get_vision_features(inputs["pixel_values"])
    assert features.shape == (2, num_tokens, 32 * (1 if isinstance(layer, int) else len(layer)))
    assert torch.equal(ours(**{**inputs, "pixel_values": None}, image_features=features).logits, ours(**inputs).logits)


@torch.no_grad()
def test_layer_and_strategy_can_be_chosen_per_call():
    ours, stock = models()
    num_tokens = tiny.NUM_PATCHES + 1
    inputs = {"input_ids": torch.tensor([[1, 9, *tiny.image_ids(1, num_tokens), 6]]), "pixel_values": tiny.pixels(1)}
    choice = {"vision_feature_layer": 1, "vision_feature_select_strategy": "full"}
    assert torch.equal(ours(**inputs, **choice).logits, stock(**inputs, **choice).logits)


# what goes in and out of `forward`


@torch.no_grad()
@pytest.mark.parametrize("logits_to_keep", [0, 1, 3, torch.tensor([0, 4, 11])])
def test_logits_to_keep(logits_to_keep):
    ours, stock = models()
    inputs = BATCHES["left-padded"]
    kept = ours(**inputs, logits_to_keep=logits_to_keep).logits
    assert torch.equal(kept, stock(**inputs, logits_to_keep=logits_to_keep).logits)
    whole = ours(**inputs).logits
    places = torch.arange(whole.shape[1])
    places = places[-logits_to_keep:] if isinstance(logits_to_keep, int) else logits_to_keep
    assert torch.allclose(kept, whole[:, places], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", BATCHES)
def test_inputs_embeds_instead_of_ids(name):
    ours, stock = models()
    inputs = dict(BATCHES[name])
    expected = ours(**inputs).logits
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = ours.get_input_embeddings()(ids)
    before = inputs["inputs_embeds"].clone()
    assert torch.equal(ours(**inputs).logits, expected)
    assert torch.equal(stock(**inputs).logits, expected)
    assert torch.equal(inputs["inputs_embeds"], before)  # the caller's tensor is not written to


@torch.no_grad()
def test_features_before_and_after_the_projector_equal_pixels():
    ours, stock = models()
    inputs = dict(BATCHES["left-padded"])
    expected = ours(**inputs).logits
    pixel_values = inputs.pop("pixel_values")

    assert torch.equal(ours(**inputs, image_features=ours.model.get_vision_features(pixel_values)).logits, expected)
    for source in (ours, stock):
        outputs = {"image": source.get_image_features(pixel_values)}
        for model in (ours, stock):
            assert torch.equal(model(**inputs, mm_encoder_outputs=outputs).logits, expected)


def flat(value) -> list[torch.Tensor | None]:
    if isinstance(value, torch.Tensor) or value is None:
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def assert_same_outputs(ours, stock):
    assert type(ours) is type(stock)
    assert ours.keys() == stock.keys()
    for key in ours:
        if key == "past_key_values":
            mine, theirs = ([layer.keys for layer in out[key].layers] for out in (ours, stock))
        else:
            mine, theirs = flat(ours[key]), flat(stock[key])
        assert len(mine) == len(theirs), key
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None and b is None) or torch.equal(a, b), key


@torch.no_grad()
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_outputs_equal_stock(name, attention):
    ours = tiny.randomize(tiny.llava_model())
    stock = tiny.stock_twin(ours)
    options = {"output_hidden_states": True, "use_cache": True}
    for model in (ours, stock):
        model.set_attn_implementation(attention)
    options["output_attentions"] = attention == "eager"
    inputs = BATCHES[name]
    labels = labels_of(inputs)

    out = ours(**inputs, **options, labels=labels)
    assert_same_outputs(out, stock(**inputs, **options, labels=labels))
    assert len(out.hidden_states) == 3
    assert attention == "sdpa" or len(out.attentions) == 2
    assert_same_outputs(ours.model(**inputs, **options), stock.model(**inputs, **options))

    options["use_cache"] = False
    as_tuple, theirs = (m(**inputs, **options, labels=labels, return_dict=False) for m in (ours, stock))
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(flat(as_tuple), flat(theirs), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}, {"vision_feature_layer": 1}])
def test_get_image_features_equals_stock(tower, options):
    ours = tiny.randomize(tiny.llava_model(tower))
    stock = tiny.stock_twin(ours)
    pixel_values = tiny.pixels(2)
    for mine, theirs in ((ours, stock), (ours.model, stock.model)):
        out = mine.get_image_features(pixel_values, **options)
        assert_same_outputs(out, theirs.get_image_features(pixel_values, **options))
        assert len(out.pooler_output) == 2
        a = mine.get_image_features(pixel_values, return_dict=False, **options)
        b = theirs.get_image_features(pixel_values, return_dict=False, **options)
        assert all(x is y or torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))
    positional = ours.get_image_features(pixel_values, -2, "full")
    assert torch.equal(
        positional.pooler_output[0], stock.get_image_features(pixel_values, -2, "full").pooler_output[0]
    )


def test_bf16_and_fp16_equal_stock():
    for dtype in (torch.bfloat16, torch.float16):
        ours = tiny.randomize(tiny.llava_model(projector="linear")).to(dtype)
        stock = tiny.stock_twin(ours).to(dtype)
        inputs = dict(BATCHES["right-padded"])  # pixels in fp32, as a processor gives them
        a, b = ours(**inputs).logits, stock(**inputs).logits
        assert a.dtype == dtype and torch.equal(a, b)
        # A cache may keep features in another dtype. (In one piece they go through another kernel than as the slice of
        # the tower's output that they are: in half precision that rounds differently, so both are contiguous here.)
        features = ours.model.get_vision_features(inputs.pop("pixel_values")).contiguous()
        logits = ours(**inputs, image_features=features).logits
        assert torch.equal(ours(**inputs, image_features=features.float()).logits, logits)
        assert torch.allclose(logits, b, atol=0.25)
