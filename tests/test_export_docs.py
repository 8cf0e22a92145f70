"""The code of docs/export.md takes a checkpoint apart as llama.cpp's converter wants it."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests import tiny_text


PAGE = Path(__file__).parent.parent / "docs/export.md"


def test_tower_and_projector_come_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = tiny_text.checkpoint(tmp_path / "checkpoints/stage2")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "docs/export.md", "exec"), {})
    projector = torch.load("vit/llava.projector", weights_only=True)
    places = {"0": "linear_1", "2": "linear_2"}
    own = model.model.multi_modal_projector.state_dict()
    assert set(projector) == {f"model.mm_projector.{n}.{kind}" for n in places for kind in ("weight", "bias")}
    for name, weight in projector.items():
        number, kind = name.split(".")[2:]
        assert torch.equal(weight, own[f"{places[number]}.{kind}"])
    config = json.loads(Path("vit/config.json").read_text())
    assert (config["model_type"], config["vision_feature_layer"]) == ("clip_vision_model", -2)
    saved = load_file("vit/model.safetensors")
    assert sum(weight.numel() for weight in saved.values()) == sum(
        p.numel() for p in model.model.vision_tower.parameters()
    )
    assert Path("vit/preprocessor_config.json").is_file()
