"""The files of `llava score`: answers, questions and the annotations of each benchmark as it publishes them.

Whatever a benchmark calls its parts, here they become `Question`s. A file that does not hold what it should is an
error that names the place.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_generation.json_stream import stream_lines
from data_generation.sources import shown


SHOWN = 3  # ids in a message


@dataclass(frozen=True)
class Question:
    """
    Args:
        id: what its answer is found by.
        truth: the label, letter or answer, or the answers of ten people; None where it is secret.
        groups: what the table has lines for, such as {"answer type": "number"}.
        most_said: the answer that most people gave, for VQAv2.
        turns: how often its options were rotated before they were shown.
        origin: the id of the question that this is a rotation of.
    """

    id: str
    truth: Any
    groups: dict[str, str] = field(default_factory=dict)
    image: str = ""
    text: str = ""
    most_said: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    turns: int = 0
    origin: str = ""


@dataclass(frozen=True)
class Answer:
    id: str
    text: str


def read_answers(path: Path, id_of: Callable[[dict, str], str] | None = None) -> list[Answer]:
    """JSONL with `question_id` and `text`, the original's layout too.

    Args:
        id_of: from the object of a line and its place; without it the `question_id`.
    """
    answers = []
    for place, row in read_rows(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{place} has the `text` {shown(text)}, wanted the answer as a string.")
        answers.append(Answer(id_of(row, place) if id_of else identity(row, "question_id", place), text))
    return answers


def pair(
    questions: dict[str, Question], answers: Sequence[Answer], path: Path, allow_missing: bool
) -> tuple[dict[str, Answer], list[str]]:
    """The answer to each question, and the ids of those without one."""
    times = Counter(answer.id for answer in answers)
    if twice := [name for name, count in times.items() if count > 1]:
        raise ValueError(f"`{path}` answers {named(twice)} more than once. Leave one answer to each question.")
    if unknown := [name for name in times if name not in questions]:
        raise ValueError(
            f"`{path}` answers {named(unknown)} that no question has; there are {len(questions)} questions, such as "
            f"`{next(iter(questions))}`. Give the questions and annotations that were answered."
        )
    missing = [name for name in questions if name not in times]
    if missing and not allow_missing:
        raise ValueError(
            f"`{path}` has no answer to {named(missing)}, of {len(questions)} questions. Answer them, or give "
            f"--allow-missing to score the other {len(times)}."
        )
    return {answer.id: answer for answer in answers}, missing


def read_pope(annotations: Path, questions: Path | None) -> dict[str, Question]:
    """`coco_pope_CATEGORY.json`, a JSON object on each line: `question_id`, `image`, `text`, `label`.

    Those ids begin anew in each file. The original's questions have ids of their own and a `category`; they are found
    by category, picture and the first line of their text.
    """
    files = sorted(annotations.glob("*pope_*.json")) if annotations.is_dir() else [annotations]
    if not files:
        raise ValueError(f"`{annotations}` holds no *pope_CATEGORY.json. Give POPE's folder or one of its files.")
    if len(files) > 1 and questions is None:
        raise ValueError(
            f"`{annotations}` holds {len(files)} files whose ids begin anew in each. Give --questions, or one file."
        )
    labels: dict[tuple[str, str, str], str] = {}
    by_id: dict[str, Question] = {}
    for path in files:
        category = path.stem.split("pope_")[-1]
        for place, row in read_rows(path):
            image, text = string(row, "image", place), first_line(string(row, "text", place))
            label = string(row, "label", place)
            if label not in ("yes", "no"):
                raise ValueError(f"{place} has the label {shown(label)}, wanted yes or no.")
            if labels.setdefault((category, image, text), label) != label:
                raise ValueError(f"{place} has the label `{label}` and an earlier line the other one for `{text}`.")
            question = Question(identity(row, "question_id", place), label, {"category": category}, image, text)
            if questions is None:
                add(by_id, question, place)
    if questions is None:
        return by_id
    asked: dict[str, Question] = {}
    for place, row in read_asked(questions):
        named_so = files[0].stem.split("pope_")[-1]
        category = string(row, "category", place) if "category" in row or len(files) > 1 else named_so
        image, text = string(row, "image", place), first_line(question_text(row, place))
        if (category, image, text) not in labels:
            raise ValueError(
                f"{place} asks `{text}` of `{image}` in the category {shown(category)}, which `{annotations}` does "
                f"not hold. Give the annotations that go with the questions."
            )
        question = Question(identity(row, "question_id", place), labels[category, image, text])
        add(asked, replace(question, groups={"category": category}, image=image, text=text), place)
    return asked


def read_textvqa(annotations: Path, questions: Path | None) -> dict[str, Question]:
    """`TextVQA_0.5.1_val.json`: `data` with `question_id`, `image_id`, `question`, ten strings as `answers`."""
    found: dict[str, Question] = {}
    for place, row in members(annotations, "data"):
        people = ten_people(row, place)
        name, image = identity(row, "question_id", place), identity(row, "image_id", place)
        add(found, Question(name, people, {}, image, string(row, "question", place)), place)
    if questions is None:
        return found
    finder = TextvqaIds(found)
    wanted = [
        (place, finder.of(identity(row, "question_id", place), row, place)) for place, row in read_rows(questions)
    ]
    return chosen(found, wanted, annotations)


class TextvqaIds:
    """The original's questions and answers have the id of the picture, which several questions share. They are told
    apart by their text; the same question asked twice of a picture goes to its annotations in turn."""

    def __init__(self, questions: dict[str, Question]):
        self.questions = questions
        self.alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        for question in questions.values():
            self.alike[question.image, question.text.strip().lower()].append(question.id)
        self.seen: Counter = Counter()

    def __call__(self, row: dict, place: str) -> str:
        return self.of(identity(row, "question_id", place), row, place)

    def of(self, name: str, row: dict, place: str) -> str:
        if name in self.questions:
            return name
        asked = row.get("prompt") or row.get("text")  # of an answer, of a question
        key = (name, textvqa_question(asked if isinstance(asked, str) else "").lower())
        if key not in self.alike:
            return name
        ids = self.alike[key]
        self.seen[key] += 1
        return ids[min(self.seen[key], len(ids)) - 1]


def textvqa_question(prompt: str) -> str:
    """The question in the original's prompts: their first line, or what stands after `Question:` behind OCR tokens."""
    if prompt.startswith("OCR tokens:") and "Question:" in prompt:
        return prompt.split("Question:", 1)[1].split("Short answer:")[0].strip()
    return first_line(prompt)


