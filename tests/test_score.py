"""`llava score`: each official layout read and scored as worked by hand."""

import csv
import io
import json

import pytest

from recipes.score import main
from tests.scoring import PICTURE, people, score, value, write_answers, write_lines, write_mmbench
from tests.scoring import pope_files as pope_files
from tests.scoring import vqa_files as vqa_files


def test_pope(pope_files, capsys):
    flags = ("--questions", pope_files / "questions.jsonl", "--annotations", pope_files / "coco")
    result = score("pope", pope_files, *flags)
    # random: one of each outcome. popular: 2 true positives, 1 true negative, and `blue`, which counts as yes.
    found = {
        line: [row["answers"], row["accuracy"]["value"], row["f1"]["value"]] for line, row in result["scores"].items()
    }
    assert found == {
        "mean of categories": [8, 0.625, pytest.approx(0.65)],
        "category: popular": [4, 0.75, 0.8],
        "category: random": [4, 0.5, 0.5],
    }
    assert value(result, "category: popular", "precision") == pytest.approx(2 / 3)
    assert result["counts"] == {"questions": 8, "answered": 8, "missing": 0, "unreadable": 1}
    assert result["unreadable"] == [{"question_id": "7", "text": "blue"}]
    assert {"question_id": "6", "read": "no", "score": 1.0} in result["each"]
    shown = capsys.readouterr().out
    assert "counted as yes, such as `7` 'blue'" in shown
    assert "62.5 [" in shown


def test_one_file_of_pope_needs_no_questions(pope_files):
    write_answers(pope_files, {1: "no", 2: "no", 3: "no", 4: "no"})
    result = score("pope", pope_files, "--annotations", pope_files / "coco/coco_pope_random.json")
    assert result["scores"]["category: random"]["precision"] == {"value": None, "low": None, "high": None}
    assert value(result, "category: random", "accuracy") == 0.5


@pytest.fixture
def textvqa_files(tmp_path):
    data = [
        {"question_id": 1, "image_id": "ab", "question": "What brand?", "answers": people("dell", 3)},
        {"question_id": 2, "image_id": "ab", "question": "What year is it?", "answers": people("2010", 10)},
        {"question_id": 3, "image_id": "cd", "question": "what brand?", "answers": people("nike", 1)},
    ]
    (tmp_path / "val.json").write_text(json.dumps({"data": data}))
    return tmp_path


def test_textvqa_by_its_own_ids(textvqa_files):
    write_answers(textvqa_files, {1: "Dell.", 2: "", 3: "Nike"})
    result = score("textvqa", textvqa_files, "--annotations", textvqa_files / "val.json")
    assert value(result, "all", "soft") == pytest.approx((0.9 + 0 + 0.3) / 3)
    assert result["unreadable"] == [{"question_id": "2", "text": ""}]


def test_textvqa_by_the_originals_ids(textvqa_files):
    questions = [
        {
            "question_id": "ab",
            "image": "ab.jpg",
            "text": "what year is it?\nReference OCR token: 2010\nAnswer shortly.",
        },
        {"question_id": "cd", "image": "cd.jpg", "text": "What brand?\nAnswer shortly."},
        {"question_id": "ab", "image": "ab.jpg", "text": "What brand?\nAnswer shortly."},
    ]
    path = write_lines(textvqa_files / "questions.jsonl", questions)
    texts = ["2010", "nike", "dell"]
    rows = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": t}
        for q, t in zip(questions, texts, strict=True)
    ]
    write_lines(textvqa_files / "answers.jsonl", rows)
    result = score("textvqa", textvqa_files, "--annotations", textvqa_files / "val.json", "--questions", path)
    assert {one["question_id"]: one["score"] for one in result["each"]} == pytest.approx({"2": 1, "3": 0.3, "1": 0.9})


def test_a_question_annotated_twice_of_one_picture_takes_its_answers_in_turn(tmp_path):
    rows = [("1", people("x", 10)), ("2", people("y", 10))]
    data = [{"question_id": q, "image_id": "ab", "question": "What?", "answers": said} for q, said in rows]
    (tmp_path / "val.json").write_text(json.dumps({"data": data}))
    answers = [{"question_id": "ab", "prompt": "what?\nAnswer shortly.", "text": text} for text in ("x", "x")]
    write_lines(tmp_path / "answers.jsonl", answers)
    result = score("textvqa", tmp_path, "--annotations", tmp_path / "val.json")
    assert [(one["question_id"], one["score"]) for one in result["each"]] == [("1", 1), ("2", 0)]
    write_lines(tmp_path / "answers.jsonl", [*answers, answers[0]])
    with pytest.raises(ValueError, match=r"answers 1 question \(`2`\) more than once"):
        score("textvqa", tmp_path, "--annotations", tmp_path / "val.json")


