"""The files a judge works from: questions, what is known of their pictures, answers, and reviews of earlier judges.

    questions = read_questions(Path("qa90_questions.jsonl"))
    context = read_context(Path("caps_boxes_coco2014_val_80.jsonl"))
    answers = read_answers(Path("answers.jsonl"))                    # question id -> text

The layouts are those of LLaVA-Bench (COCO) and LLaVA-Bench (In-the-Wild), and of this project's data sets. Whatever
cannot be read is an error that names the file and the line: a question that is left out would change the score.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .json_stream import stream_lines
from .prompting import write_context
from .rejections import Rejected
from .relative_score import ALL
from .rows import read_rows
from .sources import Box, RawBox, check_caption, check_unicode, shown
from .tables import as_list, boxes_of


@dataclass(frozen=True)
class Question:
    """
    Args:
        kind: the row of the table it counts for; empty where the file names none.
        pictures: names to look its context up by, the first that is known.
        reference: the answer to compare with, where it comes with the question.
        context: what is known of the picture, where it comes with the question.
    """

    id: str
    kind: str
    text: str
    pictures: tuple[str, ...] = ()
    reference: str = ""
    context: str = ""


@dataclass(frozen=True)
class Review:
    """One reply of a judge as a file has it; scores are None where the reply had none that could be used."""

    question: str
    kind: str
    reference: float | None
    candidate: float | None
    candidate_name: str = ""
    order: str = "reference-first"
    repeat: int = 0
    reason: str = ""  # why there are no scores


@dataclass
class Contexts:
    """What is known of pictures, by the file's name and by the id."""

    path: Path
    by_image: dict[str, str] = field(default_factory=dict)
    by_id: dict[str, str] = field(default_factory=dict)

    def find(self, names: tuple[str, ...]) -> str | None:
        return next((found[name] for name in names for found in (self.by_image, self.by_id) if name in found), None)


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object, and the words that name the line in an error."""
    if not path.is_file():
        raise ValueError(f"`{path}` is no file. Check the path.")
    where = None
    for where, row in stream_lines(path):
        yield where, row
    if where is None:
        raise ValueError(f"`{path}` is empty. Check how it was written.")


def text_at(row: Mapping[str, Any], name: str, where: str, may_be_empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        found = shown(value) if name in row else f"no such field among {', '.join(map(str, row)) or 'none'}"
        raise ValueError(f"{where}: `{name}` is {found}; wanted text.")
    try:
        check_unicode(value)
    except Rejected as rejection:
        raise ValueError(f"{where}: `{name}` has {rejection.detail}") from rejection
    return value


def id_at(row: Mapping[str, Any], name: str, where: str, seen: Mapping[str, Any]) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        found = shown(value) if name in row else f"no such field among {', '.join(map(str, row)) or 'none'}"
        raise ValueError(f"{where}: `{name}` is {found}; wanted text or a whole number.")
    found = text_at({name: str(value)}, name, where)
    if found in seen:
        raise ValueError(f"{where}: `{name}` is `{found}`, as in an earlier line. Remove one of them.")
    return found


def kind_at(row: Mapping[str, Any], name: str, where: str) -> str:
    kind = "" if row.get(name) is None else text_at(row, name, where, may_be_empty=True).strip()
    if kind == ALL:
        raise ValueError(f"{where}: `{name}` is `{ALL}`, the name of the row of all kinds. Name it otherwise.")
    return kind


def read_questions(path: Path) -> list[Question]:
    """`question_id`, `image`, `text`, `category`. A context is about one picture, so a question is, too."""
    found: dict[str, Question] = {}
    for where, row in read_objects(path):
        name = id_at(row, "question_id", where, found)
        pictures = as_list(row.get("image"))
        if len(pictures) > 1 or not all(isinstance(picture, str) for picture in pictures):
            raise ValueError(f"{where}: `image` is {shown(row['image'])}; wanted the name of one picture.")
        words = text_at(row, "text", where).replace("<image>", " ").strip()
        found[name] = Question(name, kind_at(row, "category", where), words, tuple(pictures))
    return list(found.values())


def read_answers(path: Path) -> dict[str, str]:
    """Text by question id. A candidate may have said nothing."""
    found: dict[str, str] = {}
    for where, row in read_objects(path):
        name = id_at(row, "question_id", where, found)
        found[name] = text_at(row, "text", where, may_be_empty=True)
    return found


def read_context(path: Path) -> Contexts:
    """`image` or `id`; `captions` or `caption`, one or several; `instances` or `boxes`, where there are any."""
    found = Contexts(path)
    for where, row in read_objects(path):
        named = {name: row[name] for name in ("image", "id") if row.get(name) is not None}
        if not named:
            raise ValueError(f"{where}: neither `image` nor `id`; wanted the name of the picture.")
        words = context_of(row, where)
        if not words:
            raise ValueError(f"{where}: neither `captions` nor boxes; wanted what is known of the picture.")
        for name, known in (("image", found.by_image), ("id", found.by_id)):
            if name in named:
                known[id_at(row, name, where, known)] = words
    return found


def context_of(row: Mapping[str, Any], where: str) -> str:
    """Captions one a line, below a blank line the boxes; empty where there is neither."""
    try:
        captions = tuple(map(check_caption, as_list(row.get("captions", row.get("caption")))))
        boxes = tuple(box_of(box) for box in boxes_of(dict(row)))
    except Rejected as rejection:
        raise ValueError(f"{where}: {rejection.detail}") from rejection
    return write_context(captions, boxes)


def box_of(box: RawBox) -> Box:
    """As it is, also where it covers nothing: rounded boxes do, and a judge may see them."""
    numbers = box.numbers if isinstance(box.numbers, (list, tuple)) else []
    is_good = len(numbers) == 4 and all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    )
    if not is_good or not isinstance(box.label, str) or not box.label.strip() or "\n" in box.label:
        raise Rejected("odd-box", f"the box {shown(box.label)}: {shown(box.numbers)}; wanted a name and four numbers.")
    check_unicode(box.label)
    return Box(box.label.strip(), *map(float, numbers))


def read_data(path: Path) -> list[Question]:
    """The conversations of a data set of ours: questions with the true answers as reference.

    Each turn is a question, as `llava answer` asks them: the first has the conversation's id, the second `ID#2`, and
    so on. It is shown with the turns before it.
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(read_rows(path)):
        where = f"`{path}`, row {number + 1}"
        for question in questions_of(row, str(number), where):
            if question.id in found:
                raise ValueError(f"{where}: the id `{question.id}` of an earlier row. Remove one of them.")
            found[question.id] = question
    if not found:
        raise ValueError(f"`{path}` has no rows. Check how it was written.")
    return list(found.values())


