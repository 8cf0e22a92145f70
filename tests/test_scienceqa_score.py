"""Scores of ScienceQA: letters out of answers, a table worked out by hand, and files that cannot be scored."""

import itertools
import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_generation.rejections import Counts
from data_generation.scienceqa import OUTPUTS, Problem, read_problems, write_turn
from data_generation.scienceqa_scores import Choice, count_right, read_letter, read_predictions, subsets_of
from recipes.cli import main as llava
from tests.conversations import png


SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
# id: subject, grade, hint, picture, options, answer
FACTS = {
    "1": ("NAT", 1, "H.", False, 2, "A"),
    "2": ("NAT", 2, "", True, 3, "B"),
    "3": ("NAT", 6, "H.", True, 4, "C"),
    "4": ("NAT", 7, "", False, 5, "D"),
    "5": ("SOC", 12, "H.", False, 2, "B"),
    "6": ("SOC", 8, "", True, 2, "A"),
    "7": ("SOC", 3, "", False, 3, "C"),
    "8": ("LAN", 4, "", False, 2, "B"),
    "9": ("LAN", 9, "H.", False, 2, "A"),
    "10": ("LAN", 10, "", False, 4, "D"),
    "11": ("LAN", 5, "H.", True, 2, "A"),
    "12": ("NAT", 11, "", True, 3, "A"),
}
# Right: 1, 2, 3, 4, 8, 10, 12.
SAID = {
    "1": "A",
    "2": "B. option B",
    "3": "It is so. The answer is C.",
    "4": "The answer is D. BECAUSE: it is so.",
    "5": "A",
    "6": "I cannot tell.",
    "7": "The answer is A. The answer is C.",
    "8": "SOLUTION: It is so.\n###\nANSWER: B.",
    "9": "E",
    "10": "The answer is D",
    "11": "B. option B",
    "12": "A.",
}
TABLE = """\
              NAT     SOC     LAN     TXT     IMG      NO    G1-6   G7-12     avg
correct %  100.00    0.00   50.00   40.00   60.00   75.00   66.67   50.00   58.33
problems        5       3       4       5       5       4       6       6      12
"""


def write_problems(folder) -> list[str]:
    """problems.json and pid_splits.json, and the flags that name them."""
    problems = {}
    for name, (subject, grade, hint, picture, options, answer) in FACTS.items():
        problems[name] = {
            "question": f"Question number {name}?",
            "choices": [f"option {letter}" for letter in "ABCDE"[:options]],
            "answer": "ABCDE".index(answer),
            "hint": hint,
            "image": "image.png" if picture else None,
            "subject": SUBJECTS[subject],
            "grade": f"grade{grade}",
            "split": "test",
            "lecture": "",
            "solution": "",
        }
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(FACTS), "minitest": ["1", "5"]}))
    return ["--problems", f"{folder}/problems.json", "--split-file", f"{folder}/pid_splits.json", "--split", "test"]


def write_answers(path, said=SAID) -> str:
    path.write_text("".join(json.dumps({"question_id": name, "text": text}) + "\n" for name, text in said.items()))
    return str(path)


