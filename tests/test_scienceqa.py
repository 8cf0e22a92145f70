"""ScienceQA to rows, in every format, from both of its layouts."""

import itertools
import json

import datasets
import pytest

from data_generation.rejections import Counts
from data_generation.rows import read_rows
from data_generation.scienceqa import INPUTS, OUTPUTS, Problem, read_problems, write_turn
from recipes import scienceqa
from recipes.training.train_data import load_rows
from tests.conversations import png
from tests.test_sources import jpeg


PROBLEM = Problem(
    "7", "Which is  it?", ("a cat", "a dog"), 1, "A hint.", "A lecture.\nLong.", "A solution.", "s", "grade2"
)
BARE = Problem("8", "Which is it?", ("a cat", "a dog"), 0, " ", "", "", "s", "grade2")

# Written out by hand from the original's converter.
ASKED = {
    "CQM": "Context: A hint.\nQuestion: Which is it?\nOptions: (A) a cat (B) a dog",
    "QCM": "Which is it?\nContext: A hint.\nOptions: (A) a cat (B) a dog",
    "QCML": "Which is it?\nContext: A hint.\nOptions: (A) a cat (B) a dog\nBECAUSE: A lecture.\nLong.",
    "QCME": "Which is it?\nContext: A hint.\nOptions: (A) a cat (B) a dog\nBECAUSE: A solution.",
    "QCMLE": "Which is it?\nContext: A hint.\nOptions: (A) a cat (B) a dog\nBECAUSE: A lecture.\nLong. A solution.",
    "QCLM": "Which is it?\nContext: A hint.\nBECAUSE: A lecture.\nLong.\nOptions: (A) a cat (B) a dog",
    "QCEM": "Which is it?\nContext: A hint.\nBECAUSE: A solution.\nOptions: (A) a cat (B) a dog",
    "QCLEM": "Which is it?\nContext: A hint.\nBECAUSE: A lecture.\nLong. A solution.\nOptions: (A) a cat (B) a dog",
}
ANSWERED = {
    "A": "The answer is B.",
    "AL": "The answer is B. BECAUSE: A solution.",
    "AE": "The answer is B. BECAUSE: A lecture.\nLong.",
    "ALE": "The answer is B. BECAUSE: A lecture.\nLong. A solution.",
    "AEL": "The answer is B. BECAUSE: A solution. A lecture.\nLong.",
    "LA": "A lecture.\nLong. The answer is B.",
    "EA": "A solution. The answer is B.",
    "LEA": "A lecture.\nLong. A solution. The answer is B.",
    "ELA": "A solution. A lecture.\nLong. The answer is B.",
    "LEPA": "LECTURE: A lecture.\nLong.\nSOLUTION: A solution.\n###\nANSWER: B.",
}
BARE_ANSWERED = {"LEPA": "###\nANSWER: A.", "LEA": "The answer is A.", "ALE": "The answer is A."}


@pytest.mark.parametrize("asked, answered", list(itertools.product(INPUTS, OUTPUTS)))
def test_every_format_is_the_originals(asked, answered):
    assert write_turn(PROBLEM, f"{asked}-{answered}") == (ASKED[asked], ANSWERED[answered])


@pytest.mark.parametrize("answered", BARE_ANSWERED)
def test_what_is_missing_leaves_no_mark(answered):
    question, answer = write_turn(BARE, f"QCMLE-{answered}")
    assert question == "Which is it?\nContext: N/A\nOptions: (A) a cat (B) a dog"
    assert answer == BARE_ANSWERED[answered]


@pytest.mark.parametrize("format", ["QCM", "QCM-X", "LEA-QCM", "", "QCM-LEA-A"])
def test_an_unknown_format_is_named(format):
    with pytest.raises(ValueError, match="is no format of ScienceQA"):
        write_turn(PROBLEM, format)


def entry(**changes):
    fields = {
        "question": "Which?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "",
        "image": None,
        "task": "closed choice",
    }
    fields |= {"grade": "grade7", "subject": "natural science", "lecture": "L.", "solution": "S.", "split": "val"}
    return fields | changes


PROBLEMS = {
    "1": entry(image="image.png", hint="H."),
    "2": entry(),
    "3": entry(answer=2),
    "4": entry(choices=["x"]),
    "5": entry(question=" "),
    "6": entry(image="gone.png"),
    "7": entry(choices=["x", None]),
    "8": entry(lecture=3),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"val": [*PROBLEMS, "9"], "minival": ["2", "1"]}))
    (tmp_path / "images/val/1").mkdir(parents=True)
    (tmp_path / "images/val/1/image.png").write_bytes(png()["bytes"])
    return tmp_path