def read_vqav2(annotations: Path | None, questions: Path | None) -> dict[str, Question]:
    """`v2_mscoco_val2014_annotations.json`: `annotations` with `question_id`, `answers` of ten, `answer_type` and
    `multiple_choice_answer`. Without it the questions alone, for the server."""
    found: dict[str, Question] = {}
    if annotations is not None:
        for place, row in members(annotations, "annotations"):
            people = ten_people(row, place)
            groups = {"answer type": string(row, "answer_type", place)}
            most_said = string(row, "multiple_choice_answer", place)
            add(found, Question(identity(row, "question_id", place), people, groups, most_said=most_said), place)
    return narrowed(found, annotations, questions)


def read_vizwiz(annotations: Path | None, questions: Path | None) -> dict[str, Question]:
    """`val.json`: a list of `image`, `question`, `answers` of ten and `answer_type`. The name of the picture is its
    id; questions may have another."""
    found: dict[str, Question] = {}
    if annotations is not None:
        for place, row in elements(read_json(annotations), f"`{annotations}`"):
            people = ten_people(row, place)
            image = string(row, "image", place)
            add(found, Question(image, people, {"answer type": string(row, "answer_type", place)}, image), place)
    if questions is None:
        return found
    asked: dict[str, Question] = {}
    for place, row in read_asked(questions):
        image = string(row, "image", place)
        if annotations is not None and image not in found:
            raise ValueError(f"{place} asks about `{image}`, which `{annotations}` does not hold.")
        name = identity(row, "question_id", place)
        add(asked, replace(found.get(image, Question(name, None, image=image)), id=name), place)
    return asked


def read_gqa(annotations: Path, questions: Path | None) -> dict[str, Question]:
    """`testdev_balanced_questions.json`: an object from ids to `answer` and `types` (`structural`, `semantic`).
    As in the official code a question is open if its structure is `query`, else binary."""
    data = read_json(annotations)
    if not isinstance(data, dict):
        raise ValueError(f"`{annotations}` holds {shown(data)}, wanted an object from question ids to questions.")
    found: dict[str, Question] = {}
    for name, row in data.items():
        place = f"`{annotations}`, question `{name}`,"
        types = row.get("types") if isinstance(row, dict) else None
        if not isinstance(types, dict):
            raise ValueError(f"{place} is {shown(row)}, wanted an object with `answer` and `types`.")
        structural = string(types, "structural", place)
        kind = "open" if structural == "query" else "binary"
        groups = {"kind": kind, "structural": structural, "semantic": string(types, "semantic", place)}
        found[name] = Question(name, string(row, "answer", place), groups)
    return narrowed(found, annotations, questions)


