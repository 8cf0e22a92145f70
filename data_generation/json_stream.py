"""Large JSON files read member by member, because mix665k and COCO's instances would fill the memory as a whole.

`stream_array` gives the elements of `[...]`, `stream_members` the members of `{...}` with the elements of its arrays
one by one, `stream_lines` the objects of JSONL. A file that is cut or broken is a `ValueError` with the place; what
came before it has been given by then.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from .sources import shown


CHUNK = 1 << 20  # characters
SPACE = " \t\n\r"


class _Reader:
    """A window on the text: `skip` and `peek` look at single characters, `value` takes one whole JSON value."""

    def __init__(self, file: IO[str], path: Path):
        self.file, self.path = file, path
        self.text, self.at, self.before = "", 0, 0  # `before`: characters that have left the window
        self.ended = False
        self.decoder = json.JSONDecoder()

    def more(self, size: int) -> bool:
        self.before += self.at
        try:
            chunk = self.file.read(size)
        except UnicodeDecodeError as error:
            self.fail(f"bytes that are no UTF-8 ({error.reason})", "UTF-8")
        self.text, self.at = self.text[self.at :] + chunk, 0
        self.ended = not chunk
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.more(CHUNK):
                return ""

    def take(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            self.fail(f"found {found!r}" if found else "the file ends", " or ".join(f"`{one}`" for one in wanted))
        self.at += 1
        return found

    def value(self) -> Any:
        size = CHUNK
        if not self.peek():
            self.fail("the file ends", "a value")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # What closes itself is whole; a number near the window's edge may go on behind it.
                if isinstance(value, (str, list, dict)) or end + 32 <= len(self.text) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # An error far from the edge cannot be mended by reading on; one long string is the exception.
                is_cut = len(self.text) - error.pos < 16 or error.msg.startswith("Unterminated string")
                if self.ended or not is_cut:
                    self.at = error.pos
                    self.fail(error.msg, "valid JSON")
            except RecursionError:
                self.fail("values nested too deeply", "a list of rows")
            except ValueError as error:  # an integer of thousands of digits
                self.fail(str(error), "valid JSON")
            if not self.more(size) and not self.text:
                self.fail("the file ends", "a value")
            size *= 2  # so that one long value is not decoded from its start again and again

    def fail(self, found: str, wanted: str) -> NoReturn:
        place = self.before + self.at
        raise ValueError(
            f"`{self.path}`: {found} at character {place:,}; wanted {wanted}. The file is cut short or no JSON: "
            "download or export it again."
        )


def stream_array(path: Path) -> Iterator[Any]:
    """The elements of a file that holds one JSON array."""
    with path.open(encoding="utf-8-sig") as file:
        reader = _Reader(file, path)
        if reader.peek() != "[":
            raise ValueError(f"`{path}` begins with {reader.peek()!r}, wanted `[`: a JSON list of rows.")
        yield from _elements(reader)
        _end(reader)


def stream_members(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a file that holds one JSON object; an array comes as one pair for each of its elements."""
    with path.open(encoding="utf-8-sig") as file:
        reader = _Reader(file, path)
        if reader.peek() != "{":
            raise ValueError(f"`{path}` begins with {reader.peek()!r}, wanted `{{`: a JSON object.")
        reader.take("{")
        if reader.peek() == "}":
            reader.take("}")
            _end(reader)
            return
        while True:
            key = reader.value()
            if not isinstance(key, str):
                reader.fail(f"found the key {key!r}", "a string")
            reader.take(":")
            if reader.peek() == "[":
                for element in _elements(reader):
                    yield key, element
            else:
                yield key, reader.value()
            if reader.take(",}") == "}":
                break
        _end(reader)


def stream_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a file with one JSON object on each line; the place is what an error names."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"`{path}`, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: {error}; wanted JSON in UTF-8. Save the file as UTF-8.") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{place}: no JSON, {error}; wanted one object on each line. Repair the line."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: {shown(row)}; wanted one JSON object on each line. Repair the line.")
            yield place, row


def _elements(reader: _Reader) -> Iterator[Any]:
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    while True:
        yield reader.value()
        if reader.take(",]") == "]":
            return


def _end(reader: _Reader) -> None:
    if reader.peek():
        reader.fail(f"found {reader.peek()!r}", "nothing more")
