"""The JSONL of the Batch API, which vLLM's `run_batch` reads and writes too: one request or one answer a line."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_generation.exchange import Request
from data_generation.replacing import replacing


KEY_DIGITS = 32


@dataclass(frozen=True)
class Line:
    """An answer: the reply's bytes as the server's, or why there is none."""

    key: str
    body: bytes = b""
    error: str = ""
    detail: str = ""


def request_line(request: Request, key: str) -> bytes:
    line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": request.body}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def write_lines(lines: Iterable[bytes], path: Path) -> str:
    """Writes all or nothing; the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with replacing(path) as file:
        for line in lines:
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def read_requests(path: Path) -> Iterator[tuple[str, Request]]:
    """Keys and requests of a file of ours."""
    with open(path, "rb") as file:
        for text in file:
            line = json.loads(text)
            yield line["custom_id"], Request(line["body"])


def read_answers(path: Path) -> Iterator[Line]:
    """The lines of an output or error file, in whatever order they are. A line that cannot be read has no key."""
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _read(text, f"{path}:{number}")


def _read(text: bytes, place: str) -> Line:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Line("", error="unreadable", detail=f"{place}: {error}")
    key = found.get("custom_id") if isinstance(found, dict) else None
    if not isinstance(key, str) or len(key) != KEY_DIGITS or not set(key) <= set("0123456789abcdef"):
        wanted = f"wanted a custom_id of {KEY_DIGITS} hex digits, as in the file with the requests"
        return Line("", error="unreadable", detail=f"{place}: custom_id is {str(key)[:40]!r}; {wanted}")
    response, problem = found.get("response"), found.get("error")
    if isinstance(problem, dict) and problem:
        return Line(key, error=str(problem.get("code") or "error"), detail=str(problem.get("message", ""))[:300])
    if not isinstance(response, dict):
        return Line(key, error="no_response", detail=f"{place}: no `response`. Is this the file of the requests?")
    body, status = response.get("body"), response.get("status_code", 200)
    if status != 200 or not isinstance(body, dict):
        detail = body.get("error") if isinstance(body, dict) else body
        return Line(key, error=f"http_{status}", detail=str(detail)[:300])
    return Line(key, body=json.dumps(body).encode())
