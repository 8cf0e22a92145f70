"""Absolute paths of this machine in text: found, and shortened to their last name for what is published."""

import json
import re
from collections.abc import Iterator
from typing import Any


ROOTS = (
    "home|root|Users|tmp|var|mnt|media|data|datasets|work|workspace|scratch|opt|srv|private|Volumes|content|kaggle|gpfs|"
    "lustre|fsx|nfs|dbfs|storage|shared|project|projects|cluster|net|raid|ssd|nvme"
)
ENDS = r"\s\"'`<>|,;()\[\]{}\\"
# In the middle of text. What stands behind a letter, a dot or a slash is part of an address or of a relative path.
IN_TEXT = re.compile(
    rf"(?<![\w.~/\\:@-])(?:file://)?/(?:{ROOTS})(?:/[^/{ENDS}]+)+|file:///[^{ENDS}]+"
    rf"|(?<![\w/])[A-Za-z]:\\+[^{ENDS}]+(?:\\+[^{ENDS}]+)*"
)
# A string of JSON that is nothing but a path, wherever it begins.
WHOLE = re.compile(r"(?:/[^/\0\n]{1,255}){2,}/?|[A-Za-z]:[\\/][^\0\n]{1,1024}|\\\\[^\0\n]{1,1024}")
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")


def find(text: str) -> Iterator[re.Match[str]]:
    """Where a local path stands in `text`; in place of embedded pictures there is space."""
    return IN_TEXT.finditer(EMBEDDED.sub(lambda found: " " * len(found[0]), text))


def strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string of parsed JSON, keys too, and the place that it stands at."""
    if isinstance(value, str):
        yield place or "the text", value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"a key of {place or 'the object'}", str(name)
            yield from strings(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from strings(inner, f"{place}[{number}]")


def in_json(value: Any) -> Iterator[tuple[str, str]]:
    """Place and path of every local path in parsed JSON."""
    for place, text in strings(value):
        if WHOLE.fullmatch(text):
            yield place, text
        else:
            yield from ((place, found[0]) for found in find(text))


def last_name(path: str) -> str:
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def shorten(text: str) -> str:
    """The text with every local path as its last name."""
    if WHOLE.fullmatch(text):
        return last_name(text)
    pieces, end = [], 0
    for found in find(text):
        pieces += [text[end : found.start()], last_name(found[0])]
        end = found.end()
    return "".join([*pieces, text[end:]])


def shorten_json(value: Any) -> Any:
    if isinstance(value, str):
        return shorten(value)
    if isinstance(value, dict):
        return {shorten(str(name)): shorten_json(inner) for name, inner in value.items()}
    return [shorten_json(inner) for inner in value] if isinstance(value, list) else value


def shortened(content: bytes) -> bytes:
    """A JSON file, its paths shortened; the very bytes where it has none."""
    value = json.loads(content)
    return json.dumps(shorten_json(value), indent=1).encode() if next(in_json(value), None) else content
