"""`generate` against stock transformers, token for token, in every mode of `GenerationMixin` that people use."""

import copy

import pytest
import torch
from transformers.generation import utils as generation_utils
from transformers.generation.streamers import BaseStreamer

from tests import tiny
from tests.twins import batch, models


GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, sampled": {"num_beams": 3, "do_sample": True},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    # An image token in an answer would be a place for an image in the next pass over the whole text.
    "no cache": {"use_cache": False, "suppress_tokens": [tiny.IMAGE_TOKEN_ID]},
    "no cache, beams": {"use_cache": False, "num_beams": 2, "suppress_tokens": [tiny.IMAGE_TOKEN_ID]},
    "chunked prefill": {"prefill_chunk_size": 3},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def generate(model, inputs: dict, seed: int = 0, **options):
    torch.manual_seed(seed)
    return model.generate(**{key: copy.copy(value) for key, value in inputs.items()}, **(GREEDY | options))


@pytest.mark.parametrize("language", ["llama", "gemma"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_generates_what_stock_generates(mode, language):
    ours, stock = models("mlp", "clip", language)
    inputs = batch([2, 0, 1])
    tokens = generate(ours, inputs, **MODES[mode])
    assert torch.equal(tokens, generate(stock, inputs, **MODES[mode]))
    rows = MODES[mode].get("num_return_sequences", 1) * 3
    assert tokens.shape == (rows, inputs["input_ids"].shape[1] + 8)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("language", ["mistral", "qwen2"])
def test_other_combinations_generate_what_stock_generates(projector, tower, language):
    ours, stock = models(projector, tower, language)
    for num_images in ([1], [2], [0], [0, 1], [1, 3]):
        inputs = batch(num_images)
        assert torch.equal(generate(ours, inputs), generate(stock, inputs))


def test_the_answers_depend_on_the_images():
    """Else the equalities of this file would say nothing about images."""
    ours, _ = models()
    inputs = batch([2, 1])
    tokens = generate(ours, inputs)
    others = [
        generate(ours, inputs | {"pixel_values": inputs["pixel_values"][order]}) for order in ([1, 0, 2], [0, 2, 1])
    ]
    assert not any(torch.equal(tokens, other) for other in others)


@pytest.mark.parametrize("mode", ["greedy", "beams", "samples", "no cache", "chunked prefill", "static cache"])
def test_features_instead_of_pixels(mode):
    ours, _ = models()
    inputs = batch([2, 0, 1])
    expected = generate(ours, inputs, **MODES[mode])
    features = ours.model.get_vision_features(inputs.pop("pixel_values"))
    assert torch.equal(generate(ours, inputs | {"image_features": features}, **MODES[mode]), expected)


@pytest.mark.parametrize("source", ["ours", "stock"])
def test_projected_features_instead_of_pixels(source):
    ours, stock = models()
    inputs = batch([2, 0, 1])
    expected = generate(ours, inputs, num_beams=2)
    with torch.no_grad():
        outputs = {"ours": ours, "stock": stock}[source].get_image_features(inputs.pop("pixel_values"))
    for model in (ours, stock):
        given = inputs | {"mm_encoder_outputs": {"image": copy.deepcopy(outputs)}}
        assert torch.equal(generate(model, given, num_beams=2), expected)


def test_scores_and_states():
    ours, stock = models()
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options |= {"output_hidden_states": True}
    out, expected = (generate(model, batch([1, 2]), **options) for model in (ours, stock))
    assert torch.equal(out.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, expected.logits, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states[0], expected.hidden_states[0], strict=True))


def test_embeddings_instead_of_ids():
    ours, stock = models()
    inputs = batch([1, 2])
    expected = generate(ours, inputs)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        inputs["inputs_embeds"] = ours.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(generate(ours, inputs), expected)  # with both, the embeddings are what is read
    del inputs["input_ids"]
    for options in ({}, {"num_beams": 2}):
        tokens = generate(ours, inputs, **options)
        assert torch.equal(tokens, generate(stock, inputs, **options))
        assert options or torch.equal(tokens, expected[:, width:])


def test_ids_by_position_and_options_by_position():
    ours, _ = models()
    inputs = batch([1])
    expected = generate(ours, inputs)
    config = copy.deepcopy(ours.generation_config)
    config.update(**GREEDY)
    ids = inputs.pop("input_ids")
    assert torch.equal(ours.generate(ids, config, **inputs), expected)
    assert torch.equal(ours.generate(inputs=ids, generation_config=config, **inputs), expected)


def test_layer_and_strategy_can_be_chosen_per_call():
    ours, stock = models()
    num_tokens = tiny.NUM_PATCHES + 1
    inputs = {"input_ids": torch.tensor([[1, 9, *tiny.image_ids(1, num_tokens), 6]]), "pixel_values": tiny.pixels(1)}
    choice = {"vision_feature_layer": 1, "vision_feature_select_strategy": "full"}
    assert torch.equal(generate(ours, inputs, **choice), generate(stock, inputs, **choice))


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_gets_every_token():
    ours, _ = models()
    streamer = Collector()
    tokens = generate(ours, batch([2]), streamer=streamer)
    assert streamer.ended and streamer.tokens == tokens[0].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_takes_the_processors_pixels(dtype):
    ours, stock = (copy.deepcopy(model).to(dtype) for model in models())
    inputs = batch([2, 0, 1])
    assert inputs["pixel_values"].dtype == torch.float32
    for options in ({}, {"num_beams": 2}):
        assert torch.equal(generate(ours, inputs, **options), generate(stock, inputs, **options))
    features = ours.model.get_vision_features(inputs.pop("pixel_values"))
    assert features.dtype == dtype
    generate(ours, inputs | {"image_features": features.float()})


# tokens guessed ahead


def test_prompt_lookup():
    ours, stock = models()
    words = torch.tensor([[1, 9, 8, 7, 6, *tiny.image_ids(), 9, 8, 7, 6, 5, 9, 8]])
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": tiny.pixels(1)}
    greedy = generate(ours, inputs, max_new_tokens=16, min_new_tokens=16)
    options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 16, "min_new_tokens": 16}
    tokens = generate(ours, inputs, **options)
    assert torch.equal(tokens, greedy)
    with pytest.raises(ValueError, match="tokens: 5, features: 128"):  # stock takes a guessed image token for a place
        generate(stock, inputs, **options)
    words[0, 5:9] = torch.arange(20, 24)
    del inputs["pixel_values"]
    assert torch.equal(generate(ours, inputs, **options), generate(stock, inputs, **options))