@pytest.fixture
def score(tmp_path, capsys):
    """Scores a file of answers; gives the exit status, what was printed, and what went wrong."""
    flags = write_problems(tmp_path)

    def run(predictions, *more):
        command = ["scienceqa", "score", *flags, "--predictions", str(predictions), "--out", f"{tmp_path}/r.json"]
        code = llava([*command, *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_table_is_that_of_the_hand(tmp_path, score):
    code, out, _ = score(write_answers(tmp_path / "a.jsonl"))
    assert code == 0
    assert out.startswith(TABLE)
    assert "answers by form: loose 3, label 2, letter 2, sentence 2, no-option 1, nothing 1, several 1" in out
    assert "without an option, and counted wrong: 3 of 12" in out
    assert "- `6`, nothing: ...'I cannot tell.'" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["scores"]["G1-6"] == {"problems": 6, "right": 4, "accuracy": 400 / 6}
    assert result["scores"]["avg"] == {"problems": 12, "right": 7, "accuracy": 700 / 12}
    assert result["unreadable"] == ["6", "7", "9"] and result["missing"] == []
    assert result["problems"]["11"] == {"letter": "B", "form": "label", "answer": "A", "right": False}
    assert [name for name, one in result["problems"].items() if one["right"]] == ["1", "2", "3", "4", "8", "10", "12"]


def test_the_originals_files_give_the_same(tmp_path, score):
    expected = score(write_answers(tmp_path / "a.jsonl"))[1]
    numbers = [{"question_id": int(name), "prompt": "x", "text": text} for name, text in SAID.items()]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, numbers)) + "\n\n")
    (tmp_path / "c.json").write_text(json.dumps({"acc": 1.0, "results": {"1": 0}, "outputs": SAID}, indent=2))
    assert score(tmp_path / "b.jsonl")[1] == expected
    assert score(tmp_path / "c.json")[1] == expected


def test_a_file_of_one_answer_is_read(tmp_path):
    assert read_predictions(path_to(tmp_path, '{"question_id": "5", "text": "B"}')) == {"5": "B"}
    assert read_predictions(path_to(tmp_path, '{"question_id": "outputs", "text": ""}')) == {"outputs": ""}


def test_what_is_missing_is_an_error_unless_allowed(tmp_path, score):
    some = {name: text for name, text in SAID.items() if name not in ("5", "12")}
    path = write_answers(tmp_path / "a.jsonl", some)
    code, _, error = score(path)
    assert code == 1 and "lacks 2 of 12 problems: `5`, `12`. Answer them" in error
    assert not (tmp_path / "r.json").exists()
    code, out, _ = score(path, "--allow-missing")
    # Of 10 problems 6 are right; of natural science 4 of 4, of social science none of 2.
    assert code == 0 and "   60.00\n" in out and "not answered, and left out: 2: `5`, `12`" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["missing"] == ["5", "12"]
    assert result["scores"]["NAT"] == {"problems": 4, "right": 4, "accuracy": 100.0}
    assert result["scores"]["SOC"] == {"problems": 2, "right": 0, "accuracy": 0.0}


def test_the_layout_on_the_hub_gives_the_same(tmp_path, score):
    expected = score(write_answers(tmp_path / "a.jsonl"))[1]
    rows = list(json.loads((tmp_path / "problems.json").read_text()).values())
    for row in rows:
        row["image"] = png() if row["image"] else None
    text = {name: datasets.Value("string") for name in rows[0] if name not in ("image", "choices", "answer", "split")}
    features = datasets.Features(
        text
        | {"image": datasets.Image(), "answer": datasets.Value("int8")}
        | {"choices": datasets.List(datasets.Value("string"))}
    )
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "test.parquet")
    said = {f"test-{number:05d}": text for number, text in enumerate(SAID.values())}
    flags = ["--data", f"{tmp_path}/test.parquet", "--split", "test"]
    flags += ["--predictions", write_answers(tmp_path / "a.jsonl", said), "--out", f"{tmp_path}/hub.json"]
    assert llava(["scienceqa", "score", *flags]) == 0
    scores = json.loads((tmp_path / "hub.json").read_text())["scores"]
    assert expected.startswith(TABLE) and scores == json.loads((tmp_path / "r.json").read_text())["scores"]


def test_a_column_without_problems_is_no_number(tmp_path, score):
    _, out, _ = score(write_answers(tmp_path / "a.jsonl", {"1": "A"}), "--allow-missing")
    assert out.splitlines()[1] == "correct %  100.00       -       -  100.00       -       -  100.00       -  100.00"
    assert json.loads((tmp_path / "r.json").read_text())["scores"]["SOC"]["accuracy"] is None


def path_to(folder, content):
    path = folder / "hostile"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


