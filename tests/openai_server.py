"""A server that speaks as much of the OpenAI API as we use, with every fault a test can order, in its own process.

    with FakeServer(latency=0.05, faults=[{"match": "q7", "times": 3, "status": 500}]) as server:
        ... server.url ... server.stats()["billed"] ...

A fault applies to requests whose last message contains `match` (all, without it) and whose path is `path`, at most
`times` times, with the probability `share`. What it does, in this order:

- `seconds`: sleeps before anything else
- `status`, `headers`, `error`: answers so, unbilled
- `close`: "rst" or "fin", before the work, or with `billed` after it
- `raw`, `type`, `length`: other bytes as the body of a 200, another content type, a wrong content length; billed
- `patch`: fields of the answer's JSON to replace; billed
- `endless`: with such a status, a body without end; billed
- `drip`: sends the answer in ten pieces with so many seconds between them; billed
"""

import argparse
import asyncio
import base64
import collections
import json
import random
import subprocess
import sys
import time
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tests.openai_batches import Batches


class Lost(Exception):
    """The connection is to be dropped."""


class Server:
    def __init__(self, settings: dict[str, Any]):
        self.latency, self.jitter = settings.get("latency", 0.01), settings.get("jitter", 0.0)
        self.words = settings.get("words", 0)  # padding of every answer
        self.random = random.Random(settings.get("seed", 0))
        self.faults = [dict(fault) for fault in settings.get("faults", [])]
        self.billed: collections.Counter[str] = collections.Counter()
        self.billed_tokens = [0, 0]
        self.seen: list[tuple[float, str, str]] = []  # time, path, last message
        self.in_flight = self.most_in_flight = 0
        self.batches = Batches(settings.get("batches", {}), self.complete)

    def complete(self, body: dict) -> dict:
        """The answer to a request, which from here on is billed."""
        question = words_of(body["messages"][-1]["content"])
        text = f"answer to {question}" + " word" * self.words
        tokens = sum(len(words_of(message["content"])) for message in body["messages"]) // 4 + 3, len(text) // 4
        tokens = tokens[0], min(tokens[1], body.get("max_completion_tokens") or tokens[1])
        self.billed[question] += 1
        self.billed_tokens = [self.billed_tokens[0] + tokens[0], self.billed_tokens[1] + tokens[1]]
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "total_tokens": sum(tokens),
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }

    def fault(self, path: str, question: str) -> dict[str, Any]:
        for fault in self.faults:
            if path != fault.get("path", "/v1/chat/completions") or fault.get("match", "") not in question:
                continue
            if fault.get("times", 1) <= 0 or self.random.random() >= fault.get("share", 1.0):
                continue
            if "times" in fault:
                fault["times"] -= 1
            return fault
        return {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, Lost):
            pass
        finally:
            writer.close()

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/stats":
            send(writer, json.dumps(self.stats()).encode())
        elif path == "/v1/chat/completions":
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                await self.chat(json.loads(body), writer)
            finally:
                self.in_flight -= 1
        else:
            await self.other(method, path, headers, body, writer)
        await writer.drain()
        return headers.get("connection", "").lower() != "close"

    async def chat(self, body: dict, writer: asyncio.StreamWriter) -> None:
        question = words_of(body["messages"][-1]["content"])
        self.seen.append((time.monotonic(), "/v1/chat/completions", question))
        fault = self.fault("/v1/chat/completions", question)
        await asyncio.sleep(fault.get("seconds", 0))
        if "status" in fault or ("close" in fault and not fault.get("billed")):
            refuse(fault, writer)
            return
        if wait := self.latency + self.jitter * self.random.random():
            await asyncio.sleep(wait)
        answer = json.dumps(self.complete(body) | fault.get("patch", {})).encode()
        if "raw" in fault:
            answer = fault["raw"].encode() if isinstance(fault["raw"], str) else answer[: fault["raw"]]
        if "endless" in fault:
            send(writer, b"", fault["endless"], length=1 << 40)
            while True:
                writer.write(b" " * 65536)
                await writer.drain()
        if "drip" in fault:
            send(writer, b"", length=len(answer))
            for piece in range(10):
                writer.write(answer[piece * len(answer) // 10 : (piece + 1) * len(answer) // 10])
                await writer.drain()
                await asyncio.sleep(fault["drip"])
        elif "close" in fault:
            refuse(fault, writer)
        else:
            send(writer, answer, content_type=fault.get("type", "application/json"), length=fault.get("length"))
            if "length" in fault:
                await writer.drain()
                raise Lost

    async def other(self, method: str, path: str, headers: dict, body: bytes, writer: asyncio.StreamWriter) -> None:
        """Files and batches. A fault whose `close` is `billed` loses the answer after the server has acted."""
        self.seen.append((time.monotonic(), f"{method} {path}", ""))
        fault = self.fault(f"{method} {path.partition('?')[0]}", "")
        await asyncio.sleep(fault.get("seconds", 0))
        if fault and not fault.get("billed"):
            refuse(fault, writer)
            return
        status, answer = self.batches.serve(method, path, headers.get("content-type", ""), body)
        if fault:
            refuse(fault, writer)
        send(writer, answer, status)

    def stats(self) -> dict[str, Any]:
        return {
            "requests": len(self.seen),
            "billed": self.billed,
            "total": self.billed.total(),
            "twice": self.billed.total() - len(self.billed),
            "tokens": self.billed_tokens,
            "most_in_flight": self.most_in_flight,
            "seen": self.seen[-5000:],
            "batches": self.batches.created,
            "files": list(self.batches.files),
        }


def words_of(content: str | list[dict]) -> str:
    """The text of a message; a picture in it is its format, size and colour at the top left."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if part["type"] == "text" else look(part["image_url"]["url"]) for part in content)


def look(url: str) -> str:
    kind, _, data = url.partition(";base64,")
    with Image.open(BytesIO(base64.b64decode(data, validate=True))) as image:
        if kind != f"data:image/{image.format.lower()}":
            raise ValueError(f"{kind} holds {image.format}")
        return f"[{image.format} {image.width}x{image.height} {image.convert('RGB').getpixel((0, 0))}]"


def send(
    writer: asyncio.StreamWriter,
    body: bytes,
    status: int = 200,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
    length: int | None = None,
) -> None:
    lines = [
        f"HTTP/1.1 {status} X",
        f"content-type: {content_type}",
        f"content-length: {len(body) if length is None else length}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def refuse(fault: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    if "close" in fault:
        if fault["close"] == "rst":
            writer.transport.abort()
        raise Lost
    headers = {name: value.replace("$SECONDS", http_date(2)) for name, value in fault.get("headers", {}).items()}
    error = {"error": {"message": "ordered by the test", **fault.get("error", {})}}
    send(writer, json.dumps(error).encode(), fault["status"], headers)


def http_date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds))


class FakeServer:
    """The server's process, from the outside."""

    def __init__(self, **settings: Any):
        self._settings = settings

    def __enter__(self) -> "FakeServer":
        command = [sys.executable, "-m", "tests.openai_server", json.dumps(self._settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
        self.root = self._process.stdout.readline().strip()
        self.url = f"{self.root}/v1"
        return self

    def __exit__(self, *exception) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def stats(self) -> dict[str, Any]:
        # No proxy of the surroundings may come between.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.root}/stats", timeout=30) as answer:
            return json.load(answer)


async def main(settings: dict[str, Any], port: int) -> None:
    server = await asyncio.start_server(Server(settings).serve, "127.0.0.1", port, limit=2**22, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=json.loads, nargs="?", default={})
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.settings, arguments.port))