def test_vqav2(vqa_files):
    asked = vqa_files / "asked.json"
    asked.write_text(json.dumps({"questions": [{"question_id": 10, "question": "?"}, {"question_id": 11}]}))
    write_answers(vqa_files, {10: "Two", 11: "yes"})
    result = score("vqav2", vqa_files, "--annotations", vqa_files / "annotations.json", "--questions", asked)
    assert value(result, "all", "soft") == pytest.approx(0.8)
    assert value(result, "answer type: yes/no", "soft") == pytest.approx(0.6)
    assert value(result, "all", "exact") == 1
    assert result["counts"]["questions"] == 2


def test_missing_answers_are_named_or_left_out(vqa_files, capsys):
    write_answers(vqa_files, {10: "2"})
    flags = ("--annotations", vqa_files / "annotations.json")
    with pytest.raises(ValueError, match=r"no answer to 2 questions \(`11`, `12`\), of 3 questions"):
        score("vqav2", vqa_files, *flags)
    result = score("vqav2", vqa_files, *flags, "--allow-missing")
    assert result["missing"] == ["11", "12"]
    assert (result["scores"]["all"]["answers"], value(result, "all", "soft")) == (1, 1)
    assert "2 questions without an answer are left out" in capsys.readouterr().out


def test_a_file_for_the_server_of_vqav2(tmp_path, capsys):
    questions = write_lines(
        tmp_path / "test.jsonl", [{"question_id": n, "image": "1.jpg", "text": "?"} for n in (5, 6)]
    )
    answers, out = write_answers(tmp_path, {6: "The Dog."}), tmp_path / "upload.json"
    given = ["vqav2", "--questions", str(questions), "--answers", str(answers), "--submission", str(out)]
    main([*given, "--allow-missing"])
    assert json.loads(out.read_text()) == [{"question_id": 5, "answer": ""}, {"question_id": 6, "answer": "dog"}]
    assert "2 questions, 1 of them without an answer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no answer to 1 question "):
        main(given)
    with pytest.raises(ValueError, match="--annotations is not given"):
        main([*given, "--out", str(tmp_path / "scores.json")])


def test_vizwiz(tmp_path):
    rows = [
        {"image": f"{n}.jpg", "question": "?", "answer_type": "other", "answers": [{"answer": a} for a in said]}
        for n, said in enumerate([people("cup", 3), people("unanswerable", 9)])
    ]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    questions = write_lines(
        tmp_path / "q.jsonl", [{"question_id": f"q{n}", "image": f"{n}.jpg", "text": "?"} for n in (0, 1)]
    )
    write_answers(tmp_path, {"q0": "a cup", "q1": "Unanswerable"})
    upload = tmp_path / "upload.json"
    given = ("--annotations", tmp_path / "val.json", "--questions", questions, "--submission", upload)
    result = score("vizwiz", tmp_path, *given)
    assert value(result, "all", "soft") == pytest.approx(0.95)
    assert json.loads(upload.read_text()) == [
        {"image": "0.jpg", "answer": "cup"},
        {"image": "1.jpg", "answer": "unanswerable"},
    ]
    write_answers(tmp_path, {"0.jpg": "cup", "1.jpg": "cup"})
    assert value(score("vizwiz", tmp_path, "--annotations", tmp_path / "val.json"), "all", "soft") == pytest.approx(
        0.45
    )


def test_gqa(tmp_path):
    kinds = {"1": ("left", "query", "rel"), "2": ("yes", "verify", "obj"), "3": ("no", "logical", "obj")}
    data = {
        name: {"answer": answer, "types": {"structural": structural, "semantic": semantic}}
        for name, (answer, structural, semantic) in kinds.items()
    }
    (tmp_path / "testdev.json").write_text(json.dumps(data))
    write_answers(tmp_path, {"1": "Left.", "2": "Yes", "3": "yes"})
    upload = tmp_path / "predictions.json"
    result = score("gqa", tmp_path, "--annotations", tmp_path / "testdev.json", "--submission", upload)
    found = {line: (row["answers"], row["accuracy"]["value"]) for line, row in result["scores"].items()}
    assert found == {
        "all": (3, 2 / 3),
        "kind: binary": (2, 0.5),
        "kind: open": (1, 1),
        "semantic: obj": (2, 0.5),
        "semantic: rel": (1, 1),
        "structural: logical": (1, 0),
        "structural: query": (1, 1),
        "structural: verify": (1, 1),
    }
    assert json.loads(upload.read_text())[0] == {"questionId": "1", "prediction": "left"}


def test_seed(tmp_path):
    choices = {"choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w"}
    rows = [("v1", "B", 1, "image"), ("7", "A", 2, "video"), ("8", "D", 2, "video")]
    data = {
        "question_type": {"Scene": 1, "Action": 2},
        "questions": [
            choices | {"question_id": q, "answer": a, "question_type_id": t, "data_type": d} for q, a, t, d in rows
        ],
    }
    (tmp_path / "seed.json").write_text(json.dumps(data))
    write_answers(tmp_path, {"v1": "B", 7: "C. z", 8: "F"})
    result = score("seed", tmp_path, "--annotations", tmp_path / "seed.json")
    assert {line: row["accuracy"]["value"] for line, row in result["scores"].items()} == {
        "all": 1 / 3,
        "data: image": 1,
        "data: video": 0,
        "type: Action": 0,
        "type: Scene": 1,
    }
    assert result["unreadable"] == [{"question_id": "8", "text": "F"}]