HOSTILE = [
    (b"", "is empty"),
    (b" \n \n", "is empty"),
    (b"\xff\xfe\x00", "line 1"),
    (b'{"question_id": "1", "text": "\xe4"}\n', "line 1"),
    ("A\nB\n", "line 1"),
    ("[1, 2]\n", "line 1"),
    ('{"question_id": "1", "text": "A"}\n{"question_id": "2", "te', "line 2"),
    ('{"id": "1", "text": "A"}', "no `question_id`, but `id`, `text`"),
    ('{"question_id": "1"}', "no `text`, but `question_id`"),
    ("{}", "no `question_id`, but nothing"),
    ('{"question_id": "1", "text": null}', "the answer is None, wanted words"),
    ('{"question_id": null, "text": "A"}', "the id is None"),
    ('{"question_id": "1", "text": "A"}\n{"question_id": 1, "text": "B"}', "line 2: problem `1` is answered a second"),
    ('{"outputs": {"1": "A", "1": "B"}}', "problem `1` is answered a second"),
    ('{"outputs": {"1": 0}}', "the answer is 0, wanted words"),
    ('{"outputs": ["A"]}', "no object from ids to answers"),
    ('{"outputs": {}}', "holds no answer"),
    ('{"question_id": "77", "text": "A"}', "answers 1 problems that the split does not have: `77`"),
    ("[" * 100_000, "line 1"),
]


@pytest.mark.parametrize("content, message", HOSTILE)
def test_a_file_that_cannot_be_scored_is_named(tmp_path, score, content, message):
    code, _, error = score(path_to(tmp_path, content))
    assert code == 1 and message in error and error.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_other_files_that_cannot_be_used_are_named(tmp_path, score):
    answers = write_answers(tmp_path / "a.jsonl")
    assert "cannot be read: No such file" in score(tmp_path / "nowhere")[2]
    assert "cannot be read: Is a directory" in score(tmp_path)[2]
    assert "has no split `tset`, but test, minitest" in score(answers, "--split", "tset")[2]
    assert "answers 10 problems that the split does not have: `2`, `3`" in score(answers, "--split", "minitest")[2]
    assert "does not exist" in score(answers, "--problems", f"{tmp_path}/none.json")[2]
    assert "Give the one or the others" in score(answers, "--data", "x.parquet")[2]
    assert "is a folder. Name the file" in score(answers, "--out", str(tmp_path))[2]
    assert "is read, and would be written over" in score(answers, "--out", str(answers))[2]
    splits = tmp_path / "pid_splits.json"
    splits.write_text('{"test": ["1", "1"]}')
    assert "names problem `1` twice" in score(answers)[2]
    splits.write_text('{"test": ["1", "99"]}')
    assert "cannot be used as a whole" in score(answers)[2]
    splits.write_text('{"test": []}')
    assert "has no problem" in score(answers)[2]
    splits.write_text('{"test": "1"}')
    assert "wanted a list of ids" in score(answers)[2]
    problems = json.loads((tmp_path / "problems.json").read_text())
    problems["1"]["subject"] = "maths"
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    splits.write_text('{"test": ["1"]}')
    assert (
        "Problem `1` has the subject 'maths' and the grade 'grade1'"
        in score(write_answers(tmp_path / "a.jsonl", {"1": "A"}))[2]
    )


# -- letters --

