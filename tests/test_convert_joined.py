"""`llava convert` of what is no whole model: projectors, LoRA adapters and deltas join the base they were made with.

The projector of a converted model goes back into a file of its own.
"""

import pytest
import torch

from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.convert_original import load_projector
from processing import LlavaProcessor
from recipes.convert import convert, main
from tests.originals import (
    TEXT_WIDTH,
    VISION_WIDTH,
    VOCAB,
    assert_same_function,
    language_model,
    original_config,
    projector_tensors,
    write_full,
    write_json,
    write_lora,
    write_tokenizer,
    write_weights,
)
from tests.originals import base as base
from tests.originals import spm as spm
from tests.originals import tower as tower
from tests.tiny import llava_model


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
