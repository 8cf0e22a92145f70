"""The original's JSON: LLaVA-Instruct, LLaVA-Pretrain and mix665k files to rows, and rows back to such a file.

    [{"id": "1", "image": "coco/train2017/1.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}]

`<image>` in a question marks the picture's place; rows without `image` are text alone. Files are read row by row. What
the original drops or ignores in silence is rejected or trimmed here, with a reason and the row's id.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .json_stream import stream_array
from .rejections import Counts, Rejected
from .replacing import replacing
from .rows import Row, image_part, text_part
from .sources import check_unicode, shown


PLACE = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


@dataclass(frozen=True)
class ImageRoots:
    """Where pictures are: a folder for all, and folders of their own for names with a certain beginning.

    With `{"coco": Path("/data/coco")}` the picture `coco/train2017/1.jpg` is /data/coco/train2017/1.jpg.
    """

    folder: Path | None = None
    of_prefix: Mapping[str, Path] | None = None

    def find(self, name: str) -> str:
        """The path to store: as in the file where the one folder has it, absolute where a prefix has its own."""
        pure = PurePosixPath(name)
        if ".." in pure.parts:
            raise Rejected("path-outside", f"the picture {shown(name)} climbs out of its folder with `..`.")
        prefixes = sorted(self.of_prefix or {}, key=len, reverse=True)
        prefix = next((one for one in prefixes if pure.is_relative_to(one)), None)
        if prefix is not None and self.of_prefix is not None:
            path = (self.of_prefix[prefix] / pure.relative_to(prefix)).absolute()
            stored = str(path)
        elif self.folder is not None:
            path, stored = self.folder / name, name
        else:
            return name
        try:
            is_there = path.is_file()
        except OSError:  # a name too long
            is_there = False
        if not is_there:
            raise Rejected("missing-file", f"no file {shown(str(path))}. Download it, or check the image root.")
        return stored


def read_llava(
    counts: Counts, path: Path, roots: ImageRoots | None = None, kind: str = "conversation", source: str | None = None
) -> Iterator[Row]:
    """Rows of a file of the original's; every id is kept, also where several rows share one, as in LLaVA-Instruct.

    Args:
        kind: of the rows with a picture; those without are `chat`.
        source: by default the file's name without its ending.
    """
    source = path.stem if source is None else source
    for number, entry in enumerate(stream_array(path)):
        name = f"row {number}"
        try:
            if not isinstance(entry, dict):
                raise Rejected("odd-row", f"found {shown(entry)}, wanted an object with `conversations`.")
            found = entry.get("id")
            if found is not None and (isinstance(found, bool) or not isinstance(found, (str, int))):
                raise Rejected("odd-id", f"the id is {shown(found)}, wanted a string or a whole number.")
            name = f"{path.stem}-{number:07d}" if found is None else str(found)
            check_unicode(name)
            images = _image_names(entry.get("image"))
            messages, has_leading_answer = _read_turns(entry.get("conversations"), len(images))
            paths = [(roots or ImageRoots()).find(image) for image in images]
        except Rejected as rejection:
            counts.reject(name, rejection)
            continue
        if has_leading_answer:
            counts.trim(name, Rejected("leading-answer", "an answer before the first question, left out."))
        counts.keep()
        yield {
            "id": name,
            "images": paths,
            "messages": messages,
            "kind": kind if images else "chat",
            "source": source,
            "image_id": images,
        }


def _image_names(value: Any) -> list[str]:
    if value is None:
        return []
    names = value if isinstance(value, list) else [value]
    odd = [name for name in names if not isinstance(name, str) or not name]
    if odd or not names:
        raise Rejected("odd-image", f"`image` is {shown(value)}, wanted the name of a file.")
    for name in names:
        check_unicode(name)
    return names


def _read_turns(turns: Any, num_images: int) -> tuple[list[Row], bool]:
    if not isinstance(turns, list) or not turns:
        raise Rejected("no-turns", f"`conversations` is {shown(turns)}, wanted a list of turns.")
    messages = [_read_turn(turn, num_images) for turn in turns]
    body = messages[1:] if messages[0]["role"] == "system" else messages
    has_leading_answer = bool(body) and body[0]["role"] == "assistant"
    if has_leading_answer:
        body = body[1:]
    if not body:
        raise Rejected("no-turns", "no question with an answer.")
    for number, message in enumerate(body):
        wanted = ("user", "assistant")[number % 2]
        if message["role"] != wanted:
            raise Rejected("not-alternating", f"turn {number} is by the {message['role']}, wanted the {wanted}.")
    if body[-1]["role"] != "assistant":
        raise Rejected("no-answer", "the last question has no answer. Remove the question or add its answer.")
    places = sum(part["type"] == "image" for message in body for part in message["content"])
    if places != num_images:
        reason = "no-place" if not places else "odd-places"
        raise Rejected(reason, f"{num_images} pictures and {places} `{PLACE}` in the questions, wanted as many.")
    return messages[: 1 if messages[0]["role"] == "system" else 0] + body, has_leading_answer


def _read_turn(turn: Any, num_images: int) -> Row:
    speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if not isinstance(speaker, str) or not isinstance(value, str):
        raise Rejected("odd-turn", f"a turn is {shown(turn)}, wanted `from` and `value`, both strings.")
    if speaker not in ROLES:
        raise Rejected("odd-speaker", f"a turn is from {shown(speaker)}, wanted {', '.join(ROLES)}.")
    check_unicode(value)
    role = ROLES[speaker]
    if role == "user" and num_images:
        content = _split_places(value)
    elif role == "user" and (value.startswith(PLACE) or value.endswith(PLACE)):
        raise Rejected("no-picture", f"a question with `{PLACE}` at its edge, but no `image`. Name the picture.")
    else:
        content = [text_part(value)]  # here `<image>` is text like any other
    if not any(part["type"] == "image" or part["text"].strip() for part in content):
        raise Rejected("empty-turn", f"a turn of the {role} has no words.")
    return {"role": role, "content": content}


def _split_places(value: str) -> list[Row]:
    """Texts and places in their order, without the white space between the two."""
    pieces = value.split(PLACE)
    content = []
    for number, piece in enumerate(pieces):
        piece = piece.lstrip() if number else piece
        piece = piece.rstrip() if number < len(pieces) - 1 else piece
        content += [image_part()] if number else []
        content += [text_part(piece)] if piece else []
    return content


def write_llava(
    counts: Counts,
    rows: Iterable[Mapping[str, Any]],
    path: Path,
    images_out: Path | None = None,
    strict: bool = False,
) -> int:
    """Writes rows as a file of the original's, whole or not at all; gives the number of rows written.

    Args:
        images_out: the folder that embedded pictures are written to, under the hash of their bytes.
        strict: a row that cannot be written is an error, and then nothing is.
    """
    total = 0
    with replacing(path) as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            name = f"row {number}"
            try:
                if not isinstance(row, Mapping):
                    raise Rejected("odd-row", f"found {shown(row)}, wanted an object with `messages`.")
                name = name if row.get("id") is None else str(row["id"])
                entry = json.dumps(_entry(name, row, images_out), ensure_ascii=False)
                check_unicode(entry)
            except Rejected as rejection:
                counts.reject(name, rejection)
                continue
            file.write(b",\n" if total else b"\n")
            file.write(entry.encode())
            counts.keep()
            total += 1
        file.write(b"\n]\n")
        if not total or (strict and counts.num_rejected):
            raise ValueError(f"{counts}\nNothing was written.")
    return total


def _entry(name: str, row: Mapping[str, Any], images_out: Path | None) -> dict[str, Any]:
    turns, places = [], 0
    found = row.get("messages") or []
    if not isinstance(found, list) or not all(isinstance(message, Mapping) for message in found):
        raise Rejected("odd-message", f"`messages` is {shown(found)}, wanted a list of objects.")
    for message in found:
        role, content = message.get("role"), message.get("content")
        content = [text_part(content)] if isinstance(content, str) else content
        if role == "system":
            raise Rejected("system-message", "the original's format has no place for a system message.")
        if not isinstance(role, str) or role not in SPEAKERS:
            raise Rejected("odd-speaker", f"a message by {shown(role)}, wanted {', '.join(SPEAKERS)}.")
        if not isinstance(content, list) or not content or not all(map(_is_part, content)):
            raise Rejected("odd-message", f"a message of {shown(content)}, wanted texts and places of pictures.")
        pieces = [PLACE if part.get("type") == "image" else part["text"] for part in content]
        if row.get("images") and any(part.get("type") != "image" and PLACE in part["text"] for part in content):
            raise Rejected("place-in-text", f"`{PLACE}` in a text would become a picture's place.")
        places += sum(part.get("type") == "image" for part in content)
        turns.append({"from": SPEAKERS[role], "value": "\n".join(pieces)})
    if not turns:
        raise Rejected("no-turns", "the row has no `messages`.")
    found = row.get("images") or []
    if not isinstance(found, list):
        raise Rejected("odd-image", f"`images` is {shown(found)}, wanted a list.")
    images = [_image_name(image, images_out) for image in found]
    if places != len(images):
        raise Rejected("odd-places", f"{len(images)} pictures and {places} places for them, wanted as many.")
    image = {"image": images[0] if len(images) == 1 else images} if images else {}
    return {"id": name, **image, "conversations": turns}


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") == "image" or isinstance(part.get("text"), str))


def _image_name(image: Any, images_out: Path | None) -> str:
    """The name of a picture in the file; one that is embedded is written out first."""
    data = image.get("bytes") if isinstance(image, Mapping) else None
    if not isinstance(data, bytes):
        name = image.get("path") if isinstance(image, Mapping) else image
        if not isinstance(name, str) or not name:
            raise Rejected("no-picture", f"a picture is {shown(image)}, wanted a path or bytes.")
        return name
    if images_out is None:
        raise ValueError("The rows have embedded pictures. Say which folder they are to be written to (`images_out`).")
    suffix = next((suffix for head, suffix in SUFFIXES.items() if data.startswith(head)), ".img")
    path = images_out / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"
    if not path.exists():
        with replacing(path) as file:
            file.write(data)
    return path.name
