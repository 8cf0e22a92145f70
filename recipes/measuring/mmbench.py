"""MMBench's TSV: its rows as questions to answer, to score, and as the table its server takes.

A row has `index`, `question`, `hint`, the options `A` ... with empty cells behind the last, `answer` (a letter; none
in the test split), `category`, `l2-category` and `image` (base64, or the index of the row with the same picture).
Circular evaluation shows the options once in every rotation and counts the question as right if all are. The rotations
of question 7 have the ids 7, 1000007, 2000007, ...: in the files that hold them and in the questions written here.
"""

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.measuring.metrics.choice import rotated
from recipes.measuring.score_files import Answer, Question, add, identity, read_text, shown


TURN = 1_000_000  # added to the id of a question for each place its options have moved
LETTERS = "ABCDEFGH"
ASK = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    csv.field_size_limit(1 << 30)  # a picture is one field
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    try:
        rows = [(f"`{path}`, row {number},", row) for number, row in enumerate(table, 1)]
    except csv.Error as error:
        raise ValueError(f"`{path}` is no table: {error} at line {table.line_num}. Give MMBench's TSV.") from error
    lacking = [name for name in ("index", "question", "A", "B") if not rows or name not in rows[0][1]]
    if lacking:
        raise ValueError(f"`{path}` lacks the columns or rows of {', '.join(lacking)}, wanted MMBench's TSV.")
    return rows


def read_mmbench(path: Path) -> dict[str, Question]:
    found: dict[str, Question] = {}
    for place, row in read_table(path):
        name = row["index"]
        if not name or not name.isdecimal():
            raise ValueError(f"{place} has the index {shown(name)}, wanted a whole number.")
        options = options_of(row, place)
        truth = row.get("answer") or None
        if truth is not None and truth not in options:
            raise ValueError(f"{place} has the answer {shown(truth)}, wanted one of {', '.join(options)}.")
        groups = {key: row[key] for key in ("l2-category", "category") if row.get(key)}
        origin = str(int(name) % TURN)
        add(found, Question(name, truth, groups, text=row["question"], options=options, origin=origin), place)
    return found


def options_of(row: dict[str, str], place: str) -> dict[str, str]:
    cells = [row.get(letter) or "" for letter in LETTERS]
    count = cells.index("") if "" in cells else len(cells)
    if count < 2 or any(cells[count:]):
        raise ValueError(f"{place} has the options {shown(cells)}, wanted two or more without a gap.")
    return dict(zip(LETTERS, cells[:count], strict=False))


def with_turns(questions: dict[str, Question], answers: Sequence[Answer]) -> dict[str, Question]:
    """All rotations of each question, if the answers hold one that the table does not."""
    if not any(a.id.isdecimal() and int(a.id) >= TURN and a.id not in questions for a in answers):
        return questions
    return {
        turned.id: turned
        for question in questions.values()
        for turns in range(len(question.options))
        for turned in [turn(question, turns)]
    }


def turn(question: Question, turns: int) -> Question:
    name = str(int(question.id) + turns * TURN)
    return Question(
        name, question.truth, question.groups, "", question.text, None, question.options, turns, question.origin
    )


def answer_id(row: dict, place: str) -> str:
    """The original's answers give the rotation as `round_id`."""
    name, rounds = identity(row, "question_id", place), row.get("round_id", 0)
    if not name.isdecimal() or isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(
            f"{place} has the `question_id` {shown(name)} and `round_id` {shown(rounds)}, wanted numbers."
        )
    return str(int(name) + rounds * TURN)


def write_questions(path: Path, images: Path, language: str, all_turns: bool) -> Iterator[str]:
    """Lines for `llava answer`, and the pictures as files."""
    table = read_table(path)
    questions = read_mmbench(path)
    if all_turns and any(int(name) >= TURN for name in questions):
        raise ValueError(f"`{path}` holds the rotations of its questions already. Leave --all-turns away.")
    pictures = {row["index"]: row.get("image") or "" for _, row in table}
    images.mkdir(parents=True, exist_ok=True)
    for place, row in table:
        question = questions[row["index"]]
        file = write_picture(pictures, row["index"], images, place)
        for turns in range(len(question.options) if all_turns else 1):
            options = rotated(question.options, turns)
            lines = [row.get("hint") or "", question.text, *(f"{k}. {v}" for k, v in options.items()), ASK[language]]
            text = "\n".join(line for line in lines if line)
            entry = {"question_id": int(turn(question, turns).id), "image": file, "text": text}
            yield json.dumps(entry, ensure_ascii=False) + "\n"


def write_picture(pictures: dict[str, str], index: str, images: Path, place: str) -> str:
    owner = pictures[index] if pictures[index] in pictures else index
    try:
        data = base64.b64decode(pictures[owner], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{place} has a picture that is no base64: {error}.") from error
    if not data:
        raise ValueError(f"{place} has no picture, wanted one in `image`.")
    file = owner + (".png" if data.startswith(b"\x89PNG") else ".jpg")
    if not (images / file).is_file() or (images / file).stat().st_size != len(data):
        (images / file).write_bytes(data)
    return file


def submission(questions: dict[str, Question], answers: dict[str, Answer]) -> str:
    """TSV with `index`, `question`, the options and `prediction`, the answer as it is."""
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(["index", "question", *"ABCD", "prediction"])
    for name, question in questions.items():
        text = answers[name].text if name in answers else ""
        options = rotated(question.options, question.turns)
        table.writerow([name, question.text, *(options.get(letter, "") for letter in "ABCD"), text])
    return file.getvalue()
