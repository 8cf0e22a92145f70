"""Questions for a model: of a data set of conversations, or of a file in the original's layout.

Of a conversation every user turn is asked, after the true turns before it: the first has the conversation's id, the
second `ID#2`, and so on. The original's files have a line for each question: `question_id`, `text`, and `image`, which
may be a list or missing.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from processing.conversation import (
    ConversationError,
    check_conversation,
    count_images,
    describe,
    match_pictures,
    text_of,
)
from processing.images import open_image
from processing.rows import own_bytes, picture_column, read_pictures
from recipes.training.train_data import load_rows


NUM_EXAMPLES = 3
BLOCK = 200  # rows read at a time


@dataclass(frozen=True)
class Picture:
    """A picture that is not opened yet.

    Args:
        name: what the answers call it.
        key: equal for the same picture: the path, or a hash of the bytes.
        source: a path, or bytes that may still lie in the data set's file.
    """

    name: str
    key: str
    source: Any

    def encoded(self) -> Any:
        """What `open_image` opens."""
        return own_bytes(self.source)

    def opened(self) -> Image.Image:
        """Errors name the file, or of bytes what the answers call them."""
        return open_image(self.encoded(), None if isinstance(self.source, str) else self.name)


@dataclass(frozen=True)
class Question:
    """`chat` ends with the question; `pictures` are those of its image places."""

    id: str | int
    chat: list[dict]
    pictures: tuple[Picture, ...]

    @property
    def prompt(self) -> str:
        return text_of(self.chat[-1])

    @property
    def identity(self) -> str:
        return json.dumps([self.id, self.chat, [picture.key for picture in self.pictures]])


def hash_of(questions: list[Question]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for question in questions:
        digest.update(question.identity.encode() + b"\n")
    return digest.hexdigest()


def read_data(data: str, image_root: str | None = None) -> list[Question]:
    """The questions of a data set of conversations, which `load_rows` reads."""
    rows = load_rows(data, image_root)
    columns = [name for name in ("id", "image_id", "messages") if name in rows.column_names]
    texts, pictures = rows.select_columns(columns).with_format(None), picture_column(rows)
    found: list[Question] = []
    problems: list[str] = []
    for first in range(0, len(rows), BLOCK):
        numbers = list(range(first, min(first + BLOCK, len(rows))))
        shown = read_pictures(pictures, numbers)
        for number, row, images in zip(numbers, texts.select(numbers), shown, strict=True):
            name = str(number if row.get("id") is None else row["id"])
            try:
                found += _turns(name, row["messages"], images, row.get("image_id"))
            except ConversationError as error:
                problems.append(str(error))
    return _checked(found, problems, data)


def _turns(name: str, messages: Any, images: list[Any] | None, image_id: Any) -> Iterator[Question]:
    where = f"conversation `{name}`"
    chat = check_conversation(messages, where)
    references = match_pictures(messages, images, where)
    named = image_id if isinstance(image_id, list) else [image_id] * len(references)
    named = named if len(named) == len(references) else [None] * len(references)
    pictures = [_picture(reference, own) for reference, own in zip(references, named, strict=True)]
    places = [i for i, message in enumerate(chat) if message["role"] == "user"]
    for turn, place in enumerate(places, 1):
        before = chat[: place + 1]
        yield Question(name if turn == 1 else f"{name}#{turn}", before, tuple(pictures[: count_images(before)]))


def _picture(reference: Any, name: Any) -> Picture:
    data, path = (reference["bytes"], reference["path"]) if isinstance(reference, dict) else (None, reference)
    key = str(path) if data is None else hashlib.blake2b(data, digest_size=16).hexdigest()
    return Picture(str(name or path or key), key, path if data is None else reference)


def read_questions(path: Path, image_root: str | None = None) -> list[Question]:
    """The questions of a file of the original's layout."""
    found: list[Question] = []
    problems: list[str] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found.append(_question(line, image_root, f"line {number} of `{path}`"))
            except ConversationError as error:
                problems.append(str(error))
    return _checked(found, problems, str(path))


def _question(line: bytes, image_root: str | None, where: str) -> Question:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConversationError(f"{where} is no JSON in UTF-8: {error}. Write one object a line.") from error
    if not isinstance(row, dict) or not {"question_id", "text"} <= row.keys():
        raise ConversationError(
            f"{where} is {describe(row)}, wanted an object with `question_id` and `text`, and `image` where there is "
            "one. A data set of conversations goes to --data."
        )
    name, text, images = row["question_id"], row["text"], row.get("image")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ConversationError(f"{where} has the question_id {describe(name)}, wanted a string or a whole number.")
    if not isinstance(text, str):
        raise ConversationError(f"{where} has the text {describe(text)}, wanted a string.")
    paths = [] if images is None else images if isinstance(images, list) else [images]
    if odd := [one for one in paths if not isinstance(one, str) or not one]:
        raise ConversationError(f"{where} has the image {describe(odd[0])}, wanted a path or a list of paths.")
    content = [*({"type": "image"} for _ in paths), {"type": "text", "text": text}]
    chat = check_conversation([{"role": "user", "content": content}], where)
    return Question(name, chat, tuple(Picture(one, p := str(Path(image_root or "", one)), p) for one in paths))


def _checked(found: list[Question], problems: list[str], data: str) -> list[Question]:
    """All of them, if all can be asked: a share that was left out would be no answer to the whole."""
    missing: dict[str, str] = {}
    for question in found:
        for picture in question.pictures:
            if isinstance(picture.source, str) and picture.source[:5] != "data:":
                missing.setdefault(picture.source, str(question.id))
    for path, name in missing.items():
        if not os.path.isfile(path):
            problems.append(f"question `{name}` shows `{path}`, which does not exist: check --image-root.")
    first: dict[str, int] = {}
    for number, question in enumerate(found):
        if first.setdefault(question.identity, number) != number:
            problems.append(f"question `{question.id}` is there twice, with the same words: remove one of them.")
    if problems:
        more = f" And {len(problems) - NUM_EXAMPLES:,} more." if len(problems) > NUM_EXAMPLES else ""
        raise ValueError(f"`{data}` cannot be asked as it is: {' '.join(problems[:NUM_EXAMPLES])}{more}")
    if not found:
        raise ValueError(f"`{data}` has no questions. Check how it was written.")
    return found
