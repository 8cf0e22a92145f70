"""`cache_image_features`: the same training from files, computed once, and never of another tower or picture."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.modeling_llava import LlavaModel
from processing import ImageError, LlavaProcessor
from processing.features import FeatureFiles, picture_key, write_features
from recipes.training import feature_cache
from recipes.training.feature_cache import tower_hash
from tests import training


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data(tmp_path / "data.jsonl", trees=6, text_only=2)
    training.write_start(tmp_path / "start")
    return tmp_path


@pytest.fixture
def encoded_pictures(monkeypatch):
    """How many pictures the tower gets."""
    counts = []
    method = LlavaModel.get_vision_features

    def spy(self, pixel_values, *args, **kwargs):
        counts.append(len(pixel_values))
        return method(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(LlavaModel, "get_vision_features", spy)
    return counts


def steps_and_weights(folder):
    log = json.loads(Path(folder, "training.json").read_text())["log"]
    return [e["loss"] for e in training.steps_of(log)], load_file(next(Path(folder).glob("*model.safetensors")))


def facts(folder="out"):
    return json.loads(Path(folder, "training.json").read_text())["image_features"]


@pytest.mark.parametrize("changes", [{}, {"stage": "pretrain"}, {"use_peft": True, "lora_r": 4}])
def test_training_from_files_is_the_same_training(workplace, encoded_pictures, changes, capsys):
    training.run(workplace, output_dir="opened", num_train_epochs=2, **changes)
    without = sum(encoded_pictures)
    encoded_pictures.clear()
    training.run(workplace, output_dir="out", num_train_epochs=2, cache_image_features="cache", **changes)
    assert without == 12 and sum(encoded_pictures) == 6  # each once, not once an epoch
    (losses, weights), (other, other_weights) = steps_and_weights("opened"), steps_and_weights("out")
    assert losses == pytest.approx(other, rel=1e-6)
    assert all((weights[name] - other_weights[name]).abs().max() < 1e-6 for name in weights)
    assert facts()["pictures"] == facts()["computed_by_this_process"] == 6 and facts()["seen_in_this_run"] == 12
    assert "ms to open and encode one" in capsys.readouterr().out

    encoded_pictures.clear()
    training.run(workplace, output_dir="again", cache_image_features="cache", **changes)
    assert (
        not encoded_pictures and facts("again")["were_there"] == 6 and facts("again")["computed_by_this_process"] == 0
    )


def test_a_changed_picture_is_another_picture(workplace, encoded_pictures):
    training.run(workplace, cache_image_features="cache")
    Image.new("RGB", (40, 30), "red").save("data-3.png")
    encoded_pictures.clear()
    training.run(workplace, output_dir="again", cache_image_features="cache")
    assert sum(encoded_pictures) == 1 and facts("again")["pictures"] == 7


def test_workers_read_and_a_killed_computation_is_continued(workplace, encoded_pictures, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    monkeypatch.setattr(feature_cache, "BATCH", 2)
    write = feature_cache.write_features

    def killed(folder, features):
        if len(list(folder.glob("*.safetensors"))) == 2:
            raise KeyboardInterrupt
        return write(folder, features)

    monkeypatch.setattr(feature_cache, "write_features", killed)
    with pytest.raises(KeyboardInterrupt):
        training.run(workplace, cache_image_features="cache")
    monkeypatch.setattr(feature_cache, "write_features", write)
    training.run(workplace, cache_image_features="cache", dataloader_num_workers=2)
    assert 0 < facts()["were_there"] < 6 and facts()["pictures"] == 6


def test_the_name_of_the_folder_says_what_features_depend_on(workplace):
    model, processor = LlavaForConditionalGeneration.from_pretrained("start"), LlavaProcessor.from_pretrained("start")
    first = tower_hash(model, processor, False)
    assert tower_hash(model, processor, False) == first
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight += 1
        assert tower_hash(model, processor, False) == first  # comes after
        next(model.model.vision_tower.parameters())[0] += 1
    hashes = {first, tower_hash(model, processor, False), tower_hash(model, processor, True)}
    model.config.vision_feature_layer = -1
    hashes.add(tower_hash(model, processor, False))
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    hashes.add(tower_hash(model, processor, False))
    assert len(hashes) == 5


def test_pictures_are_known_by_their_bytes(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    data = path.read_bytes()
    assert len({picture_key(image, "x") for image in (str(path), {"path": str(path), "bytes": None}, data)}) == 1
    assert picture_key({"path": "other.png", "bytes": data}, "x") == picture_key(str(path), "x")
    with pytest.raises(ImageError, match="A picture of conversation `7` cannot be read: .*No such file"):
        picture_key(str(tmp_path / "b.png"), "conversation `7`")


def test_files_are_whole_and_missing_features_are_told(tmp_path):
    write_features(tmp_path, {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)})
    (tmp_path / ".features-1.safetensors.partial-7").write_bytes(b"half")
    files = FeatureFiles(tmp_path)
    assert len(files) == 2 and "a" in files and files.read_key("a", "x").equal(torch.ones(2, 3))
    with pytest.raises(ImageError, match="conversation `7` has no features in .* changed since the run began"):
        files.read_key("c", "conversation `7`")
    (tmp_path / "features-0.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="features-0.safetensors` is no file of features: .* Delete it"):
        FeatureFiles(tmp_path)


@pytest.mark.parametrize(
    "changes, word", [({"tune_vision_tower": True}, "tune_vision_tower"), ({"packing": False}, "packing: false")]
)
def test_what_has_no_fixed_features_is_refused(workplace, changes, word):
    with pytest.raises(ValueError, match=f"`cache_image_features` goes without `{word}`"):
        training.run(workplace, cache_image_features="cache", **changes)


def test_a_full_disk_is_told_before_anything_is_computed(workplace, monkeypatch, encoded_pictures):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"may need 0.0 GB, but 0.0 GB are free. Give a larger disk"):
        training.run(workplace, cache_image_features="cache")
    assert not encoded_pictures and os.listdir("cache")
