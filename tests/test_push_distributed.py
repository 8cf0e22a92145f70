"""`push_to_hub` in a training of two processes: one of them pushes, and both end, whatever the Hub answers."""

import json

import pytest

from tests import launching, training
from tests.hub_server import Repository
from tests.pushing import WRITER
from tests.pushing import hub as hub


pytestmark = pytest.mark.slow


@pytest.fixture
def workplace(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER}
    for name, value in (there | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}).items():
        monkeypatch.setenv(name, value)
    training.write_data_and_start(tmp_path)
    yield tmp_path
    hub.faults.clear()
    hub.requests.clear()


def run(workplace, name: str) -> tuple[int, str]:
    path = training.write_yaml(
        workplace / "run.yaml",
        output_dir="out",
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_model_id=name,
        hub_always_push=True,
    )
    process = launching.start(path)
    out, _ = process.communicate(timeout=launching.TIMEOUT)
    return process.returncode, out


def test_one_of_two_processes_pushes(hub, workplace):
    hub.repos["model", "ada/two"] = repo = Repository()
    code, out = run(workplace, "ada/two")
    assert code == 0, out[-6000:]
    assert repo.messages == ["llava train: step 1", "llava train: step 2", "llava train: end of training"]
    assert hub.requests.count("POST /api/repos/create") == 1
    assert repo.files["model.safetensors"] == (workplace / "out/model.safetensors").read_bytes()
    assert json.loads(repo.files["training.json"])["processes"] == 2


def test_a_push_that_fails_ends_both_processes_and_leaves_the_checkpoint(hub, workplace):
    """The token is taken back in the middle: the first checkpoint gets through, nothing after it."""
    hub.repos["model", "ada/late"] = repo = Repository()
    hub.fail("commit", after=1, status=401)
    code, out = run(workplace, "ada/late")
    assert code != 0
    assert repo.messages == ["llava train: step 1"]
    assert "step 2 is not pushed: Nothing was committed" in out
    assert "The training has ended well, and `out` holds its result; but it was not pushed" in out, out[-6000:]
    assert "Then: llava push model out --repo-id ada/late" in out
    assert json.loads((workplace / "out/training.json").read_text())["log"][-1]["step"] == 2


def test_a_hub_that_is_out_of_order_ends_both_processes_before_the_training(hub, workplace):
    hub.fail("create", status=500)
    code, out = run(workplace, "ada/none")
    assert code != 0
    assert "Nothing was committed: while making `ada/none`, the Hub has trouble of its own (500)" in out, out[-6000:]
    assert not (workplace / "out/training.json").exists() and not list((workplace / "out").glob("checkpoint-*"))
