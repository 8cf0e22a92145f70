"""Files and batches of the API, in memory: gone when the server ends."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .refusals import Unanswerable


ENDPOINT = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # in a batch, as the API has it
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class File:
    content: bytes
    name: str
    purpose: str
    created: int = field(default_factory=lambda: int(time.time()))


class Batches:
    """`complete` answers one request's body or raises `Unanswerable`."""

    def __init__(self, complete: Callable[[Any], dict[str, Any]]):
        self._complete = complete
        self._files: dict[str, File] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)
        self._running: set[asyncio.Task] = set()

    def serve(self, method: str, path: str, query: dict[str, str], content_type: str, body: bytes) -> Any:
        """The JSON of the answer, or bytes for a file's content."""
        match method, path.strip("/").split("/"):
            case "POST", ["files"]:
                return self._upload(content_type, body)
            case "GET", ["files"]:
                found = [self._about(name) for name in reversed(self._files)]
                wanted = query.get("purpose")
                return self._page([file for file in found if wanted in (None, file["purpose"])], query)
            case "GET", ["files", name]:
                return self._about(name)
            case "GET", ["files", name, "content"]:
                return self._file(name).content
            case "DELETE", ["files", name]:
                self._file(name)
                del self._files[name]
                return {"id": name, "object": "file", "deleted": True}
            case "POST", ["batches"]:
                return self._create(body)
            case "GET", ["batches"]:
                return self._page([self._public(name) for name in reversed(self._batches)], query)
            case "GET", ["batches", name]:
                return self._public(name)
            case "POST", ["batches", name, "cancel"]:
                batch = self._batch(name)
                if batch["status"] not in ENDED:
                    batch["status"] = "cancelling"
                return self._public(name)
        raise Unanswerable(f"There is no {method} /v1{path} here.", 404, "unknown_url")

    # -- files --

    def _upload(self, content_type: str, body: bytes) -> dict[str, Any]:
        fields = read_form(content_type, body)
        if "file" not in fields or "purpose" not in fields:
            raise Unanswerable(f"An upload with the fields {sorted(fields)}, wanted `file` and `purpose`.")
        filename, content = fields["file"]
        return self._about(self._keep(content, filename or "upload", fields["purpose"][1].decode()))

    def _keep(self, content: bytes, filename: str, purpose: str) -> str:
        name = f"file-{next(self._numbers):06}"
        self._files[name] = File(content, filename, purpose)
        return name

    def _file(self, name: str) -> File:
        if name not in self._files:
            raise Unanswerable(f"There is no file `{name}`. Files go when the server ends.", 404, "not_found")
        return self._files[name]

    def _about(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        about = {"id": name, "object": "file", "bytes": len(file.content), "created_at": file.created}
        return about | {"filename": file.name, "purpose": file.purpose, "status": "processed"}

    # -- batches --

    def _create(self, body: bytes) -> dict[str, Any]:
        try:
            order = json.loads(body)
            endpoint, file = order["endpoint"], order["input_file_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswerable(f"A batch needs `endpoint` and `input_file_id`: {error!r}.") from error
        if endpoint != ENDPOINT:
            raise Unanswerable(f"A batch for {endpoint!r}; there are only those for {ENDPOINT}.")
        self._file(file)
        name = f"batch_{next(self._numbers):06}"
        self._batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": endpoint,
            "input_file_id": file,
            "completion_window": order.get("completion_window", "24h"),
            "metadata": order.get("metadata"),
            "created_at": int(time.time()),
            "status": "validating",
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        task = asyncio.get_running_loop().create_task(self._run(self._batches[name]))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return self._public(name)

    async def _run(self, batch: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        lines, problems = read_lines(self._files[batch["input_file_id"]].content)
        counts = batch["request_counts"]
        if problems:
            batch["errors"] = {"object": "list", "data": problems}
            batch["status"] = "failed"
            return
        counts["total"] = len(lines)
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        answers: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            about = {"id": f"{batch['id']}_{number:06}", "custom_id": line["custom_id"]}
            if batch["status"] == "cancelling":
                error = {"code": "batch_cancelled", "message": "The batch was cancelled before this request."}
                refused.append(about | {"response": None, "error": error})
                continue
            try:
                body, status = self._complete(line["body"]), 200
            except Unanswerable as error:
                body, status = error.body(), error.status
            response = {"status_code": status, "request_id": about["id"], "body": body}
            (answers if status == 200 else refused).append(about | {"response": response, "error": None})
            counts["completed" if status == 200 else "failed"] += 1
            await asyncio.sleep(0)  # others are served meanwhile
        for where, rows in (("output_file_id", answers), ("error_file_id", refused)):
            if rows:
                content = "".join(json.dumps(row) + "\n" for row in rows).encode()
                batch[where] = self._keep(content, f"{batch['id']}_{where.removesuffix('_id')}.jsonl", "batch_output")
        batch["status"] = "cancelled" if batch["status"] == "cancelling" else "completed"

    def _batch(self, name: str) -> dict[str, Any]:
        if name not in self._batches:
            raise Unanswerable(
                f"There is no batch `{name}`. Batches are gone when the server has ended.", 404, "not_found"
            )
        return self._batches[name]

    def _public(self, name: str) -> dict[str, Any]:
        batch = self._batch(name)
        return batch | {"request_counts": dict(batch["request_counts"])}

    def _page(self, found: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        names = [entry["id"] for entry in found]
        if query.get("after") in names:
            found = found[names.index(query["after"]) + 1 :]
        limit = query.get("limit", "")
        page = found[: int(limit)] if limit.isdecimal() else found
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return {"object": "list", "data": page, "has_more": len(page) < len(found)} | ends


def read_lines(content: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of a batch's file, and what is wrong with it."""
    lines: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, raw in enumerate(content.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            name, url, _ = line["custom_id"], line["url"], line["body"]
        except (ValueError, KeyError, TypeError) as error:
            problem = ("invalid_json_line", f"wanted custom_id, url and body in JSON: {error!r}")
        else:
            problem = ("", "")
            if url != ENDPOINT:
                problem = ("invalid_url", f"the url {url!r}, wanted {ENDPOINT}")
            elif name in seen:
                problem = ("duplicate_custom_id", f"the custom_id {name!r} a second time")
            seen.add(name)
            lines.append(line)
        if problem[0]:
            problems.append({"code": problem[0], "message": f"Line {number}: {problem[1]}.", "line": number})
    if not lines and not problems:
        problems.append({"code": "empty_file", "message": "The file has no requests.", "line": None})
    if len(lines) > MOST_REQUESTS:
        text = f"{len(lines):,} requests, at most {MOST_REQUESTS:,} are allowed."
        problems.append({"code": "too_many_tasks", "message": text, "line": None})
    return lines, problems


def read_form(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """File name and content of each field of multipart/form-data."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        raise Unanswerable(f"An upload of the type {content_type[:80]!r}, wanted multipart/form-data.")
    found = {}
    # A line end stands before every boundary but the first, and belongs to it.
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode())[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        filename = re.search(rb'filename="([^"]*)"', head)
        if name:
            found[name[1].decode()] = (filename[1].decode() if filename else "", content)
    return found