def read_seed(annotations: Path, questions: Path | None) -> dict[str, Question]:
    """`SEED-Bench.json`: `questions` with `question_id`, `choice_a` ..., `answer` (a letter), `question_type_id` and
    `data_type`; `question_type` from names to those ids."""
    data = read_json(annotations)
    names = {}
    if isinstance(data, dict) and isinstance(data.get("question_type"), dict):
        names = {str(number): name for name, number in data["question_type"].items()}
    found: dict[str, Question] = {}
    for place, row in members(annotations, "questions", data):
        options = {
            letter: str(row[f"choice_{letter.lower()}"]) for letter in "ABCDEF" if f"choice_{letter.lower()}" in row
        }
        truth = string(row, "answer", place)
        if truth not in options:
            raise ValueError(
                f"{place} has the answer {shown(truth)}, wanted one of {', '.join(options) or 'choice_a …'}."
            )
        kind = identity(row, "question_type_id", place)
        groups = {"data": string(row, "data_type", place), "type": names.get(kind, kind)}
        add(found, Question(identity(row, "question_id", place), truth, groups, options=options), place)
    return narrowed(found, annotations, questions)


def narrowed(found: dict[str, Question], annotations: Path | None, questions: Path | None) -> dict[str, Question]:
    """Those that were asked."""
    if questions is None:
        return found
    asked = [(place, identity(row, "question_id", place)) for place, row in read_asked(questions)]
    if annotations is None:
        found = {name: Question(name, None) for _, name in asked}
    return chosen(found, asked, annotations)


def chosen(
    found: dict[str, Question], wanted: Sequence[tuple[str, str]], annotations: Path | None
) -> dict[str, Question]:
    if lost := [name for _, name in wanted if name not in found]:
        raise ValueError(f"{wanted[0][0].split(',')[0]} asks {named(lost)}, which `{annotations}` does not hold.")
    selected: dict[str, Question] = {}
    for place, name in wanted:
        add(selected, found[name], place)
    return selected


def add(questions: dict[str, Question], question: Question, place: str) -> None:
    if question.id in questions:
        raise ValueError(f"{place} has the id `{question.id}` of an earlier one, wanted each id once.")
    questions[question.id] = question


def read_asked(path: Path) -> Iterable[tuple[str, dict]]:
    """Questions as JSONL, or as the JSON with `questions` in which VQA publishes them."""
    return members(path, "questions") if path.suffix == ".json" else read_rows(path)


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """The objects of a JSONL file with their places."""
    rows = [(f"{place},", row) for place, row in stream_lines(path)]
    if not rows:
        raise ValueError(f"`{path}` is empty, wanted a JSON object on each line.")
    return rows


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is no JSON: {error}. Give the file as the benchmark publishes it.") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` has bytes at {error.start} that are no UTF-8. Give a text file.") from error


def members(path: Path, key: str, data: Any = None) -> list[tuple[str, dict]]:
    data = read_json(path) if data is None else data
    if not isinstance(data, dict) or key not in data:
        raise ValueError(
            f"`{path}` holds {shown(data)}, wanted an object with `{key}`, as the benchmark publishes it."
        )
    return elements(data[key], f"`{path}`, `{key}`")


def elements(rows: Any, place: str) -> list[tuple[str, dict]]:
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{place} holds {shown(rows)}, wanted a list of questions.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{place}[{number}] is {shown(row)}, wanted an object.")
    return [(f"{place}[{number}]", row) for number, row in enumerate(rows)]


def ten_people(row: dict, place: str) -> list[str]:
    answers = row.get("answers")
    if isinstance(answers, list):
        answers = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    if not isinstance(answers, list) or len(answers) != 10 or not all(isinstance(one, str) for one in answers):
        raise ValueError(
            f"{place} has the answers {shown(answers)}, wanted those of ten people. A split whose answers are secret "
            "goes to the benchmark's server."
        )
    return answers


def identity(row: dict, name: str, place: str) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{place} has the `{name}` {shown(value)}, wanted a string or a whole number.")
    return str(value)


def string(row: dict, name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{place} has the `{name}` {shown(value)}, wanted a string.")
    return value


def question_text(row: dict, place: str) -> str:
    return string(row, "text" if "text" in row else "question", place)


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("<image>", "").splitlines()]
    return next((line for line in lines if line), "")


def named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{len(ids)} question{'s' if len(ids) > 1 else ''} ({', '.join(f'`{i}`' for i in ids[:SHOWN])}{more})"
