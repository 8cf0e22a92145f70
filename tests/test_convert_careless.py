"""`llava convert` refuses what would run, what does not fit and what is not there, and writes nothing then."""

import os
import re
from pathlib import Path

import pytest
import torch

from recipes import cli
from recipes.convert import convert, main
from tests.originals import (
    VOCAB,
    language_model,
    original_config,
    projector_tensors,
    write_full,
    write_json,
    write_lora,
)
from tests.originals import base as base
from tests.originals import spm as spm
from tests.originals import tower as tower
from tests.tiny import llava_model


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
