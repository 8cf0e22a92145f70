"""The micro vision tower: what it is shown and told, what its gates refuse, and `llava micro bases` end to end."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from data_generation.microworld.scene import CELLS, HELD_OUT, SPLITS, make_scene, split_of
from data_generation.microworld.variants import draw_few, variant
from recipes import cli
from recipes.micro import bases, language, tower


NEW = {"combinations", "told"}  # of an object whose colour and shape are held out


@pytest.fixture
def small(monkeypatch):
    """Batches of eight scenes, measures of few."""
    monkeypatch.setattr(tower, "GROUPS", 2)
    monkeypatch.setattr(tower, "PROBED", 40)
    monkeypatch.setattr(tower, "PROBING", 3)
    monkeypatch.setattr(language, "ROWS", 2)
    monkeypatch.setattr(language, "measure", lambda *given: dict.fromkeys(bases.gates("language"), 0.5))


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_has_a_variant_that_may_be_shown(split):
    rng = random.Random(0)
    for index in range(300):  # 2 % of `validation` have no neighbour in their own split
        scene = make_scene(split, index)
        other = variant(scene, rng)
        assert other.things != scene.things and other.split == split_of(other.things)
        assert other.split in ({"train"} if split == "train" else NEW if split in NEW else set(SPLITS) - NEW)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_scenes_of_few_objects_are_of_train_and_anywhere(most):
    rng = random.Random(0)
    scenes = [draw_few(rng, most) for _ in range(200)]
    assert max(len(scene.things) for scene in scenes) == most
    assert {split_of(scene.things) for scene in scenes} == {"train"}
    things = [thing for scene in scenes for thing in scene.things]
    assert not {thing.pair for thing in things} & HELD_OUT
    assert {thing.cell for thing in things} == set(range(len(CELLS)))
    for scene in scenes:
        assert [thing.cell for thing in scene.things] == sorted(thing.cell for thing in scene.things)
        for thing, place in zip(scene.things, scene.places, strict=True):
            assert (int(place.x * 3), int(place.y * 3)) == (thing.column, thing.row)


def test_a_caption_tells_every_fact():
    for i in range(20):
        scene = make_scene("train", i)
        facts = [(thing.size, thing.colour, thing.shape, CELLS[thing.cell]) for thing in scene.things]
        assert tower.caption(scene) == [word for fact in facts for word in fact]
        assert set(tower.caption(scene)) < set(tower.WORDS)


def test_every_word_of_a_caption_is_read():
    torch.manual_seed(0)
    model = tower.new_model().eval()
    words = ["large", "red", "circle", "bottom-right", "small", "blue", "ring", "top"]
    others = [[*words[:i], "white" if words[i] != "white" else "red", *words[i + 1 :]] for i in range(len(words))]
    with torch.no_grad():
        found = tower.similarities(model, torch.zeros(1, 3, tower.SIDE, tower.SIDE), [words, words[:4], *others])[0]
    assert (found[1:] - found[0]).abs().min() > 1e-5


def test_equal_captions_are_all_right(small, monkeypatch):
    """Scenes that look alike to a caption are no mistake: were they, a loss of zero would be out of reach."""
    scene = draw_few(random.Random(0), 1)
    monkeypatch.setattr(tower, "draw_few", lambda rng, most: scene)
    monkeypatch.setattr(tower, "variant", lambda scene, rng: scene)
    monkeypatch.setattr(tower, "WINDOW", 1)
    said = []
    tower.train_tower(1, 0, said.append)
    assert "picture to caption 1.00 of 8" in said[0]


def test_a_seed_decides_the_tower(small):
    weights = [tower.train_tower(2, seed, str).vision_model.embeddings.patch_embedding.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_gates_refuse_an_untrained_tower(small, tmp_path):
    made = bases.make_tower(tmp_path / "vision", steps=0, seed=0)
    assert set(made["scores"]["gate"]) == set(tower.GATES)
    assert any(failure.startswith("vision: caption 0.") for failure in bases.failures("tower", made))


def test_gates_let_good_halves_pass():
    for half in bases.HALVES:
        gates = bases.gates(half)
        assert bases.failures(half, {"scores": {"gate": gates}}) == []
        name = next(iter(gates))
        below = {"scores": {"gate": gates | {name: 0.5}}}
        assert bases.failures(half, below) == [f"{bases.HALVES[half]}: {name} 0.500, wanted 0.95"]


def test_bases_end_to_end(small, tmp_path, monkeypatch, capsys):
    command = ["micro", "bases", "--out", str(tmp_path), "--tower-steps", "2", "--language-steps", "2"]
    assert cli.main(command) == 1
    refused = capsys.readouterr().err.splitlines()[-1]
    assert refused.startswith("llava micro: error: Not as good as wanted: ")
    assert "vision: caption 0." in refused and "language: colour 0.500, wanted 0.95" in refused

    for half in ("vision", "language"):
        with safe_open(tmp_path / half / "model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 12e6
    vision = CLIPVisionModel.from_pretrained(tmp_path / "vision")
    assert vision.config.image_size == AutoImageProcessor.from_pretrained(tmp_path / "vision").crop_size["height"]
    words = AutoTokenizer.from_pretrained(tmp_path / "language")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "language").config.vocab_size == len(words)
    card = (tmp_path / "README.md").read_text()
    for said in ("license: apache-2.0", "--only tower --tower-steps 2 --seed 0", "| caption | 0.90 | 0.", "commit: "):
        assert said in card
    assert {file.name for file in tmp_path.iterdir()} == {"vision", "language", "README.md", "made.json"}

    # What is there is not made again, and is what it was asked for.
    monkeypatch.setattr(tower, "train_tower", None)
    assert cli.main([*command, "--only", "tower"]) == 1
    assert "vision: caption 0." in capsys.readouterr().err
    assert cli.main([*command, "--seed", "1"]) == 1
    assert "was made with 2 steps and seed 0, wanted 2 and 1." in capsys.readouterr().err


def test_a_tower_is_not_trained_again_to_be_measured(small, tmp_path, monkeypatch):
    def stopped(model):
        raise KeyboardInterrupt

    with monkeypatch.context() as stop:
        stop.setattr(tower, "find_captions", stopped)
        with pytest.raises(KeyboardInterrupt):
            bases.make_tower(tmp_path / "vision", steps=1, seed=0)
    with monkeypatch.context() as no_training:
        no_training.setattr(tower, "train_tower", None)
        assert "caption" in bases.make_tower(tmp_path / "vision", steps=1, seed=0)["scores"]["gate"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["vision"]


def test_half_precision_is_what_is_measured(small, tmp_path):
    """Scores of weights that nobody gets would be no scores."""
    tower.save_tower(model := tower.train_tower(1, 0, str), tmp_path)
    written = CLIPVisionModel.from_pretrained(tmp_path, dtype=torch.float32)
    before = model.vision_model.embeddings.patch_embedding.weight
    assert torch.equal(written.embeddings.patch_embedding.weight, before.half().float())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
