"""The benchmark of the loss curves: what it compares is the same where it says so."""

import pytest
import torch

from benchmarks import loss_curves, shapes
from recipes import build


@pytest.fixture
def folder(tmp_path, monkeypatch):
    quick = {"num_train_epochs": 2, "logging_steps": 1, "warmup_steps": 0}
    monkeypatch.setattr(loss_curves, "COMMON", loss_curves.COMMON | quick)
    for way, choices in loss_curves.WAYS.items():
        monkeypatch.setitem(loss_curves.WAYS, way, choices | {"max_length": 320})
    loss_curves.write_conversations(tmp_path, 6, seed=0)
    loss_curves.write_conversations(tmp_path / "held_out", 2, seed=1)
    start = tmp_path / "start-0"
    torch.manual_seed(0)
    shapes.write_halves(start)
    halves = ["--vision", f"{start}/vision", "--language", f"{start}/language"]
    build.main([*halves, "--projector", "linear", "--out", f"{start}/joined"])
    return tmp_path


def test_padded_rows_in_the_steps_of_trees_learn_as_trees_do(folder):
    trees, same = (loss_curves.train(folder, way, 0) for way in ("trees", "padded, same steps"))
    losses = [loss for _, loss in trees["learned"]]
    assert len(losses) > 2 and losses[-1] < losses[0] - 0.1
    for name in ("learned", "held_out"):
        assert [step for step, _ in trees[name]] == [step for step, _ in same[name]]
        assert [loss for _, loss in trees[name]] == pytest.approx([loss for _, loss in same[name]], rel=1e-4)


def test_the_summary_holds_each_way_against_trees():
    last = {"trees": (1.0, 3.0), "padded": (2.0, 4.0), "padded, same steps": (1.5, 2.5)}
    runs = [{"way": way, "held_out": [(0.5, 9.0), (1.0, loss)]} for way, losses in last.items() for loss in losses]
    found = loss_curves.summary(runs)
    assert found["apart_from_trees"] == {"padded": 1.0, "padded, same steps": 0.0}