@pytest.fixture
def mmbench_table(tmp_path):
    rows = [
        {"index": 3, "question": "Which?", "hint": 'It is "tall".', "A": "cup", "B": "jar", "C": "pan"},
        {"index": 9, "question": "How\nmany?", "A": "1", "B": "2"},
    ]
    facts = [{"answer": "B", "category": "x", "image": PICTURE}, {"answer": "A", "category": "y", "image": "3"}]
    return write_mmbench(tmp_path / "dev.tsv", [row | more for row, more in zip(rows, facts, strict=True)])


def test_mmbench_is_asked_in_every_rotation_and_scored(mmbench_table, tmp_path):
    questions = tmp_path / "q.jsonl"
    main(
        [
            "mmbench-questions",
            str(mmbench_table),
            "--images",
            str(tmp_path / "i"),
            "--out",
            str(questions),
            "--all-turns",
        ]
    )
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    assert [(row["question_id"], row["image"]) for row in rows] == [
        (3, "3.png"),
        (1000003, "3.png"),
        (2000003, "3.png"),
        (9, "3.png"),
        (1000009, "3.png"),
    ]
    ask = "Answer with the option's letter from the given choices directly."
    assert rows[1]["text"] == f'It is "tall".\nWhich?\nA. jar\nB. pan\nC. cup\n{ask}'
    assert (tmp_path / "i/3.png").read_bytes() == b"\x89PNG not opened here"
    # `jar` is B, A, C; question 9 is answered with A in both turns, which is right in the first only.
    write_answers(tmp_path, {3: "B", 1000003: "A", 2000003: "C. jar", 9: "A", 1000009: "A"})
    result = score("mmbench", tmp_path, "--annotations", mmbench_table)
    found = {line: (row["accuracy"]["value"], row["circular"]["value"]) for line, row in result["scores"].items()}
    assert found == {"all": (0.8, 0.5), "category: x": (1, 1), "category: y": (0.5, 0)}
    assert {"question_id": "1000009", "read": "B", "score": 0.0} in result["each"]
    write_answers(tmp_path, {3: "B", 1000003: "A", 9: "A", 1000009: "A"})
    result = score("mmbench", tmp_path, "--annotations", mmbench_table, "--allow-missing")
    assert (result["missing"], value(result, "all", "circular")) == (["2000003"], 0)  # of question 9 alone


def test_mmbench_of_one_round_and_of_the_originals_rounds(mmbench_table, tmp_path):
    write_answers(tmp_path, {3: "B", 9: "B"})
    upload = tmp_path / "upload.tsv"
    result = score("mmbench", tmp_path, "--annotations", mmbench_table, "--submission", upload)
    assert list(result["scores"]["all"]) == ["answers", "accuracy"]
    assert value(result, "all", "accuracy") == 0.5
    assert list(csv.DictReader(io.StringIO(upload.read_text()), delimiter="\t"))[1] == {
        "index": "9", "question": "How\nmany?", "A": "1", "B": "2", "C": "", "D": "", "prediction": "B",
    }  # fmt: skip
    rounds = [(3, 0, "B"), (3, 1, "A"), (3, 2, "C"), (9, 0, "A"), (9, 1, "B")]
    rows = [{"question_id": q, "round_id": r, "text": t} for q, r, t in rounds]
    write_lines(tmp_path / "answers.jsonl", rows)
    result = score("mmbench", tmp_path, "--annotations", mmbench_table, "--submission", upload)
    assert value(result, "all", "circular") == 1
    assert upload.read_text().splitlines()[2] == "1000003\tWhich?\tjar\tpan\tcup\t\tA"


def test_mmbench_with_its_rotations_in_the_table(tmp_path):
    rows = [
        {"index": 3, "question": "?", "A": "x", "B": "y", "answer": "A", "image": PICTURE},
        {"index": 1000003, "question": "?", "A": "y", "B": "x", "answer": "B", "image": PICTURE},
    ]
    table = write_mmbench(tmp_path / "dev.tsv", rows)
    write_answers(tmp_path, {3: "A", 1000003: "A"})
    result = score("mmbench", tmp_path, "--annotations", table)
    assert (value(result, "all", "accuracy"), value(result, "all", "circular")) == (0.5, 0)
    with pytest.raises(ValueError, match="holds the rotations of its questions already"):
        main(["mmbench-questions", str(table), "--images", str(tmp_path), "--out", str(tmp_path / "q"), "--all-turns"])
