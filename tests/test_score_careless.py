"""`llava score` refuses careless files by name: answers, annotations, questions and tables."""

import json

import pytest

from recipes import cli
from recipes.score import main
from tests.scoring import pope_files as pope_files
from tests.scoring import score, write_answers, write_lines, write_mmbench
from tests.scoring import vqa_files as vqa_files


@pytest.mark.parametrize(
    "answers, message",
    [
        (b"", "is empty, wanted a JSON object on each line"),
        (b"{'question_id': 1}\n", "line 1: no JSON"),
        (b"[1]\n", r"line 1: \[1\]; wanted one JSON object"),
        (b'{"question_id": 10, "text": "a"}\n\n{"text": "a"}\n', "line 3, has the `question_id` None"),
        (b'{"question_id": true, "text": "a"}\n', "has the `question_id` True"),
        (b'{"question_id": 10, "text": null}\n', "has the `text` None"),
        (b'{"question_id": 10, "text": "\xff"}\n', "line 1: .utf-8. codec .* position 29.*Save the file as UTF-8"),
        (b'{"question_id": 10, "text": "a"}\n' * 2, r"answers 1 question \(`10`\) more than once"),
        (b'{"question_id": 99, "text": "a"}\n', r"answers 1 question \(`99`\) that no question has.*such as `10`"),
        (b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_careless_answers(vqa_files, answers, message):
    (vqa_files / "answers.jsonl").write_bytes(answers)
    with pytest.raises(ValueError, match=message):
        score("vqav2", vqa_files, "--annotations", vqa_files / "annotations.json", "--allow-missing")
    assert not (vqa_files / "new/scores.json").exists()


def entry(**changes) -> dict:
    fine = {"question_id": 10, "answers": [{"answer": "x"}] * 10, "answer_type": "a", "multiple_choice_answer": "x"}
    return fine | changes


@pytest.mark.parametrize(
    "annotations, message",
    [
        ("", "is no JSON"),
        ("[]", "wanted an object with `annotations`"),
        ('{"annotations": []}', "wanted a list of questions"),
        ('{"annotations": [1]}', r"`annotations`\[0\] is 1, wanted an object"),
        (json.dumps({"annotations": [entry(answers=[{"answer": "x"}] * 9)]}), "wanted those of ten people"),
        (json.dumps({"annotations": [entry(answers=None)]}), "has the answers None"),
        (json.dumps({"annotations": [entry(answer_type=3)]}), "`answer_type` 3, wanted a string"),
        (json.dumps({"annotations": [entry(), entry()]}), r"`annotations`\[1\] has the id `10` of an earlier one"),
    ],
)
def test_careless_annotations(tmp_path, annotations, message):
    (tmp_path / "annotations.json").write_text(annotations)
    write_answers(tmp_path, {10: "x"})
    with pytest.raises(ValueError, match=message):
        score("vqav2", tmp_path, "--annotations", tmp_path / "annotations.json")


def test_questions_of_other_annotations(vqa_files):
    asked = write_lines(vqa_files / "asked.jsonl", [{"question_id": n} for n in (10, 77)])
    write_answers(vqa_files, {10: "2"})
    with pytest.raises(ValueError, match=r"asked.jsonl` asks 1 question \(`77`\), which .*annotations.json` does not"):
        score("vqav2", vqa_files, "--annotations", vqa_files / "annotations.json", "--questions", asked)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category": "adversarial"}, "in the category 'adversarial', which"),
        ({"text": "Is there a tree in the image?"}, "asks `Is there a tree in the image.` of `1.jpg`"),
        ({"image": None}, "has the `image` None"),
        ({"category": ["random"]}, r"has the `category` \['random'\], wanted a string"),
    ],
)
def test_careless_questions_of_pope(pope_files, change, message):
    path = pope_files / "questions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [rows[0] | change, *rows[1:]])
    with pytest.raises(ValueError, match=message):
        score("pope", pope_files, "--questions", path, "--annotations", pope_files / "coco")


def test_careless_pope_folders(pope_files):
    with pytest.raises(ValueError, match="holds 2 files whose ids begin anew"):
        score("pope", pope_files, "--annotations", pope_files / "coco")
    with pytest.raises(ValueError, match="holds no .pope_CATEGORY.json"):
        score("pope", pope_files, "--annotations", pope_files)
    labels = pope_files / "coco/coco_pope_random.json"
    labels.write_text(labels.read_text().replace('"label": "no"', '"label": "maybe"'))
    with pytest.raises(ValueError, match="line 3, has the label 'maybe', wanted yes or no"):
        score("pope", pope_files, "--annotations", labels)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"index": "x"}, "row 1, has the index 'x'"),
        ({"B": ""}, "row 1, has the options .*wanted two or more without a gap"),
        ({"C": "", "D": "z"}, "without a gap"),
        ({"answer": "D"}, "has the answer 'D', wanted one of A, B, C"),
    ],
)
def test_careless_tables_of_mmbench(tmp_path, row, message):
    fine = {"index": 3, "question": "?", "A": "x", "B": "y", "C": "w", "answer": "A"}
    write_answers(tmp_path, {3: "A"})
    with pytest.raises(ValueError, match=message):
        score("mmbench", tmp_path, "--annotations", write_mmbench(tmp_path / "dev.tsv", [fine | row]))