def test_a_split_of_the_released_files_becomes_rows(folder):
    command = ["convert", str(folder), "--split", "minival", "--image-root", f"{folder}/images"]
    scienceqa.main([*command, "--format", "CQM-A", "--letter-only", "--out", f"{folder}/x.parquet", "--strict"])
    text, picture = read_rows(folder / "x.parquet")
    assert [text["id"], picture["id"]] == ["2", "1"]
    assert picture["messages"][0]["content"] == [
        {"type": "image", "text": None},
        {
            "type": "text",
            "text": "Context: H.\nQuestion: Which?\nOptions: (A) x (B) y\n"
            "Answer with the option's letter from the given choices directly.",
        },
    ]
    assert picture["messages"][1]["content"][0]["text"] == "The answer is B."
    assert (picture["images"], text["images"], text["image_id"]) == (["val/1/image.png"], [], [])
    facts = {key: picture[key] for key in ("answer", "choices", "subject", "grade", "has_hint", "kind", "source")}
    assert facts == {
        "answer": "B",
        "choices": ["x", "y"],
        "subject": "natural science",
        "grade": "grade7",
        "has_hint": True,
        "kind": "scienceqa",
        "source": "ScienceQA minival CQM-A",
    }
    assert text["has_hint"] is False
    assert len(load_rows(f"{folder}/x.parquet", f"{folder}/images")) == 2
    scienceqa.main([*command, "--image-at", "end", "--out", f"{folder}/x.parquet"])
    assert [part["type"] for part in list(read_rows(folder / "x.parquet"))[1]["messages"][0]["content"]] == [
        "text",
        "image",
    ]


def test_bad_problems_have_reasons(folder, capsys):
    counts = Counts()
    assert [problem.id for problem in read_problems(counts, folder, "val", folder / "images")] == ["1", "2"]
    assert counts.rejected == {"odd-answer": 1, "odd-choices": 2, "odd-text": 2, "missing-file": 1, "no-problem": 1}
    command = ["convert", str(folder), "--split", "val", "--out", f"{folder}/x.parquet"]
    with pytest.raises(ValueError, match="Nothing was written, because of"):
        scienceqa.main([*command, "--strict"])
    assert not (folder / "x.parquet").exists()
    scienceqa.main(command)
    assert "3 of 9 rows kept, 6 rejected" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no split `test`, but val, minival"):
        scienceqa.main(["convert", str(folder), "--split", "test", "--out", f"{folder}/x.parquet"])


def test_the_layout_on_the_hub_becomes_rows(tmp_path):
    rows = [entry(image=jpeg("red")), entry(answer=0), entry(answer=5)]
    features = datasets.Features(
        {
            key: datasets.Value("string")
            for key in ("question", "hint", "task", "grade", "subject", "lecture", "solution")
        }
        | {
            "image": datasets.Image(),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("int8"),
        }
    )
    for row in rows:
        row.pop("split")
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "test.parquet")
    command = ["convert", f"{tmp_path}/test.parquet", "--split", "test", "--out", f"{tmp_path}/x.parquet"]
    scienceqa.main(command)
    picture, text = load_rows(f"{tmp_path}/x.parquet")
    assert (picture["id"], text["id"]) == ("test-00000", "test-00001")
    assert picture["images"][0]["bytes"] == jpeg("red")["bytes"] and text["images"] == []
    assert picture["messages"][1]["content"][0]["text"] == "L. S. The answer is B."
    with pytest.raises(ValueError, match="1 rejected, odd-answer: `test-00002`"):
        scienceqa.main([*command, "--strict"])


def test_a_folder_without_either_layout_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither problems.json nor parquet"):
        scienceqa.main(["convert", str(tmp_path), "--split", "test", "--out", f"{tmp_path}/x.parquet"])
    (tmp_path / "problems.txt").write_text("{}")
    with pytest.raises(ValueError, match="problems.txt` has neither problems.json nor parquet"):
        scienceqa.main(["convert", f"{tmp_path}/problems.txt", "--split", "test", "--out", f"{tmp_path}/x.parquet"])
    (tmp_path / "cut.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match="cut.parquet` cannot be read: Parquet"):
        scienceqa.main(["convert", f"{tmp_path}/cut.parquet", "--split", "test", "--out", f"{tmp_path}/x.parquet"])
    (tmp_path / "cut.parquet").unlink()
    datasets.Dataset.from_dict({"question": ["x"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="is read, and would be written over"):
        scienceqa.main(["convert", f"{tmp_path}/x.parquet", "--split", "test", "--out", f"{tmp_path}/x.parquet"])
    with pytest.raises(ValueError, match="no column answer, choices, image"):
        scienceqa.main(["convert", f"{tmp_path}/x.parquet", "--split", "test", "--out", f"{tmp_path}/y.parquet"])
