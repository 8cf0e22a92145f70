"""The benchmark of training runs both sides on the same conversations; how fast they are is not for tests to say."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from PIL import Image

from benchmarks import train_speed
from benchmarks.train_sides import CASES, SHAPES, build, draw_samples


TINY = ["--shape", "small", "--image-size", "28", "--steps", "1", "--rounds", "1"]


def test_the_benchmark_of_training_runs(tmp_path, capsys):
    train_speed.main([*TINY, "--case", "stage2", "--checkpointing", "both", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "train_speed-cpu-small-28.json").read_text())
    printed = capsys.readouterr().out

    (result,) = written["results"]
    settings = [entry["setting"] for entry in result["comparisons"]]
    equal = ["checkpointing off", "checkpointing on", "each its default"]
    assert settings == equal + [f"{setting}, length-grouped" for setting in equal]
    assert all(f"| stage 2, {setting} |" in printed for setting in settings)
    assert written["versions"].keys() >= {"torch", "transformers", "trl"} and written["commit"] and written["date"]
    for entry in result["comparisons"]:
        assert entry["speed_ratios"][0] > 0 and entry["memory_ratio"] > 0
    assert all(entry["loss_difference"] <= 1e-6 for entry in result["comparisons"][:3])

    sides = result["sides"]
    for side in sides.values():  # one step for memory, one for time; at a rate of 0 it is the same step
        assert len(side["losses"]) == 2 and side["losses"][0] == side["losses"][1]
    assert sides["ours off"]["padded_over_real"] == 1 and result["sharing"] > 1
    assert sides["trl off"]["images"] == 8 and sides["ours off"]["images"] == 4
    with Image.open(tmp_path / "train_speed-cpu-small-28.png") as picture:
        assert picture.width == 1200 and len(picture.getcolors(100_000)) > 3


@pytest.mark.parametrize("case", CASES)
def test_every_step_has_the_numbers_of_its_case(case, tmp_path):
    samples = draw_samples(case, 3, 100, tmp_path)
    for step in range(3):
        own = samples[step * CASES[case].samples : (step + 1) * CASES[case].samples]
        assert len(own) == CASES[case].samples
        assert len({sample["image"] for sample in own}) == CASES[case].images
    assert len(list(tmp_path.glob("*.jpg"))) == 3 * CASES[case].images


def test_sorted_conversations_need_less_padding():
    samples = [{"texts": ["a b", "c"]}, {"texts": ["a", "b"]}, {"texts": ["a b", "c d e"]}]
    rows = train_speed.sort_by_length(Dataset.from_dict({"row": range(3)}), samples)
    assert rows["row"][:] == [2, 0, 1]


def test_sides_of_another_loss_are_not_compared():
    sides = {
        key: SimpleNamespace(out_of_memory=False, seconds=[(1.0, 1.0)], peak_bytes=1, losses=[loss])
        for key, loss in (("trl off", 2.0), ("ours off", 2.0001))
    }
    loads = {key: SimpleNamespace(supervised=[5]) for key in sides}
    with pytest.raises(ValueError, match="do not compare"):
        train_speed.compare(CASES["stage1"], sides, loads, slice(None), tolerance=1e-6)


def test_sizes_on_a_gpu_are_those_of_the_models_they_are_named_after():
    for shape, billions in (("0.5b", 0.93), ("7b", 7.06)):
        ours, _ = build(SHAPES["cuda"][shape], 336, "meta", torch.bfloat16)
        assert ours.num_parameters() / 1e9 == pytest.approx(billions, abs=0.1)