@pytest.mark.parametrize("image, message", [("", "has no picture"), ("abc", "no base64")])
def test_careless_pictures_of_mmbench(tmp_path, image, message):
    rows = [{"index": 3, "question": "?", "A": "x", "B": "y", "image": image}]
    table = write_mmbench(tmp_path / "dev.tsv", rows)
    with pytest.raises(ValueError, match=message):
        main(["mmbench-questions", str(table), "--images", str(tmp_path), "--out", str(tmp_path / "q.jsonl")])


def test_a_table_whose_answers_are_secret(tmp_path):
    table = write_mmbench(tmp_path / "test.tsv", [{"index": 3, "question": "?", "A": "x", "B": "y"}])
    write_answers(tmp_path, {3: "A"})
    with pytest.raises(ValueError, match="tells the right answer to 0 of 1 questions.*give --submission"):
        score("mmbench", tmp_path, "--annotations", table)
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("index\tquestion\tA\tB\n1\t" + "?" * 2 + '\t"x\r' + "y" * (1 << 20))
    with pytest.raises(ValueError, match="has the options"):
        score("mmbench", tmp_path, "--annotations", wrong)
    wrong.write_text("index,question\n")
    with pytest.raises(ValueError, match="lacks the columns or rows of index, question, A, B"):
        score("mmbench", tmp_path, "--annotations", wrong)


def test_an_error_is_one_line(tmp_path, capsys):
    for name in ("none.json", "."):
        given = ["--annotations", str(tmp_path / name), "--answers", str(tmp_path / "a"), "--out", str(tmp_path / "o")]
        assert cli.main(["score", "gqa", *given]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    given = ["--annotations", "x", "--answers", "y"]
    assert cli.main(["score", "gqa", *given]) == 1
    assert "There is nothing to write" in capsys.readouterr().err


def test_what_is_read_is_not_written_over(tmp_path):
    (tmp_path / "a").write_text('{"question_id": "1", "text": "yes"}\n')
    for annotations, answers in (("a", "b"), ("b", "a")):
        given = ["--annotations", str(tmp_path / annotations), "--answers", str(tmp_path / answers)]
        with pytest.raises(ValueError, match="a` is read, and would be written over"):
            main(["gqa", *given, "--out", str(tmp_path / "a")])
        with pytest.raises(ValueError, match="a` is read, and would be written over"):
            main(["gqa", *given, "--submission", str(tmp_path / "a")])
