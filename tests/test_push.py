"""`llava push` from end to end: against a server on a socket, in processes of their own, and loaded from there."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from data_generation.rows import messages_of, row_features, write_rows
from tests.hub_server import Repository
from tests.pushing import NOBODY, READER, push, refused, train
from tests.pushing import hub as hub
from tests.pushing import no_faults as no_faults
from tests.pushing import project as project
from tests.pushing import stock as stock
from tests.pushing import work as work


MODEL_FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "loss.png",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}


# -- models --


def test_a_model_is_pushed_and_loads_in_stock_transformers_by_its_name(hub, project, stock, work):
    Image.new("RGB", (40, 30), "red").save(work / "red.png")
    asked = ["--picture", "red.png", "--question", "What is in the image?"]
    done = push(project, work, "model", "trained", "--repo-id", "ada/small", *asked)
    assert done.code == 0, done.err
    repo = hub.repos["model", "ada/small"]
    assert set(repo.files) == MODEL_FILES | {"example.png"}
    assert repo.messages == ["llava push model: trained"]
    assert f"/ada/small/commit/{repo.sha}: {len(repo.files)} files" in done.out
    assert re.search(r"left out, training state: (checkpoint-\d+, )+run.json", done.out)
    for name, content in repo.files.items():
        assert str(work).encode() not in content, name
    facts = json.loads(repo.files["training.json"])
    assert (facts["model"], facts["config"]["output_dir"]) == ("start", "trained")
    assert (work / "trained/model.safetensors").read_bytes() == repo.files["model.safetensors"]
    assert not (work / "trained/README.md").exists()

    card = repo.files["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    said = stock.ask(work, "", script=code)
    assert said.code == 0, said.err
    # The card has the answer that its own code gives, by the weights that were pushed.
    answer = card.partition("> What is in the image?\n\n")[2].partition("\n\nOne answer")[0]
    assert " ".join(said.out.split())[: len(answer) // 2] == answer[: len(answer) // 2]

    script = """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    model, report = AutoModelForImageTextToText.from_pretrained("ada/small", output_loading_info=True)
    print(type(model).__module__, *map(len, (report["missing_keys"], report["unexpected_keys"])))
    print(type(AutoProcessor.from_pretrained("ada/small")).__module__)
    """
    loaded = stock.ask(work, "", script=textwrap.dedent(script))
    assert loaded.out.split() == [
        "transformers.models.llava.modeling_llava",
        "0",
        "0",
        "transformers.models.llava.processing_llava",
    ], loaded.err


def test_the_same_push_again_sends_no_weights(hub, project, work):
    assert push(project, work, "model", "trained", "--repo-id", "ada/again").code == 0
    repo, sent = hub.repos["model", "ada/again"], dict(hub.puts)
    done = push(project, work, "model", "trained", "--repo-id", "ada/again")
    assert done.code == 0, done.err
    assert hub.puts == sent
    assert len(repo.commits) == 1  # nothing has changed, so there is nothing to commit


def test_a_dry_run_sends_nothing(hub, project, work):
    before = list(hub.requests)
    done = push(project, work, "model", "trained", "--repo-id", "ada/dry", "--dry-run")
    assert done.code == 0, done.err
    assert hub.requests == before
    listed = dict(re.findall(r"^  (\S+) +([\d,]+)$", done.out, re.MULTILINE))
    assert set(listed) == MODEL_FILES | {"all"}
    assert int(listed["model.safetensors"].replace(",", "")) == (work / "trained/model.safetensors").stat().st_size
    assert "----- README.md\n---\nlibrary_name: transformers\n" in done.out


def test_training_state_goes_up_whole_where_it_is_asked_for(hub, project, work):
    words = ["model", "trained", "--repo-id", "ada/state", "--include-training-state", "yes"]
    assert push(project, work, *words).code == 0
    files = hub.repos["model", "ada/state"].files
    last = max(int(path.name.partition("-")[2]) for path in (work / "trained").glob("checkpoint-*"))
    inside = {name.partition("/")[2]: content for name, content in files.items() if name.startswith("checkpoint-")}
    assert {name.partition("/")[0] for name in files if "/" in name} == {f"checkpoint-{last}"}
    assert {"optimizer.pt", "model.safetensors", "trainer_state.json", "complete.json"} <= set(inside)
    sizes = json.loads(inside.pop("complete.json"))["files"]
    assert sizes == {name: len(content) for name, content in inside.items()}
    assert "run.json" in files


def test_weights_of_an_earlier_push_that_are_in_the_way_are_removed(hub, project, work):
    old = {"model-00001-of-00002.safetensors": b"a", "model.safetensors.index.json": b"{}", "notes.txt": b"mine"}
    hub.repos["model", "ada/stale"] = Repository(files=dict(old))
    done = push(project, work, "model", "trained", "--repo-id", "ada/stale")
    assert done.code == 0, done.err
    assert set(hub.repos["model", "ada/stale"].files) == MODEL_FILES | {"notes.txt"}
    assert "removed, of an earlier push: model-00001-of-00002.safetensors, model.safetensors.index.json" in done.out


def test_what_somebody_wrote_into_the_card_on_the_hub_stays(hub, project, work):
    words = ["model", "trained", "--repo-id", "ada/words"]
    assert push(project, work, *words).code == 0
    repo = hub.repos["model", "ada/words"]
    card = repo.files["README.md"].decode().replace("---\nlibrary_name", "---\nlicense: mit\nlibrary_name", 1)
    before, line, _ = card.partition("stays when the card is written again -->")
    repo.files["README.md"] = f"{before}{line}\n\nBe kind to it.\n".encode()
    assert push(project, work, *words).code == 0
    card = repo.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\nlicense: mit\n")
    assert card.endswith("-->\n\nBe kind to it.\n")


def test_what_the_folders_card_replaces_on_the_hub_is_told(hub, project, work):
    folder = work / "with-card"
    shutil.copytree(work / "trained", folder)
    (folder / "README.md").write_text("# Mine\n\nBe kind to it.\n")
    hub.repos["model", "ada/told"] = repo = Repository(
        files={"README.md": b"---\nlicense: mit\n---\n\nFrom the page.\n"}
    )
    done = push(project, work, "model", "with-card", "--repo-id", "ada/told")
    assert done.code == 0, done.err
    assert "README.md` stays as it is; the card that is published ends with its words" in done.out
    assert "README.md of the Hub had other words of its own" in done.out
    card = repo.files["README.md"].decode()
    assert "license: mit\n" in card and card.endswith("-->\n\n# Mine\n\nBe kind to it.\n")
    assert (folder / "README.md").read_text() == "# Mine\n\nBe kind to it.\n"


# -- data sets --


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (12, 10), "blue").save(folder / "blue.png")
    image = {"bytes": (folder / "blue.png").read_bytes(), "path": None}
    turns = [("What colour is it?", "Blue.")]
    same = {"images": [image], "messages": messages_of(turns), "image_id": ["blue"], "source": "drawn"}
    wanted = [same | {"id": "a", "kind": "conversation"}, same | {"id": "b", "kind": "detail"}]
    write_rows(wanted, folder / "two.parquet", row_features(embedded=True))
    made = folder / "made"
    (made / "data/1-0123abcd").mkdir(parents=True)
    (made / "ledger").mkdir()
    shutil.copy(folder / "two.parquet", made / "data/1-0123abcd/train-00000-of-00001.parquet")
    (made / "ledger/0.sqlite").write_bytes(b"what was asked")
    (made / "report.html").write_text("<p>made in /home/ada/made</p>")
    header = "configs:\n- config_name: default\n  data_files:\n  - split: train\n"
    header += "    path: data/1-0123abcd/train-*.parquet\n"
    (made / "README.md").write_text(f"---\n{header}---\n\n# made\n\n- paths start from: {folder}/world\n")
    return folder


LOAD = """
from datasets import load_dataset
rows = load_dataset("{name}", split="train")
print(rows["id"][:], rows[0]["images"][0].size, rows[0]["messages"][1]["content"][0]["text"])
"""


@pytest.mark.parametrize("place, name", [("made", "ada/made"), ("two.parquet", "ada/two")])
def test_a_data_set_is_pushed_and_loads_by_its_name(hub, project, stock, rows, place, name):
    done = push(project, rows, "dataset", place, "--repo-id", name)
    assert done.code == 0, done.err
    files = hub.repos["dataset", name].files
    if place == "made":
        assert set(files) == {"README.md", "report.html", "data/1-0123abcd/train-00000-of-00001.parquet"}
        assert files["report.html"] == b"<p>made in made</p>"
        assert files["README.md"].decode().endswith("- paths start from: world\n")
        assert "left out, what was asked and answered: ledger/0.sqlite (1)" in done.out
    else:
        assert set(files) == {"README.md", "data/train-00000-of-00001.parquet"}
        card = files["README.md"].decode()
        assert "2 conversations about 1 pictures" in card and "The pictures are in the rows." in card
        assert "| conversation | 1 |\n| detail | 1 |" in card and "- sources: drawn\n- written by: unknown" in card
    loaded = stock.ask(rows, "", script=LOAD.format(name=name))
    assert loaded.out.strip() == "['a', 'b'] (12, 10) Blue.", loaded.err


def test_rows_with_local_paths_are_not_pushed(hub, project, rows):
    row = {"id": "a", "images": ["/data/coco/1.jpg"], "messages": messages_of([("Q", "A")]), "image_id": ["1"]}
    write_rows([row | {"kind": "detail", "source": "coco"}], rows / "paths.parquet", row_features(embedded=False))
    (rows / "paths.jsonl").write_text(json.dumps(row) + "\n")
    said = refused(push(project, rows, "dataset", "paths.parquet", "--repo-id", "ada/paths"))
    assert "`images`: 1 local paths among the rows from 0 on, such as `/data/coco/1.jpg`" in said
    said = refused(push(project, rows, "dataset", "paths.jsonl", "--repo-id", "ada/paths"))
    assert "data/train.jsonl, line 1, `images[0]`: the local path `/data/coco/1.jpg`" in said
    assert ("dataset", "ada/paths") not in hub.repos


# -- when it goes wrong --


def test_a_dropped_upload_is_taken_up_again(hub, project, work):
    """The first file gets through, the others do not; the second time the first one is not sent."""
    folder = work / "dropped"
    shutil.copytree(work / "trained", folder)
    Image.new("RGB", (9, 9), "green").save(work / "green.png")
    words = ["model", "dropped", "--repo-id", "ada/dropped", "--picture", "../dropped-none.png", "--question", "?"]
    assert "is no file" in refused(push(project, work, *words))
    hub.objects.clear()
    hub.puts.clear()
    words = ["model", "dropped", "--repo-id", "ada/dropped"]
    hub.fail("put")
    said = refused(push(project, work, *words))
    assert "Nothing was committed" in said and "the connection was lost" in said and "not sent twice" in said
    repo = hub.repos["model", "ada/dropped"]
    assert (repo.commits, repo.files, dict(hub.puts)) == ([], {}, {})
    hub.faults.clear()

    hub.fail("commit", status=500)  # all files are there, and no commit names them
    assert "Nothing was committed" in refused(push(project, work, *words))
    assert (repo.commits, repo.files) == ([], {})
    assert sorted(hub.puts.values()) == [1, 1]  # weights and the plot
    hub.faults.clear()

    assert push(project, work, *words).code == 0
    assert sorted(hub.puts.values()) == [1, 1]
    assert set(repo.files) == MODEL_FILES


FAULTS = [
    ("create", {"status": 500}, "the Hub has trouble of its own (500)"),
    ("create", {"status": 429}, "takes no more requests from you for now. Wait some minutes."),
    ("preupload", {"status": 429}, "takes no more requests from you for now. Wait some minutes."),
    ("preupload", {"status": 500, "body": b"<html>"}, "the Hub has trouble of its own (500)"),
    ("validate", {"status": 502, "body": b"<html>Bad gateway"}, "the Hub did not answer as it should"),
    ("batch", {"status": 403}, "your token may not write there"),
    ("put", {"status": 500}, "the Hub has trouble of its own (500)"),
    ("commit", {"status": 401}, "the Hub does not know you"),
    ("commit", {"status": 409}, "somebody else changed the repository meanwhile"),
    ("commit", {}, "the Hub cannot be reached"),
]


@pytest.mark.parametrize("step, how, words", FAULTS)
def test_a_refusal_of_the_hub_is_one_line_and_leaves_the_repository_as_it_was(hub, project, work, step, how, words):
    repo = hub.repos["model", "ada/there"] = Repository(commits=["1" * 40], files={"config.json": b"{}"})
    hub.objects.clear()
    hub.fail(step, **how)
    said = refused(push(project, work, "model", "trained", "--repo-id", "ada/there"))
    assert words in said and "`ada/there`" in said and "Nothing was committed" in said
    assert (repo.commits, repo.files) == (["1" * 40], {"config.json": b"{}"})


@pytest.mark.parametrize(
    "token, words", [(NOBODY, "the Hub does not know you"), (READER, "your token may not write there")]
)
def test_a_token_that_may_not_write_is_told_so(hub, project, work, token, words):
    said = refused(push(project, work, "model", "trained", "--repo-id", "eve/model", token=token))
    assert words in said
    assert token not in said
    assert ("model", "eve/model") not in hub.repos


def test_a_commit_in_between_is_not_written_over(hub, project, work):
    repo = hub.repos["model", "ada/between"] = Repository(commits=["1" * 40])
    hub.fail("commit", status=412, times=1)
    said = refused(push(project, work, "model", "trained", "--repo-id", "ada/between"))
    assert "somebody else changed the repository meanwhile" in said
    assert repo.files == {}


def test_what_is_to_be_private_does_not_go_into_a_public_repository(hub, project, work):
    hub.repos["model", "ada/public"] = Repository(private=False)
    said = refused(push(project, work, "model", "trained", "--repo-id", "ada/public", "--private"))
    assert "`ada/public` is public, and you asked for a private one" in said
    assert hub.repos["model", "ada/public"].files == {}
    assert push(project, work, "model", "trained", "--repo-id", "ada/private", "--private").code == 0
    assert hub.repos["model", "ada/private"].private


@pytest.mark.parametrize(
    "name",
    ["small", "ada/", "ada/a/b", "../x", "ada/x--y", "ada/x-", "ada/.x", "ada/é", "https://huggingface.co/ada/x"],
)
def test_a_name_that_is_none_is_refused(project, work, name):
    assert "wanted USER/NAME" in refused(push(project, work, "model", "trained", "--repo-id", name))


# -- from a training --


def test_a_training_pushes_its_checkpoints_and_its_result(hub, project, stock, work):
    hub.repos["model", "ada/run"] = repo = Repository()
    done = train(
        project,
        work,
        "pushing",
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        push_to_hub=True,
        hub_model_id="ada/run",
        hub_always_push=True,
        eval_data=[str(work / "data.jsonl")],
        sample_answers=1,
    )
    assert done.code == 0, done.err
    steps = json.loads((work / "pushing/training.json").read_text())["plan"]["steps"]
    assert repo.messages == [*(f"llava train: step {n}" for n in range(1, steps + 1)), "llava train: end of training"]
    assert set(repo.files) == MODEL_FILES | {"example.jpg"}
    card = repo.files["README.md"].decode()
    assert "Still in training" not in card and "### Stage 1 of 1: " in card and "In the held-out data: " in card
    assert not [name for name in repo.files if name.endswith((".bin", ".pt"))]
    assert repo.files["model.safetensors"] == (work / "pushing/model.safetensors").read_bytes()
    assert not list((work / "pushing").glob(".push-*"))


def test_a_push_that_fails_takes_no_training_with_it(hub, project, work):
    hub.repos["model", "ada/unlucky"] = repo = Repository()
    hub.fail("commit", status=500)
    done = train(
        project,
        work,
        "unlucky",
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_model_id="ada/unlucky",
    )
    assert done.code == 1
    assert "step 1 is not pushed: Nothing was committed" in done.out
    assert "The training has ended well" in done.err
    assert f"llava push model {work / 'unlucky'} --repo-id ada/unlucky" in done.err
    assert (work / "unlucky/training.json").is_file() and repo.files == {}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "`push_to_hub` needs `hub_model_id`"),
        ({"hub_model_id": "small"}, "`hub_model_id` is `small`, wanted USER/NAME"),
        ({"hub_model_id": "ada/x", "use_peft": True}, "`push_to_hub` goes without `use_peft`"),
        ({"hub_model_id": "ada/x", "hub_strategy": "checkpoint"}, "would push optimizers"),
        ({"hub_model_id": "ada/x", "hub_revision": "dev"}, "`hub_revision` is not used"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_the_training(project, work, changes, words):
    done = train(project, work, "wrong", push_to_hub=True, **changes)
    assert done.code == 1 and words in done.err and "Traceback" not in done.err, done.err
    assert not (work / "wrong/training.json").exists()