LETTERS_READ = [
    ("B", "B", "letter"),
    (" B\n", "B", "letter"),
    ("B. because of it", "B", "label"),
    ("B.\nbecause of it", "B", "label"),
    ("The answer is B.", "B", "sentence"),
    ("So it is. The answer is B. BECAUSE: it is so.", "B", "sentence"),
    ("A lecture.\n The answer is B.", "B", "sentence"),
    ("B.", "B", "loose"),
    ("(B)", "B", "loose"),
    ("(B).", "B", "loose"),
    ("The answer is B", "B", "loose"),
    ("The answer is (B).", "B", "loose"),
    ("The answer is B, because", "B", "loose"),
    ("The answer is B\nbecause", "B", "loose"),
    ("LECTURE: x\nSOLUTION: y\n###\nANSWER: B.", "B", "loose"),
    ("A. The answer is B.", "A", "label"),
    ("###\nANSWER: A.\nThe answer is B.", "B", "sentence"),
    ("D", None, "no-option"),
    ("F", None, "no-option"),
    ("D. its words", None, "no-option"),
    ("The answer is E.", None, "no-option"),
    ("The answer is B. No, the answer is C. The answer is C.", None, "several"),
    ("ANSWER: A. ANSWER: B.", None, "several"),
    ("", None, "nothing"),
    ("Apple", None, "nothing"),
    ("A cat", None, "nothing"),
    ("b", None, "nothing"),
    ("AB", None, "nothing"),
    ("The answer is Apple.", None, "nothing"),
    ("The answer is A cat.", None, "nothing"),
    ("The answer is Basalt, as it says.", None, "nothing"),
    ("ANSWER: Cats.", None, "nothing"),
    ("No answer.", None, "nothing"),
    ("FAILED", None, "nothing"),
]


@pytest.mark.parametrize("text, letter, form", LETTERS_READ)
def test_a_letter_is_read_in_the_order_of_forms(text, letter, form):
    assert read_letter(text, 3) == Choice(letter, form)


WORDS = st.text(st.sampled_from("ABCDEFXab .:()#\n"), max_size=30)
PIECES = st.lists(st.sampled_from(["The answer is ", "ANSWER: ", "A", "E", ".", " ", "\n", "###", "(", ")"]) | WORDS)


@given(st.text() | PIECES.map("".join), st.integers(2, 5))
def test_there_is_never_an_option_that_does_not_exist(text, num_choices):
    choice = read_letter(text, num_choices)
    assert choice.letter in (None, *"ABCDE"[:num_choices])
    assert (choice.letter is None) == (choice.form in ("nothing", "several", "no-option"))


@given(st.from_regex(r"[A-Z][A-Za-z]+", fullmatch=True), st.sampled_from(["", "The answer is ", "ANSWER: ", "("]))
def test_letters_in_words_are_no_options(word, before):
    assert read_letter(f"{before}{word}.", 5).letter is None


@given(st.integers(2, 5), st.data())
def test_every_answer_that_is_written_is_read(num_choices, data):
    answer = data.draw(st.integers(0, num_choices - 1))
    choices = tuple(f"option {letter}" for letter in "ABCDE"[:num_choices])
    problem = Problem("1", "Which?", choices, answer, "", "A lecture.", "A solution.", "natural science", "grade1")
    for format in OUTPUTS:
        text = write_turn(problem, f"QCM-{format}")[1]
        choice = read_letter(text, num_choices)
        assert choice == Choice("ABCDE"[answer], "loose" if format == "LEPA" else "sentence")


def test_every_problem_is_in_one_subject_and_one_grade(tmp_path):
    write_problems(tmp_path)
    problems = list(read_problems(Counts(), tmp_path, "test"))
    found = {problem.id: subsets_of(problem) for problem in problems}
    assert found["3"] == ("NAT", "TXT", "IMG", "G1-6")
    assert found["4"] == ("NAT", "NO", "G7-12")
    for names, size in ((("NAT", "SOC", "LAN"), 1), (("G1-6", "G7-12"), 1)):
        assert all(len(set(names) & set(columns)) == size for columns in found.values())
    assert all(("NO" in columns) != bool({"TXT", "IMG"} & set(columns)) for columns in found.values())


@pytest.mark.parametrize("rights", list(itertools.product([True, False], repeat=3)))
def test_the_average_is_over_problems(tmp_path, rights):
    write_problems(tmp_path)
    problems = list(read_problems(Counts(), tmp_path, "test"))[:3]
    chosen = {
        problem.id: Choice("ABCDE"[problem.answer], "letter") if right else Choice(None, "nothing")
        for problem, right in zip(problems, rights, strict=True)
    }
    assert count_right(problems, chosen)["avg"].right == sum(rights)
