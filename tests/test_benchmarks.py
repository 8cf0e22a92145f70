"""The benchmarks run and say what they measured; how fast anything is, is not for tests to say."""

import json

import pytest
import torch

from benchmarks import answer_speed, forward, quickstart_seeds


def test_the_benchmark_of_the_model_runs(tmp_path, capsys):
    forward.main(["--shape", "tiny", "--rounds", "2", "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())

    names = ["forward", "forward, no image", "generate 32 tokens", *forward.TRAINING]
    assert [row["name"] for row in written["rows"]] == names
    assert all(f"| {name} |" in printed for name in names)
    assert written["arguments"]["shape"] == "tiny" and written["versions"]["torch"] == torch.__version__
    for row in written["rows"]:
        assert len(row["time_ratios"]) == len(row["cpu_time_ratios"]) == 2
        assert row["megabytes"]["ours"] > 0 and row["seconds"]["stock"] > 0
        # What does not depend on the machine: the tower's last layer is left out, and more where activations would be
        # computed a second time.
        least = 1.1 if "checkpointing" in row["name"] else 1.02
        assert row["operations_ratio"] == 1 if row["name"] == "forward, no image" else row["operations_ratio"] > least


def test_peak_memory_is_the_peak():
    def step():
        torch.empty(1_000_000)  # freed at once
        a = torch.empty(500_000)
        return a, torch.empty(250_000)

    assert forward.peak_memory(step, "cpu") == pytest.approx(4_000_000, rel=0.01)


def test_checkpointing_leaves_nothing_behind_for_the_next_row():
    _, stock = forward.build("tiny", "cpu", torch.float32)
    inputs = forward.inputs_for("tiny", "cpu")
    memory = []
    for checkpointing in (False, True, False):
        forward.prepare(stock, ("language_model",), checkpointing)
        memory.append(forward.peak_memory(lambda: forward.train(stock, inputs), "cpu"))
        embedding = stock.model.vision_tower.embeddings.patch_embedding
        assert len(embedding._forward_hooks) == checkpointing
    assert memory[0] == memory[2] != memory[1]


def test_models_that_differ_are_not_timed():
    models = dict(zip(("ours", "stock"), forward.build("tiny", "cpu", torch.float32), strict=True))
    models["stock"].model.multi_modal_projector.linear_1.weight = torch.nn.Parameter(torch.ones(32, 32))
    with pytest.raises(AssertionError, match="not close"):
        forward.compare("forward", forward.forward, models, forward.inputs_for("tiny", "cpu"), 1, "cpu")


@pytest.mark.parametrize("shape", forward.SHAPES)
def test_every_shape_is_a_model(shape):
    ours, stock = forward.build(shape, "meta", torch.bfloat16)
    assert ours.num_parameters() == stock.num_parameters()
    if shape in ("0.5b", "7b"):
        assert ours.num_parameters() / 1e9 == pytest.approx({"0.5b": 0.93, "7b": 7.06}[shape], abs=0.1)


def test_seeds_are_put_side_by_side(tmp_path, capsys):
    for seed, share in ((0, 0.9), (1, 1.0)):
        score = {"questions": 2, "right": share, "mean": share, "by_kind": {"colour": share}}
        run = {"seed": seed, "tiny": False, "questions_per_kind": 2, "scores": {"stage 2": score}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / f"{seed}/results.json").write_text(json.dumps(run))
    quickstart_seeds.main([str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path)])
    assert "| colour | 95.0 (90.0 to 100.0) |" in capsys.readouterr().out
    assert json.loads((tmp_path / "quickstart_seeds.json").read_text())["seeds"] == [0, 1]
    with pytest.raises(SystemExit):
        quickstart_seeds.main([str(tmp_path / "0"), str(tmp_path / "0")])


def test_the_benchmark_of_answers_runs(tmp_path, capsys):
    words = ["--shape", "tiny", "--questions", "6", "--pictures", "2", "--tokens", "5", "--batch-sizes", "1", "4"]
    answer_speed.main([*words, "--rounds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "answer_speed.json").read_text())["results"]
    assert [one["batch_size"] for one in found] == [1, 4]
    for one in found:
        assert one["equal_answers"] == one["questions"] == 6 and one["different_answers_of_stock"] > 3
        assert len(one["ratios"]) == len(one["cpu_ratios"]) == 2
    assert "| 4 |" in printed and "6 of 6" in printed and (tmp_path / "answer_speed.png").stat().st_size > 1000