def questions_of(row: Any, number: str, where: str) -> Iterator[Question]:
    """`number` is the id of a row without one."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError(f"{where}: no list `messages`; wanted a row of a data set, as README.md shows one.")
    name = number if row.get("id") is None else id_at(row, "id", where, {})
    turns = turns_of(row["messages"], where)
    pictures = tuple(one for one in as_list(row.get("image_id")) if isinstance(one, str))
    for image in as_list(row.get("images")):
        path = image.get("path") if isinstance(image, dict) else image
        pictures += (path,) if isinstance(path, str) else ()
    before = ""
    for turn, (asked, answer) in enumerate(turns, 1):
        yield Question(
            name if turn == 1 else f"{name}#{turn}",
            kind_at(row, "kind", where),
            f"{before}{asked}",
            pictures,
            reference=answer,
            context=context_of(row, where),
        )
        before += f"{asked}\n(answered: {answer})\n"


def turns_of(messages: list[Any], where: str) -> list[tuple[str, str]]:
    """Question and answer of each turn; what a system message says is not asked."""
    said: list[tuple[str, str]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else as_list(content)
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if role != "system":
            said.append((str(role), " ".join(" ".join(texts).replace("<image>", " ").split())))
    roles = [role for role, _ in said]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"{where}: the roles {shown(roles)}; wanted user and assistant in turn, the assistant last.")
    if not all(words for _, words in said):
        raise ValueError(f"{where}: a message without words; wanted a question and an answer in each turn.")
    return [(asked, answer) for (_, asked), (_, answer) in zip(said[::2], said[1::2], strict=True)]


def read_reviews(path: Path) -> list[Review]:
    """Reviews of the original (`question_id`, `category`, `tuple` or `score`) or of `llava judge`, in file order."""
    found = []
    for where, row in read_objects(path):
        if "candidate_score" in row:
            found.append(_own_review(row, where))
            continue
        name = id_at(row, "question_id", where, {})
        pair = row.get("tuple", row.get("score"))
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise ValueError(
                f"{where}: `tuple` is {shown(pair)}; wanted the two scores, [-1, -1] where there are none."
            )
        found.append(Review(name, kind_at(row, "category", where), float(pair[0]), float(pair[1])))
    return found


def _own_review(row: dict[str, Any], where: str) -> Review:
    pair = [row.get("reference_score"), row["candidate_score"]]
    repeat, order = row.get("repeat"), row.get("order")
    if not (pair == [None, None] or all(map(_is_number, pair))):
        raise ValueError(f"{where}: the scores {shown(pair)}; wanted two numbers, or null twice.")
    if not isinstance(repeat, int) or order not in ("reference-first", "candidate-first"):
        raise ValueError(f"{where}: repeat {shown(repeat)}, order {shown(order)}; wanted a line of `llava judge`.")
    return Review(
        id_at(row, "question_id", where, {}),
        kind_at(row, "kind", where),
        pair[0],
        pair[1],
        text_at(row, "candidate", where),
        order,
        repeat,
        text_at(row, "rejected", where, may_be_empty=True),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
