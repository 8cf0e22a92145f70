"""The HTTP side of the teacher: chat completions, models, files and batches of the OpenAI API, for this machine alone.

    with running_teacher() as url:       # in a thread of this process
        openai.OpenAI(base_url=url, api_key="none").chat.completions.create(model="microworld", messages=...)

`llava teacher` runs it by itself.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .batches import Batches
from .completion import CREATED, MODEL, chunks, complete
from .faults import Chances, Faults
from .refusals import Unanswerable


HOST = "127.0.0.1"
MOST_BYTES = 256 * 2**20  # of a request's body: a batch's file
MODELS = [{"id": MODEL, "object": "model", "created": CREATED, "owned_by": "visual-instruction-tuning"}]

log = logging.getLogger(__name__)


class Lost(Exception):
    """The connection ends here."""


class TeacherServer:
    """
    Args:
        seed: of what is written, and of the faults.
        retry_after: seconds that a throttled request is told to wait.
        delay: seconds that a slow answer takes.
    """

    def __init__(self, seed: int = 0, chances: Chances | None = None, retry_after: float = 1.0, delay: float = 5.0):
        self.seed, self.retry_after, self.delay = seed, retry_after, delay
        self.faults = Faults(chances or Chances(), seed)
        self.num_answers = 0
        self.num_refused = 0
        self._batches = Batches(self._complete)

    async def start(self, port: int = 0) -> asyncio.Server:
        return await asyncio.start_server(self._connection, HOST, port, backlog=1024)

    def _complete(self, body: Any) -> dict[str, Any]:
        try:
            answer = complete(body, self.seed)
        except Unanswerable:
            self.num_refused += 1
            raise
        self.num_answers += 1
        return answer

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, Lost):
            log.debug("a connection ended")
        except asyncio.CancelledError:
            log.debug("the server ends")  # of a task that ends by this, Python 3.11 prints a traceback
        except ValueError as error:  # a head that is no HTTP
            log.debug("a connection ended: %s", error)
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays open."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            body = await self._read_body(reader, headers)
            await self._answer(method, target, headers, body, writer)
        except Unanswerable as error:
            send(writer, error.body(), error.status)
        except Lost:
            raise
        except Exception:
            log.exception("a request was not answered")
            send(writer, Unanswerable("The teacher failed; its log says how.", 500, "internal").body(), 500)
        await writer.drain()
        return headers.get("connection", "").lower() != "close"

    async def _read_body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            pieces: list[bytes] = []
            while size := int((await reader.readline()).split(b";")[0], 16):
                if size + sum(len(piece) for piece in pieces) > MOST_BYTES:
                    raise Lost
                pieces.append(await reader.readexactly(size))
                await reader.readline()
            while (await reader.readline()).strip():
                continue
            return b"".join(pieces)
        length = int(headers.get("content-length", 0))
        if length > MOST_BYTES:
            raise Lost
        return await reader.readexactly(length)

    async def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        url = urlsplit(target)
        path = url.path.removeprefix("/v1").rstrip("/")
        if path == "/chat/completions" and method == "POST":
            await self._chat(body, writer)
        elif path == "/models":
            send(writer, {"object": "list", "data": MODELS})
        elif path == f"/models/{MODEL}":
            send(writer, MODELS[0])
        else:
            found = self._batches.serve(
                method, path, dict(parse_qsl(url.query)), headers.get("content-type", ""), body
            )
            send(writer, found)

    async def _chat(self, raw: bytes, writer: asyncio.StreamWriter) -> None:
        fault = self.faults.next()
        if fault == "throttled":
            refusal = Unanswerable("Too many requests, as this server was told to say.", 429, "rate_limit_exceeded")
            send(writer, refusal.body(), 429, {"retry-after": f"{self.retry_after:g}"})
            return
        if fault == "failed":
            raise Unanswerable("An error, as this server was told to make.", 500, "internal")
        if fault == "slow":
            await asyncio.sleep(self.delay)
        if fault == "dropped":
            raise Lost
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Unanswerable(f"The request is no JSON: {error}.") from error
        answer = self._complete(body)
        if body.get("stream"):
            options = body.get("stream_options")
            await stream(writer, answer, isinstance(options, dict) and bool(options.get("include_usage")), fault)
            return
        send(writer, answer, is_cut=fault == "cut")
        if fault == "cut":
            await writer.drain()
            raise Lost


def send(
    writer: asyncio.StreamWriter,
    content: Any,
    status: int = 200,
    headers: dict[str, str] | None = None,
    is_cut: bool = False,
) -> None:
    raw = isinstance(content, bytes)
    body = content if raw else json.dumps(content).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"content-type: {'application/octet-stream' if raw else 'application/json'}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body[: len(body) // 2] if is_cut else body))


async def stream(writer: asyncio.StreamWriter, answer: dict[str, Any], with_usage: bool, fault: str | None) -> None:
    """Server-sent events, each in a chunk of HTTP."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    events = [json.dumps(event) for event in chunks(answer, with_usage)] + ["[DONE]"]
    for number, event in enumerate(events):
        if fault == "cut" and number >= len(events) // 2:
            raise Lost
        data = f"data: {event}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")


@contextlib.contextmanager
def running_teacher(server: TeacherServer | None = None) -> Iterator[str]:
    """The base URL of a teacher in a thread of this process, until the block ends."""
    server = server or TeacherServer()
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(server.start(0))
    thread = threading.Thread(target=loop.run_forever, name="teacher", daemon=True)
    thread.start()
    try:
        yield url_of(listening)
    finally:
        asyncio.run_coroutine_threadsafe(_close(listening), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(listening: asyncio.Server) -> None:
    listening.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def url_of(listening: asyncio.Server) -> str:
    return f"http://{HOST}:{listening.sockets[0].getsockname()[1]}/v1"