def repeat_after(model, context: int, answer: int):
    """Makes the model say `answer` after `context`, whatever else it has read."""
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[context] = 0
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.lm_head = torch.nn.Linear(32, 128, bias=True)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[answer] = 1
    return model


def test_prompt_lookup_may_guess_image_tokens():
    """After a 7 the prompt goes on with image tokens: that is what prompt lookup guesses after the answer 7."""
    ours = repeat_after(copy.deepcopy(models()[0]), 7, 7)
    words = torch.tensor([[1, 7, *tiny.image_ids(), 9, 5]])
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": tiny.pixels(1)}
    tokens = generate(ours, inputs, prompt_lookup_num_tokens=3)
    assert tokens[0, -8:].tolist() == [7] * 8


def test_an_assistant_model(monkeypatch):
    # transformers 5.23 calls the assistant in a way that it deprecates.
    monkeypatch.setattr(generation_utils.logger, "warning_once", lambda *_: None)
    ours, stock = models()
    assistant = tiny.randomize(tiny.llava_model(), seed=7)
    inputs = batch([2])
    expected = generate(ours, inputs)
    assert torch.equal(generate(ours, inputs, assistant_model=assistant), expected)
    assert torch.equal(generate(stock, inputs, assistant_model=tiny.stock_twin(assistant)), expected)


# a chat whose cache is kept


def test_two_turns_with_one_cache():
    ours, stock = models()
    first = batch([2])
    answers = {}
    for name, model in (("ours", ours), ("stock", stock)):
        out = generate(model, first, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[11, 12, 13]])], dim=1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        answers[name] = generate(model, second | {"past_key_values": out.past_key_values})
    assert torch.equal(answers["ours"], answers["stock"])
    without_cache = generate(ours, second | {"pixel_values": first["pixel_values"]})
    assert torch.equal(answers["ours"], without_cache)


