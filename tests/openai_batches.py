"""Files and batches of the fake server, in memory.

Settings: `polls` until a batch ends; `end` is its last status; `done` the share of its requests that were answered
by then; `shuffle` the output; `fail` questions that come out as errors; `token_limit` so many first batches fail with
`token_limit_exceeded`; `blind` so many first lists of batches do not show them.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any


class Batches:
    def __init__(self, settings: dict[str, Any], complete: Callable[[dict], dict]):
        self.settings, self.complete = settings, complete
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.created: list[dict[str, Any]] = []
        self.lists = 0
        self.numbers = iter(range(1, 10**9))

    def serve(self, method: str, path: str, content_type: str, body: bytes) -> tuple[int, bytes]:
        path = path.partition("?")[0].removeprefix("/v1")
        match method, path.strip("/").split("/"):
            case "POST", ["files"]:
                return self.answer(self.upload(content_type, body))
            case "GET", ["files", name, "content"] if name in self.files:
                return 200, self.files[name]
            case "DELETE", ["files", name] if name in self.files:
                del self.files[name]
                return self.answer({"id": name, "object": "file", "deleted": True})
            case "GET", ["files"]:
                found = [self.file(name) for name in self.files]
                return self.answer({"object": "list", "data": found, "has_more": False})
            case "POST", ["batches"]:
                return self.answer(self.create(json.loads(body)))
            case "GET", ["batches"]:
                self.lists += 1
                shown = [] if self.lists <= self.settings.get("blind", 0) else self.created[::-1]
                return self.answer({"object": "list", "data": [public(batch) for batch in shown], "has_more": False})
            case "GET", ["batches", name]:
                for batch in self.created:
                    if batch["id"] == name:
                        return self.answer(public(self.advance(batch)))
        return 404, json.dumps({"error": {"message": f"no {method} {path}"}}).encode()

    def answer(self, found: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps(found).encode()

    def upload(self, content_type: str, body: bytes) -> dict[str, Any]:
        boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
        (content,) = [
            part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            for part in body.split(b"--" + boundary)
            if b'name="file"' in part.partition(b"\r\n\r\n")[0]
        ]
        name = self.keep(content, re.search(rb'filename="([^"]+)"', body)[1].decode())
        return self.file(name)

    def keep(self, content: bytes, filename: str) -> str:
        name = f"file-{next(self.numbers)}"
        self.files[name], self.names[name] = content, filename
        return name

    def file(self, name: str) -> dict[str, Any]:
        about = {"object": "file", "created_at": 1, "purpose": "batch", "status": "processed"}
        return {"id": name, "bytes": len(self.files[name]), "filename": self.names[name], **about}

    def create(self, order: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{next(self.numbers)}",
            "object": "batch",
            "endpoint": order["endpoint"],
            "completion_window": order["completion_window"],
            "created_at": 1,
            "input_file_id": order["input_file_id"],
            "metadata": order.get("metadata"),
            "status": "validating",
            "polls": 0,
        }
        self.created.append(batch)
        return public(batch)

    def advance(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch
        batch["polls"] += 1
        batch["status"] = "in_progress"
        if self.created.index(batch) < self.settings.get("token_limit", 0):
            batch["status"] = "failed"
            message = "Enqueued token limit reached for m in organization x."
            batch["errors"] = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": message}]}
        elif batch["polls"] > self.settings.get("polls", 1):
            self.finish(batch)
        return batch

    def finish(self, batch: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        batch["status"] = self.settings.get("end", "completed")
        answered = round(len(lines) * self.settings.get("done", 1.0))
        good, bad = [], []
        for number, line in enumerate(lines):
            named = {"id": f"r{number}", "custom_id": line["custom_id"]}
            if number >= answered:
                error = {"code": f"batch_{batch['status']}", "message": "This request was not executed in time."}
                bad.append({**named, "response": None, "error": error})
            elif line["body"]["messages"][-1]["content"] in self.settings.get("fail", []):
                body = {"error": {"message": "refused by the test", "code": "invalid_prompt"}}
                bad.append({**named, "response": {"status_code": 400, "body": body}, "error": None})
            else:
                good.append(
                    {**named, "response": {"status_code": 200, "body": self.complete(line["body"])}, "error": None}
                )
        if self.settings.get("shuffle"):
            random.Random(0).shuffle(good)
        for field, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[field] = self.keep("".join(json.dumps(row) + "\n" for row in rows).encode(), "answers.jsonl")


def public(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "polls"}