def test_an_image_in_the_second_turn():
    ours, stock = models()
    first, new = batch([1]), tiny.pixels(1, seed=9)
    answers = {}
    for name, model in (("ours", ours), ("stock", stock)):
        out = generate(model, first, return_dict_in_generate=True, suppress_tokens=[tiny.IMAGE_TOKEN_ID])
        ids = torch.cat([out.sequences, torch.tensor([[11, *tiny.image_ids(), 13]])], dim=1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model is ours:
            with pytest.raises(ValueError, match="Sample 0 has 4 image tokens but no images were given"):
                generate(model, second | {"past_key_values": out.past_key_values})
        new_only = second | {"past_key_values": copy.deepcopy(out.past_key_values), "pixel_values": new}
        new_only["input_ids"] = ids[:, out.past_key_values.get_seq_length() :]
        answers[name, "new ids"] = generate(model, new_only)[:, -8:]
        answers[name] = generate(model, second | {"past_key_values": out.past_key_values, "pixel_values": new})
    assert torch.equal(answers["ours"], answers["stock"])
    assert torch.equal(answers["ours", "new ids"], answers["ours"][:, -8:])
    assert torch.equal(answers["stock", "new ids"], answers["ours"][:, -8:])
    both = torch.cat([first["pixel_values"], new])
    assert torch.equal(answers["ours"], generate(ours, second | {"pixel_values": both}))


# what runs


@pytest.mark.parametrize("mode", ["greedy", "beams", "no cache", "static cache"])
def test_the_tower_runs_once_and_no_further_than_needed(mode):
    ours = copy.deepcopy(models()[0])
    calls = [0, 0, 0]
    for i, block in enumerate(ours.model.vision_tower.encoder.layers):
        block.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    generate(ours, batch([2, 0, 1]), **MODES[mode])
    assert calls == [1, 1, 0]


def test_a_trainable_model_generates_without_a_graph():
    ours, _ = models()
    assert all(p.requires_grad for p in ours.parameters())
    out = generate(ours, batch([1]), return_dict_in_generate=True, output_logits=True)
    assert not any(logits.requires_grad for logits in out.logits)


# errors


def test_image_tokens_without_images_are_an_error():
    ours, _ = models()
    inputs = batch([0, 2])
    del inputs["pixel_values"]
    message = "Sample 1 has 8 image tokens but no images were given. Pass `pixel_values` or `image_features`."
    for options in ({}, {"num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 3}):
        with pytest.raises(ValueError, match=message):
            generate(ours, inputs, **options)


def test_an_answer_may_hold_image_tokens():
    """What the model itself writes is no place for an image, with or without a cache."""
    ours = repeat_after(copy.deepcopy(models()[0]), 7, tiny.IMAGE_TOKEN_ID)
    for options in ({}, {"use_cache": False}, {"num_beams": 2}):
        tokens = generate(ours, batch([0, 0]), **options)
        assert (tokens[:, -8:] == tiny.IMAGE_TOKEN_ID).all()
    assert (generate(ours, batch([1]))[:, -8:] == tiny.IMAGE_TOKEN_ID).all()


def test_a_wrong_number_of_images_is_an_error():
    ours, _ = models()
    inputs = batch([1, 2])
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    with pytest.raises(ValueError, match=r"for 3 images \(sample 0: 1, sample 1: 2\) but 2 images were given"):
        generate(ours, inputs)


def test_pixels_and_features_together_are_an_error():
    ours, _ = models()
    inputs = batch([1])
    features = ours.model.get_vision_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="Got images in more than one form"):
        generate(ours, inputs | {"image_features": features})


def test_image_sizes_are_an_error():
    ours, _ = models()
    with pytest.raises(ValueError, match="Got `image_sizes`, which is for towers with images of varying size"):
        generate(ours, batch([1]), image_sizes=torch.tensor([[28, 28]]))


def test_a_misspelt_argument_is_an_error():
    ours, _ = models()
    with pytest.raises(ValueError, match="pixel_value"):
        ours.generate(torch.tensor([[1, 2]]), pixel_value=tiny.pixels(1))
